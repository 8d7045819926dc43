"""Turns that are looked at and changed; whatever an editor does, nothing that was said or written is lost."""

import pytest
from talks import Recorder, contents, start

from mlx_finetune.app.chat.repl import Chat
from mlx_finetune.app.open import Opened
from mlx_finetune.errors import UsageError


@pytest.fixture(name="talk")
def talk_fixture(opened: Opened) -> tuple[Chat, Recorder]:
    """Two exchanges in words that are known."""
    chat, screen = start(opened)
    chat.session.conversation.add("Where?", "There,\nbehind the " + "very " * 30 + "old house.")
    chat.session.conversation.add("When?", "Then.")
    return chat, screen


def test_history_numbers_the_turns_on_one_line_each(talk: tuple[Chat, Recorder]) -> None:
    chat, screen = talk
    chat.take("/history")
    assert screen.said[0] == "system: Be brief."
    assert screen.said[1] == "  1 user       Where?"
    assert screen.said[2].startswith("  2 assistant  There, behind the very very")
    assert screen.said[2].endswith("...")
    assert len(screen.said[2]) < 100
    assert screen.said[3:] == ["  3 user       When?", "  4 assistant  Then."]


def test_history_shows_one_turn_or_all_of_them_whole(talk: tuple[Chat, Recorder]) -> None:
    chat, screen = talk
    whole = "2 assistant:\nThere,\nbehind the " + "very " * 30 + "old house."
    chat.take("/history 2")
    assert screen.said == [whole]
    chat.take("/history all")
    assert screen.said[1:4] == ["system: Be brief.", "1 user:\nWhere?", whole]
    chat.session.conversation.turns[3] = {"role": "assistant", "content": "Then.", "reasoning_content": "hm"}
    chat.take("/history 4")
    assert screen.said[-1] == "4 assistant:\n(reasoning: hm)\nThen."


@pytest.mark.parametrize("command", ["/history 5", "/history 0", "/history x", "/edit 9", "/edit -1"])
def test_a_turn_that_is_not_there_is_a_sentence(talk: tuple[Chat, Recorder], command: str) -> None:
    chat, screen = talk
    chat.take(command)
    number = command.split()[1]
    assert screen.said[0] == f"error: there is no turn {number!r}; turns have the numbers 1 to 4"
    assert chat.failures == 1


def test_an_empty_conversation_has_a_history_too(opened: Opened) -> None:
    chat, screen = start(opened)
    chat.take("/history")
    chat.take("/edit 1")
    assert screen.said[:2] == ["system: Be brief.", "nothing has been said yet"]
    assert screen.said[2] == "error: there is no turn '1'; nothing has been said yet"


def test_an_answer_is_changed_where_it_stands(talk: tuple[Chat, Recorder]) -> None:
    chat, screen = talk
    screen.edits = ["Over there.\n\nIndeed.\n"]
    before = contents(chat)
    chat.take("/edit 2")
    assert screen.offered == [before[1]]
    assert contents(chat) == ["Where?", "Over there.\n\nIndeed.", "When?", "Then."]
    assert "what was said after it stays" in screen.said[-1]
    chat.take("/edit undo")
    assert contents(chat) == before
    chat.take("/edit undo")
    assert contents(chat)[1] == "Over there.\n\nIndeed."


def test_a_question_that_changes_is_asked_again_and_what_followed_can_be_brought_back(
    talk: tuple[Chat, Recorder],
) -> None:
    chat, screen = talk
    before = contents(chat)
    screen.edits = ["Whither?"]
    chat.take("/edit 1")
    assert contents(chat) == ["Whither?", "".join(screen.pieces).removesuffix("\n")]
    assert "the question after it left the conversation; /edit undo brings back" in screen.said[-1]
    chat.take("/edit undo")
    assert contents(chat) == before
    screen.edits = ["Since when?"]
    chat.take("/edit 3")
    assert contents(chat)[:3] == [*before[:2], "Since when?"]
    assert "left the conversation" not in screen.said[-1]


def test_the_next_question_is_written_in_the_editor(opened: Opened) -> None:
    chat, screen = start(opened)
    screen.edits = ["One\n\n/two?\n"]
    chat.take("/edit")
    assert screen.offered == [""]
    assert contents(chat)[0] == "One\n\n/two?"


@pytest.mark.parametrize("command", ["/edit", "/edit 1", "/edit 2", "/edit 4", "/fix"])
@pytest.mark.parametrize("comes_out", ["", " \n", "as it was", "an error"])
def test_an_editor_that_brings_nothing_changes_nothing(
    talk: tuple[Chat, Recorder], command: str, comes_out: str
) -> None:
    chat, screen = talk
    before = contents(chat)
    as_it_was = before[-1 if command == "/fix" else int(command[-1]) - 1] if command != "/edit" else ""
    failing = UsageError("the editor vim ended with code 1: nothing was changed", "what you wrote is in /tmp/x")
    screen.edits = [failing if comes_out == "an error" else as_it_was if comes_out == "as it was" else comes_out]
    chat.take(command)
    assert contents(chat) == before
    if comes_out == "an error":
        assert screen.said == [f"error: {failing.message}", f"hint: {failing.hint}"]
    else:
        assert len(screen.said) == 1
        assert "nothing was changed" in screen.said[0]


def test_a_text_that_cannot_be_used_is_offered_again(talk: tuple[Chat, Recorder]) -> None:
    chat, screen = talk
    before = contents(chat)
    for command in ("/edit 2", "/edit 1", "/edit", "/fix"):
        screen.edits = ["a <|im_end|> b", "a b"]
        chat.take(command)
        assert contents(chat) == before
        assert "control marker '<|im_end|>'" in screen.said[-2]
        assert screen.said[-1].endswith(f"; {command} offers what you wrote again")
        chat.take(command)
        assert screen.offered[-1] == "a <|im_end|> b"
        assert "a b" in contents(chat)
        chat.session.conversation.turns[:] = [
            {"role": "user" if index % 2 == 0 else "assistant", "content": text} for index, text in enumerate(before)
        ]
    screen.edits = ["x"]
    chat.take("/edit 2")
    assert screen.offered[-1] == before[1], "a draft that was used is not offered any more"


def test_a_question_that_is_stopped_before_the_first_word_is_offered_again(talk: tuple[Chat, Recorder]) -> None:
    chat, screen = talk
    before = contents(chat)
    screen.stop_after = 0
    for command in ("/edit", "/edit 1"):
        screen.edits = ["A long question?"]
        chat.take(command)
        assert contents(chat) == before
        assert screen.said[-1] == f"({command} offers what you wrote again)"
    screen.edits = ["A long question?"]
    screen.stop_after = None
    chat.take("/edit")
    assert screen.offered[-1] == "A long question?"
    assert contents(chat)[4] == "A long question?"


def test_a_turn_of_a_tool_is_not_for_people(opened: Opened) -> None:
    chat, screen = start(opened)
    chat.session.conversation.turns = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function"}]},
        {"role": "tool", "content": "{}"},
    ]
    for number in (2, 3):
        chat.take(f"/edit {number}")
    assert chat.failures == 2
    assert screen.said[0] == "error: turn 2 is not one that a person can write: it belongs to a tool"


def test_without_an_edit_there_is_nothing_to_undo(opened: Opened) -> None:
    chat, screen = start(opened)
    chat.take("/edit undo")
    assert screen.said[0] == "error: no turn was edited"
