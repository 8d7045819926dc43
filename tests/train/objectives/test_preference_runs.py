"""Whole runs on preferences: before the first step, after an interruption, after SFT, with every key of its section."""

import hashlib
import json
import math
import tomllib
from typing import TypeVar

import numpy as np
import pytest
from small_runs import course, train, write_recipe

from mlx_finetune import rundir
from mlx_finetune.errors import DataError, Interrupted, MlxftError, RecipeError
from mlx_finetune.events import Evaluated, Notice, Phase, StepDone
from mlx_finetune.journal import read_events
from mlx_finetune.model.sources.catalogue import cache_folder
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.start.reference import REFERENCES

EventT = TypeVar("EventT")

QUICK = ("training.max_steps=3", "training.batch_size=2", "eval.prompts=[]")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_pairs(path, count=20, **more):
    rows = [
        {
            "prompt": f"What is {n} and {n * 7}?",
            "chosen": "sum " * (n % 3) + str(n * 8),
            "rejected": "No. " * (1 + n % 4),
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row | more) + "\n" for row in rows))
    return path


def write_marked(path, count=20):
    rows = [
        {"prompt": f"What is {n} and {n * 7}?", "completion": str(n * 8) if n % 3 else "No idea.", "label": n % 3 > 0}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def overrides(tmp_path, task, *more):
    data = write_marked(tmp_path / "marked.jsonl") if task == "kto" else write_pairs(tmp_path / "pairs.jsonl")
    return (f"task={task}", f"data.path={data}", "data.packing=auto", *more)


def events(run: RunDir, kind: type[EventT]) -> list[EventT]:
    return [record.event for record in read_events(run.file(rundir.EVENTS)) if isinstance(record.event, kind)]


def weights(run):
    return hashlib.sha256(run.file(rundir.MLX_WEIGHTS).read_bytes()).hexdigest()


def test_before_the_first_step_the_loss_is_ln_2_and_all_are_ties(tmp_path, tiny_model):
    run = train(write_recipe(tmp_path, tiny_model("llama")), overrides=overrides(tmp_path, "dpo", *QUICK))
    first = events(run, Evaluated)[0]
    assert first.loss == pytest.approx(math.log(2), abs=1e-6)
    assert (first.metrics["margin"], first.metrics["rewards/chosen"]) == (0.0, 0.0)
    assert first.metrics["accuracy"] == 0.5
    assert set(events(run, StepDone)[0].metrics) == set(first.metrics)
    assert "share_prompt = true  # computed once for both answers of a row" in run.file(rundir.RESOLVED).read_text()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("task", "how"),
    [
        ("dpo", "kill_after"),
        ("kto", "stop_after"),
        *(pytest.param(*one, marks=SLOW) for one in (("dpo", "stop_after"), ("kto", "kill_after"))),
        *(pytest.param("orpo", how, marks=SLOW) for how in ("stop_after", "kill_after")),
    ],
)
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, tiny_model, task, how):
    """Dropout, NEFTune, accumulation; the reference is read where it was computed before, and computed again else."""
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    given = overrides(tmp_path, task, "training.max_steps=4", "eval.prompts=[]")
    straight = train(recipe, overrides=(*given, f"output_dir={tmp_path / 'straight'}"))
    stop, kill = (3, None) if how == "stop_after" else (None, 3)
    run = train(recipe, overrides=given, stop_after=stop, kill_after=kill)
    for path in (cache_folder() / REFERENCES).glob("*"):
        path.unlink()
    train(recipe, overrides=given, resume=True)
    assert course(run) == course(straight)
    assert weights(run) == weights(straight)


def test_a_second_run_reads_the_reference_of_the_first(tmp_path, tiny_model):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    given = overrides(tmp_path, "dpo", *QUICK)
    train(recipe, overrides=given)
    second = train(recipe, overrides=(*given, "preference.beta=0.3", f"output_dir={tmp_path / 'second'}"))
    assert not [one for one in events(second, Phase) if one.name == "compute reference"]
    other = train(
        recipe, overrides=(*given, f"model={tiny_model('llama', seed=1)}", f"output_dir={tmp_path / 'third'}")
    )
    assert [one for one in events(other, Phase) if one.name == "compute reference"]


