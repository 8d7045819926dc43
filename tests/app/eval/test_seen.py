"""Rows that taught a run or an earlier one that it began from: counted in every evaluation, and said where unknown."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from answering_runs import write_full_run, write_run
from click.testing import CliRunner
from course_runs import write_adapter_run, write_texts
from eval_runs import change_facts, evaluation_of, subject_of, write_place, write_rows

from mlx_finetune import rundir
from mlx_finetune.app.eval.checkpoints.run import measure_course
from mlx_finetune.app.eval.checkpoints.setup import prepare_course
from mlx_finetune.app.eval.rows import Seen
from mlx_finetune.app.eval.seen import teachers
from mlx_finetune.app.eval.sinks.run import run_experiment
from mlx_finetune.app.eval.sinks.setup import prepare_experiment
from mlx_finetune.commands.eval import command
from mlx_finetune.dataset.corpus import hash_files
from mlx_finetune.dataset.row import DataFile

TinyModel = Callable[..., Path]


def teach(place: Path, name: str, data: str, *, adapter: str = "", model: Path | None = None, **facts: object) -> None:
    """Let the run ``name`` be trained on all rows of ``data``, from ``adapter`` or the ``model`` of a run."""
    run = place / "adapters" / name
    change_facts(place, {"data": {"path": data, "val_split": 0.0, "test_split": 0.0}}, run)
    known = json.loads((run / rundir.RUN_INFO).read_text())
    known["resolved"]["adapter"] = adapter
    if model is not None:
        known["resolved"]["model"] = str(model.parent.relative_to(place))
        facts["model_source"] = f"folder:{model}"
    (run / rundir.RUN_INFO).write_text(json.dumps(known | facts))


def seen_of(place: Path, given: str | None = "given.jsonl") -> Seen:
    seen = evaluation_of(place, ("loss",), given=given).chosen.seen
    assert seen is not None
    return seen


@pytest.fixture
def place(tmp_path: Path, tiny_model: TinyModel) -> Path:
    """keeper began from the adapter first, which began from the model zero; each has rows of its own."""
    base = tiny_model("llama")
    place = write_place(tmp_path / "place", base)
    lines = write_rows(place / "all.jsonl", 90).read_text().splitlines(keepends=True)
    for name, some in (("first", lines[60:70]), ("zero", lines[70:85]), ("given", lines[65:])):
        (place / f"{name}.jsonl").write_text("".join(some))
    write_full_run(place / "adapters/zero", base, base)
    write_run(place / "adapters/first", base)
    teach(place, "keeper", "rows.jsonl", adapter="first")
    teach(place, "first", "first.jsonl", model=place / "adapters/zero/model")
    teach(place, "zero", "zero.jsonl")
    return place


def test_rows_that_taught_an_earlier_run_are_counted_too(place: Path) -> None:
    seen, chosen = seen_of(place), evaluation_of(place, ("loss",), given="given.jsonl").chosen
    assert [(one.name, one.num_train) for one in seen.by] == [("", 0), ("first", 5), ("zero", 15)]
    assert seen.num_train == 20
    assert chosen.remark == (
        "5 of 25 rows stand in the training rows of first, which it began from, and 15 of 25 rows stand in the "
        "training rows of zero, which it began from: these figures flatter it."
    )
    assert not chosen.notices


def test_validation_rows_of_an_earlier_run_are_counted_apart(place: Path) -> None:
    change_facts(place, {"data": {"path": "first.jsonl", "val_split": 0.5}}, place / "adapters/first")
    seen = seen_of(place, "first.jsonl")
    first = seen.by[1]
    assert first.num_train + first.num_valid == 10
    assert first.num_valid > 0
    assert (seen.num_train, seen.num_valid) == (first.num_train, first.num_valid)
    said = (
        f"{first.num_train} of 10 rows stand in the training rows and {first.num_valid} in the validation rows of first"
    )
    assert evaluation_of(place, ("loss",), given="first.jsonl").chosen.remark.startswith(said)


def test_an_earlier_run_that_is_gone_is_said_and_the_others_are_counted(place: Path) -> None:
    shutil.rmtree(place / "adapters/zero")
    chosen = evaluation_of(place, ("loss",), given="given.jsonl").chosen
    assert [(one.name, one.num_train) for one in seen_of(place).by] == [("", 0), ("first", 5)]
    assert [one.message for one in chosen.notices] == [
        "whether zero, which keeper began from, was trained on these rows cannot be told: adapters/zero is not there "
        "any more"
    ]


def test_an_earlier_run_whose_data_is_gone_or_other_is_said(place: Path) -> None:
    (place / "zero.jsonl").unlink()
    teach(place, "first", "first.jsonl", identity={"data_sha256": "0" * 64})
    chosen = evaluation_of(place, ("loss",), given="given.jsonl").chosen
    assert "whether zero, which keeper began from, was trained on these rows cannot be" in chosen.notices[0].message
    assert chosen.remark.endswith("The data of first has changed since the training, so these may be others.")


def test_held_out_rows_that_taught_an_earlier_run_are_said(place: Path) -> None:
    change_facts(place, {"data": {"val_split": 0.1, "test_split": 0.2}}, place / "adapters/keeper")
    assert seen_of(place, None).num_train == 0
    teach(place, "first", "rows.jsonl")
    evaluation = evaluation_of(place, ("loss",))
    count = len(evaluation.rows)
    assert evaluation.chosen.split == "test"
    assert seen_of(place, None).num_train == count
    assert evaluation.chosen.remark.startswith(f"{count} of {count} rows stand in the training rows of first")


def test_a_model_and_an_adapter_by_themselves_have_taught_nothing_that_is_known(place: Path, tiny_model) -> None:
    apart = shutil.copytree(place / "adapters/first", place / "apart")
    (apart / rundir.RUN_INFO).unlink()
    teach(place, "keeper", "rows.jsonl", adapter="apart", model_source=f"folder:{tiny_model('llama')}")
    found, unknown = teachers(subject_of(place))
    assert ([one.name for one in found], unknown) == ([""], [])


def test_runs_that_began_from_each_other_are_read_once(place: Path) -> None:
    teach(place, "first", "first.jsonl", adapter="keeper", model_source="")
    assert [one.name for one in teachers(subject_of(place))[0]] == ["", "first"]


def test_answers_put_right_in_chats_taught_the_run(place: Path) -> None:
    line = (place / "all.jsonl").read_text().splitlines()[89] + "\n"
    (place / "adapters/keeper/corrections.jsonl").write_text(line)
    noted = {str(place / "adapters/keeper/corrections.jsonl"): len(line)}
    change_facts(place, {"data": {"corrections": True}}, place / "adapters/keeper")
    assert seen_of(place).by[0].num_train == 0
    teach(place, "keeper", "rows.jsonl", corrections=noted)
    assert seen_of(place).by[0].num_train == 1


def test_answers_put_right_in_chats_are_no_change_of_the_data(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash of what a run was trained on is of its corrections too, and its held-out rows are of its data alone."""
    file = place / "adapters/keeper/corrections.jsonl"
    file.write_text((place / "all.jsonl").read_text().splitlines()[89] + "\n")
    change_facts(place, {"data": {"corrections": True, "val_split": 0.2}}, place / "adapters/keeper")
    names = [DataFile(place / "rows.jsonl", "rows.jsonl"), DataFile(file, str(file), num_bytes=file.stat().st_size)]
    noted: dict[str, object] = {"corrections": {str(file): file.stat().st_size}}
    path = place / "adapters/keeper" / rundir.RUN_INFO
    monkeypatch.chdir(place)
    for sha256, is_other in ((hash_files(names), False), ("0" * 64, True)):
        path.write_text(json.dumps(json.loads(path.read_text()) | noted | {"identity": {"data_sha256": sha256}}))
        done = CliRunner().invoke(command, ["keeper", "--tasks", "loss", "--max-rows", "1", "--name", sha256[:8]])
        assert done.exit_code == 0, done.output
        assert ("the data files have changed since the training" in done.stderr) is is_other


