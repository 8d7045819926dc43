"""Every checkpoint of a run measured: what each figure is of, going on after an interruption, and what is refused."""

import csv
import gc
import json
import math
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from answering_runs import write_adapter, write_run
from click.testing import CliRunner, Result
from course_runs import PROMPTS, add_checkpoint, write_adapter_run, write_model_run
from eval_runs import change_facts, write_place

from mlx_finetune import rundir
from mlx_finetune.app.eval.between_runs import kept_verdicts
from mlx_finetune.app.eval.checkpoints import points
from mlx_finetune.app.eval.checkpoints.measure import LOSSES
from mlx_finetune.app.eval.checkpoints.results import course_report, csv_text, report_lines
from mlx_finetune.app.eval.checkpoints.run import Finished, measure_course
from mlx_finetune.app.eval.checkpoints.setup import prepare_course
from mlx_finetune.app.eval.journal import Journal, Measured
from mlx_finetune.app.eval.texts import text_losses
from mlx_finetune.app.open import open_name
from mlx_finetune.app.text import shorten
from mlx_finetune.commands.eval import command
from mlx_finetune.errors import ModelError, RunError, UsageError
from mlx_finetune.model.answers.generate import Sampling, generate_text
from mlx_finetune.model.likelihoods import LikelihoodModel
from mlx_finetune.monitor.report.facts import read_facts
from mlx_finetune.monitor.report.parts.checkpoints import checkpoints
from mlx_finetune.rundir import RunDir
from mlx_finetune.scoring.intervals import mcnemar_exact
from mlx_finetune.train.losses import chunk_rows

TinyModel = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path, tiny_model: TinyModel) -> RunDir:
    return write_adapter_run(tmp_path / "place", tiny_model("llama"))


def measure(
    run: RunDir,
    *,
    named: str | None = None,
    given: str | None = None,
    said: list[str] | None = None,
    prompts: tuple[str, ...] = (),
) -> Finished:
    course = prepare_course(
        run, given=given, max_rows=None, prompts=prompts, base=run.path.parent.parent, report=lambda _: None
    )
    say = (said if said is not None else []).append
    return measure_course(course, named=named, show=lambda _: None, say=say, report=lambda *_: None)


def kept(run: RunDir, end: str = ".json") -> str:
    return (run.file(rundir.CHECKPOINT_EVALUATIONS) / f"test{end}").read_text()


def losses_of(name: str, run: RunDir, *, base: bool = False) -> float:
    """Nats of all texts under one checkpoint, opened by itself."""
    place = run.path.parent.parent
    opened = open_name(name, base=place, report=lambda _: None)
    course = prepare_course(run, given=None, max_rows=None, prompts=(), base=place, report=lambda _: None)
    texts = [row.part for row in course.chosen.rows]

    def score(model) -> float:
        found = text_losses(LikelihoodModel(model, chunk_rows), opened.tokenizer, texts, 512)
        return sum(float(one.losses.sum(dtype=np.float64)) for one in found)

    if base:
        with points.base_model(opened) as model:
            return score(model)
    return score(opened.model)


def test_every_point_has_the_losses_of_its_weights(run: RunDir) -> None:
    report = measure(run).report
    assert [at.step for at in report.points] == [0, 10, 20]
    wanted = [losses_of(str(run.checkpoint(10)), run, base=True)]
    wanted += [losses_of(str(run.checkpoint(step)), run) for step in (10, 20)]
    assert wanted[0] != pytest.approx(wanted[1])
    for at, nats in zip(report.points, wanted, strict=True):
        assert at.figures["loss"].value == pytest.approx(nats / report.num_tokens, rel=1e-5)
        assert at.figures["perplexity"].value == pytest.approx(math.exp(nats / report.num_tokens), rel=1e-4)
        assert at.figures["bits_per_byte"].value == pytest.approx(nats / math.log(2) / report.num_bytes, rel=1e-5)
        low, high = at.figures["bits_per_byte"].low, at.figures["bits_per_byte"].high
        assert low is not None
        assert high is not None
        assert low < at.figures["bits_per_byte"].value < high
    assert report.points[0].change is None
    last, before = report.points[2], report.points[1]
    assert last.change is not None
    assert last.change.value == pytest.approx(
        last.figures["bits_per_byte"].value - before.figures["bits_per_byte"].value
    )
    assert (report.how, report.window, report.stride) == ("each row by itself", None, None)