@SLOW
def test_a_damaged_reference_is_computed_again(tmp_path, tiny_model):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    given = overrides(tmp_path, "dpo", *QUICK)
    first = train(recipe, overrides=given)
    for kept in (cache_folder() / REFERENCES).glob("*.npz"):
        content = bytearray(kept.read_bytes())
        content[len(content) // 2] ^= 255
        kept.write_bytes(content)
    second = train(recipe, overrides=(*given, f"output_dir={tmp_path / 'second'}"))
    assert weights(second) == weights(first)


def test_a_signal_while_the_reference_is_computed_leaves_cleanly_and_what_is_done_is_kept(tmp_path, tiny_model):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    given = overrides(tmp_path, "dpo", *QUICK)
    straight = train(recipe, overrides=(*given, f"output_dir={tmp_path / 'straight'}"))
    for path in (cache_folder() / REFERENCES).glob("*"):
        path.unlink()

    def stop_in_between(event, stop):
        if isinstance(event, Phase) and event.name == "compute reference" and event.done:
            stop.request(2)

    with pytest.raises(Interrupted, match="before the first step"):
        train(recipe, overrides=given, on_event=stop_in_between)
    (kept,) = (cache_folder() / REFERENCES).glob("*.npz")
    known = np.isfinite(np.load(kept)["values"][:, 0])
    assert 0 < known.sum() < len(known)
    run = train(recipe, overrides=given)
    assert weights(run) == weights(straight)


def test_after_sft_the_reference_is_the_sft_policy(tmp_path, tiny_model):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    sft = train(recipe, overrides=("training.max_steps=4", "eval.prompts=[]", "lora.dropout=0"))
    given = overrides(tmp_path, "dpo", *QUICK, "lora.dropout=0")
    plain = train(recipe, overrides=(*given, f"output_dir={tmp_path / 'plain'}"))
    after = train(recipe, overrides=(*given, f"adapter={sft.path}", f"output_dir={tmp_path / 'after'}"))
    first, base = events(after, Evaluated)[0], events(plain, Evaluated)[0]
    assert (first.metrics["margin"], first.loss) == (0.0, pytest.approx(math.log(2), abs=1e-6))
    before, after = base.metrics["logps/chosen"], first.metrics["logps/chosen"]
    assert before is not None
    assert after is not None
    assert abs(after - before) > 0.1


@pytest.mark.parametrize("task", ["dpo", pytest.param("simpo", marks=SLOW)])
def test_every_weight_can_be_trained_and_saved(tmp_path, tiny_model, task):
    recipe = write_recipe(tmp_path, tiny_model("gpt2"))
    text = recipe.read_text()
    start, end = text.index("[lora]"), text.index("[data]")
    recipe.write_text(text[:start] + text[end:])
    run = train(
        recipe, overrides=overrides(tmp_path, task, *QUICK, "training.neftune_alpha=0", "data.max_seq_length=256")
    )
    assert events(run, Evaluated)[-1].loss < events(run, Evaluated)[0].loss
    assert "two sequences a row: the model has learned positions" in run.file(rundir.RESOLVED).read_text()


def test_a_run_without_validation_rows_has_a_reference_too(tmp_path, tiny_model):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    run = train(recipe, overrides=overrides(tmp_path, "dpo", *QUICK, "data.val_split=0.0", "training.max_steps=1"))
    assert events(run, StepDone)[0].loss == pytest.approx(math.log(2), abs=0.1)  # dropout is on
    assert not events(run, Evaluated)


def test_how_far_answers_moved_is_a_mean_over_an_evaluation_and_not_over_its_batches(tmp_path, tiny_model):
    quiet = ("lora.dropout=0.0", "training.neftune_alpha=0.0", "preference.beta=1.0", "data.val_split=0.4")
    size = ("training.max_steps=2", "training.batch_size=4", "training.learning_rate=3e-2", "eval.prompts=[]")
    found: list[list[float]] = []
    for microbatch in (1, 4):
        recipe = write_recipe(tmp_path, tiny_model("llama"), name=f"by-{microbatch}")
        more = (*quiet, *size, f"hardware.microbatch={microbatch}")
        run = train(recipe, overrides=overrides(tmp_path, "kto", *more))
        found.append([one.loss for one in events(run, Evaluated)])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0][-1] < found[0][0] - 0.1


