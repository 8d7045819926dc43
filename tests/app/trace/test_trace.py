"""A trace of small real runs: what it finds against plain computation, and that it can be left and gone on with."""

import csv
import hashlib
import json
import shutil
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from conftest import ROOT
from small_runs import train, write_recipe
from traced_runs import SETTINGS, train_series

from mlx_finetune import rundir
from mlx_finetune.app.eval.rows import data_of
from mlx_finetune.app.open import open_name
from mlx_finetune.app.trace.measure import open_traced
from mlx_finetune.app.trace.probes import Probes, ask_about, choose_probes
from mlx_finetune.app.trace.run import Asked, trace_run
from mlx_finetune.app.trace.view import summary_lines
from mlx_finetune.app.updates.series import open_series
from mlx_finetune.dataset.conversation import prompt_and_reference
from mlx_finetune.dataset.formats import Labelled, Preference
from mlx_finetune.errors import DataError, RunError, StorageError, UsageError
from mlx_finetune.model.reload_check import KEY
from mlx_finetune.rundir import RunDir

ASKED = Asked(per_category=3, answer_tokens=3)


def silent(event):
    del event


def trace(run, asked=ASKED, report=silent):
    return trace_run(str(run.path), asked, base=run.path.parent, report=report)


@pytest.fixture(scope="module")
def traced(run):
    before = hashes(run)
    found = trace(run)
    assert hashes(run) == before  # nothing but trace/ was touched
    return found


def hashes(run):
    files = [path for path in run.path.rglob("*") if path.is_file() and rundir.TRACE not in path.parts]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.name != ".lock"}


def table(run, name):
    with (run.file(rundir.TRACE) / name).open() as file:
        return list(csv.DictReader(file))


def plain_scores(model, row, start):
    """Sum of log-probabilities of the targets of one row from ``start`` on, by one plain forward pass."""
    logits = np.array(model(mx.array(row.ids[None]))[0].astype(mx.float32)).astype(np.float64)
    logs = logits - logits.max(-1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(-1, keepdims=True))
    places = [place for place in range(max(1, start), len(row.ids)) if row.loss_mask[place]]
    return sum(logs[place - 1, row.ids[place]] for place in places), logs


def test_scores_ranks_and_losses_are_those_of_plain_forward_passes(run, traced):
    for result in (traced.results[0], traced.results[-1]):
        model = open_name(str(run.checkpoint(result.step)), base=run.path, report=silent).model
        for probe, reply in zip(traced.probes.probes, result.replies, strict=True):
            ids = [row.ids.tolist() for row in probe.rows]
            shared = next(place for place in range(len(min(ids, key=len))) if len({one[place] for one in ids}) > 1)
            expected = [plain_scores(model, row, shared)[0] for row in probe.rows]
            np.testing.assert_allclose(reply.scores, expected, atol=1e-4)
            total, logs = plain_scores(model, probe.rows[0], 1)
            assert reply.loss_sum == pytest.approx(-total, abs=1e-4)
            assert reply.num_targets == probe.rows[0].loss_mask[1:].sum()
            assert reply.token_rank == 1 + np.sum(logs[shared - 1] > logs[shared - 1, ids[0][shared]])
            assert reply.margin == pytest.approx(expected[0] - max(expected[1:]), abs=2e-4)
            assert reply.rank == 1 + sum(score >= expected[0] for score in expected[1:])


def test_wrong_answers_come_from_the_column_or_from_other_rows_of_the_category(traced):
    for probe in traced.probes.probes:
        right, *wrong = probe.answers
        assert right not in wrong
        assert len(wrong) == 3
        assert all(answer.isdigit() == (probe.category == "sum") for answer in probe.answers)
    assert traced.probes.split == "test"
    assert traced.probes.categories == ("colour", "sum")


def test_step_0_is_the_base_and_every_checkpoint_has_the_loss_it_was_saved_with(traced):
    assert [result.step for result in traced.results] == [0, 3, 6]
    first = traced.results[0]
    assert all(layer.base_cka == pytest.approx(1.0) and layer.base_kl == pytest.approx(0, abs=1e-6)
               for layer in first.layers)  # fmt: skip
    assert all(matrix.norm == 0 for matrix in first.matrices)
    assert all(result.reload.difference is not None and result.reload.difference <= 1e-6 for result in traced.results)


