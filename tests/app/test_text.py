"""Input of several lines, control characters, and two answers side by side."""

import pytest

from mlx_finetune.app.text import join_input, needs_more, printable, shorten, shorten_place, side_by_side


@pytest.mark.parametrize(
    ("text", "more", "meant"),
    [
        ("one", False, "one"),
        ("one\\", True, "one"),
        ("one\\\ntwo", False, "one\ntwo"),
        ('"""one', True, '"""one'),
        ('"""one\ntwo"""', False, "one\ntwo"),
        ('"""\none\n\ntwo\n"""', False, "one\n\ntwo"),
        ('say """ twice', False, 'say """ twice'),
        ('/fix """one', True, '/fix """one'),
        ('/fix """\none\n\ntwo\n"""', False, "/fix one\n\ntwo"),
        ("/fix one\\\ntwo", False, "/fix one\ntwo"),
        ('/fix say """ twice', False, '/fix say """ twice'),
        ("/fix", False, "/fix"),
        ("", False, ""),
    ],
)
def test_backslash_and_triple_quotes_carry_an_input_over_lines(text: str, more: bool, meant: str) -> None:
    assert needs_more(text) is more
    assert join_input(text) == meant


def test_control_characters_never_reach_the_terminal() -> None:
    assert (
        printable("a\u202eb\u2066c \u05e9\u05dc \U0001f468\u200d\U0001f33e")
        == "abc \u05e9\u05dc \U0001f468\u200d\U0001f33e"
    )
    assert shorten("so \u202eabc") == "so abc"
    assert printable("a\x1b[2Jb\rc\x9bd\n\te\x7f") == "a[2Jbcd\n\te"
    assert shorten("a\n\n b  c") == "a b c"
    assert shorten("x" * 80) == "x" * 67 + "..."


def test_a_wide_terminal_shows_two_columns_and_a_narrow_one_two_blocks() -> None:
    left, right = ("base", "word " * 30), ("adapter", "Aye.\nLog: wind still.")
    wide = side_by_side(left, right, width=100)
    assert wide[0].split("  ")[0] == "--- base ---"
    assert wide[0].index("--- adapter ---") == wide[1].index("Aye.") == wide[2].index("Log:")
    assert max(map(len, wide)) <= 100
    narrow = side_by_side(left, right, width=79)
    assert narrow == ["--- base ---", ("word " * 30).strip(), "", "--- adapter ---", "Aye.", "Log: wind still.", ""]


def test_wide_characters_stay_in_their_column_and_markup_is_text() -> None:
    lines = side_by_side(("base", "\u706f\u53f0" * 40), ("adapter", "[bold]x[/bold]"), width=80)
    assert all(len(line.split("  ")[0]) * 2 <= 80 for line in lines)
    assert "[bold]x[/bold]" in lines[1]


def test_of_a_long_place_the_line_is_kept():
    assert shorten_place("data/rows.jsonl:7", 17) == "data/rows.jsonl:7"
    assert shorten_place("../shared/data/rows.jsonl:7", 20) == "...data/rows.jsonl:7"
