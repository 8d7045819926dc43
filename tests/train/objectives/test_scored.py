"""What classify and verifier learn: their losses by hand, alike on every path, and whole runs that come back."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from scored_runs import LABELS, write_scored_recipe
from scored_trainers import load_tiny, scored_trainer
from small_runs import course, train

from mlx_finetune import rundir
from mlx_finetune.app.open import open_name
from mlx_finetune.dataset.stream import Batch, make_batch, ordered_batches
from mlx_finetune.dataset.token_rows import rows_of
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.errors import DataError
from mlx_finetune.model.heads.token_scores import ScoringModel
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.train.objective import Objective
from mlx_finetune.train.objectives.classify import classify
from mlx_finetune.train.objectives.preference.formulas import negative_log_sigmoid
from mlx_finetune.train.objectives.reward import reward
from mlx_finetune.train.objectives.verifier import verifier
from mlx_finetune.train.step import Trainer

LENGTHS = (9, 6, 12, 7, 3)


def text_row(number: int) -> Tokens:
    """A text and one token more, which is the target; labels 0, 1, 2, 0, ..."""
    ids = np.arange(1, LENGTHS[number] + 1, dtype=np.int32)
    return Tokens(ids, ids == len(ids), "rows", number + 1, values=(float(number % 3),))


def answer_row(number: int) -> Tokens:
    """A prompt of two tokens, an answer, and one token more; right, wrong, right, ..."""
    ids = np.arange(1, LENGTHS[number] + 1, dtype=np.int32)
    return Tokens(ids, (ids > 2) & (ids < len(ids)), "rows", number + 1, values=(float(number % 2 == 0),))


def pair_row(number: int) -> Tokens:
    """A prompt of two tokens, then a chosen and a rejected answer; every second pair weighs double."""
    first, second = LENGTHS[number] - 2, LENGTHS[number + 1] - 1
    ids = np.arange(1, 3 + first + second, dtype=np.int32) % 40 + 1
    values = (2.0, float(first), float(second), 1.0 + number % 2)
    return Tokens(ids, np.arange(len(ids)) > 1, "rows", number + 1, values=values)


ROWS = {
    "classify": [text_row(n) for n in range(4)],
    "verifier": [answer_row(n) for n in range(4)],
    "reward": [pair_row(n) for n in range(4)],
}
OBJECTIVES = {"classify": classify(), "verifier": verifier(0.5), "reward": reward()}


def batches_of(task: str, size: int) -> Sequence[Batch]:
    return list(ordered_batches(ROWS[task], size))


def trainer_of(folder, objective: Objective, how: str = "graph") -> Trainer:
    return scored_trainer(load_tiny(folder), objective, how, factor=20)


@pytest.mark.parametrize("task", OBJECTIVES)
@pytest.mark.parametrize("how", ["graph", "block by block", pytest.param("compiled", marks=pytest.mark.slow)])
def test_loss_and_metrics_are_those_of_the_scores(tiny_model, task, how):
    trainer = trainer_of(tiny_model("llama"), OBJECTIVES[task], how)
    gradients, result = trainer.compute(batches_of(task, 2), 0)
    sums, count = trainer.loss(batches_of(task, 3)[0])
    trainer.load_into_model()
    trainer.close()
    scoring = ScoringModel(trainer._model)
    inputs = [row.ids[:-1] for row in ROWS[task]]
    values = np.array([row.values[0] for row in ROWS[task]])
    if task == "classify":
        scores = scoring.last(inputs).astype(np.float64)
        losses = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(4), values.astype(int)]
        right = scores.argmax(axis=1) == values
    elif task == "reward":
        rewards = scoring.last([ids for row in ROWS[task] for ids in _answers(row)]).reshape(4, 2).astype(np.float64)
        margins = rewards[:, 0] - rewards[:, 1]
        losses = np.log1p(np.exp(-margins)) * np.array([row.values[3] for row in ROWS[task]])
        right = margins > 0
        assert result.metrics["margin"] == pytest.approx(margins.mean(), rel=1e-4)
        assert result.metrics["rewards/rejected"] == pytest.approx(rewards[:, 1].mean(), rel=1e-4)
    else:
        scores = [one[2:, 0].astype(np.float64) for one in scoring.every(inputs)]
        verdicts = np.array([np.mean(np.log1p(np.exp(s)) - y * s) for s, y in zip(scores, values, strict=True)])
        tokens = [_token_loss(trainer, row) for row in ROWS[task]]
        losses = verdicts + 0.5 * np.array(tokens)
        right = np.array([(s[-1] > 0) == (y > 0.5) for s, y in zip(scores, values, strict=True)])
        assert result.metrics["verdict_loss"] == pytest.approx(verdicts.mean(), rel=1e-4)
    assert result.num_targets == 4
    assert result.loss == pytest.approx(losses.mean(), rel=1e-4)
    assert result.metrics["accuracy"] == pytest.approx(right.mean())
    assert (len(sums), count) == (1 + len(OBJECTIVES[task].metrics), 3)
    whole, expected = trainer_of(tiny_model("llama"), OBJECTIVES[task]).compute(batches_of(task, 4), 0)
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    for name, value in whole.items():
        assert mx.allclose(gradients[name], value, rtol=1e-3, atol=1e-5), name


def _answers(row: Tokens) -> list[np.ndarray]:
    """Prompt and chosen, prompt and rejected."""
    prefix, first = int(row.values[0]), int(row.values[1])
    return [row.ids[: prefix + first], np.concatenate([row.ids[:prefix], row.ids[prefix + first :]])]


@pytest.mark.parametrize(
    ("task", "loss", "accuracy"),
    [("classify", 1.5 * np.log(2), 0.5), ("verifier", np.log(2), 0.5), ("reward", 1.5 * np.log(2), 0.5)],
)
def test_the_same_answer_for_every_row_is_what_has_to_be_beaten(task, loss, accuracy):
    """Classes in shares of 1/2, 1/4, 1/4; verdicts in halves; ties of pairs, half of which weigh double."""
    objective, rows = OBJECTIVES[task], rows_of(ROWS[task])
    found = objective.constant(rows)
    assert found is not None
    assert (found.loss, found.accuracy) == (pytest.approx(loss), accuracy)
    assert objective.constant(rows_of([])) is None


def test_the_loss_of_a_pair_is_that_of_bradley_and_terry():
    assert negative_log_sigmoid(mx.array([2 - 0.5])).item() == pytest.approx(0.201413, abs=1e-6)
    assert negative_log_sigmoid(mx.array([-200.0])).item() == pytest.approx(200.0)


def _token_loss(trainer: Trainer, row: Tokens) -> float:
    """Mean loss of the tokens of an answer."""
    split = SplitModel(trainer._model)
    logits = np.asarray(split.logits(split.hidden(mx.array(row.ids[None, :-1]), None)[0])).astype(np.float64)
    places = np.flatnonzero(row.loss_mask)
    chosen = logits[places - 1]
    return float((np.log(np.exp(chosen).sum(axis=1)) - chosen[np.arange(len(places)), row.ids[places]]).mean())


def test_without_its_weight_a_verifier_learns_no_tokens(tiny_model):
    """The head of tokens is not even asked: fewer arrays go into the loss."""
    batch = batches_of("verifier", 4)[0]
    alone = verifier(0.0)
    assert (len(alone.arrays(batch, 0)), len(verifier(1.0).arrays(batch, 0))) == (3, 6)
    _, result = trainer_of(tiny_model("llama"), alone).compute([batch], 0)
    assert result.loss == pytest.approx(result.metrics["verdict_loss"])


@pytest.mark.parametrize("task", OBJECTIVES)
def test_a_row_of_padding_counts_nothing(task):
    """A batch may have more sequences than rows; here one of four is empty."""
    batch = make_batch(ROWS[task], [[0], [1], [2]], num_sequences=3, length=24)
    names = ("tokens", "loss_mask", "segment_ids", "values")
    padded = replace(batch, **{name: np.pad(getattr(batch, name), ((0, 1), (0, 0))) for name in names})
    arrays = OBJECTIVES[task].arrays(OBJECTIVES[task].unfold(padded), 1)
    assert OBJECTIVES[task].count(padded) == 3
    if task == "classify":
        assert np.asarray(arrays[1]).tolist() == [0, 1, 2, -1]
        assert np.asarray(arrays[0]).tolist()[:3] == [length - 2 for length in LENGTHS[:3]]
    elif task == "reward":
        assert np.asarray(arrays[1]).tolist() == [[1, 1], [2, 1], [1, 1], [0, 0]]
    else:
        assert np.asarray(arrays[0]).sum(axis=1).tolist() == pytest.approx([1, 1, 1, 0])


@pytest.fixture(scope="module")
def straight(tiny_model, tmp_path_factory):
    """Uninterrupted runs by task, with dropout and accumulation."""
    return {
        task: train(write_scored_recipe(tmp_path_factory.mktemp(task), tiny_model("llama"), task))
        for task in OBJECTIVES
    }


def weights_hash(run, folder="") -> list[str]:
    names = (rundir.MLX_WEIGHTS, rundir.PEFT_WEIGHTS, rundir.HEAD_WEIGHTS)
    return [hashlib.sha256((run.path / folder / name).read_bytes()).hexdigest() for name in names]


@pytest.mark.some(3)
@pytest.mark.parametrize(("how", "step"), [("stop_after", 3), ("kill_after", 5)])
@pytest.mark.parametrize("task", OBJECTIVES)
def test_a_run_interrupted_after_any_step_ends_with_the_same_bits(straight, tiny_model, tmp_path, task, how, step):
    recipe = write_scored_recipe(tmp_path, tiny_model("llama"), task)
    run = train(recipe, **{how: step})
    assert not run.file(rundir.HEAD_WEIGHTS).exists()
    train(recipe, resume=True)
    assert course(run) == course(straight[task])
    assert weights_hash(run) == weights_hash(straight[task])


@pytest.mark.parametrize("task", OBJECTIVES)
def test_a_result_and_a_checkpoint_open_with_their_head(straight, tmp_path, task):
    run = straight[task]
    for folder in (run.path, run.checkpoint(4)):
        opened = open_name(str(folder), base=tmp_path, report=lambda event: None)
        assert opened.head is not None
        assert opened.head.labels == (("10", "2", "ok") if task == "classify" else ())
        assert opened.head.num_outputs == (3 if task == "classify" else 1)
        assert ScoringModel(opened.model).last([np.arange(5, dtype=np.int32)]).shape == (1, opened.head.num_outputs)
    assert set(LABELS) == {"10", "2", "ok"}


def test_a_fully_trained_model_keeps_its_head_beside_it(tiny_model, tmp_path):
    """mlx-lm loads the language model; the head lies beside it, and a resumed run ends with the same bits."""
    from mlx_lm.utils import load_model as upstream_load

    recipe = write_scored_recipe(tmp_path, tiny_model("llama"), "classify", is_full=True)
    run = train(recipe, stop_after=3)
    train(recipe, resume=True)
    other = write_scored_recipe(tmp_path, tiny_model("llama"), "classify", name="straight", is_full=True)
    whole = train(other)
    folders = [one.path / rundir.MODEL_FOLDER for one in (run, whole)]
    for name in (rundir.MODEL_WEIGHTS, rundir.HEAD_WEIGHTS):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    model, _ = upstream_load(folders[0])
    assert "score" not in model
    assert "its score head is `head.safetensors`" in run.file(rundir.CARD).read_text()
    opened = open_name(str(run.path), base=tmp_path, report=lambda event: None)
    assert opened.head is not None
    assert opened.head.labels == ("10", "2", "ok")


def test_the_template_of_a_text_is_what_a_classifier_reads(straight, tiny_model, tmp_path):
    recipe = write_scored_recipe(tmp_path, tiny_model("llama"), "classify")
    run = train(recipe, overrides=("data.text_template=<{text}> is",))
    assert course(run) != course(straight["classify"])
    lengths = [json.loads(one.file(rundir.DATA_CARD).read_text())["splits"] for one in (run, straight["classify"])]
    assert lengths[0]["train"]["lengths"]["total"] > lengths[1]["train"]["lengths"]["total"]


def test_a_label_that_training_lacks_is_refused_with_its_line(tiny_model, tmp_path):
    recipe = write_scored_recipe(tmp_path, tiny_model("llama"), "classify")
    other = tmp_path / "valid.tsv"
    other.write_text("sentence\tlabel\nit is xxx\t10\nit is www\tnew\n")
    text = recipe.read_text().replace("path =", "train =").replace("val_split", f'valid = "{other}"\nval_split')
    recipe.write_text(text)
    with pytest.raises(DataError) as error:
        train(recipe)
    assert f"{other}:3" in error.value.message
    assert '"new"' in error.value.message
    assert '"10", "2", "ok"' in error.value.hint