def test_the_lens_ends_at_the_final_distribution_and_training_moves_it(traced):
    last = traced.results[-1]
    assert last.layers[-1].lens_kl == pytest.approx(0.0, abs=1e-9)
    assert (last.layers[0].lens_kl or 0.0) > 0
    assert (last.layers[-1].base_kl or 0.0) > 1e-3
    assert (last.layers[-1].base_cka or 1.0) < 1 - 1e-4
    assert (last.layers[-1].previous_cka or 0.0) > (
        last.layers[-1].base_cka or 1.0
    )  # the last half of a cosine moves less


def test_matrices_are_those_of_the_dense_updates(run, traced):
    series = open_series(run)
    by_path = {matrix.path: matrix for matrix in traced.results[-1].matrices}
    for path in series.paths[:3]:
        delta = series[-1].delta(path).astype(np.float64)
        assert by_path[path].norm == pytest.approx(np.linalg.norm(delta), rel=1e-5)
        assert by_path[path].relative == pytest.approx(
            np.linalg.norm(delta) / np.linalg.norm(series.base_weight(path).astype(np.float64)), rel=1e-5
        )
        values = np.linalg.svd(delta, compute_uv=False)[:4]
        np.testing.assert_allclose(by_path[path].values, values, rtol=1e-4)
    assert list(by_path) == list(series.paths)


def test_the_tables_say_the_same_as_the_results(run, traced):
    behaviour = table(run, "behaviour.csv")
    assert [(row["category"], int(row["step"])) for row in behaviour] == [
        (kind, step) for kind in ("colour", "sum") for step in (0, 3, 6)
    ]
    assert float(behaviour[0]["loss"]) == pytest.approx(traced.categories[0].course[0].loss, rel=1e-6)
    pairs = {(row["first"], row["second"]) for row in table(run, "pairs.csv")}
    assert pairs == {("0", "3"), ("0", "6"), ("3", "6")}
    assert len(table(run, "probes.csv")) == 3 * 6
    assert len(table(run, "samples.csv")) == 3 * 2
    summary = json.loads((run.file(rundir.TRACE) / "trace.json").read_text())
    assert [step["is_reload_right"] for step in summary["steps"]] == [True] * 3
    lines = "\n".join(summary_lines(traced))
    assert lines.startswith("3 checkpoints reloaded with the loss saved")
    assert lines.index("When was it learned?") < lines.index("Hidden states") < lines.index("Updates at step 6")
    assert "it does not say which circuit" in lines


def test_an_interrupted_trace_goes_on_and_ends_with_the_same_figures(run, traced, tmp_path):
    expected = {path.name: path.read_bytes() for path in run.file(rundir.TRACE).glob("*.csv")}
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(run.path, copy.path)
    shutil.rmtree(copy.file(rundir.TRACE))
    asked_for = []

    def interrupt(event):
        asked_for.append(event)
        if getattr(event, "detail", "") == "step 3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace(copy, report=interrupt)
    assert [path.name for path in (copy.file(rundir.TRACE) / "steps").iterdir()] == ["step-0.json"]
    again = []
    trace(copy, report=again.append)
    assert {path.name: path.read_bytes() for path in copy.file(rundir.TRACE).glob("*.csv")} == expected
    third = []
    trace(copy, report=third.append)
    assert not [event for event in third if getattr(event, "unit", "") == "probes"]  # all of it is kept
    newest = copy.checkpoint(6) / rundir.TRAINER_STATE
    newest.write_text(json.dumps(json.loads(newest.read_text()) | {"total_steps": 12}))
    trace(copy)
    assert [row["progress"] for row in table(copy, "checkpoints.csv")] == ["0", "0.25", "0.5"]  # of all steps there are
    other = []
    trace(copy, Asked(per_category=2, answer_tokens=3), report=other.append)
    assert [event for event in other if getattr(event, "unit", "") == "probes"]  # other probes are other figures


