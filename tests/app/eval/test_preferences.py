"""Evaluating preferences: which answer is likelier, before and after, beside what the run started from."""

import json
import re
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from eval_runs import evaluation_of, subject_of, write_place
from mlx.utils import tree_map

from mlx_finetune.app.eval.figures import Result, change, corrected, figure
from mlx_finetune.app.eval.journal import Journal, measured_of, read_lines
from mlx_finetune.app.eval.measure import Measuring
from mlx_finetune.app.eval.measures import measures_of
from mlx_finetune.app.eval.report import report_of
from mlx_finetune.app.eval.verdict import judge
from mlx_finetune.app.eval.view import report_lines
from mlx_finetune.dataset.formats import Messages
from mlx_finetune.errors import UsageError
from mlx_finetune.model.likelihoods import LikelihoodModel, Scored
from mlx_finetune.train.losses import chunk_rows


def write_pairs(path, count=12):
    rows = [{"prompt": f"Box {n}?", "chosen": f"It is {n}.", "rejected": "no " * (1 + n % 3)} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_marked(path, count=12, kinds=(True, False)):
    rows = [{"prompt": f"Box {n}?", "completion": f"It is {n}.", "label": kinds[n % 2]} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def measure(evaluation, tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", evaluation.identity)
    Measuring(evaluation, journal, lambda _: None, lambda problem, _: pytest.fail(problem.message)).run()
    journal.close()
    return journal


def test_any_run_can_be_measured_on_pairs(tmp_path, tiny_model):
    place = write_place(tmp_path / "place", tiny_model("llama"))
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    evaluation = evaluation_of(place, ("preference",), given=str(pairs))
    journal = measure(evaluation, tmp_path)
    report = report_of(evaluation, journal, is_whole=True)
    figures = {one.measure.name: one.figures for one in report.results}
    assert set(figures) == {"preferred", "preferred_per_token", "chosen_loss"}
    assert figures["preferred"]["tuned"].num_rows == 12
    subject = subject_of(place)
    prompter = evaluation.prompter
    row = evaluation.rows[0]
    found = journal.found[("preference", "tuned", 0)]
    sums = []
    for text in ("It is 0.", "no "):
        continuation = prompter.continuation(replace(row, example=_messages(row)), text)
        end = len(continuation.ids)
        scored = Scored(continuation.ids, np.arange(end - continuation.num_targets, end))
        sums.append(float(LikelihoodModel(subject.opened.model, chunk_rows).losses([scored])[0].sum()))
    assert found.values["preferred"] == (float(sums[0] < sums[1]),)
    kept = [one for one in map(measured_of, list(read_lines(journal.path))[1:]) if one.side == "tuned"]
    assert [one.where for one in kept] == [f"{pairs}:{line}" for line in range(1, 13)]
    both = [kept[0].values[name][0] for name in ("chosen_loss", "rejected_loss")]
    assert both == pytest.approx(sums, rel=1e-5)


def test_a_tie_is_half_right_and_shown_as_half_a_row(tmp_path, tiny_model):
    """A model whose every token is as likely: answers of one length are a tie, and by the token all are."""
    place = write_place(tmp_path / "place", tiny_model("llama"))
    rows = [("ab", "cd"), ("ab", "c"), ("a", "cd")]
    lines = [json.dumps({"prompt": "?", "chosen": one, "rejected": other}) for one, other in rows]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    evaluation = evaluation_of(place, ("preference",), given=str(tmp_path / "pairs.jsonl"))
    model = evaluation.subject.opened.model
    model.update(tree_map(mx.zeros_like, model.parameters()))
    journal = measure(evaluation, tmp_path)
    values = [journal.found["preference", "tuned", row].values for row in range(3)]
    assert [one["preferred"] for one in values] == [(0.5,), (0.0,), (1.0,)]
    assert [one["preferred_per_token"] for one in values] == [(0.5,)] * 3
    lines = list(report_lines(evaluation, report_of(evaluation, journal, is_whole=True)))
    assert next(line for line in lines if line.startswith("chosen likelier (sum)")).split()[3:5] == ["1.5/3", "1.5/3"]


def _messages(row):
    answer = {"role": "assistant", "content": "x"}
    return Messages((*row.example.prompt, answer), None, row.example.source, row.example.line)


def test_answers_marked_good_or_bad_have_losses_by_kind(tmp_path, tiny_model):
    place = write_place(tmp_path / "place", tiny_model("llama"))
    evaluation = evaluation_of(place, ("preference",), given=str(write_marked(tmp_path / "marked.jsonl")))
    journal = measure(evaluation, tmp_path)
    report = report_of(evaluation, journal, is_whole=True)
    figures = {one.measure.name: one.figures["tuned"].num_rows for one in report.results}
    assert figures == {"good_over_bad": 12, "good_loss": 6, "bad_loss": 6}
    lead = report.results[0].figures["tuned"].value
    good, bad = (
        np.mean([one.values[name][0] for one in journal.found.values() if one.side == "tuned" and name in one.values])
        for name in ("good_loss", "bad_loss")
    )
    assert lead == pytest.approx(bad - good)
    moved = [line for line in report_lines(evaluation, report) if "marked.jsonl:" in line and "->" in line]
    assert len(moved) == len(report.gains[:3]) + len(report.losses[:3]) > 0
    assert all(re.match(r"  \.\.\.\S*/marked\.jsonl:\d+  ", line) for line in moved)


def test_answers_of_one_kind_cannot_be_judged_and_nothing_is_judged_in_their_place(tmp_path, tiny_model):
    place = write_place(tmp_path / "place", tiny_model("llama"))
    marked = write_marked(tmp_path / "marked.jsonl", 2, kinds=(True, True))
    evaluation = evaluation_of(place, ("preference",), given=str(marked))
    report = report_of(evaluation, measure(evaluation, tmp_path), is_whole=True)
    assert (report.verdict.outcome, report.lead) == ("unproven", "")
    assert report.verdict.sentence == (
        "It cannot be judged: answers marked good are set against answers marked bad, and these are all of one kind."
    )


def test_kto_is_judged_by_how_much_likelier_good_answers_became_than_bad_ones():
    """The loss of the good ones falls for sure, and that of the bad ones falls more."""
    rng = np.random.default_rng(1)
    measure = next(one for one in measures_of(("preference",), has_schema=False, kind="marked") if one.is_tested)
    before = {row: (-kind * rng.uniform(20, 40), kind) for row, kind in enumerate([1.0, -1.0] * 30)}

    def judged(good, bad):
        after = {
            row: (value + kind * (good if kind > 0 else bad) + rng.normal(0, 1), kind)
            for row, (value, kind) in before.items()
        }
        sides = (("base", before), ("tuned", after))
        figures = {side: one for side, rows in sides if (one := figure(measure, rows, seed=1))}
        moved = change(measure, before, after, seed=1)
        assert moved is not None
        assert (moved.low or 0) < good - bad < (moved.high or 0)
        return judge(corrected([Result(measure, figures, moved)]), has_base=True)

    assert judged(5.0, 8.0).outcome == "worse"
    assert judged(5.0, 5.0).outcome == "unproven"
    verdict = judged(5.0, 2.0)
    assert verdict.outcome == "learned"
    assert "It learned it: good over bad, nats" in verdict.sentence


def test_pairs_have_no_plain_loss_and_other_rows_no_preference(tmp_path, tiny_model):
    place = write_place(tmp_path / "place", tiny_model("llama"))
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(UsageError, match="needs rows with chosen and rejected"):
        evaluation_of(place, ("preference",))
    with pytest.raises(UsageError, match="`loss` is of single answers"):
        evaluation_of(place, ("preference", "loss"), given=str(pairs))