def test_good_and_bad_answers_weigh_alike_as_often_as_they_are_seen(tmp_path, tiny_model):
    """8 good answers, seen twice, of which half count double; 16 bad ones seen once."""
    for name, count, weight in (("good", 8, 2.0), ("bad", 16, 1.0)):
        rows = [
            {"prompt": f"{name} {n}?", "completion": f"{n}", "label": name == "good", "weight": weight if n % 2 else 1}
            for n in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    sources = "".join(
        f'[[data.sources]]\npath = "{tmp_path / name}.jsonl"\nweight = {weight}\n'
        for name, weight in (("good", 2.0), ("bad", 1.0))
    )
    lines = [line for line in recipe.read_text().splitlines() if not line.startswith(("path", "val_split", "packing"))]
    text = "\n".join(lines).replace("[data]", "[data]\nval_split = 0.0")
    recipe.write_text(f"{text}\n{sources}")
    run = train(recipe, overrides=("task=kto", *QUICK, "training.max_steps=1"))
    resolved = tomllib.loads(run.file(rundir.RESOLVED).read_text())["preference"]
    assert (resolved["good_weight"], resolved["bad_weight"]) == (1.0, 24 / 16)


def test_the_weight_of_a_row_multiplies_its_loss(tmp_path, tiny_model):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    runs = []
    for weight in (1.0, 3.0):
        data = write_pairs(tmp_path / f"weighted-{weight}.jsonl", weight=weight)
        given = ("task=dpo", f"data.path={data}", "data.packing=auto", *QUICK, f"output_dir={tmp_path / str(weight)}")
        runs.append(train(recipe, overrides=given))
    plain, heavy = (events(run, Evaluated)[0].loss for run in runs)
    assert heavy == pytest.approx(3 * plain, rel=1e-6)


#: Key of [preference] -> the task that it is tried with, and two values.
KEYS = {
    "beta": ("dpo", 0.1, 0.5),
    "label_smoothing": ("cdpo", 0.1, 0.3),
    "gamma": ("simpo", 1.0, 0.2),
    "odds_weight": ("orpo", 0.1, 0.5),
    "length_normalise": ("ipo", "true", "false"),
    "alpha": ("dpo", 0.0, 1.0),
    "good_weight": ("kto", '"auto"', 2.0),
    "bad_weight": ("kto", '"auto"', 5.0),
}


@pytest.mark.some(3)
@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=SLOW if KEYS[key][0] in ("ipo", "simpo", "cdpo") else ()) for key in KEYS]
)
def test_every_key_changes_the_run_and_is_refused_where_it_is_not_used(tmp_path, tiny_model, key):
    task, *values = KEYS[key]
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    given = overrides(tmp_path, task, *QUICK, "training.max_steps=1")
    runs = [
        train(recipe, overrides=(*given, f"preference.{key}={value}", f"output_dir={tmp_path / str(number)}"))
        for number, value in enumerate(values)
    ]
    assert weights(runs[0]) != weights(runs[1])
    other = "orpo" if task != "orpo" else "dpo"
    with pytest.raises(MlxftError) as caught:
        train(recipe, overrides=(*overrides(tmp_path, other), f"preference.{key}={values[1]}"))
    assert isinstance(caught.value, RecipeError)
    assert f"`preference.{key}` = " in str(caught.value.problems[0].message)
    assert f"not used by task '{other}'" in str(caught.value.problems[0].message)


def test_a_prompt_is_shared_or_not_as_the_recipe_says(tmp_path, tiny_model):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    given = overrides(tmp_path, "dpo", *QUICK, "lora.dropout=0", "training.neftune_alpha=0")
    runs = [
        train(recipe, overrides=(*given, f"preference.share_prompt={value}", f"output_dir={tmp_path / value}"))
        for value in ("true", "false")
    ]
    shared, apart = (events(run, StepDone) for run in runs)
    assert shared[-1].loss == pytest.approx(apart[-1].loss, rel=1e-4)
    assert shared[0].num_tokens < apart[0].num_tokens


@pytest.mark.parametrize(
    ("task", "write", "fits"),
    [("kto", write_pairs, 'task = "dpo"'), ("dpo", write_marked, 'task = "kto"')],
)
def test_rows_of_the_other_kind_are_one_error_that_names_the_task_that_fits(tmp_path, tiny_model, task, write, fits):
    data = write(tmp_path / "rows-of-another-kind.jsonl")
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    with pytest.raises(DataError) as caught:
        train(recipe, overrides=(f"task={task}", f"data.path={data}", "data.packing=auto"))
    (problem,) = caught.value.problems
    assert fits in problem.hint


def test_a_falling_chosen_log_probability_is_warned_of_once(tmp_path, tiny_model, monkeypatch):
    from mlx_finetune.train.objectives.preference import objective

    monkeypatch.setattr(objective, "_TELLING_MARGIN", -math.inf)
    monkeypatch.setattr(objective, "_advise", lambda metrics: ("it falls", "mend it"))
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    run = train(recipe, overrides=overrides(tmp_path, "dpo", *QUICK, "training.eval_steps=1"))
    said = [one for one in events(run, Notice) if "it falls" in one.message]
    assert [(one.level, one.hint) for one in said] == [("warning", "mend it")]


@pytest.mark.parametrize(
    ("chosen", "margin", "is_said"), [(-0.5, 1.0, True), (0.2, 1.0, False), (-0.5, -1.0, False), (-0.01, 0.02, False)]
)
def test_what_is_the_usual_failure(chosen, margin, is_said):
    from mlx_finetune.train.objectives.preference.objective import _advise

    message, hint = _advise({"rewards/chosen": chosen, "margin": margin})
    assert bool(message) == is_said
    assert ("preference.alpha = 1.0" in hint) == is_said