def test_checkpoints_of_a_run_that_was_extended_are_shares_of_all_its_steps(tiny_model, tmp_path):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    overrides = ("data.packing=false", "training.max_steps=2", "training.save_at=[0, 0.5, 1]", "eval.prompts=[]")
    asked = Asked(per_category=1, answer_tokens=1)
    run = train(recipe, overrides=overrides)
    trace(run, asked)
    assert [float(row["progress"]) for row in table(run, "checkpoints.csv")] == [0, 0.5, 1]
    train(recipe, overrides=overrides, extend=2)
    trace(run, asked)  # what is kept of the steps before is taken
    rows = table(run, "checkpoints.csv")
    assert [(int(row["step"]), float(row["progress"])) for row in rows] == [(0, 0), (1, 0.25), (2, 0.5), (4, 1)]


def test_a_checkpoint_that_is_not_what_was_saved_is_said(run, tmp_path):
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(run.path, copy.path)
    state = copy.checkpoint(6) / rundir.TRAINER_STATE
    fields = json.loads(state.read_text())
    fields[KEY]["loss"] += 1e-3
    state.write_text(json.dumps(fields))
    shutil.rmtree(copy.file(rundir.TRACE), ignore_errors=True)
    found = trace(copy)
    lines = list(summary_lines(found))
    assert lines[0].startswith("warning: checkpoint-6 has another loss than it was saved with: 1.00e-03 nats")
    assert lines[1].startswith("2 checkpoints reloaded with the loss saved")


def test_dense_svds_are_made_when_asked_for(run, tmp_path):
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(run.path, copy.path)
    found = trace(copy, Asked(per_category=3, answer_tokens=3, has_svd=True))
    rows = table(copy, "intruders.csv")
    assert len(rows) == len(found.directions) == 10 * len(found.series.paths)
    assert found.summary["num_intruders"] == sum(row["is_intruder"] == "True" for row in rows)
    assert any(line.startswith("Intruder directions: ") for line in summary_lines(found))


def test_a_run_without_step_0_is_compared_with_its_base(make_run):
    found = trace(make_run("llama", "training.save_at=[1.0]"))
    assert [(result.step, result.is_checkpoint) for result in found.results] == [(0, False), (6, True)]
    assert found.results[0].layers[-1].base_kl == pytest.approx(0, abs=1e-6)
    assert found.results[0].matrices == ()
    assert (found.results[1].layers[-1].base_kl or 0.0) > 1e-3


def test_step_0_of_a_run_that_began_as_an_adapter_is_that_adapter(make_run, run, tmp_path):
    """Kept or not; both are compared with the base."""
    start = shutil.copytree(run.path, tmp_path / "start")
    begun, kept = (make_run("llama", f"adapter={start}", f"training.save_at={at}") for at in ("[1.0]", "[0, 1.0]"))
    found, expected = trace(begun).results[0], trace(kept).results[0]
    assert (found.is_checkpoint, expected.is_checkpoint) == (False, True)
    assert found.samples == expected.samples
    for one, other in zip(found.replies, expected.replies, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-4)
    assert found.layers[-1].base_kl == pytest.approx(expected.layers[-1].base_kl, rel=1e-3)
    assert (found.layers[-1].base_kl or 0.0) > 1e-3
    shutil.copytree(begun.path, start, dirs_exist_ok=True)
    assert trace(begun).results[0].replies != found.replies
    shutil.rmtree(start)
    with pytest.raises(RunError, match="what this run began with cannot be asked, and step 0 was not kept"):
        trace(begun)
    assert trace(kept).results[0] == expected


def test_a_base_that_changed_is_asked_again(tiny_model, tmp_path):
    base = shutil.copytree(tiny_model("llama"), tmp_path / "base")
    run = train_series(tmp_path / "place", base, "training.save_at=[1.0]", is_full=True)
    before = trace(run).results
    shutil.copytree(tiny_model("llama", seed=2), base, dirs_exist_ok=True)
    after = trace(run).results
    assert after[0].replies != before[0].replies
    assert after[1].replies == before[1].replies
    assert after[1].layers != before[1].layers, "they are compared with the base"


