"""A classifier asked and measured: labels with probabilities, baselines of the language model, a confusion matrix."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scored_runs import write_scored_recipe
from small_runs import train

from mlx_finetune.app.classify import TextRow, label_texts, read_texts
from mlx_finetune.app.eval import scored
from mlx_finetune.app.eval.classes import confusion_lines, confusion_of
from mlx_finetune.app.open import open_name
from mlx_finetune.cli import main
from mlx_finetune.commands import generate
from mlx_finetune.errors import Problem
from mlx_finetune.events import RunStarted
from mlx_finetune.journal import read_events
from mlx_finetune.monitor.plain import started_lines
from mlx_finetune.monitor.report.evaluated import read_evaluations
from mlx_finetune.monitor.report.facts import read_facts
from mlx_finetune.monitor.report.page import render
from mlx_finetune.recipe.asking import talk_command
from mlx_finetune.rundir import EVENTS, RunDir

WORDS = """[eval]
label_words = {10 = "ten", 2 = "two", 7 = "of no row"}
label_question = "{text} is {labels}?"
shots = 2
"""


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory) -> dict[str, RunDir]:
    """A classifier whose labels have words, and a verifier."""
    found: dict[str, RunDir] = {}
    for task in ("classify", "verifier", "reward"):
        folder = tmp_path_factory.mktemp(task)
        recipe = write_scored_recipe(folder, tiny_model("llama"), task)
        if task == "classify":
            recipe.write_text(recipe.read_text() + WORDS)
        found[task] = train(recipe)
    return found


@pytest.fixture
def call(capsys) -> Callable[..., tuple[int, str, str]]:
    """A command of mlxft in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return run


def test_a_run_says_what_it_has_to_beat(runs):
    for task, (loss, accuracy) in {"reward": ("loss", "0.500"), "verifier": ("verdict_loss", "0.")}.items():
        event = next(one.event for one in read_events(runs[task].file(EVENTS)) if isinstance(one.event, RunStarted))
        assert event.constant_loss == pytest.approx(np.log(2), abs=0.1)
        line = started_lines(event)[2]
        assert line.startswith(f"to beat: the same answer for every validation row, {loss} {event.constant_loss:.4f}")
        assert f"accuracy {accuracy}" in line


def fail(problem: Problem) -> None:
    pytest.fail(problem.message)


def test_the_next_command_of_a_run_fits_its_task():
    assert talk_command("classify", "a") == "mlxft generate a --prompt TEXT"
    assert talk_command("reward", "a") == "mlxft eval a"
    assert talk_command("verifier", "a") == "mlxft eval a --samples FOLDER"
    assert talk_command("pretrain", "a") == talk_command("seq2seq", "a") == "mlxft generate a --prompt TEXT"
    assert talk_command("dpo", "'my {run}'") == "mlxft chat 'my {run}'"


def test_confusions_count_what_was_taken_for_what():
    found = confusion_of(("a", "b"), [(0, 0), (0, 1), (1, 1), (1, -1), (-1, 0)])
    assert found.counts == ((1, 1, 0), (0, 1, 1))
    first, second = found.classes
    assert (first.num_rows, first.num_named, first.precision, first.recall) == (2, 1, 1.0, 0.5)
    assert first.f1 == pytest.approx(2 / 3)
    assert second.f1 == pytest.approx(0.5)
    lines = list(confusion_lines({"tuned": found}, "tuned"))
    assert lines[1].split() == ["tuned,", "taken", "for", "a", "b", "none"]
    assert lines[3].split() == ["b", "0", "1", "1"]
    assert max(map(len, lines)) <= 80


