"""Whole evaluations on a tiny run: paired, resumed, split by category, kept; and what a user is told."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from answering_runs import write_adapter, write_full_run, write_run
from click.testing import CliRunner, Result
from eval_runs import COLOURS, change_facts, evaluation_of, subject_of, write_place, write_rows

from mlx_finetune.app.eval import knowledge
from mlx_finetune.app.eval.journal import Journal
from mlx_finetune.app.eval.rows import choose_rows
from mlx_finetune.app.eval.run import evaluate
from mlx_finetune.commands.eval import command, split_tasks
from mlx_finetune.dataset.template import tokenize
from mlx_finetune.errors import DataError, MlxftError, Problem, RunError, UsageError
from mlx_finetune.hardware import blas
from mlx_finetune.model.adapters.folder import hash_adapter
from mlx_finetune.model.answers.generate import Sampling, generate_text
from mlx_finetune.model.likelihoods import LikelihoodModel
from mlx_finetune.rundir import RUN_INFO

TinyModel = Callable[..., Path]
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture
def place(tmp_path: Path, tiny_model: TinyModel) -> Path:
    return write_place(tmp_path / "place", tiny_model("llama"))


def measure(evaluation, **keys):
    said: list[str] = []

    def failed(problem: Problem, prompt: str) -> None:
        said.append(f"{problem.where}: {prompt}")

    finished = evaluate(
        evaluation, **({"named": None, "out": None} | keys), show=lambda _: None, say=said.append, report=failed
    )
    return finished, said


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def timeless(path: Path) -> list[dict]:
    return sorted(
        ({key: value for key, value in line.items() if "seconds" not in key} for line in lines_of(path)),
        key=lambda line: json.dumps([line.get("work", ""), line.get("side", ""), line.get("row", -1)]),
    )


def test_losses_are_those_of_training_and_answers_those_of_generate(place: Path) -> None:
    evaluation = evaluation_of(place)
    finished, _ = measure(evaluation)
    subject = evaluation.subject
    lines = lines_of(place / "adapters/keeper/eval/test.rows.jsonl")[1:]
    kept = {(line["work"], line["side"], line["row"]): line for line in lines}
    assert len(kept) == len(lines) == 2 * 2 * len(evaluation.rows)
    split = tokenize([row.example for row in evaluation.rows], subject.opened.tokenizer, subject.data, task="sft")
    counts = [int(np.count_nonzero(row.loss_mask)) for row in split.rows]
    assert [kept["loss", "base", row]["values"]["loss"][1] for row in range(len(counts))] == counts
    for side in evaluation.sides:
        with subject.model(side) as model:
            prompt = evaluation.prompter.row_prompt(evaluation.rows[0])
            text = generate_text(model, subject.opened.tokenizer, prompt, Sampling(temperature=0, max_tokens=4))
        assert kept["answer", side.name, 0]["answer"] == text
    assert [one.measure.name for one in finished.report.results] == ["loss", "answer_bits_per_byte", "exact_match"]
    loss = finished.report.results[0]
    total = sum(kept["loss", "tuned", row]["values"]["loss"][0] for row in range(len(counts)))
    assert loss.figures["tuned"].value == pytest.approx(total / sum(counts))
    assert loss.figures["tuned"].value != loss.figures["base"].value


@pytest.mark.parametrize("stop_after", [1, 7, 20])
def test_an_interrupted_evaluation_keeps_what_it_has_and_goes_on(
    place: Path, tiny_model: TinyModel, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_place(place.parent / "whole", tiny_model("llama"))
    measure(evaluation_of(whole))
    added, plain_add = 0, Journal.add

    def add(self: Journal, measured) -> None:
        nonlocal added
        plain_add(self, measured)
        added += 1
        if added == stop_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add)
        finished, _ = measure(evaluation_of(place))
    folder = place / "adapters/keeper/eval"
    assert not finished.report.is_whole
    assert not (folder / "test.json").exists()
    assert len(lines_of(folder / "test.rows.jsonl")) == 1 + stop_after
    again, said = measure(evaluation_of(place))
    assert again.report.is_whole
    assert said[0].startswith("going on with what was measured before in ")
    theirs = whole / "adapters/keeper/eval"
    assert timeless(folder / "test.rows.jsonl") == timeless(theirs / "test.rows.jsonl")
    results = [json.loads((one / "test.json").read_text()) for one in (folder, theirs)]
    assert results[0]["measures"] == results[1]["measures"]


def test_the_same_again_shows_what_is_there_and_other_settings_take_another_name(place: Path) -> None:
    first, _ = measure(evaluation_of(place))
    folder = place / "adapters/keeper/eval"
    before = (folder / "test.json").read_bytes()
    again, said = measure(evaluation_of(place))
    assert again.was_done
    assert said == [f"this was evaluated before; these are the results in {folder / 'test.json'}"]
    assert again.report.results == first.report.results
    other, _ = measure(evaluation_of(place, ("exact_match",)))
    assert other.place is not None
    assert other.place.name == "test-2"
    with pytest.raises(RunError, match=r"holds another evaluation: other tasks"):
        measure(evaluation_of(place, ("exact_match",)), named="test")
    (folder / "mine.json").write_text("{}")
    with pytest.raises(RunError, match="mine is taken"):
        measure(evaluation_of(place), named="mine")
    assert (folder / "test.json").read_bytes() == before
    assert (folder / "mine.json").read_text() == "{}"


def test_one_evaluation_at_a_time_in_a_folder(place: Path) -> None:
    from mlx_finetune import rundir

    folder = place / "adapters/keeper/eval"
    folder.mkdir()
    lock = rundir.take_lock(folder / rundir.LOCK)
    assert lock is not None
    with pytest.raises(RunError, match="another evaluation is at work"):
        measure(evaluation_of(place))


def test_batches_answer_as_one_by_one(place: Path) -> None:
    measure(evaluation_of(place, at_once=1), named="one")
    measure(evaluation_of(place, at_once=5), named="five")
    folder = place / "adapters/keeper/eval"
    one, five = (
        {(line["side"], line["row"]): line.get("answer") for line in lines_of(folder / name)[1:]}
        for name in ("one.rows.jsonl", "five.rows.jsonl")
    )
    assert one == five


def test_every_figure_is_split_by_category(place: Path) -> None:
    evaluation = evaluation_of(place, ("exact_match", "loss", "regex:.", "general"), category="topic")
    finished, _ = measure(evaluation)
    report = finished.report
    assert [one.name for one in report.categories] == ["a", "b"]
    assert sum(one.num_rows for one in report.categories) == len(evaluation.rows)
    for category in report.categories:
        names = [one.measure.name for one in category.results]
        assert names == ["exact_match", "loss", "answer_bits_per_byte", "regex:."]
        assert set(category.answers) == {"base", "tuned"}
    whole = next(one for one in report.results if one.measure.name == "regex:.")
    parts = [one.results[3].figures["tuned"].num_right for one in report.categories]
    assert sum(filter(None, parts)) == whole.figures["tuned"].num_right
    rows = list(csv.DictReader((place / "adapters/keeper/eval/test.csv").read_text().splitlines()))
    named = {(row["category"], row["measure"], row["side"]) for row in rows}
    for wanted in (("a", "loss", "tuned"), ("b", "answer_seconds", "base"), ("a", "exact_match", "change")):
        assert wanted in named
    kept = json.loads((place / "adapters/keeper/eval/test.json").read_text())
    assert [one["name"] for one in kept["categories"]] == ["a", "b"]
    assert kept["identity"]["adapter_sha256"] != ""


def test_a_row_that_fails_is_said_and_the_others_go_on(place: Path) -> None:
    with (place / "bad.jsonl").open("w") as file:
        for text in ("What?", "a<|im_end|>b", "Who?"):
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "red"}]
            file.write(json.dumps({"messages": turns}) + "\n")
    finished, said = measure(evaluation_of(place, given="bad.jsonl"))
    report = finished.report
    assert said[0] == "bad.jsonl:2: a<|im_end|>b"
    kept = [line for line in lines_of(place / "adapters/keeper/eval/rows.rows.jsonl") if line.get("error")]
    assert {(line["work"], line["side"], line["prompt"]) for line in kept} == {
        (work, side, "a<|im_end|>b") for work in ("loss", "answer") for side in ("base", "tuned")
    }
    assert report.is_whole
    assert {problem.where for problem in report.failed} == {"bad.jsonl:2"}
    assert "control marker" in report.failed[0].message
    assert report.results[0].figures["tuned"].num_rows == 2


def test_classes_are_found_by_likelihood_and_as_written(place: Path) -> None:
    evaluation = evaluation_of(place, ("labels",), shots=2, given="rows.jsonl", max_rows=12)
    assert evaluation.labels == tuple(sorted(COLOURS))
    assert evaluation_of(place, ("labels",), labels=("red", "blue", "green", "pink")).labels[-1] == "pink"
    finished, _ = measure(evaluation)
    names = [one.measure.name for one in finished.report.results]
    assert names == ["accuracy", "macro_f1", "accuracy_generated", "macro_f1_generated"]
    assert list(finished.report.results[0].figures) == ["base", "base 2-shot", "tuned"]
    assert finished.report.results[0].to_shots is not None
    line = next(
        line for line in lines_of(place / "adapters/keeper/eval/rows.rows.jsonl") if line.get("work") == "labels"
    )
    nats = {name: value[0] for name, value in line["values"].items() if name.startswith("nats:")}
    assert min(nats, key=nats.__getitem__) == f"nats:{line['answer']}"


def test_json_is_measured_free_and_constrained(place: Path) -> None:
    (place / "schema.json").write_text(json.dumps(SCHEMA))
    with (place / "json.jsonl").open("w") as file:
        for number in range(6):
            row = {"prompt": f"Box {number}?", "completion": json.dumps({"a": 1 + number % 2})}
            file.write(json.dumps(row) + "\n")
    evaluation = evaluation_of(place, (), given="json.jsonl", schema="schema.json", answer_tokens=24)
    assert evaluation.tasks == ("json", "loss", "general")
    finished, _ = measure(evaluation)
    found = {one.measure.name: one.figures["tuned"].value for one in finished.report.results}
    assert found["json_valid"] == 0
    assert found["json_valid_constrained"] == 1
    assert 0 < found["json_fields_constrained"] <= 1
    assert found["json_parses"] == 0


def test_json_and_csv_say_alike_what_was_not_tested_or_has_no_interval(place: Path) -> None:
    evaluation = evaluation_of(place, ("loss", "exact_match", "rouge"), category="topic", max_rows=2, shots=1)
    measure(evaluation, named="few")
    kept = json.loads((place / "adapters/keeper/eval/few.json").read_text())
    lines = list(csv.DictReader((place / "adapters/keeper/eval/few.csv").read_text().splitlines()))
    in_csv = {(line["category"], line["measure"], line["side"]): line for line in lines}
    seen = 0
    for category, measures in [("", kept["measures"]), *((one["name"], one["measures"]) for one in kept["categories"])]:
        for one in measures:
            for key, side in (("change", "change"), ("change_from_examples", "change from examples")):
                if one[key] is None:
                    continue
                line = in_csv[category, one["name"], side]
                for name in ("low", "high", "p_holm"):
                    assert line[name] == ("" if one[key][name] is None else str(one[key][name]))
                is_corrected = one["is_tested"] and not category and key == "change"
                assert (one[key]["p_holm"] is not None) == is_corrected
                seen += one[key]["low"] is None
    assert seen


def test_constrained_answers_that_were_cut_are_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "schema.json").write_text(json.dumps({"type": "string", "minLength": 50}))
    (place / "text.jsonl").write_text('{"prompt": "a", "completion": "{}"}\n{"prompt": "b", "completion": "{}"}\n')
    given = ("--data", "text.jsonl", "--schema", "schema.json", "--tasks", "json", "--max-tokens", "3")
    result = run(place, "keeper", *given, monkeypatch=monkeypatch)
    assert result.exception is None, result.exception
    where = result.stdout.index("answers held to the schema")
    assert result.stdout[where:].count("2 of 2 cut at the limit") == 2
    assert " ".join(result.stdout.split()).count("Answers of tuned were cut at the limit (2 of 2)") == 1


def test_classes_that_occur_once_each_are_not_classes(place: Path) -> None:
    write_rows(place / "free.jsonl", 8)
    text = (place / "free.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in text]
    for number, row in enumerate(rows):
        row["messages"][1]["content"] = f"free answer {number}"
    (place / "free.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="8 rows have 8 different answers") as caught:
        evaluation_of(place, ("labels",), given="free.jsonl")
    assert "[eval] labels" in caught.value.hint
    names = tuple(f"free answer {number}" for number in range(8))
    assert evaluation_of(place, ("labels",), given="free.jsonl", labels=names).labels == names


def test_classes_that_cannot_be_told_apart_in_answers_are_refused_before_anything_is_measured(place: Path) -> None:
    text = (place / "rows.jsonl").read_text()
    (place / "rows.jsonl").write_text(text.replace('"red"', '"Blue"'))
    with pytest.raises(UsageError, match="the labels 'Blue' and 'blue' differ only in case"):
        evaluation_of(place, ("labels",))


def test_the_identity_of_rows_is_of_the_rows_and_that_of_a_schema_of_its_order(place: Path) -> None:
    (place / "one.json").write_text('{"type": "object", "properties": {"a": {}, "b": {}}}')
    (place / "two.json").write_text('{"type": "object", "properties": {"b": {}, "a": {}}}')
    plain, split = evaluation_of(place), evaluation_of(place, category="topic")
    assert plain.identity["rows_sha256"] == split.identity["rows_sha256"]
    one, two = (evaluation_of(place, ("json",), schema=name) for name in ("one.json", "two.json"))
    assert one.identity["schema_sha256"] != two.identity["schema_sha256"]


def test_examples_and_a_template_file_that_changed_make_it_another_evaluation(place: Path) -> None:
    rows = (place / "rows.jsonl").read_text().splitlines(keepends=True)
    (place / "held.jsonl").write_text("".join(rows[:20]))
    (place / "taught.jsonl").write_text("".join(rows[20:]))
    (place / "form.txt").write_text("Q {instruction}\nA {output}")
    data = {"path": None, "train": "taught.jsonl", "valid": "held.jsonl", "prompt_template": "form.txt"}
    change_facts(place, {"data": data}, place / "adapters/keeper")
    measure(evaluation_of(place, ("loss",), given="held.jsonl", shots=2), named="kept")
    (place / "taught.jsonl").write_text("".join(rows[20:]).replace("box", "cup"))
    with pytest.raises(RunError, match=r"holds another evaluation: other examples in the prompt$"):
        measure(evaluation_of(place, ("loss",), given="held.jsonl", shots=2), named="kept")
    (place / "taught.jsonl").write_text("".join(rows[20:]))
    (place / "form.txt").write_text("Ask {instruction}\nAnswer {output}")
    with pytest.raises(RunError, match=r"holds another evaluation: other prompt template$"):
        measure(evaluation_of(place, ("loss",), given="held.jsonl", shots=2), named="kept")


@pytest.mark.parametrize("is_full", [True, False])
def test_a_base_that_changed_is_measured_again(tmp_path: Path, tiny_model: TinyModel, is_full: bool) -> None:
    """The model that was fully trained, or the adapter that a preference run began with."""
    base = shutil.copytree(tiny_model("llama"), tmp_path / "base")
    write_rows(tmp_path / "rows.jsonl")
    if is_full:
        write_full_run(tmp_path / "adapters/run", base, tiny_model("llama", seed=1))
    else:
        write_run(tmp_path / "adapters/begun", base)
        run = write_run(tmp_path / "adapters/run", base)
        facts = json.loads(run.file(RUN_INFO).read_text())
        facts["resolved"] |= {"task": "dpo", "adapter": "begun"}
        facts["identity"] = {"adapter_sha256": hash_adapter(tmp_path / "adapters/begun")}
        run.file(RUN_INFO).write_text(json.dumps(facts))

    def figures(place: str = "rows"):
        evaluation = evaluation_of(tmp_path, ("loss",), name="run", given="rows.jsonl")
        finished, _ = measure(evaluation)
        assert finished.place is not None
        assert finished.place.name == place
        return finished.report.results[0].figures

    before = figures()
    if is_full:
        shutil.copytree(tiny_model("llama", seed=2), base, dirs_exist_ok=True)
    else:
        write_adapter(tmp_path / "adapters/begun", base, seed=9)
    after = figures()
    assert before["tuned"] == after["tuned"]
    assert before["base"] != after["base"]
    shutil.rmtree(base if is_full else tmp_path / "adapters/begun")
    assert figures("rows-2") == before, "what was measured of the base that the run began with is there still"


def test_a_taken_name_says_everything_that_differs(place: Path) -> None:
    measure(evaluation_of(place, ("loss",)), named="kinds")
    other = evaluation_of(place, ("exact_match",), category="topic", shots=1, answer_tokens=5)
    with pytest.raises(RunError, match=r"other tasks, category, longest answer, examples in the prompt$"):
        measure(other, named="kinds")


def test_a_file_of_rows_that_is_not_there_is_one_error(place: Path) -> None:
    with pytest.raises(UsageError, match=r"^there is no nope\.jsonl for --data$"):
        evaluation_of(place, given="nope.jsonl")


def test_some_rows_of_a_file_are_not_called_all(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(place / "mine.jsonl", 6)
    given = ("--data", "mine.jsonl", "--tasks", "loss", "--category", "topic")
    some = run(place, "keeper", *given, "--max-rows", "3", monkeypatch=monkeypatch)
    assert "on 3 of 6 rows of mine.jsonl" in " ".join(some.stdout.split())
    lines = run(place, "keeper", *given, monkeypatch=monkeypatch).stdout.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("by category"))
    assert lines[start].split()[:3] == ["by", "category", "rows"]
    assert lines[start + 1].split()[:3] == ["a", "3", "base"]


def test_plain_text_is_measured_by_its_perplexity(place: Path) -> None:
    (place / "text.txt").write_text("The first paragraph is here.\n\nAnd the second one.\n\nA third.\n")
    evaluation = evaluation_of(place, (), given="text.txt")
    assert evaluation.tasks == ("perplexity", "general")
    finished, _ = measure(evaluation)
    perplexity, bits = finished.report.results[:2]
    lines = [line for line in lines_of(place / "adapters/keeper/eval/rows.rows.jsonl") if line.get("work") == "text"]
    nats = sum(line["values"]["perplexity"][0] for line in lines if line["side"] == "tuned")
    encoded = [evaluation.subject.opened.tokenizer.encode(row.question).ids for row in evaluation.rows]
    tokens = sum(map(len, encoded))  # an end mark each, and the first token of each has nothing before it
    assert perplexity.figures["tuned"].value == pytest.approx(np.exp(nats / tokens))
    text_bytes = sum(len(row.question.encode()) - 1 for row in evaluation.rows)  # first tokens are "T" and "A"
    assert bits.figures["tuned"].value == pytest.approx(nats / np.log(2) / text_bytes)
    with pytest.raises(UsageError, match="needs questions with answers"):
        evaluation_of(place, ("rouge",), given="text.txt")


def test_blocks_of_long_texts_are_not_called_rows(place: Path) -> None:
    text = " ".join(f"word {number}" for number in range(700))
    (place / "text.txt").write_text(f"{text}\n\nshort\n")
    evaluation = evaluation_of(place, (), given="text.txt")
    count = len(evaluation.rows)
    assert count > 2
    assert evaluation.chosen.described == f"{count} blocks of 2 rows"
    finished, _ = measure(evaluation)
    assert finished.report.verdict.sentence.startswith(f"{count} blocks prove little")
    assert finished.place is not None
    assert json.loads(finished.place.file(".json").read_text())["data"]["unit"] == "block"


def test_a_model_alone_has_figures_and_no_verdict(place: Path, tiny_model: TinyModel) -> None:
    evaluation = evaluation_of(place, name=str(tiny_model("llama")), given="rows.jsonl", max_rows=5)
    finished, _ = measure(evaluation)
    assert finished.place is None
    assert [side.name for side in evaluation.sides] == ["model"]
    assert finished.report.verdict.outcome == "alone"
    kept, _ = measure(evaluation, out=place / "kept")
    assert kept.place is not None
    assert (place / "kept" / "rows.json").is_file()
    with pytest.raises(UsageError, match="no held-out rows of its own"):
        evaluation_of(place, name=str(tiny_model("llama")))


@pytest.mark.parametrize(
    ("tasks", "keys", "says"),
    [
        (("perplexity",), {}, "is of plain text"),
        (("labels",), {"labels": ("red", "blue")}, "names none of the labels"),
        (("labels",), {"labels": ("red",)}, "at least two classes"),
        (("loss",), {"gates": ("exact_match > 0.5",)}, "which is not measured here"),
        (("loss",), {"schema": "none.json"}, "none.json"),
        (("loss",), {"shots": 64}, "64 examples are wanted"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_measured(place, tasks, keys, says) -> None:
    with pytest.raises((UsageError, DataError), match=says):
        evaluation_of(place, tasks, **keys)
    assert not (place / "adapters/keeper/eval").exists()


def test_the_general_set_is_whole_and_its_questions_have_answers() -> None:
    assert len(knowledge.questions()) == 40
    assert len(knowledge.paragraphs()) == 12
    paris = knowledge.questions()[0]
    assert paris.is_right("It is Paris.")
    assert not paris.is_right("Comparison")
    assert all(question.is_right(f"The answer is {question.answers[0]}!") for question in knowledge.questions())
    assert len({question.question for question in knowledge.questions()}) == 40


# --- the command ---


def run(place: Path, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.chdir(place)
    return CliRunner().invoke(command, list(arguments), standalone_mode=False)


def test_the_command_prints_a_report_of_80_columns_and_the_gates(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_facts(
        place, {"eval": {"tasks": ["exact_match", "rouge", "speed"], "answer_tokens": 4}}, place / "adapters/keeper"
    )
    more = ("--category", "topic", "--shots", "1", "--tasks", "labels,exact_match,rouge,loss,speed,general")
    result = run(place, "keeper", *more, "--tasks", "regex:a,b", "--gate", "loss < 100", monkeypatch=monkeypatch)
    assert result.exception is None, result.exception
    assert result.return_value == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for start in (
        "keeper (tiny-llama",
        "loss of the answers",
        "matches a,b",
        "by category",
        "one at a time",
        "gate met: loss < 100",
    ):
        assert any(line.startswith(start) for line in lines), start
    assert "kept in " in result.stderr
    missed = run(
        place, "keeper", *more, "--tasks", "regex:a,b", "--gate", "exact_match >= 0.9", monkeypatch=monkeypatch
    )
    assert missed.return_value == 4
    assert "gate missed: exact_match >= 0.9: found 0" in missed.stdout
    as_json = run(place, "keeper", "--tasks", "loss", "--json", monkeypatch=monkeypatch)
    assert json.loads(as_json.stdout)["tasks"] == ["loss"]
    as_csv = run(place, "keeper", "--tasks", "loss", "--csv", monkeypatch=monkeypatch)
    assert as_csv.stdout.startswith("category,measure,side,")


def test_the_recipe_decides_where_the_command_line_does_not(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"tasks": ["contains:e"], "gates": ["contains:e >= 2"], "max_rows": 3, "answer_tokens": 2}
    change_facts(place, {"eval": keys}, place / "adapters/keeper")
    result = run(place, "keeper", "--json", monkeypatch=monkeypatch)
    report = json.loads(result.stdout)
    assert result.return_value == 4
    assert (report["tasks"], report["data"]["num_rows"]) == (["contains:e"], 3)
    kept = place / "adapters/keeper/eval/test.rows.jsonl"
    assert {line["answer_tokens"] for line in lines_of(kept)[1:]} == {2}
    assert report["gates"] == [{"gate": "contains:e >= 2", "value": report["gates"][0]["value"], "is_met": False}]


def test_other_tasks_and_rows_leave_out_what_only_the_recipe_wants(place: Path, monkeypatch) -> None:
    schema = place / "colour.json"
    schema.write_text('{"type": "object"}')
    keys = {"tasks": ["json"], "gates": ["json_valid >= 0.5"], "schema": str(schema), "category": "topic"}
    change_facts(place, {"eval": keys | {"answer_tokens": 2}}, place / "adapters/keeper")
    (place / "other.jsonl").write_text('{"prompt": "Box?", "completion": "red"}\n')
    result = run(place, "keeper", "--tasks", "loss", "--data", "other.jsonl", "--json", monkeypatch=monkeypatch)
    assert result.exception is None, result.exception
    report = json.loads(result.stdout)
    assert (result.return_value, report["tasks"], report["gates"]) == (0, ["loss"], [])
    assert "[eval] category: nothing is split: not every row has `topic`" in result.stderr
    assert "[eval] gates: json_valid >= 0.5 is not checked: json_valid is not measured here" in result.stderr
    for asked in (("--category", "topic"), ("--gate", "json_valid >= 0.5")):
        more = ("--tasks", "loss", "--data", "other.jsonl", *asked)
        refused = run(place, "keeper", *more, monkeypatch=monkeypatch)
        assert isinstance(refused.exception, UsageError | DataError), asked
    wanted = run(place, "keeper", "--tasks", "loss", "--schema", str(schema), "--json", monkeypatch=monkeypatch)
    assert json.loads(wanted.stdout)["tasks"] == ["json", "loss"]


def test_ctrl_c_says_what_was_measured_and_leaves_with_130(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_add = Journal.add

    def add(self: Journal, measured) -> None:
        plain_add(self, measured)
        if len(self.found) == 11:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", add)
    result = run(place, "keeper", "--tasks", "loss", monkeypatch=monkeypatch)
    assert result.return_value == 130
    assert result.stdout.startswith("interrupted, figures are of what was measured so far; keeper")
    assert "the same command goes on from there" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("keeper", "--tasks", "los"), "there is no task `los`"),
        (("keeper", "--gate", "x"), "the gate `x` is not of the form"),
        (("keeper", "--json", "--csv"), "two forms of the same report"),
        (("keeper", "--name", "a/b"), "cannot be the name of a result"),
        (("keeper", "--category", ""), "`category`: string should have at least 1 character"),
        (("keeper", "--gate", "loss >> 1"), "the gate `loss >> 1` is not of the form"),
        (("keeper", "--gate", "json_valid >= 95"), "the gate `json_valid >= 95` can never be met"),
        (("kepeer",), "there is no run, folder or model 'kepeer'"),
        (("keeper", "--tasks", "regex:("), "cannot be read"),
    ],
)
def test_slips_are_sentences(place: Path, arguments: tuple[str, ...], says: str, monkeypatch) -> None:
    result = run(place, *arguments, monkeypatch=monkeypatch)
    assert isinstance(result.exception, MlxftError)
    assert says in result.exception.message


def test_tasks_are_split_at_commas_but_checks_are_not() -> None:
    assert split_tasks(("loss, json", "regex:a,b")) == ("loss", "json", "regex:a,b")
    assert split_tasks(("loss,exact_match, regex:^a{1,2}:,b", "json")) == (
        "loss", "exact_match", "regex:^a{1,2}:,b", "json",
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere mlx brings its own products")
def test_the_fast_products_are_chosen_before_mlx_is_imported(place: Path) -> None:
    if not blas.prepare().loaded:
        pytest.skip("OpenBLAS is not installed")
    code = (
        "from mlx_finetune.commands.eval import command\n"
        "from mlx_finetune.hardware import blas\n"
        "print(blas.__file__)\n"
        "try:\n    command.main(['nobody', '--name', 'x'], standalone_mode=False)\n"
        "except Exception as error:\n    print(error)\n"
        "print(blas.prepare().reason)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == blas.__file__, "another checkout was tested"
    assert done.stdout.splitlines()[-1] == "OpenBLAS was loaded before mlx"


def test_data_that_changed_since_the_training_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place / "adapters/keeper/run.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"identity": {"data_sha256": "0" * 64}}))
    result = run(place, "keeper", "--tasks", "loss", "--max-rows", "2", monkeypatch=monkeypatch)
    assert "the data files have changed since the training" in result.stderr
    write_rows(place / "mine.jsonl", 3)
    given = run(place, "keeper", "--tasks", "loss", "--data", "mine.jsonl", monkeypatch=monkeypatch)
    assert "have changed" not in given.stderr


# --- other subjects ---


def test_a_fully_trained_run_is_compared_with_what_it_began_as(tmp_path: Path, tiny_model: TinyModel) -> None:
    base, trained = tiny_model("llama"), tiny_model("llama", seed=1)
    write_rows(tmp_path / "rows.jsonl")
    write_full_run(tmp_path / "adapters/full", base, trained)
    found = {}
    for name, given in (("full", None), (str(base), "held.jsonl"), (str(trained), "held.jsonl")):
        evaluation = evaluation_of(tmp_path, ("loss",), name=name, given=given)
        if given is None:
            wanted = {row.where.rpartition(":")[2] for row in evaluation.rows}
            lines = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
            held = [line for number, line in enumerate(lines, 1) if str(number) in wanted]
            (tmp_path / "held.jsonl").write_text("".join(held))
        finished, _ = measure(evaluation)
        found[name] = {side: one.value for side, one in finished.report.results[0].figures.items()}
    assert found["full"] == {
        "base": pytest.approx(found[str(base)]["model"]),
        "tuned": pytest.approx(found[str(trained)]["model"]),
    }


def test_a_checkpoint_has_results_of_its_own_name(place: Path) -> None:
    run = place / "adapters/keeper"
    checkpoint = run / "checkpoint-2"
    checkpoint.mkdir()
    for name in ("adapter_config.json", "adapters.safetensors", "adapter_model.safetensors"):
        if (run / name).exists():
            (checkpoint / name).write_bytes((run / name).read_bytes())
    (checkpoint / "manifest.json").write_text("{}")
    (checkpoint / "run.json").write_bytes((run / "run.json").read_bytes())  # as a training saves it
    finished, _ = measure(evaluation_of(place, ("loss",), name="adapters/keeper/checkpoint-2"))
    assert finished.place is not None
    kept = finished.place.file(".json")
    assert kept == run.resolve() / "eval/checkpoint-2-test.json"
    assert json.loads(kept.read_text())["step"] is None, "it does not become another when its run is trained further"
    assert not (checkpoint / "eval").exists(), "a checkpoint is removed one day"


def test_what_may_be_compared_is_named_and_nothing_else(place: Path, tiny_model: TinyModel, monkeypatch) -> None:
    def ends_with(*arguments: str) -> str:
        result = run(place, *arguments, "--tasks", "loss", "--max-rows", "6", monkeypatch=monkeypatch)
        assert result.exception is None, result.exception
        return result.stderr.splitlines()[-1]

    assert ends_with("keeper") == "next: mlxft runs compare keeper OTHER_RUN"
    assert ends_with("keeper", "--out", "kept") == "kept in kept/test.json and .csv"
    model = str(tiny_model("llama"))
    assert ends_with(model, "--out", "alone", "--data", "rows.jsonl").startswith("kept in alone/")


@pytest.mark.some(2)
@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2", "gemma"])
def test_every_architecture_is_measured_with_its_prompt_template(
    tmp_path: Path, tiny_model: TinyModel, kind: str
) -> None:
    place = write_place(tmp_path / "place", tiny_model(kind))
    tasks = ("labels", "loss", "rouge", "general", "speed")
    finished, said = measure(evaluation_of(place, tasks, given="rows.jsonl", max_rows=5, shots=1))
    assert said == []
    assert finished.report.failed == ()
    assert set(finished.report.speed) == {"base", "tuned"}
    assert finished.report.texts["general_perplexity"].how == "each paragraph by itself"


def test_a_loss_that_is_not_a_number_is_a_failed_row_and_no_figure(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = LikelihoodModel.losses

    def broken(self: LikelihoodModel, rows, step=None):
        found = plain(self, rows, step)
        return [losses * np.nan if place == 0 else losses for place, losses in enumerate(found)]

    monkeypatch.setattr(LikelihoodModel, "losses", broken)
    evaluation = evaluation_of(place, ("loss",))
    finished, _ = measure(evaluation)
    report = finished.report
    assert [problem.where for problem in report.failed] == [evaluation.rows[0].where]
    assert "not a finite number" in report.failed[0].message
    assert report.results[0].figures["tuned"].num_rows == len(evaluation.rows) - 1


def test_rows_may_be_thousands_and_most_are_left_out_by_content(place: Path) -> None:
    write_rows(place / "many.jsonl", 3000)
    evaluation = evaluation_of(place, ("loss",), given="many.jsonl", max_rows=20)
    assert (len(evaluation.rows), evaluation.chosen.num_held_out) == (20, 3000)
    finished, _ = measure(evaluation)
    assert finished.report.results[0].figures["tuned"].num_rows == 20


def test_rows_that_taught_the_run_are_counted_in_the_verdict_and_as_json(tmp_path: Path, tiny_model: TinyModel) -> None:
    place = write_place(tmp_path, tiny_model("llama"))
    other = write_rows(place / "other.jsonl", 62)  # the 60 rows of the run, of which some are held out for a test
    own = choose_rows(
        subject_of(place).data,
        base=place,
        training_base=place,
        given=None,
        max_rows=100,
        category=None,
        shots=0,
        seed=0,
    )
    assert own.split == "test"
    evaluation = evaluation_of(place, ("loss",), given=other.name)
    seen = evaluation.chosen.seen
    assert seen is not None
    assert seen.num_train + seen.num_valid == 60 - len(own.rows)
    done = evaluate(evaluation, named="o", out=None, show=lambda _: None, say=lambda _: None, report=lambda *_: None)
    sentence = f"{seen.num_train} of 62 rows stand in its training rows and {seen.num_valid} in its validation rows"
    assert done.report.verdict.sentence.startswith(f"{sentence}: these figures flatter it. ")
    kept = json.loads((place / "adapters/keeper/eval/o.json").read_text())
    assert kept["data"]["num_in_training"] == seen.num_train
    (place / "rows.jsonl").unlink()
    unknown = evaluation_of(place, ("loss",), given=other.name).chosen
    assert unknown.seen is None
    assert "whether keeper was trained on these rows cannot be told" in unknown.notices[0].message
    write_rows(place / "rows.jsonl", 61)
    (place / "new.jsonl").write_text(other.read_text().splitlines()[-1] + "\n")
    assert evaluation_of(place, ("loss",), given="new.jsonl").chosen.remark == ""
