"""Nothing that a run says becomes markup, whatever it says and wherever it stands."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reported_runs import write_run

from mlx_finetune.monitor.report.facts import read_facts
from mlx_finetune.monitor.report.markup import Html, escaped, foreign, printable, tag
from mlx_finetune.monitor.report.page import render

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>\"'><svg/onload=alert(1)>",
    "</title></style><style>*{display:none}</style><!-- --!> ]]>",
    "&lt;b&gt; &#60; &amp;amp; &nosuch; &#x202e;",
    "\x1b[31mred\x1b]8;;http://example.org\x07link\x9b2J\x00\x7f",
    "abc\u202edcba\u2066\u200f\u061c",
    "half \ud800 and \udfff",
    "javascript:alert(1) http://example.org/x.js //example.org data:text/html,x url(x)",
    "x" * 30_000,
    "{{7*7}} ${7*7} `id` %s {0}\r\nSet-Cookie: a=b",
    "hf_" + "A" * 34,
]
#: What must never stand in a page, whoever wrote it.
INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufffe\uffff]")


class Structure(HTMLParser):
    """Elements with their attributes in order, and the text between them.

    Marks of changed words and line breaks of the microscope's tokens are left out: there are as many as the text asks.
    """

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.texts: list[str] = []
        self.others: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("mark", "br"):
            self.elements.append((tag, tuple(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.others.append(data)

    def handle_pi(self, data: str) -> None:
        self.others.append(data)

    def unknown_decl(self, data: str) -> None:
        self.others.append(data)


def structure(page: str) -> Structure:
    parser = Structure()
    parser.feed(page)
    parser.close()
    return parser


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Structure:
    return structure(render(read_facts(write_run(tmp_path_factory.mktemp("harmless")))))


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_no_element_and_no_attribute_comes_from_what_a_run_says(
    hostile: str, harmless: Structure, tmp_path: Path
) -> None:
    page = render(read_facts(write_run(tmp_path, lambda text: text + hostile)))
    found = structure(page)
    assert found.elements == harmless.elements
    assert found.others == []
    assert INVISIBLE.search(page) is None
    before, _, tokens = page.partition('id="tokens"')  # a row in pieces, which no pattern would find
    assert "hf_AAAA" not in before + tokens.partition("</section>")[2]
    assert len(page) < 1_500_000
    page.encode("utf-8")


def test_names_of_run_and_files_are_text_too(harmless: Structure, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>\u202e\n\x1b[2J"
    run = write_run(tmp_path, name=name)
    (run.path / "<b>file & co").touch()
    (run.path / b"\xff<i>".decode("utf-8", "surrogateescape")).touch()
    page = render(read_facts(run))
    found = structure(page)
    assert {tag for tag, _ in found.elements} == {tag for tag, _ in harmless.elements}
    assert {attributes for _, attributes in found.elements} == {attributes for _, attributes in harmless.elements}
    assert "<img src=x onerror=alert(1)>\\u202e" in "".join(found.texts)
    assert INVISIBLE.search(page) is None
    page.encode("utf-8")


def test_what_is_said_can_be_read_as_it_was_said(tmp_path: Path) -> None:
    page = render(read_facts(write_run(tmp_path, lambda text: text + "</p> & <b>\u202e")))
    assert "What are tides?</p> & <b>\\u202e" in structure(page).texts


def test_blanks_and_joiners_of_other_scripts_stay() -> None:
    text = "\u3000\u4eca\u65e5 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u0645\u06cc\u200c\u062e\u0648\tx\n"
    assert printable(text) == text


@given(st.text(st.characters(codec=None), max_size=60))
def test_text_in_an_element_and_in_an_attribute_comes_back_and_makes_nothing(text: str) -> None:
    found = structure(tag("p", text, title=text).text)
    assert found.elements == [("p", (("title", printable(text)),))]
    assert "".join(found.texts) == printable(text)
    assert INVISIBLE.search(escaped(text)) is None


def test_only_markup_is_taken_as_markup() -> None:
    assert tag("p", "<b>", Html("<i>x</i>"), None).text == "<p>&lt;b&gt;<i>x</i></p>"
    assert tag("input", hidden=True, disabled=False, data_step=3, class_="a b").text == (
        '<input hidden data-step="3" class="a b">'
    )
    assert foreign("abcdef", 3).text == "<bdi>abc ... (3 more characters)</bdi>"