def test_a_classifier_is_measured_beside_the_language_model_it_began_as(runs, call, monkeypatch):
    """Zero-shot and with examples, by the likelihood of each label's word; the same rows, a paired test."""
    run = runs["classify"]
    monkeypatch.chdir(run.path.parent)
    code, text, talk = call("eval", str(run.path))
    assert code == 0, talk
    result = json.loads((run.path / "eval" / "test.json").read_text())
    assert result["identity"]["labels"] == ["ten", "two", "ok"]
    assert result["identity"]["question"] == "{text} is {labels}?"
    nats = [json.loads(line)["values"] for line in (run.path / "eval" / "test.rows.jsonl").read_text().splitlines()[1:]]
    assert {name for one in nats for name in one if name.startswith("nats:")} == {"nats:ten", "nats:two", "nats:ok"}
    accuracy = next(one for one in result["measures"] if one["name"] == "accuracy")
    assert set(accuracy["sides"]) == {"base", "base 2-shot", "tuned"}
    assert accuracy["change"]["p"] is not None
    assert accuracy["change_from_examples"] is not None
    tuned = result["classes"]["tuned"]
    opened = open_name(str(run.path), base=run.path.parent, report=lambda event: None)
    rows = list(csv.DictReader((run.path.parent / "rows.tsv").read_text().splitlines(), delimiter="\t"))
    journal = [json.loads(line) for line in (run.path / "eval" / "test.rows.jsonl").read_text().splitlines()]
    named = [one["answer"] for one in journal if one.get("side") == "tuned"]
    lines = [int(one["where"].rpartition(":")[2]) - 2 for one in result["gained"] + result["lost"]]
    asked = [TextRow(rows[line]["sentence"]) for line in lines]
    words = {"10": "ten", "2": "two", "ok": "ok"}
    found = [words[one.label] for one in label_texts(opened, asked, fail)]
    right = [words[rows[line]["label"]] for line in lines]
    assert [a == b for a, b in zip(found, right, strict=True)] == [True] * len(result["gained"]) + [False] * len(
        result["lost"]
    )
    assert sum(map(sum, tuned["counts"])) == accuracy["sides"]["tuned"]["num_rows"] == len(named)
    assert sum(tuned["counts"][n][n] for n in range(3)) == accuracy["sides"]["tuned"]["num_right"]
    assert "tuned, taken for" in text
    tuned_rows = [one for one in journal if one.get("side") == "tuned"]
    for one in tuned_rows:
        row = rows[int(one["where"].rpartition(":")[2]) - 2]
        assert (one["prompt"], one["reference"]) == (row["sentence"], words[row["label"]])
    held = [one["reference"] for one in tuned_rows]
    always = max(map(held.count, held))
    assert result["baseline"]["figure"]["num_right"] == always
    gain = (accuracy["sides"]["tuned"]["num_right"] - always) / len(held)
    assert result["baseline"]["change"]["value"] == pytest.approx(gain)
    assert f"is right for {always} of {len(held)} (95 % interval of the gain over it" in " ".join(text.split())
    assert "chance is 1 of 3 classes, 33.3%." in " ".join(text.split())
    evaluations, damaged = read_evaluations(run)
    assert not damaged
    assert evaluations[0].classes["tuned"].labels == ("ten", "two", "ok")
    assert "chance is 1 of 3 classes" in render(read_facts(run))


@pytest.mark.parametrize(
    ("task", "labels", "names"),
    [("verifier", ["wrong", "right"], ["accuracy", "macro_f1"]), ("reward", ["rejected", "chosen"], ["accuracy"])],
)
def test_a_verifier_and_a_reward_model_are_measured_alone(runs, call, monkeypatch, task, labels, names):
    run = runs[task]
    monkeypatch.chdir(run.path.parent)
    code, _, talk = call("eval", str(run.path))
    assert code == 0, talk
    result = json.loads((run.path / "eval" / "test.json").read_text())
    assert result["identity"]["labels"] == labels
    assert [one["name"] for one in result["measures"]] == names
    assert set(result["measures"][0]["sides"]) == {"tuned"}


def test_two_answers_with_one_score_are_half_right(runs, call, monkeypatch):
    """One score for all answers, as at the first step of training, where `accuracy` is one half too."""
    run = runs["reward"]
    monkeypatch.chdir(run.path.parent)
    monkeypatch.setattr(scored.ScoringModel, "last", lambda self, rows: np.ones((len(rows), 1)))
    code, out, talk = call("eval", str(run.path), "--name", "tied", "--json")
    assert code == 0, talk
    (accuracy,) = json.loads(out)["measures"]
    assert accuracy["sides"]["tuned"]["value"] == 0.5
    lines = (run.path / "eval" / "tied.rows.jsonl").read_text().splitlines()[1:]
    assert {json.loads(line)["answer"] for line in lines} == {"neither"}
    assert not read_evaluations(run)[1]  # the report reads halves too


@pytest.mark.parametrize("task", ["classify", "verifier", "reward"])
def test_a_row_whose_score_is_no_number_has_failed_and_names_no_class(runs, call, monkeypatch, task):
    run = runs[task]
    monkeypatch.chdir(run.path.parent)
    last = scored.ScoringModel.last

    def damaged(self, rows):
        scores = np.array(last(self, rows))
        scores[0, -1] = np.nan
        return scores

    monkeypatch.setattr(scored.ScoringModel, "last", damaged)
    code, out, talk = call("eval", str(run.path), "--name", "damaged", "--json")
    assert code == 0, talk
    found = json.loads(out)
    assert found["measures"][0]["sides"]["tuned"]["num_rows"] == found["data"]["num_rows"] - 1
    assert [one["message"] for one in found["failed"]] == ["a score is not a finite number (labels, tuned)"]


