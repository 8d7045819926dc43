"""A place with a run and rows to evaluate it on, made without training."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from answering_runs import write_run

from mlx_finetune import rundir
from mlx_finetune.app.eval.run import rows_at_once
from mlx_finetune.app.eval.setup import Evaluation, prepare
from mlx_finetune.app.eval.subject import Subject, open_subject
from mlx_finetune.recipe.evaluation import EvalRecipe

COLOURS = ("red", "blue", "green")


def write_rows(path: Path, num_rows: int = 60) -> Path:
    """Questions with a colour for an answer, and a topic and a note beside them."""
    with path.open("w") as file:
        for number in range(num_rows):
            turns = [
                {"role": "user", "content": f"What colour is box {number}?"},
                {"role": "assistant", "content": COLOURS[number % 3]},
            ]
            file.write(json.dumps({"messages": turns, "topic": "ab"[number % 2], "note": f"n{number}"}) + "\n")
    return path


def write_place(folder: Path, model: Path, *, eval_keys: Mapping[str, object] | None = None) -> Path:
    """``folder`` with rows.jsonl and the run adapters/keeper of ``model``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "rows.jsonl")
    run = write_run(folder / "adapters" / "keeper", model)
    change_facts(folder, {"eval": eval_keys or {}}, run.path)
    return folder


def change_facts(folder: Path, sections: Mapping[str, Mapping[str, object]], run: Path) -> None:
    """Change the resolved recipe in run.json, and say that it was started in ``folder``."""
    path = run / rundir.RUN_INFO
    facts = json.loads(path.read_text())
    for name, keys in sections.items():
        facts["resolved"][name] |= keys
    path.write_text(json.dumps(facts | {"started_in": str(folder)}))


def subject_of(place: Path, name: str = "keeper") -> Subject:
    """The run, opened."""
    return open_subject(name, base=place, report=lambda _: None)


def evaluation_of(
    place: Path,
    tasks: Sequence[str] = ("loss", "exact_match"),
    *,
    name: str = "keeper",
    given: str | None = None,
    at_once: int | None = None,
    **keys: object,
) -> Evaluation:
    """An evaluation, ready to be measured; answers of four tokens."""
    subject = subject_of(place, name)
    recipe = EvalRecipe.model_validate({"tasks": tuple(tasks), "answer_tokens": 4} | keys)
    at_once = rows_at_once(subject, at_once, lambda _: None)
    return prepare(subject, recipe, given=given, at_once=at_once, base=place)


TinyModel = Callable[..., Path]
