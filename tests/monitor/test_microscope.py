"""The token microscope: verdicts, what they add up to, and pages that no token can break."""

import math
import re
from html.parser import HTMLParser

import pytest
from rich.cells import cell_len
from rich.console import Console

from mlx_finetune.monitor.microscope import (
    MEANINGS,
    MOVED_NATS,
    STYLE,
    WRONG_NATS,
    Microscope,
    Row,
    Token,
    chance,
    find,
    render_html,
    render_text,
    shade,
    verdict,
)

HOSTILE = "</script><script>alert(1)</script> \x1b[31mred\x07 \u202eevil\u2066 \ud800 &amp; \"'`"


def _token(base: float, tuned: float, text: str = "a") -> Token:
    return Token(text, True, base, tuned)


@pytest.mark.parametrize(
    ("base", "tuned", "expected"),
    [
        (3.0, 0.1, "learned"),
        (MOVED_NATS, 0.0, "learned"),
        (MOVED_NATS - 0.001, 0.0, "known"),
        (0.0, 0.0, "known"),
        (WRONG_NATS, WRONG_NATS, "known"),
        (WRONG_NATS + 0.001, WRONG_NATS + 0.001, "wrong"),
        (9.0, 4.0, "wrong"),
        (0.0, MOVED_NATS, "worse"),
        (0.0, MOVED_NATS - 0.001, "known"),
        (4.0, 6.0, "worse"),
        (99.0, 99.0, "wrong"),
    ],
)
def test_verdicts_at_and_beside_their_thresholds(base: float, tuned: float, expected: str):
    assert verdict(_token(base, tuned)) == expected


def test_what_was_not_trained_is_context():
    assert verdict(Token("a", False)) == "context"
    assert verdict(Token("a", False, 5.0, 0.0)) == "context"


def test_shades_follow_what_was_gained_lost_or_is_wrong():
    assert [shade(_token(base, tuned)) for base, tuned in ((1.0, 0.1), (1.7, 0.1), (8.0, 0.1))] == [1, 2, 3]
    assert [shade(_token(0.1, tuned)) for tuned in (1.0, 2.0, 9.0)] == [1, 2, 3]
    assert [shade(_token(tuned, tuned)) for tuned in (1.4, 2.0, 9.0)] == [1, 2, 3]
    assert shade(Token("a", False)) == 1


def _microscope() -> Microscope:
    first = (
        Token("<|user|>", False),
        Token("Hi\n", False),
        _token(6.0, 0.05, "Aye"),
        _token(0.2, 0.1, ","),
        _token(5.0, 4.5, " matey"),
        _token(0.1, 2.5, "!"),
    )
    return Microscope((Row("rows.jsonl:3", first), Row("rows.jsonl:9", (_token(2.0, 0.5, "Yes\tno\n"),), ("cut",))))


def test_findings_count_and_name_what_moved_most():
    found = find(_microscope())
    assert found.counts == {"learned": 2, "known": 1, "wrong": 1, "worse": 1, "context": 2}
    assert (found.num_targets, found.share("learned")) == (5, 0.4)
    assert found.base == pytest.approx((6 + 0.2 + 5 + 0.1 + 2) / 5)
    assert found.tuned == pytest.approx((0.05 + 0.1 + 4.5 + 2.5 + 0.5) / 5)
    assert [one.token.text for one in found.gains] == ["Aye", "Yes\tno\n"]
    assert [(one.before, one.token.text, one.where) for one in found.losses] == [
        ("<|user|>Hi\nAye, matey", "!", "rows.jsonl:3")
    ]
    assert [one.token.text for one in find(_microscope(), most=1).gains] == ["Aye"]


def test_findings_of_nothing():
    found = find(Microscope(()))
    assert (found.num_targets, found.base, found.share("learned"), found.gains) == (0, 0.0, 0.0, ())


def test_losses_as_chances():
    assert [chance(loss) for loss in (0.0, math.log(2), 3.0, 5.0, 9.0, None)] == [
        "100%", "50%", "5.0%", "0.7%", "<0.1%", "100%",
    ]  # fmt: skip


def test_without_colours_every_group_stands_in_its_marks():
    lines = [line.plain for line in render_text(_microscope(), 200, in_colour=False)]
    assert lines[:3] == [
        "rows.jsonl:3  6 tokens, 4 trained; loss 2.825 -> 1.788 nats",
        "{<|user|>Hi\\n}",
        "+[Aye],?[ matey]-[!]",
    ]
    assert "+[Yes\\tno\\n]" in lines
    assert "-> cut" in lines
    assert "+[learned]  40%  at least twice as likely as before, and now 1 in 4 or more" in lines
    assert "   0.2% -> 95%    <|user|>Hi\\n+[Aye], matey!" in lines
    assert not any(span.style for line in render_text(_microscope(), 200, in_colour=False) for span in line.spans)