@pytest.mark.parametrize(
    ("kind", "overrides", "is_full"),
    [
        ("llama", ("lora.use_dora=true",), False),
        ("llama", (), True),
        pytest.param("gpt_neox", ("quantize=4", "lora.use_rslora=true"), False, marks=pytest.mark.slow),
        pytest.param("gpt2", (), False, marks=pytest.mark.slow),
        pytest.param("gemma", (), False, marks=pytest.mark.slow),
    ],
)
def test_other_adapters_other_models_and_full_training_are_traced(make_run, kind, overrides, is_full):
    run = make_run(kind, *overrides, is_full=is_full)
    found = trace(run)
    last = found.results[-1]
    assert all((result.reload.difference or 0.0) <= 1e-6 for result in found.results)
    assert found.results[0].reload.found is not None
    assert last.layers[-1].lens_kl == pytest.approx(0, abs=1e-6)
    assert all(layer.base_cka is not None and layer.base_cka < 1 for layer in last.layers)
    assert all(matrix.norm > 0 for matrix in last.matrices)
    assert all(layer.base_kl == pytest.approx(0, abs=1e-6) for layer in found.results[0].layers)
    series = open_series(run)
    path = next(path for path in series.paths if "layers.0" in path or ".h.0." in path)
    expected = [matrix.norm for matrix in last.matrices if matrix.path == path]
    model = open_name(str(run.checkpoint(6)), base=run.path, report=silent).model
    if not is_full:
        from mlx_finetune.model.adapters.lora import adapter_layers

        np.testing.assert_allclose(series[-1].delta(path), np.array(adapter_layers(model)[path].delta()), atol=1e-5)
    assert expected == [pytest.approx(np.linalg.norm(series[-1].delta(path).astype(np.float64)), rel=1e-5)]


def test_a_folder_that_cannot_be_written_is_one_sentence(run, tmp_path):
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(run.path, copy.path)
    shutil.rmtree(copy.file(rundir.TRACE), ignore_errors=True)
    copy.file(rundir.TRACE).write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot be written to .*; the run itself is untouched"):
        trace(copy)


def test_pairs_are_probes_with_one_wrong_answer_and_labels_are_none(run, tmp_path):
    pair = Preference(
        ({"role": "user", "content": "Which?"},),
        ({"role": "assistant", "content": "this"},),
        ({"role": "assistant", "content": "that"},),
        None,
        "pairs",
        1,
    )
    asked = ask_about(pair, {"kind": "a  b"}, "kind")
    assert asked is not None
    assert (asked.category, asked.wrong) == ("a b", ("that",))
    assert prompt_and_reference(asked.example)[1] == "this"
    assert ask_about(Labelled("text", "good", "labels", 1), {}, "kind") is None


def test_what_cannot_be_traced_is_one_sentence(run, make_run, tmp_path):
    with pytest.raises(RunError, match="is not a run folder and no run under"):
        trace(RunDir(tmp_path / "none"))
    empty = RunDir(tmp_path / "empty")
    empty.path.mkdir()
    empty.file(rundir.RUN_INFO).write_text("{}")
    with pytest.raises(RunError, match="has no checkpoint, so there is nothing to trace"):
        trace(empty)
    subject = open_traced(open_series(run), silent)
    with pytest.raises(UsageError, match=r"there is no nothing\.jsonl for --probes"):
        choose_probes(subject, "nothing.jsonl", per_category=2, category="category", base=tmp_path)
    (tmp_path / "many.jsonl").write_text(
        "".join(json.dumps({"prompt": f"q{n}", "completion": "a", "category": f"kind {n}"}) + "\n" for n in range(51))
    )
    with pytest.raises(DataError, match="51 different values"):
        choose_probes(subject, "many.jsonl", per_category=2, category="category", base=tmp_path)


