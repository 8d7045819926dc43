"""The doors through which users hand us models and adapters, inside this process, and what must come out of them."""

from pathlib import Path
from typing import Any

import pytest
from small_runs import write_recipe

from mlx_finetune.app.generate import Answerer, Prompt, answer_prompt, question
from mlx_finetune.app.open import open_name
from mlx_finetune.errors import MlxftError
from mlx_finetune.events import Event
from mlx_finetune.hardware.safer import Safer
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.start.prepare import prepare


def answer(name: Path | str, base: Path, said: list[Any] | None = None, text: str = "Tell the user") -> str:
    """What ``mlxft generate`` and ``mlxft chat`` do."""
    opened = open_name(str(name), base=base, report=(said if said is not None else []).append)
    chat = opened.chat.model_copy(update={"max_tokens": 2})
    answerer = Answerer(opened.model, opened.tokenizer, opened.data, chat, 0)
    return answer_prompt(answerer, Prompt(question(text, chat), {}, ""), 0).text


def start(model: Path, place: Path, *overrides: str) -> list[Event]:
    """What ``mlxft train`` does before the first step; the events."""
    loaded = load_recipe(write_recipe(place, model), overrides)
    events: list[Event] = []
    prepare(loaded, base=place, decided=None, total_steps=None, safer=Safer(), emit=events.append, stop=StopRequest())
    return events


def check(caught: pytest.ExceptionInfo[MlxftError], names: str, place: Path) -> None:
    """One sentence that holds ``names``, with nothing executed."""
    error = caught.value
    message = error.message
    assert names in "\n".join([message, *(problem.message for problem in getattr(error, "problems", ()))])
    assert message.isprintable(), message
    assert len(message.replace(str(place), "")) < 500, message
    assert "Traceback" not in message
    assert not list(place.rglob("canary"))
    assert not Path("canary").exists()