def test_with_colours_each_verdict_differs_in_more_than_its_colour():
    lines = render_text(_microscope(), 200)
    styles = {line.plain[span.start : span.end]: str(span.style) for line in lines for span in line.spans}
    assert "underline" in styles["Aye"]
    assert "bold" in styles[" matey"]
    assert "strike" in styles["!"]
    assert "dim" in styles["<|user|>"]
    assert "," not in styles
    assert not any("[" in line.plain for line in lines)


@pytest.mark.parametrize("width", [1, 20, 37, 80])
def test_no_line_is_wider_than_asked_for_and_nothing_is_lost(width: int):
    text = "word " * 9 + "\u4e16\u754c" * 30 + "x" * 50
    row = Row("rows.jsonl:3", tuple(_token(2.0, 0.1, part) for part in (*text.split("|"), "end")))
    lines = [line.plain for line in render_text(Microscope((row,)), width, in_colour=False)]
    assert max(cell_len(line) for line in lines) <= max(width, 20)
    assert text + "end" in "".join(lines)


@pytest.mark.parametrize("in_colour", [True, False])
def test_nothing_in_a_token_reaches_the_terminal_as_an_escape(in_colour: bool):
    row = Row(HOSTILE, (Token(HOSTILE, False), _token(3.0, 0.1, HOSTILE), _token(0.1, 3.0, "\r\n\t")), (HOSTILE,))
    for line in render_text(Microscope((row,)), 60, in_colour=in_colour):
        assert line.plain.isprintable()


def test_a_terminal_without_colours_still_tells_verdicts_apart():
    console = Console(force_terminal=True, no_color=True, width=80, color_system="truecolor")
    with console.capture() as capture:
        for line in render_text(_microscope(), 80):
            console.print(line)
    shown = capture.get()
    assert "\x1b[4mAye\x1b[0m" in shown
    assert "\x1b[1m matey\x1b[0m" in shown
    assert "\x1b[9m!\x1b[0m" in shown


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _parsed(microscope: Microscope) -> _Tags:
    tags = _Tags()
    tags.feed(render_html(microscope))
    assert tags.open == []
    return tags


def test_a_page_has_only_our_own_tags_whatever_the_tokens_say():
    row = Row(HOSTILE, (Token(HOSTILE, False), _token(3.0, 0.1, HOSTILE), _token(0.1, 3.0, HOSTILE)), (HOSTILE,))
    tags = _parsed(Microscope((row,)))
    assert tags.tags <= {"div", "p", "b", "bdi", "br", "table", "tbody", "tr", "td", "caption"}
    assert tags.attributes == {"class", "title"}
    assert "</script><script>alert(1)</script> \\x1b[31mred\\x07 \\u202eevil\\u2066 \\ud800 &amp; \"'`" in tags.text
    assert not {char for char in render_html(Microscope((row,))) if not char.isprintable()}


def test_a_page_shows_line_breaks_tabs_chances_shares_and_meanings():
    html = render_html(_microscope())
    assert '<bdi class="ms-context">Hi\\n</bdi><br>' in html
    assert "Yes\\tno\\n</bdi></b><br>" in html
    assert (
        '<b class="ms-learned ms-3" title="learned: 0.2% before, 95% now (6.00 -&gt; 0.05)"><bdi>Aye</bdi></b>' in html
    )
    assert '<b title="known: ' in html
    text = _parsed(_microscope()).text
    assert all(meaning in text for meaning in MEANINGS.values())
    assert "40%" in text


def test_every_class_of_a_page_has_a_style_or_needs_none():
    used = {name for names in re.findall(r'class="([^"]+)"', render_html(_microscope())) for name in names.split()}
    styled = set(re.findall(r"\.(ms-[a-z0-9]+)", STYLE))
    assert used - styled == {"ms", "ms-known"}


def test_parts_of_a_character_are_dots():
    row = Row("x:1", (_token(0.1, 0.1, "\U0001f600"), _token(0.1, 0.1, ""), _token(3.0, 0.1, "")))
    assert "\U0001f600\u00b7+[\u00b7]" in [line.plain for line in render_text(Microscope((row,)), 80, in_colour=False)]
    assert "<bdi>\u00b7</bdi>" in render_html(Microscope((row,)))