def test_a_run_on_texts_is_traced_by_the_loss_of_their_first_tokens(tiny_model, tmp_path):
    texts = [{"text": f"{number}: " + "To be, or not to be. " * (9 if number % 2 else 2)} for number in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    overrides = (
        'task="pretrain"',
        "data.max_seq_length=32",
        'data.truncation="split"',
        *SETTINGS,
        "data.val_split=0.5",
    )
    found = trace(train(write_recipe(tmp_path, tiny_model("llama")), overrides=overrides))
    assert {len(probe.rows) for probe in found.probes.probes} == {1}
    assert max(len(probe.rows[0].ids) for probe in found.probes.probes) == 32
    assert found.categories[0].course[-1].loss < found.categories[0].course[0].loss
    assert found.results[-1].layers[-1].base_cka is not None
    assert found.left_out[0].startswith("right and wrong answers: the rows are texts, whose loss is followed; --probes")


def test_a_run_whose_rows_cannot_be_asked_has_its_weights_compared(tiny_model, tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": f"row {number}", "label": str(number % 2)}) + "\n" for number in range(24))
    )
    settings = ('task="classify"', "data.packing=false", "training.save_at=[1.0]", "training.neftune_alpha=0.0")
    run = train(write_recipe(tmp_path, tiny_model("llama")), overrides=(*settings, "eval.prompts=[]"))
    found = trace(run)
    assert (found.probes.probes, found.categories) == ((), ())
    assert all(matrix.norm > 0 for matrix in found.results[-1].matrices)
    assert "the held-out rows are no questions with answers (task = 'classify'); --probes FILE" in found.left_out[0]
    assert any(line.startswith("left out: everything that is asked") for line in summary_lines(found))
    with pytest.raises(DataError, match="are no questions with answers"):
        trace(run, Asked(category="kind"))


def test_the_probes_of_the_documents_are_read_as_they_stand_there(run, tmp_path):
    text = (ROOT / "docs" / "trace.md").read_text().partition("<<'END'\n")[2].partition("    END")[0]
    (tmp_path / "probes.jsonl").write_text(text)
    subject = open_traced(open_series(run), silent)
    probes = choose_probes(subject, "probes.jsonl", per_category=24, category="category", base=tmp_path).probes
    assert [(probe.category, len(probe.answers)) for probe in probes] == [("colour", 3)] * 4 + [("sum", 3)] * 4


def test_a_right_answer_among_the_wrong_ones_is_never_asked(run, tmp_path):
    def write(*wrong: object, column: str = "wrong") -> None:
        rows = [{"prompt": f"{n}?", "completion": "8", column: one} for n, one in enumerate(wrong)]
        (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def chosen(given: str | None) -> Probes:
        return choose_probes(subject, given, per_category=9, category="category", base=tmp_path)

    subject = open_traced(open_series(run), silent)
    write(["8", "9"], "7", ["8"])
    with pytest.raises(DataError) as refused:
        chosen("mine.jsonl")
    assert refused.value.message == "2 rows name the right answer as a wrong one, first mine.jsonl:1"
    assert [problem.where for problem in refused.value.problems] == ["mine.jsonl:1", "mine.jsonl:3"]
    write(["8"], "7")
    with pytest.raises(DataError, match=r'mine\.jsonl:1: `wrong` holds the right answer "8"'):
        chosen("mine.jsonl")
    data = data_of("mine.jsonl", subject.data).model_copy(
        update={"path": None, "train": "mine.jsonl", "test": "mine.jsonl"}
    )
    held_out = replace(subject, opened=replace(subject.opened, data=data), folder=tmp_path)
    own = choose_probes(held_out, None, per_category=9, category="category", base=tmp_path)
    assert [probe.answers for probe in own.probes] == [("8", "7")]
    assert own.lack.startswith("mine.jsonl:1: ")
    write(["8", "9"], ["7", "8"], column="candidates")
    assert [probe.answers for probe in chosen("mine.jsonl").probes] == [("8", "9"), ("8", "7")]


def test_probes_from_a_file_without_wrong_answers_or_categories(run, tmp_path):
    (tmp_path / "mine.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n}?", "completion": "one"}) + "\n" for n in (0, 1, 1, 0, 2))
    )
    subject = open_traced(open_series(run), silent)
    probes = choose_probes(subject, "mine.jsonl", per_category=2, category="category", base=tmp_path)
    assert [(probe.category, probe.answers) for probe in probes.probes] == [("all", ("one",))] * 2
    assert probes.source == "mine.jsonl"
    every = choose_probes(subject, "mine.jsonl", per_category=9, category="category", base=tmp_path).probes
    assert [probe.question for probe in every] == ["0?", "1?", "2?"]
    assert (
        probes.sha256 == choose_probes(subject, "mine.jsonl", per_category=2, category="category", base=tmp_path).sha256
    )