def test_csv_json_and_report_have_the_same_figures(run: RunDir) -> None:
    report = measure(run).report
    lines = list(csv.DictReader(kept(run, ".csv").splitlines()))
    fields = json.loads(kept(run))
    assert kept(run, ".csv") == csv_text(report)
    part = checkpoints(read_facts(run))
    assert part is not None
    cells = [
        re.findall(r'<td>(?:<span class="name">.*?</span>)?(.*?)</td>', row)
        for row in re.findall(r"<tr>(<td>.*?)</tr>", part.text)
    ]
    for line, at, row in zip(lines, fields["points"], cells, strict=True):
        for name in ("loss", "perplexity", "bits_per_byte"):
            for key, end in (("value", ""), ("low", "_low"), ("high", "_high")):
                assert float(line[f"{name}{end}"]) == at["figures"][name][key]
        assert row[0] == line["step"]
        assert row[1] == f"{float(line['loss']):.3f}"
        assert row[2] == f"{float(line['perplexity']):,.2f}"
        assert row[3] == f"{float(line['bits_per_byte']):.3f}"
        assert row[4] == f"{float(line['bits_per_byte_low']):.3f} to {float(line['bits_per_byte_high']):.3f}"
    shown = list(report_lines(report))
    assert max(map(len, shown)) <= 80
    assert any(f"{report.points[2].figures['bits_per_byte'].value:.3f}" in line for line in shown)
    assert "read each row by itself" in " ".join(shown)


def test_prompts_are_answered_by_every_point_and_never_twice(run: RunDir) -> None:
    sampled = {"step": 10, "prompt": PROMPTS[0], "answer": "as it was", "num_tokens": 3}
    run.file(rundir.SAMPLES).write_text(json.dumps(sampled) + "\n{half a line")
    report = measure(run).report
    found = {(one.step, one.prompt): one.answer for one in report.samples}
    assert set(found) == {(step, prompt) for step in (0, 10, 20) for prompt in PROMPTS}
    assert found[10, PROMPTS[0]] == "as it was"
    opened = open_name(str(run.checkpoint(20)), base=run.path.parent.parent, report=lambda _: None)
    from mlx_finetune.app.generate import prompt_ids, question

    ids = prompt_ids(question(PROMPTS[1], opened.chat), opened.tokenizer, opened.data)
    answer = generate_text(opened.model, opened.tokenizer, ids, Sampling(temperature=0.0, max_tokens=5))
    assert found[20, PROMPTS[1]] == answer
    shown = list(report_lines(report))
    start = shown.index(f"prompt {PROMPTS[0]}")
    assert shown[start + 1 : start + 4] == [
        f"{step:>6}  {shorten(found[step, PROMPTS[0]], 72) or '(nothing)'}" for step in (0, 10, 20)
    ]
    assert max(map(len, shown)) <= 80
    page = checkpoints(read_facts(run))
    assert page is not None
    assert page.text.count('class="strip"') == 2
    assert "as it was" in page.text


def test_other_prompts_are_answered_and_not_given_the_answers_of_those_before(run: RunDir) -> None:
    measure(run, prompts=PROMPTS[:1])
    second = measure(run, prompts=PROMPTS[1:]).report.samples
    both = measure(run, prompts=PROMPTS).report.samples
    shutil.rmtree(run.file(rundir.EVALUATIONS))
    afresh = measure(run, prompts=PROMPTS).report.samples
    assert both == afresh
    assert second == tuple(one for one in afresh if one.prompt == PROMPTS[1])


