"""Two runs side by side: what differs in their recipes, and who did better on the same rows."""

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import mlx.core as mx
import pytest
from answering_runs import write_adapter
from click.testing import CliRunner
from click.testing import Result as Called
from eval_runs import change_facts, evaluation_of, write_place, write_rows

from mlx_finetune.app.eval.between_runs import (
    Compared,
    compare_runs,
    comparison_json,
    comparison_lines,
    kept_verdicts,
    verdict,
)
from mlx_finetune.app.eval.figures import Change, Figure, Result
from mlx_finetune.app.eval.measures import measures_of
from mlx_finetune.app.eval.run import evaluate
from mlx_finetune.app.eval.table import table
from mlx_finetune.commands.runs import command
from mlx_finetune.errors import MlxftError, RunError
from mlx_finetune.events import CheckpointSaved, to_json
from mlx_finetune.model.heads.files import head_file
from mlx_finetune.model.heads.score import HeadSpec, ScoreHead
from mlx_finetune.monitor.report.evaluated import read_evaluations
from mlx_finetune.rundir import EVENTS, HEAD_WEIGHTS, METRICS, RUN_INFO, RunDir

TinyModel = Callable[..., Path]


@pytest.fixture
def place(tmp_path: Path, tiny_model: TinyModel) -> Path:
    """Two runs of one base whose adapters and recipes differ."""
    place = write_place(tmp_path / "place", tiny_model("llama"))
    other = place / "adapters" / "other"
    shutil.copytree(place / "adapters" / "keeper", other)
    write_adapter(other, tiny_model("llama"), seed=2)
    change_facts(place, {"lora": {"rank": 8}, "training": {"learning_rate": 3e-4}}, other)
    return place


def measure(place: Path, name: str, tasks: tuple[str, ...] = ("loss", "token_f1"), **keys: object) -> None:
    evaluation = evaluation_of(place, tasks, name=name, **keys)  # pyright: ignore[reportArgumentType]
    evaluate(evaluation, named=None, out=None, show=lambda _: None, say=lambda _: None, report=lambda *_: None)


def run_of(place: Path, name: str) -> RunDir:
    return RunDir(place / "adapters" / name)


def test_recipes_are_compared_key_by_key_and_figures_row_by_row(place: Path) -> None:
    for name in ("keeper", "other"):
        measure(place, name, ("loss", "token_f1", "general"))
    found = compare_runs(run_of(place, "keeper"), run_of(place, "other"))
    assert found.recipe == (("lora.rank", 16, 8), ("training.learning_rate", "auto", 0.0003))
    (one,) = found.evaluations
    assert (one.name, one.refusal) == ("test", "")
    loss = one.results[0]
    kept = {
        name: json.loads((place / f"adapters/{name}/eval/test.json").read_text())["measures"]
        for name in ("keeper", "other")
    }
    for name, measures in kept.items():
        assert loss.figures[name].value == pytest.approx(measures[0]["sides"]["tuned"]["value"])
    assert loss.change is not None
    assert loss.change.value == pytest.approx(loss.figures["other"].value - loss.figures["keeper"].value)
    assert loss.change.low is not None
    assert loss.change.high is not None
    assert loss.change.low < loss.change.value < loss.change.high
    lines = list(comparison_lines(found))
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("  lora.rank") and line.endswith("16 -> 8") for line in lines)
    assert f"evaluation test: {verdict(one, 'other')}" in " ".join(lines)


def test_the_sentence_names_what_is_better_and_what_is_worse() -> None:
    measures = measures_of(["loss", "exact_match", "token_f1"], has_schema=False)

    def result(name: str, value: float, p_holm: float) -> Result:
        measure = next(one for one in measures if one.name == name)
        return Result(measure, {}, Change(value, value, value, 40, p_holm, p_holm))

    loss, right, words = result("loss", -0.5, 0.01), result("exact_match", -0.4, 0.02), result("token_f1", 0.1, 0.4)
    assert verdict(Compared("test", (loss, right, words)), "B") == (
        "B is better in loss of the answers and worse in exactly right; no proof of a difference in the rest."
    )
    assert verdict(Compared("test", (loss,)), "B") == "B is better in loss of the answers."
    assert verdict(Compared("test", (words,)), "B") == "no proof of any difference."


def test_other_rows_are_not_ranked(place: Path) -> None:
    measure(place, "keeper")
    write_rows(place / "rows.jsonl", 70)
    measure(place, "other")
    (one,) = compare_runs(run_of(place, "keeper"), run_of(place, "other")).evaluations
    assert one.results == ()
    assert one.refusal == "because they are of different data, rows"


