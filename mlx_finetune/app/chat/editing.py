"""Commands that look at turns and change them: /history and /edit.

What a person writes in an editor is not lost: a text that cannot be used is offered again by the same command, and
``/edit undo`` brings back the turns that an edit replaced.
"""

from collections.abc import Callable

from mlx_finetune.app.chat.conversation import reply_turn
from mlx_finetune.app.chat.session import Session
from mlx_finetune.app.text import shorten
from mlx_finetune.dataset.tokens import Message
from mlx_finetune.errors import MlxftError, UsageError

_UNCHANGED = "(nothing was changed; an editor in a window of its own must wait, for instance EDITOR='code --wait')"
_MIN_WIDTH = 40
_DEFAULT_WIDTH = 100


def show_history(session: Session, rest: str) -> None:
    """/history: a line for each turn, or one turn or all of them whole. Raises ``UsageError`` for no such turn."""
    conversation, talk = session.conversation, session.screen.talk
    turns = list(enumerate(conversation.turns, 1))
    if rest and rest != "all":
        number = _turn_number(session, rest)
        turns = turns[number - 1 : number]
    elif conversation.system:
        talk(f"system: {conversation.system if rest else shorten(conversation.system)}")
    if not turns:
        talk("nothing has been said yet")
    width = max(_MIN_WIDTH, (session.screen.width or _DEFAULT_WIDTH) - 16)
    for number, turn in turns:
        role = str(turn["role"])
        if rest:
            talk(f"{number} {role}:\n{_whole(turn)}")
        else:
            talk(f"{number:>3} {role:<9}  {shorten(str(turn['content']), width)}")


def edit(session: Session, rest: str) -> None:
    """/edit: the next question, or a turn by its number, in the editor. A question that changes is asked again.

    Raises ``MlxftError`` where there is no such turn or no editor, or what was written cannot be used; the conversation
    is as it was then.
    """
    if rest == "undo":
        _undo(session)
        return
    if not rest:
        in_editor(session, "/edit", "", session.ask)
        return
    number = _turn_number(session, rest)
    turn = session.conversation.turns[number - 1]
    if turn["role"] not in ("user", "assistant") or turn.get("tool_calls"):
        raise UsageError(f"turn {number} is not one that a person can write: it belongs to a tool")

    def use(text: str) -> bool:
        return _ask_again(session, number, text) if turn["role"] == "user" else _replace(session, number, text)

    in_editor(session, f"/edit {number}", str(turn["content"]), use)


def in_editor(session: Session, command: str, text: str, use: Callable[[str], bool]) -> None:
    """Hand ``use`` what a person makes of ``text``; where it does not take it, ``command`` offers it again.

    Nothing happens where the text comes back empty or as it was. Raises as the editor and ``use`` do.
    """
    made_of, draft = session.drafts.get(command, ("", ""))
    written = session.screen.edit(draft if draft and made_of == text else text).strip("\n")
    if not written.strip():
        session.screen.talk("(it came back empty: nothing was changed)")
        return
    if written == text.strip("\n"):
        session.drafts.pop(command, None)
        session.screen.talk(_UNCHANGED)
        return
    session.drafts[command] = text, written
    again = f"{command} offers what you wrote again"
    try:
        is_used = use(written)
    except MlxftError as error:
        error.hint = f"{error.hint}; {again}" if error.hint else again
        raise
    if is_used:
        session.drafts.pop(command)
    else:
        session.screen.talk(f"({again})")


def _ask_again(session: Session, number: int, text: str) -> bool:
    """Ask ``text`` in the place of question ``number``; it and what followed leave the conversation."""
    conversation = session.conversation
    before = conversation.turns
    conversation.turns = before[: number - 1]
    is_kept = False
    try:
        is_kept = session.ask(text)
    finally:
        if not is_kept:
            conversation.turns = before
    if is_kept:
        session.replaced = before
        num_later = sum(turn["role"] == "user" for turn in before[number:])
        what = "the question" if num_later == 1 else f"the {num_later} questions"
        later = f"; {what} after it left the conversation" if num_later else ""
        session.screen.talk(f"(turn {number} was asked anew{later}; /edit undo brings back what was there)")
    return is_kept


def _replace(session: Session, number: int, text: str) -> bool:
    """Put ``text`` in the place of answer ``number``; the turns around it stay."""
    session.check_text(text, "the answer", is_assistant=True)
    turns = session.conversation.turns
    session.replaced = list(turns)
    turns[number - 1] = {**turns[number - 1], **reply_turn(text)}
    later = "" if number == len(turns) else "; what was said after it stays"
    session.screen.talk(f"(answer {number} is yours now{later}; /edit undo brings back the other, /fix makes a row)")
    return True


def _undo(session: Session) -> None:
    if session.replaced is None:
        raise UsageError("no turn was edited", "/undo takes back the last question")
    session.conversation.turns, session.replaced = session.replaced, session.conversation.turns
    session.screen.talk("the turns are those from before the edit; /edit undo once more changes them back")


def _turn_number(session: Session, rest: str) -> int:
    last = len(session.conversation.turns)
    if not rest.isdecimal() or not 1 <= int(rest) <= last:
        known = f"turns have the numbers 1 to {last}" if last else "nothing has been said yet"
        raise UsageError(f"there is no turn {rest!r}; {known}", "/history shows them")
    return int(rest)


def _whole(turn: Message) -> str:
    reasoning = turn.get("reasoning_content")
    return (f"(reasoning: {reasoning})\n" if reasoning else "") + str(turn["content"])