@pytest.mark.parametrize("stop_after", [30])
def test_an_interrupted_course_goes_on_where_it_stopped(
    run: RunDir, tmp_path: Path, tiny_model: TinyModel, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_adapter_run(tmp_path / "whole", tiny_model("llama"))
    measure(whole)
    added, plain_add = 0, Journal.add

    def add(self: Journal, measured) -> None:
        nonlocal added
        plain_add(self, measured)
        added += 1
        if added == stop_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add)
        report = measure(run).report
    assert not report.is_whole
    said: list[str] = []
    again = measure(run, said=said)
    assert again.report.is_whole
    assert said[0].startswith("going on with what was measured before in ")
    ours, theirs = json.loads(kept(run)), json.loads(kept(whole))
    for key in ("points", "samples", "sentence", "num_tokens"):
        assert ours[key] == theirs[key]
    lines = [json.loads(line) for line in kept(run, ".rows.jsonl").splitlines()[1:]]
    named = [(line["work"], line["side"], line["row"]) for line in lines]
    assert len(named) == len(set(named))


def test_a_checkpoint_that_came_later_is_measured_and_the_others_are_not_again(
    run: RunDir, tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measure(run).report
    write_adapter(tmp_path / "third", tiny_model("llama"), seed=30)
    add_checkpoint(run, 30, tmp_path / "third")
    loaded: list[str] = []
    plain = points.Weights.at
    monkeypatch.setattr(points.Weights, "at", lambda self, point: (loaded.append(point.name), plain(self, point))[1])
    second = measure(run).report
    assert loaded == ["step 30"]
    assert [at.figures for at in second.points[:3]] == [at.figures for at in first.points]
    said: list[str] = []
    measure(run, said=said)
    assert loaded == ["step 30"]
    assert said[0].startswith("all of this was measured before; ")


def test_of_fully_trained_models_one_is_in_memory_at_a_time(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [tiny_model("llama", seed=seed) for seed in (1, 2, 3)]
    run = write_model_run(tmp_path / "place", tiny_model("llama"), made)
    alive: list[weakref.ref] = []
    most, plain_open, plain_base = 0, points.open_name, points.load_base

    def count(model) -> None:
        nonlocal most
        gc.collect()
        alive.append(weakref.ref(model))
        most = max(most, sum(one() is not None for one in alive))

    def counted(*args, **keys):
        opened = plain_open(*args, **keys)
        count(opened.model)
        return opened

    def counted_base(*args):
        model = plain_base(*args)
        count(model)
        return model

    monkeypatch.setattr(points, "open_name", counted)
    monkeypatch.setattr(points, "load_base", counted_base)
    report = measure(run).report
    assert [at.step for at in report.points] == [0, 10, 20, 30]
    assert len({at.figures["loss"].value for at in report.points}) == 4
    assert report.model == tiny_model("llama").name
    assert len(alive) == 5  # what all share is read from the newest, before the first
    assert most == 1


def test_answers_have_a_course_too(tmp_path: Path, tiny_model: TinyModel) -> None:
    place = write_place(tmp_path / "place", tiny_model("llama"))
    run = RunDir(place / "adapters" / "keeper")
    write_adapter(place / "made", tiny_model("llama"), seed=4)
    add_checkpoint(run, 5, place / "made")
    report = measure(run).report
    assert (report.what, report.window) == ("answers", None)
    assert [at.step for at in report.points] == [0, 5]
    evaluated = json.loads(
        CliRunner()
        .invoke(command, [str(run.checkpoint(5)), "--tasks", "loss", "--json"], catch_exceptions=False)
        .stdout
    )
    sides = next(one for one in evaluated["measures"] if one["name"] == "loss")["sides"]
    for side, at in (("base", report.points[0]), ("tuned", report.points[1])):
        assert at.figures["loss"].value == pytest.approx(sides[side]["value"], rel=1e-5)
    assert "Loss and perplexity are of the answers" in " ".join(report_lines(report))


def test_another_text_of_the_prompt_template_is_another_course(tmp_path: Path, tiny_model: TinyModel) -> None:
    place = write_place(tmp_path / "place", tiny_model("llama"))
    run = RunDir(place / "adapters" / "keeper")
    change_facts(place, {"data": {"prompt_template": "form.txt"}}, run.path)
    write_adapter(place / "made", tiny_model("llama"), seed=4)
    add_checkpoint(run, 5, place / "made")
    names: list[str] = []
    for form in ("Q {instruction}", "Ask {instruction}"):
        (place / "form.txt").write_text(form)
        names.append(measure(run).place.name)
    assert names == ["test", "test-2"]


def test_a_run_that_began_as_an_adapter_is_compared_with_that(
    run: RunDir, tmp_path: Path, tiny_model: TinyModel
) -> None:
    place = run.path.parent.parent
    begun = write_run(place / "adapters" / "begun", tiny_model("llama"))
    write_adapter(begun.path, tiny_model("llama"), seed=77)
    path = run.file(rundir.RUN_INFO)
    facts = json.loads(path.read_text())
    facts["resolved"]["adapter"] = "begun"
    path.write_text(json.dumps(facts))
    report = measure(run).report
    wanted = losses_of("begun", run) / report.num_tokens
    assert report.points[0].figures["loss"].value == pytest.approx(wanted, rel=1e-5)


def test_a_saved_beginning_is_the_beginning(run: RunDir, tmp_path: Path, tiny_model: TinyModel) -> None:
    write_adapter(tmp_path / "zero", tiny_model("llama"), seed=40)
    add_checkpoint(run, 0, tmp_path / "zero")
    report = measure(run).report
    assert [(at.step, at.name) for at in report.points] == [(0, "before training"), (10, "step 10"), (20, "step 20")]
    wanted = losses_of(str(run.checkpoint(0)), run) / report.num_tokens
    assert report.points[0].figures["loss"].value == pytest.approx(wanted, rel=1e-5)


def call(run: RunDir, *options: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.chdir(run.path.parent.parent)
    return CliRunner().invoke(command, ["tales", *options])


def test_a_user_gets_the_table_or_its_data(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    result = call(run, "--checkpoints", "--prompt", "there", monkeypatch=monkeypatch)
    assert result.exit_code == 0, result.output
    assert "Bits per byte" in result.stdout
    assert "kept in adapters/tales/eval/checkpoints/test.json and .csv" in result.stderr
    assert "next: mlxft report tales" in result.stderr
    fields = json.loads(call(run, "--checkpoints", "--json", monkeypatch=monkeypatch).stdout)
    assert [at["step"] for at in fields["points"]] == [0, 10, 20]
    lines = call(run, "--checkpoints", "--csv", monkeypatch=monkeypatch).stdout.splitlines()
    assert lines[0].startswith("step,name,loss,loss_low,loss_high,perplexity")
    assert len(lines) == 4
    assert [one["prompt"] for one in fields["samples"] if one["step"] == 10] == list(PROMPTS)
    assert kept_verdicts(run) == {"checkpoints/test": fields["sentence"]}


def test_what_does_not_go_together_is_refused(
    run: RunDir, tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, message in (
        (("--checkpoints", "--sinks"), "two evaluations"),
        (("--checkpoints", "--tasks", "loss"), "--checkpoints and --tasks do not go together"),
        (("--sinks", "--gate", "loss < 2"), "--sinks and --gate do not go together"),
        (("--sinks", "--batch", "2"), "--sinks and --batch do not go together"),
        (("--samples", "x", "--max-tokens", "9"), "--samples and --max-tokens do not go together"),
        (("--checkpoints", "--context", "64"), "--context goes with --sinks"),
        (("--prompt", "x"), "--prompt goes with --checkpoints"),
        (("--sinks", "--prompt", "x"), "--prompt goes with --checkpoints"),
    ):
        error = call(run, *options, monkeypatch=monkeypatch).exception
        assert isinstance(error, UsageError), options
        assert message in error.message
    for step in (10, 20):
        (run.checkpoint(step) / rundir.MANIFEST).unlink()
    with pytest.raises(RunError, match="has no checkpoint"):
        measure(run)


def test_a_run_whose_rows_have_no_next_token_needs_a_text(run: RunDir) -> None:
    from mlx_finetune.app.eval.checkpoints.setup import _check_task
    from mlx_finetune.recipe.schema import Recipe

    recipe = Recipe.model_validate(json.loads(run.file(rundir.RUN_INFO).read_text())["resolved"])
    preference, pairs = (recipe.model_copy(update={"task": task}) for task in ("dpo", "seq2seq"))
    _check_task(preference, "text.txt")
    with pytest.raises(UsageError, match="the rows of a dpo run have no loss of the next token"):
        _check_task(preference, None)
    with pytest.raises(UsageError, match="no perplexity of a text"):
        _check_task(pairs, "text.txt")


def test_other_rows_take_another_name(run: RunDir) -> None:
    measure(run)
    (run.path.parent.parent / "more.txt").write_text("the sea\nis there\nand it is not\n")
    assert measure(run, given="more.txt").place.name == "rows"
    with pytest.raises(RunError, match="holds another evaluation: other data, rows"):
        measure(run, given="more.txt", named="test")


def test_rows_that_failed_somewhere_are_left_out_of_every_point(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_add = Journal.add

    def add(self: Journal, measured) -> None:
        from dataclasses import replace

        is_bad = measured.work == LOSSES and measured.row == 3 and measured.side.startswith("10:")
        plain_add(self, replace(measured, values={}, error="not finite") if is_bad else measured)

    monkeypatch.setattr(Journal, "add", add)
    report = measure(run).report
    assert report.num_failed == 1
    assert {at.figures["loss"].num_rows for at in report.points} == {report.num_rows}
    assert any("left out of all" in line for line in report_lines(report))


@pytest.mark.parametrize("place", [0, -1])
def test_of_a_damaged_checkpoint_it_is_said_how_the_others_are_measured(
    run: RunDir, tmp_path: Path, place: int
) -> None:
    """The newest is opened with its base, the others are put onto it."""
    broken = run.checkpoints()[place]
    for name in (rundir.PEFT_WEIGHTS, rundir.MLX_WEIGHTS):
        if (broken / name).is_file():
            (broken / name).write_bytes(b"x")
    with pytest.raises(ModelError) as caught:
        measure(run)
    assert caught.value.hint == f"move {broken.name} out of the run, and the others are measured"
    broken.rename(tmp_path / "away")
    assert measure(run).report.is_whole


def test_the_last_is_worse_for_sure_than_the_lowest_of_many_only_where_that_is_no_luck(
    tmp_path: Path, tiny_model: TinyModel
) -> None:
    run = write_adapter_run(tmp_path / "place", tiny_model("llama"), steps=(10, 20, 30, 40, 50))
    base = run.path.parent.parent
    course = prepare_course(run, given=None, max_rows=None, prompts=(), base=base, report=lambda _: None)
    count = len(course.chosen.rows)
    by_luck = max(less for less in range(count // 2) if mcnemar_exact(less, count - less) < 0.05)

    def said(num_lower: int) -> str:
        journal = Journal(tmp_path / f"{num_lower}.jsonl", {})
        for point in course.points:
            for row in range(count):
                nats = {10: 20.0, 50: 19.0 if row < num_lower else 21.0}.get(point.step, 22.0)
                values = {"loss": (nats, 10.0), "bits_per_byte": (nats, 40.0)}
                journal.add(Measured(LOSSES, point.key, row, values))
        journal.close()
        return course_report(course, journal, [], is_whole=True).sentence.rpartition("; ")[2]

    assert mcnemar_exact(by_luck, count - by_luck) * 5 > 0.05
    assert said(by_luck) == "the last one is not worse for sure."
    assert said(0) == "the last one is worse for sure."


def test_a_recipe_without_prompts_has_no_strip(run: RunDir) -> None:
    change_facts(run.path.parent.parent, {"eval": {"prompts": ()}}, run.path)
    assert measure(run).report.samples == ()
    part = checkpoints(read_facts(run))
    assert part is not None
    assert "strip" not in part.text