def test_what_is_not_ranked_is_shown_for_each_run_alone(place: Path) -> None:
    measure(place, "keeper", ("loss",))
    measure(place, "other", ("token_f1",))
    (one,) = (found := compare_runs(run_of(place, "keeper"), run_of(place, "other"))).evaluations
    assert one.refusal == "because they have no measure in common"
    shown = {result.measure.name: set(result.figures) for result in one.apart}
    assert shown == {"loss": {"keeper"}, "answer_bits_per_byte": {"keeper"}, "token_f1": {"other"}}
    assert all(result.change is None for result in one.apart)
    lines = list(comparison_lines(found))
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("  loss of the answers ") for line in lines)
    assert any(line.startswith("  words shared (F1) ") for line in lines)
    assert [each["name"] for each in comparison_json(found)["evaluations"][0]["apart"]] == list(shown)  # pyright: ignore[reportIndexIssue]


def test_another_longest_answer_is_not_ranked(place: Path) -> None:
    measure(place, "keeper", ("token_f1",))
    measure(place, "other", ("token_f1",), answer_tokens=9)
    (one,) = compare_runs(run_of(place, "keeper"), run_of(place, "other")).evaluations
    assert "longest answer" in one.refusal


def test_scores_beside_other_references_are_not_ranked(place: Path) -> None:
    measure(place, "keeper", ("token_f1",))
    measure(place, "other", ("token_f1",), references=("note",))
    (one,) = compare_runs(run_of(place, "keeper"), run_of(place, "other")).evaluations
    assert one.refusal == "because they are of different reference columns"


@pytest.mark.parametrize("key", ["task", "mask_prompt"])
def test_the_loss_of_answers_is_not_ranked_with_that_of_whole_rows(place: Path, key: str) -> None:
    path = place / "adapters/other" / RUN_INFO
    facts = json.loads(path.read_text())
    if key == "task":
        facts["resolved"]["task"] = "pretrain"
    else:
        facts["resolved"]["data"]["mask_prompt"] = False
    path.write_text(json.dumps(facts))
    for name in ("keeper", "other"):
        measure(place, name, given="rows.jsonl")
    (one,) = compare_runs(run_of(place, "keeper"), run_of(place, "other")).evaluations
    assert [result.measure.name for result in one.results] == ["token_f1"]
    assert one.notes[0].startswith("Losses are not ranked: one learned the answers alone, the other all of a row")
    for name in ("keeper", "other"):
        measure(place, name, ("loss",), given="rows.jsonl", max_rows=50)
    alone = next(one for one in compare_runs(*(run_of(place, name) for name in ("keeper", "other"))).evaluations[1:])
    assert alone.refusal.startswith("because one learned the answers alone")
    assert len(alone.apart) == 2


def test_under_another_tokenizer_only_bits_per_byte_are_ranked(place: Path) -> None:
    for name in ("keeper", "other"):
        measure(place, name, ("loss", "general", "token_f1"))
    path = place / "adapters/other/eval/test.rows.jsonl"
    lines = path.read_text().splitlines()
    head = json.loads(lines[0])
    head["identity"] |= {"tokenizer_sha256": "0" * 64, "answer_tokens": 99}
    path.write_text("\n".join([json.dumps(head), *lines[1:]]) + "\n")
    (one,) = compare_runs(run_of(place, "keeper"), run_of(place, "other")).evaluations
    names = [result.measure.name for result in one.results]
    assert names == ["answer_bits_per_byte", "general_questions", "general_bits_per_byte", "token_f1"]
    assert all(result.measure.is_shown for result in one.results)
    assert "bits per byte stand in their place" in one.notes[0]


def test_without_an_evaluation_the_recipes_alone_are_compared(place: Path) -> None:
    measure(place, "keeper")
    found = compare_runs(run_of(place, "keeper"), run_of(place, "other"))
    assert found.evaluations == ()
    assert "They have no evaluation of the same name" in " ".join(comparison_lines(found))
    unfinished = place / "adapters/other/eval"
    unfinished.mkdir()
    shutil.copy(place / "adapters/keeper/eval/test.rows.jsonl", unfinished)
    assert compare_runs(run_of(place, "keeper"), run_of(place, "other")).evaluations == ()


def test_a_run_without_settings_is_refused(place: Path) -> None:
    (place / "adapters/other/run.json").write_text("{}")
    with pytest.raises(RunError, match=r"settings of .*other cannot be read"):
        compare_runs(run_of(place, "keeper"), run_of(place, "other"))


