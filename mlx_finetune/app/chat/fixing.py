"""/fix: a person puts the last answer right, and it becomes a row to train on (``dataset.corrections``).

The row goes into the run's corrections.jsonl, whole and on the disk before anything is said; nothing that stands there
is changed. ``origin`` says what answered, and how, so that a correction can be traced and made again.
"""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from mlx_finetune import __version__, durable
from mlx_finetune.app.chat.conversation import reply_turn
from mlx_finetune.app.chat.editing import in_editor
from mlx_finetune.app.chat.session import Session
from mlx_finetune.dataset.tokens import Message
from mlx_finetune.errors import DataError, RunError, UsageError
from mlx_finetune.rundir import CORRECTIONS
from mlx_finetune.scoring.json_text import NotJsonError, parse


def fix(session: Session, rest: str) -> None:
    """/fix: the right answer follows the command, or is written in the editor. Raises ``MlxftError``.

    The conversation goes on with the right answer once it is kept.
    """
    exchange = session.conversation.last_exchange()
    if exchange is None:
        raise UsageError("there is no answer to put right", "ask something first")
    if not rest:
        in_editor(session, "/fix", exchange[1], lambda text: _keep(session, text))
    elif rest == exchange[1]:
        session.screen.talk("(that is what the answer was: nothing was kept)")
    else:
        _keep(session, rest)


def corrections_path(session: Session) -> Path | None:
    """Where corrections of this chat go; None for a model that is no run."""
    run = session.opened.located.run
    return None if run is None else run.file(CORRECTIONS)


def _keep(session: Session, text: str) -> bool:
    session.check_text(text, "the answer", is_assistant=True)
    right = reply_turn(text)
    if not str(right["content"]).strip():
        raise UsageError("there is no answer after the reasoning", "write the answer after </think>")
    _check_schema(session, str(right["content"]))
    path = corrections_path(session)
    if path is not None:
        append_correction(path, {"messages": [*session.last_messages(), right], "origin": _origin(session)})
        session.num_corrections += 1
    session.conversation.turns[-1] = right
    if path is None:
        name = session.opened.name
        why = f"{name} is no run, so there is no {CORRECTIONS} to keep it in"
        session.screen.talk(f"the conversation goes on with your answer; {why}: /save FILE keeps it as a row")
    else:
        session.screen.talk(f"kept as correction {_count(path)} of {path}; the conversation goes on with it")
    return True


def _check_schema(session: Session, text: str) -> None:
    """Refuse an answer against the schema that answers are held to: it would be trained on. Raises ``DataError``."""
    if session.validator is None:
        return
    try:
        problems = session.validator.problems(parse(text), most=1)
    except NotJsonError as error:
        problems = [f"it is not JSON: {error}"]
    if problems:
        raise DataError(
            f"the answer does not keep to {session.schema}: {problems[0]}; nothing was kept",
            "put it right, or /schema off and /fix it again",
        )


def append_correction(path: Path, row: dict[str, object]) -> None:
    """Add ``row`` to the corrections at ``path``; it is on the disk afterwards. Raises ``RunError``."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        durable.make_folder(path.parent)  # a run that was removed while it is talked with
        durable.append_line(path, line.encode("utf-8"))
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror}; the answer is as it was", "/save FILE keeps the conversation"
        ) from None


def _count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _origin(session: Session) -> dict[str, object]:
    """Where the last answer comes from: when, which weights, how it was drawn, and what it was."""
    opened = session.opened
    wrong = session.conversation.turns[-1]
    drawn = session.drawn(wrong)
    located = opened.located
    folder = located.adapter or Path(located.model or "")
    run = located.run.path if located.run else None
    is_checkpoint = folder.parent == run and folder.name.startswith("checkpoint-")
    return {
        "time": datetime.fromtimestamp(session.clock(), UTC).isoformat(timespec="seconds"),
        "run": run.name if run else None,
        "checkpoint": folder.name if is_checkpoint else None,
        "model": opened.info.name,
        "model_sha256": opened.info.sha256,
        "adapter_sha256": opened.adapter_sha256,
        "sampling": asdict(drawn.sampling) if drawn else None,
        "schema": str(drawn.schema) if drawn and drawn.schema else None,
        "answer": _said(wrong),
        "mlxft": __version__,
    }


def _said(turn: Message) -> str:
    """What the model wrote, its reasoning in front as it came."""
    reasoning = turn.get("reasoning_content")
    return (f"<think>{reasoning}</think>" if reasoning else "") + str(turn["content"])
