"""Commands that change what is talked about or ask the model again: /new, /system, /undo, /retry, /compare."""

from mlx_finetune.app.chat.session import Session
from mlx_finetune.app.generate import question
from mlx_finetune.app.open import base_model
from mlx_finetune.app.text import shorten, side_by_side
from mlx_finetune.errors import UsageError


def start_anew(session: Session, rest: str) -> None:
    """/new: forget every turn."""
    del rest
    session.conversation.clear()
    session.screen.talk("a new conversation")


def set_system(session: Session, rest: str) -> None:
    """/system: show or set the system message. Raises ``DataError`` for a control marker in it."""
    if rest:
        system = "" if rest == "-" else rest
        session.check_text(system, "the system message")
        session.conversation.system = system
    shown = session.conversation.system
    session.screen.talk(f"system: {shown}" if shown else "no system message")


def undo(session: Session, rest: str) -> None:
    """/undo: take back the last question and its reply. Raises ``UsageError`` where there is none."""
    del rest
    taken = session.conversation.take_back()
    if taken is None:
        raise UsageError("there is nothing to take back")
    session.screen.talk(f"taken back: {shorten(taken)}")


def retry(session: Session, rest: str) -> None:
    """/retry: answer the last question again. A retry that brings nothing leaves the reply that was there."""
    del rest
    exchange = session.conversation.last_exchange()
    if exchange is None:
        raise UsageError("there is no question to answer again")
    turns = list(session.conversation.turns)
    asked = session.conversation.take_back()
    assert asked is not None
    try:
        session.ask(asked)
    finally:
        if len(session.conversation.turns) < len(turns):
            session.conversation.turns = turns


def compare(session: Session, rest: str) -> None:
    """/compare: base and adapter on the same messages, with the same draws; the conversation stays as it is."""
    opened, screen = session.opened, session.screen
    if not opened.has_base:
        raise UsageError(f"{opened.name} is a model without an adapter: there is nothing to compare")
    exchange = session.conversation.last_exchange()
    if not rest and exchange is None:
        raise UsageError("there is no question yet", "/compare TEXT asks base and adapter")
    if rest:
        messages = list(question(rest, session.chat.model_copy(update={"system": session.conversation.system})))
    else:
        messages = session.last_messages()
    with base_model(opened) as model:
        base = session.answer_quietly("the base answers ...", model, messages)
    if not rest and exchange is not None and session.is_as_asked_now():
        tuned = exchange[1]
    else:
        tuned = session.answer_quietly("the adapter answers ...", opened.model, messages)
    session.num_draws += 1
    if base is None or tuned is None:
        screen.talk("(stopped)")
        return
    label = "adapter" if opened.spec is not None else "trained model"
    for line in side_by_side(("base", base), (label, tuned), width=screen.width):
        screen.data(line + "\n")
