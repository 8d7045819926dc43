"""The token microscope of a run as plain values: each token with its verdict, its shade and its chances."""

from collections.abc import Iterable, Mapping

from mlx_finetune.dataset.visible import harmless
from mlx_finetune.monitor.microscope import (
    MEANINGS,
    Microscope,
    Moved,
    Token,
    chance,
    find,
    read_microscope,
    row_head,
    shade,
    verdict,
)
from mlx_finetune.recipe.heads import SCORED_TASKS
from mlx_finetune.rundir import RunDir, task_of

Json = dict[str, object]

_NOTHING_YET = "Nothing was measured here yet. It is measured at the end of a training that has validation rows."
_NO_LOSSES = "This run was trained to score: the losses of single tokens say nothing about it."


def microscope_json(run: RunDir) -> Mapping[str, object]:
    """Rows, shares of the verdicts, and what moved most; ``rows`` is None where nothing was measured, and ``none`` says
    why."""
    found = read_microscope(run)
    if found is None:
        return {"rows": None, "none": _NO_LOSSES if task_of(run) in SCORED_TASKS else _NOTHING_YET}
    return lens_json(found)


def lens_json(microscope: Microscope) -> Json:
    """The same of what was read."""
    findings, measured = find(microscope), microscope.measured
    of = f"rows of {measured.data}" if measured.data else "validation rows"
    when = "" if measured.step is None else f" after step {measured.step}"
    return {
        "summary": f"{of}{when}: {findings.num_targets} trained tokens, mean loss {findings.base:.3f} nats under "
        f"{measured.model or 'the base'}, {findings.tuned:.3f} now; a stronger colour means further",
        "verdicts": [
            (name, "" if name == "context" else f"{findings.share(name):.0%}", meaning)
            for name, meaning in MEANINGS.items()
        ],
        "moved": [_moved_json("Gained most", findings.gains), _moved_json("Lost most", findings.losses)],
        "rows": [
            {"head": row_head(row), "notes": list(row.notes), "tokens": [_token_json(token) for token in row.tokens]}
            for row in microscope.rows
        ],
    }


def _moved_json(title: str, found: Iterable[Moved]) -> Json:
    tokens = [
        {
            "base": chance(one.token.base),
            "tuned": chance(one.token.tuned),
            "before": one.before,
            "token": _token_json(one.token),
            "after": one.after,
        }
        for one in found
    ]
    return {"title": title, "tokens": tokens}


def _token_json(token: Token) -> tuple[str, str, int, str]:
    """Text, verdict, shade, and what is said of it."""
    name = verdict(token)
    said = "" if name == "context" else f"{name}: {chance(token.base)} before, {chance(token.tuned)} now"
    return harmless(token.text), name, shade(token), said