def as_classifier(run: RunDir, labels: tuple[str, ...]) -> None:
    info = json.loads(run.file(RUN_INFO).read_text())
    info["resolved"] |= {"task": "classify"}
    run.file(RUN_INFO).write_text(json.dumps(info))
    run.file(HEAD_WEIGHTS).write_bytes(
        head_file(ScoreHead(mx.zeros((len(labels), 4)), HeadSpec("classify", len(labels), labels)))
    )


def test_runs_that_no_rows_can_measure_are_not_sent_to_an_evaluation(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_classifier(run_of(place, "keeper"), ("good", "bad"))
    found = call(place, "compare", "keeper", "other", monkeypatch=monkeypatch).stderr
    assert found == (
        "\nno rows can be of both: keeper learned from texts with labels, other from conversations, instructions or "
        "text\n"
    )
    as_classifier(run_of(place, "other"), tuple("abcdefgh"))
    found = call(place, "compare", "keeper", "other", monkeypatch=monkeypatch).stderr
    many = ", ".join(f'"{letter}"' for letter in "abcdef")
    assert found == f'\nno rows can be of both: keeper has the labels "bad", "good"; other has {many}, ...\n'
    as_classifier(run_of(place, "other"), ("bad", "good"))
    assert "next: mlxft eval keeper" in call(place, "compare", "keeper", "other", monkeypatch=monkeypatch).stderr


def call(place: Path, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> Called:
    monkeypatch.chdir(place)
    return CliRunner().invoke(command, list(arguments))


def test_runs_are_called_by_what_tells_them_apart(place: Path) -> None:
    for first, second in (("other", "base"), ("one/sft", "two/sft")):
        for name in {first, second} - {"other"}:
            shutil.copytree(place / "adapters/other", place / "adapters" / name)
        found = compare_runs(run_of(place, first), run_of(place, second))
        assert (found.first, found.second) == (first, second)


def test_the_columns_of_two_runs_never_have_the_same_head() -> None:
    def heads(*names: str) -> list[str]:
        figures = dict.fromkeys(names, Figure(0.5, None, None, 1))
        result = Result(measures_of(["loss"], has_schema=False)[0], figures, Change(0.1, None, None, 1, 1.0))
        return next(iter(table([result], *names)))[26:44].split()

    assert heads("keeper", "base") == ["keeper", "base"]
    assert heads("quickstart", "quickstart-2") == ["...start", "...art-2"]
    assert heads("pipeline-a-second", "pipeline-b-second") == ["first", "second"]


def test_the_command_prints_both_forms_and_names_the_next_step(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = call(place, "compare", "keeper", "other", monkeypatch=monkeypatch)
    assert text.stdout.splitlines()[0] == "keeper and other"
    assert "next: mlxft eval keeper" in text.stderr
    measure(place, "keeper")
    measure(place, "other")
    report = json.loads(call(place, "compare", "keeper", "other", "--json", monkeypatch=monkeypatch).stdout)
    assert report["recipe"][0] == {"key": "lora.rank", "first": 16, "second": 8}
    assert report["evaluations"][0]["measures"][0]["name"] == "loss"
    same = call(place, "compare", "keeper", "adapters/keeper", monkeypatch=monkeypatch)
    assert isinstance(same.exception, MlxftError)
    assert "the same run" in same.exception.message


def test_the_page_of_a_run_has_the_verdict_of_each_evaluation(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "evaluations" not in call(place, "show", "keeper", monkeypatch=monkeypatch).stdout
    measure(place, "keeper")
    sentence = json.loads((place / "adapters/keeper/eval/test.json").read_text())["verdict"]["sentence"]
    (place / "adapters/keeper/eval/odd.json").write_text("[]")
    (place / "adapters/keeper/eval/odd.rows.jsonl").write_text("")
    assert f"  test  {sentence}" in call(place, "show", "keeper", monkeypatch=monkeypatch).stdout.splitlines()
    report = json.loads(call(place, "show", "keeper", "--json", monkeypatch=monkeypatch).stdout)
    assert report["evaluations"] == {"test": sentence}


def test_what_was_measured_before_a_run_was_trained_further_is_never_taken_for_what_it_is_now(
    place: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, other = run_of(place, "keeper"), run_of(place, "other")

    def train_to(step: int, seed: int) -> None:
        write_adapter(keeper.path, tiny_model("llama"), seed=seed)
        keeper.file(METRICS).write_text(json.dumps({"result_step": step}))
        facts = json.loads(keeper.file(RUN_INFO).read_text())
        keeper.file(RUN_INFO).write_text(json.dumps(facts | {"step": step}))

    other.file(RUN_INFO).write_text(json.dumps(json.loads(other.file(RUN_INFO).read_text()) | {"step": 60}))
    train_to(60, seed=1)
    measure(place, "other")
    measure(place, "keeper")
    assert compare_runs(keeper, other).evaluations[0].refusal == ""
    train_to(2060, seed=5)
    (old,) = compare_runs(keeper, other).evaluations
    mark = "of step 60, while the run's weights are of step 2,060"
    assert f"that of keeper is {mark}" in old.refusal
    assert f"({mark})" in call(place, "show", "keeper", monkeypatch=monkeypatch).stdout
    assert read_evaluations(keeper)[0][0].other_weights == mark
    measure(place, "keeper")
    found = compare_runs(keeper, other)
    assert (found.evaluations[0].name, found.evaluations[0].refusal) == ("test", "")
    now = json.loads((keeper.path / "eval/test.json").read_text())
    assert (now["step"], found.steps) == (2060, (2060, 60))
    assert found.evaluations[0].results[0].figures["keeper"].value == now["measures"][0]["sides"]["tuned"]["value"]
    assert "  steps trained                     2060 -> 60" in list(comparison_lines(found))
    assert {one.name: one.other_weights for one in read_evaluations(keeper)[0]} == {"test": "", "test-2": mark}


def test_what_was_kept_before_steps_were_noted_is_marked_where_the_run_went_on(place: Path, monkeypatch) -> None:
    keeper, other = run_of(place, "keeper"), run_of(place, "other")
    measure(place, "other")
    measure(place, "keeper")
    path = keeper.path / "eval/test.json"
    kept = json.loads(path.read_text())
    measured = datetime.fromisoformat(kept["measured"]).timestamp()

    def marks(later: float, **changed: object) -> set[str]:
        """What report, comparison and list say where the last checkpoint was saved so many seconds later."""
        path.write_text(json.dumps({key: value for key, value in kept.items() if key != "step"} | changed))
        saved = [(CheckpointSaved(step, "c", 1, 0.1), measured + when) for step, when in ((5, -90.0), (9, later))]
        keeper.file(EVENTS).write_text("".join(to_json(event, when) + "\n" for event, when in saved))
        refusal = compare_runs(keeper, other).evaluations[0].refusal
        assert bool(refusal) is ("further" in kept_verdicts(keeper)["test"])
        return {read_evaluations(keeper)[0][0].other_weights, refusal}

    mark = "from before the run was trained further"
    assert marks(60.0) == {mark, f"because that of keeper is {mark} (mlxft eval measures these)"}
    assert marks(-30.0) == {""}
    assert marks(60.0, step=None) == {""}  # of what is no step of this run
    assert marks(60.0, subject="adapters/keeper/checkpoint-5") == {""}


def test_comparing_needs_no_mlx(place: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom mlx_finetune.commands.runs import command\n"
        "command.main(['compare', 'keeper', 'other'], standalone_mode=False)\nprint('mlx.core' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_an_evaluation_is_a_part_of_its_run_that_can_be_removed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(place, "keeper")
    assert call(place, "rm", "keeper", "--yes", monkeypatch=monkeypatch).exit_code == 0
    assert not (place / "adapters/keeper").exists()


def test_perplexities_of_different_windows_give_way_to_bits_per_byte(place: Path) -> None:
    (place / "texts.jsonl").write_text("".join(json.dumps({"text": f"text {n} of the sea"}) + "\n" for n in range(12)))
    for name in ("keeper", "other"):
        evaluation = evaluation_of(place, ("perplexity", "loss"), name=name, given="texts.jsonl")
        evaluate(evaluation, named="t", out=None, show=lambda _: None, say=lambda _: None, report=lambda *_: None)
    (alike,) = compare_runs(run_of(place, "keeper"), run_of(place, "other")).evaluations
    names = [one.measure.name for one in alike.results]
    assert names == ["perplexity", "bits_per_byte", "text_loss", "loss", "answer_bits_per_byte"]
    path = place / "adapters/other/eval/t.json"
    fields = json.loads(path.read_text())
    fields["texts"]["perplexity"] |= {"window": 256, "stride": 128}
    path.write_text(json.dumps(fields))
    (found,) = compare_runs(run_of(place, "keeper"), run_of(place, "other")).evaluations
    assert [one.measure.name for one in found.results] == ["bits_per_byte", "loss", "answer_bits_per_byte"]
    assert found.results[0].measure.is_tested
    assert "perplexities of different windows are not ranked" in found.notes[0]