def test_other_tasks_are_refused(runs, call, monkeypatch):
    run = runs["classify"]
    monkeypatch.chdir(run.path.parent)
    code, _, talk = call("eval", str(run.path), "--tasks", "labels,rouge,loss")
    assert code == 2
    assert "measured by labels, not by rouge, loss" in talk


def test_generate_gives_the_label_of_a_text_and_every_probability(runs, call, monkeypatch, tmp_path):
    run = runs["classify"]
    monkeypatch.chdir(tmp_path)
    code, out, talk = call("generate", str(run.path), "--prompt", "it is zzz 8", "--json")
    assert code == 0, talk
    one = json.loads(out)
    assert set(one["probabilities"]) == {"10", "2", "ok"}
    assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert one["label"] == next(iter(one["probabilities"]))
    code, out, _ = call("generate", str(run.path), "--prompt", "it is zzz 8")
    assert out.splitlines()[0] == f"{one['label']}\t{one['probabilities'][one['label']]:.4f}"
    monkeypatch.setattr(generate, "_SHOWN_LABELS", 2)
    code, out, talk = call("generate", str(run.path), "--prompt", "it is zzz 8")
    assert [line.split("\t")[0] for line in out.splitlines()] == list(one["probabilities"])[:2]
    assert "1 label more, less likely: --json prints all" in talk
    Path("texts.tsv").write_text("sentence\tlabel\nit is zzz 8\t10\n\nit is xxx 3\t2\n")
    code, out, _ = call("generate", str(run.path), "--file", "texts.tsv")
    assert code == 0
    assert next(json.loads(line)["label"] for line in out.splitlines()) == one["label"]
    assert len(out.splitlines()) == 2


def test_a_long_text_is_read_to_its_end_and_one_without_a_token_is_reported(runs, tmp_path):
    opened = open_name(str(runs["classify"].path), base=tmp_path, report=lambda event: None)
    problems: list[str] = []
    rows = [TextRow("so " * 100), TextRow("say <|im_start|> so", "f:2")]
    found = list(label_texts(opened, rows, lambda problem: problems.append(problem.message)))
    assert len(found) == 1
    assert found[0].is_cut
    assert np.isfinite(list(found[0].probabilities.values())).all()
    assert "control marker" in problems[0]
    (tmp_path / "t.txt").write_text("one\n\ntwo\n")
    assert [row.where.rpartition(":")[2] for row in read_texts(tmp_path / "t.txt", opened, fail)] == ["1", "3"]


def test_texts_of_which_only_the_end_is_read_are_told(runs, call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    name = str(runs["classify"].path)
    long, beyond = "so " * 100, "so " * 1000
    (tmp_path / "texts.txt").write_text(f"it is xxx 3\n{long}\n{beyond}\n")
    code, out, talk = call("generate", name, "--file", "texts.txt")
    assert [json.loads(line)["cut"] for line in out.splitlines()] == [False, True]
    assert "1 of them is longer than max_seq_length = 64: only the end was read" in talk
    assert code == 1
    assert "texts.txt:3: " in talk
    assert "that the model reads" in talk
    assert "the text is longer than max_seq_length = 64" in call("generate", name, "--prompt", long)[2]


def test_chat_and_serve_say_what_a_classifier_is_for(runs, call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    name = str(runs["classify"].path)
    assert "it gives scores" in call("generate", str(runs["reward"].path), "--prompt", "a")[2]
    for command in (("chat", name), ("serve", name, "--port", "0")):
        code, _, talk = call(*command)
        assert code == 2, talk
        assert "it gives labels and no answers" in talk
        assert "mlxft generate" in talk


def test_the_heading_counts_rows_that_could_not_be_measured(runs, call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    texts = [f"it is xxx {number}\t10" for number in range(6)] + ["word " * 200 + "\t10"]
    (tmp_path / "rows.tsv").write_text("sentence\tlabel\n" + "\n".join(texts) + "\n")
    code, out, talk = call("eval", str(runs["classify"].path), "--data", "rows.tsv")
    assert code == 0, talk
    assert "on all 7 rows of rows.tsv; 1 row could not be measured" in " ".join(out.split())
