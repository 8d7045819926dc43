"""The experiment with attention sinks: what is read, what the figures are of, going on, and what is refused."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from course_runs import write_adapter_run, write_texts
from eval_runs import subject_of, write_place

from mlx_finetune import rundir
from mlx_finetune.app.eval.journal import Journal
from mlx_finetune.app.eval.sinks.results import csv_text, report_lines
from mlx_finetune.app.eval.sinks.run import Finished, run_experiment
from mlx_finetune.app.eval.sinks.setup import Experiment, prepare_experiment, stretches
from mlx_finetune.commands.eval import command
from mlx_finetune.errors import ModelError, UsageError
from mlx_finetune.model.long_text.reading import FULL, METHODS, LongReader
from mlx_finetune.monitor.report.facts import read_facts
from mlx_finetune.monitor.report.parts.sinks import sinks
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.losses import chunk_rows

TinyModel = Callable[..., Path]
CONTEXT = 32


@pytest.fixture
def run(tmp_path: Path, tiny_model: TinyModel) -> RunDir:
    made = write_adapter_run(tmp_path / "place", tiny_model("llama"))
    write_texts(tmp_path / "place" / "long.txt", 60)
    return made


def experiment_of(
    run: RunDir, *, context: int | None = CONTEXT, given: str | None = "long.txt", texts: int = 3
) -> Experiment:
    place = run.path.parent.parent
    return prepare_experiment(subject_of(place, "tales"), given=given, context=context, num_texts=texts, base=place)


def read(experiment: Experiment, said: list[str] | None = None) -> Finished:
    say = (said if said is not None else []).append
    return run_experiment(experiment, named=None, out=None, show=lambda _: None, say=say)


def test_buckets_are_the_means_of_their_positions_and_all_four_agree_within_the_context(run: RunDir) -> None:
    experiment = experiment_of(run)
    report = read(experiment).report
    assert experiment.texts.shape == (3, 3 * CONTEXT + 1)
    assert [(one.first, one.last) for one in report.buckets] == [(8 * n + 1, 8 * n + 8) for n in range(12)]
    losses = LongReader(experiment.subject.opened.model, chunk_rows).losses(experiment.texts, FULL, CONTEXT)
    for place, one in enumerate(report.buckets):
        assert one.losses[FULL].value == pytest.approx(losses[:, 8 * place : 8 * place + 8].mean(), rel=1e-5)
        if one.last <= CONTEXT:
            assert max(one.losses[m].value for m in METHODS) - min(one.losses[m].value for m in METHODS) < 1e-5
    assert report.inside[FULL].value == pytest.approx(losses[:, :CONTEXT].mean(), rel=1e-5)
    assert report.behind[FULL].value == pytest.approx(losses[:, CONTEXT:].mean(), rel=1e-5)
    for loss in report.behind.values():
        assert loss.low is not None
        assert loss.high is not None
        assert loss.low < loss.value < loss.high


def test_a_context_that_is_no_multiple_of_four_ends_where_a_bucket_does(run: RunDir) -> None:
    report = read(experiment_of(run, context=27)).report
    assert 27 in [one.last for one in report.buckets]
    assert report.buckets[-1].last == 81


def test_csv_terminal_and_report_have_the_same_figures(run: RunDir) -> None:
    report = read(experiment_of(run)).report
    folder = run.file(rundir.SINK_EXPERIMENTS)
    assert (folder / "context.csv").read_text() == csv_text(report)
    lines = list(csv.DictReader(csv_text(report).splitlines()))
    part = sinks(read_facts(run))
    assert part is not None
    rows = [
        re.findall(r'<td>(?:<span class="name">.*?</span>)?(.*?)</td>', row)
        for row in re.findall(r"<tr>(<td>.*?)</tr>", part.text)
    ]
    for line, row in zip(lines, rows, strict=True):
        assert row[0] == f"{line['first']} to {line['last']}"
        for method, cell in zip(METHODS, row[1:], strict=True):
            low, high = float(line[f"{method}_low"]), float(line[f"{method}_high"])
            assert cell == f"{float(line[method]):.3f} ({low:.3f} to {high:.3f})"
    shown = list(report_lines(report))
    assert max(map(len, shown)) <= 80
    assert any(line.lstrip().startswith("33-40") and f"{float(lines[4]['turned']):.3f}" in line for line in shown)
    assert 'data-across="token"' in part.text
    assert part.text.count('class="line') == 4


def test_rows_that_are_joined_to_be_long_enough_are_said_to_be(run: RunDir) -> None:
    joined = experiment_of(run)
    assert 0 < joined.row_tokens < 3 * CONTEXT
    number = f"{joined.row_tokens:.0f} tokens on average, one behind the other"
    assert f"A text is many rows, of {number}" in read(joined).report.sentence
    long = run.path.parent.parent / "long.txt"
    long.write_text(long.read_text().replace("\n", " "))
    assert "many rows" not in read(experiment_of(run, context=16)).report.sentence


def test_an_interrupted_experiment_goes_on(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_add = Journal.add

    def add(self: Journal, measured) -> None:
        plain_add(self, measured)
        if len(self.found) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add)
        assert not read(experiment_of(run)).report.is_whole
    said: list[str] = []
    finished = read(experiment_of(run), said)
    assert finished.report.is_whole
    assert said[0].startswith("going on with")
    assert finished.report.num_texts == 3
    assert finished.place is not None
    lines = (finished.place.file(".rows.jsonl")).read_text().splitlines()
    assert len(lines) == 1 + 4 * 3


def test_stretches_share_no_token_and_are_spread() -> None:
    ids = np.arange(100, dtype=np.int32)
    found = stretches(ids, 10, 3)
    assert [row[0] for row in found] == [0, 30, 60]
    assert stretches(ids, 10, 50).shape == (10, 10)
    assert stretches(ids, 101, 3).shape == (0, 101)


def test_texts_that_are_too_short_and_rows_that_are_no_text_are_refused(
    run: RunDir, tmp_path: Path, tiny_model: TinyModel
) -> None:
    with pytest.raises(UsageError, match="3 contexts of 512 are 1,536") as caught:
        experiment_of(run, context=None, given=None)
    assert "--context N" in caught.value.hint
    place = write_place(tmp_path / "asked", tiny_model("llama"))
    with pytest.raises(UsageError, match="questions with answers"):
        prepare_experiment(subject_of(place), given=None, context=8, num_texts=1, base=place)


def test_a_run_of_rows_that_are_never_text_is_told_so_and_not_what_another_task_wants(
    tmp_path: Path, tiny_model: TinyModel
) -> None:
    subject = subject_of(write_place(tmp_path / "asked", tiny_model("llama")))
    assert subject.recipe is not None
    subject = replace(subject, recipe=subject.recipe.model_copy(update={"task": "classify"}))
    with pytest.raises(UsageError, match="reads plain text, and the rows of a classify run are none") as caught:
        prepare_experiment(subject, given=None, context=8, num_texts=1, base=tmp_path)
    assert caught.value.hint == "name a text: --data FILE"


def test_a_model_without_rotary_embeddings_is_refused_by_name(tmp_path: Path, tiny_model: TinyModel) -> None:
    run = write_adapter_run(tmp_path / "gpt", tiny_model("gpt2"))
    with pytest.raises(ModelError, match="a gpt2 model has learned positions"):
        experiment_of(run, given=None)


def call(run: RunDir, *options: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.chdir(run.path.parent.parent)
    return CliRunner().invoke(command, ["tales", "--sinks", *options])


def test_a_user_gets_the_table_and_what_to_do_next(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--data", "long.txt", "--context", "32", "--max-rows", "2")
    result = call(run, *options, monkeypatch=monkeypatch)
    assert result.exit_code == 0, result.output
    assert "tales on 2 texts of 96 tokens from long.txt, 3 times the context of 32" in result.stdout
    assert "behind the context" in result.stdout
    assert "kept in adapters/tales/eval/sinks/context.json and .csv" in result.stderr
    assert "next: mlxft report tales" in result.stderr
    again = call(run, *options, "--json", monkeypatch=monkeypatch)
    assert "this was measured before" in again.stderr
    assert json.loads(again.stdout)["context"] == 32
    assert call(run, *options, "--csv", monkeypatch=monkeypatch).stdout.startswith("first,last,full,full_low")


def test_a_model_alone_keeps_its_result_where_it_is_told(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "long.txt", 60)
    name = str(tiny_model("llama"))
    options = [name, "--sinks", "--data", "long.txt", "--context", "32"]
    result = CliRunner().invoke(command, options)
    assert "nothing was kept: --out FOLDER keeps it" in result.stderr
    assert CliRunner().invoke(command, [*options, "--out", "kept"]).exit_code == 0
    assert (tmp_path / "kept" / "context.json").is_file()
    refused = CliRunner().invoke(command, [name, "--sinks"]).exception
    assert isinstance(refused, UsageError)
    assert "--data FILE_OR_FOLDER" in refused.hint