def test_checkpoints_and_long_texts_say_the_same(tmp_path: Path, tiny_model: TinyModel) -> None:
    base = tiny_model("llama")
    place = tmp_path / "place"
    run = write_adapter_run(place, base)
    write_run(place / "adapters/before", base)
    write_texts(place / "long.txt", 60)
    task = json.loads(run.file(rundir.RUN_INFO).read_text())["resolved"]
    known = json.loads((place / "adapters/before" / rundir.RUN_INFO).read_text())
    known["resolved"] = task | {"data": task["data"] | {"path": "long.txt", "val_split": 0.0, "test_split": 0.0}}
    (place / "adapters/before" / rundir.RUN_INFO).write_text(json.dumps(known | {"started_in": str(place)}))
    facts = json.loads(run.file(rundir.RUN_INFO).read_text())
    facts["resolved"]["adapter"] = "before"
    run.file(rundir.RUN_INFO).write_text(json.dumps(facts))
    course = prepare_course(run, given="long.txt", max_rows=8, prompts=(), base=place, report=lambda _: None)
    found = measure_course(course, named="n", show=lambda _: None, say=lambda _: None, report=lambda *_: None)
    assert (
        "stand in the training rows of before, which it began from: these figures flatter it." in found.report.sentence
    )
    texts = prepare_experiment(subject_of(place, "tales"), given="long.txt", context=32, num_texts=2, base=place)
    read = run_experiment(texts, named=None, out=None, show=lambda _: None, say=lambda _: None)
    assert (
        "stand in the training rows of before, which it began from: these figures flatter it." in read.report.sentence
    )
