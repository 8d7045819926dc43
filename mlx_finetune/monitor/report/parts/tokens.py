"""The token microscope on the page: its markup is made and escaped in ``monitor.microscope``."""

from dataclasses import replace

from mlx_finetune.monitor.microscope import render_html
from mlx_finetune.monitor.report.facts import ReportFacts
from mlx_finetune.monitor.report.markup import Html, section, tag
from mlx_finetune.units import counted

#: Tokens that are shown, in whole rows: each is some 170 bytes.
_MOST_TOKENS = 5000


def tokens(facts: ReportFacts) -> Html | None:
    """The section; None where no tokens were measured."""
    microscope = facts.microscope
    if microscope is None or not microscope.rows:
        return None
    count, kept = 0, 0
    for row in microscope.rows:
        count += len(row.tokens)
        kept += count <= _MOST_TOKENS or not kept
    rows = "Rows" if microscope.measured.data else "Validation rows"
    note = f"The first {kept} of {counted(len(microscope.rows), 'row')} are shown."
    return section(
        "tokens",
        "Token by token",
        tag(
            "p", f"{rows}, each token coloured by what training did to it. Point at one for its figures.", class_="hint"
        ),
        Html(render_html(replace(microscope, rows=microscope.rows[:kept]))),
        tag("p", note, class_="note") if kept < len(microscope.rows) else None,
    )
