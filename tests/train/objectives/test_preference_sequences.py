"""Two answers behind one prompt: computed in one sequence or in two, on every path the same numbers."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_finetune.dataset.stream import ordered_batches
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.model.adapters.lora import adapter_parameters, attach_adapter, full_parameters
from mlx_finetune.model.inside.shared_prefix import PartMask, why_not_shared
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.recipe.preference import PreferenceRecipe, preference_settings
from mlx_finetune.recipe.schema import LoraRecipe
from mlx_finetune.train.objectives.preference.objective import preference_objective
from mlx_finetune.train.objectives.preference.sequences import Sequences
from mlx_finetune.train.optim import AdamW
from mlx_finetune.train.step import Trainer

#: Tokens of prefix, first and second answer of each row; the answers are longer and shorter than each other.
SIZES = ((5, 4, 6), (1, 3, 3), (9, 7, 2), (4, 1, 8), (30, 20, 45))


def rows_of(*, is_kto: bool = False) -> list[Tokens]:
    rng = np.random.default_rng(5)
    rows: list[Tokens] = []
    for number, (prefix, first, second) in enumerate(SIZES):
        ids = rng.integers(1, 250, prefix + first + second).astype(np.int32)
        mask = np.arange(len(ids)) >= prefix
        if number == 2:
            mask[prefix] = False  # a prefix that ends before the prompt does
        more = (float(number % 2),) if is_kto else ()
        rows.append(Tokens(ids, mask, "rows", number + 1, 1.0, (prefix, first, second, 1.0 + number % 2, *more)))
    return rows


@pytest.fixture
def load_tiny(tiny_model):
    def load(model_type: str):
        local = LocalModel("tiny", tiny_model(model_type), "folder", None, "", None)
        return load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model

    return load


def trainer_of(model, task: str, *, is_shared: bool, how: str = "graph", is_full: bool = False) -> Trainer:
    if is_full:
        full_parameters(model)
        parameters = dict(tree_flatten(model.trainable_parameters()))
    else:
        attach_adapter(model, LoraRecipe.model_validate({"rank": 4}), seed=3)
        parameters = {name: value + 0.02 for name, value in adapter_parameters(model).items()}
    parameters = {name: parameters[name] for name in sorted(parameters)}
    given = {"good_weight": 1.0, "bad_weight": 2.0} if task == "kto" else {}
    settings = preference_settings(task, PreferenceRecipe.model_validate(given))
    return Trainer(
        model,
        preference_objective(task, settings, Sequences(is_shared=is_shared)),
        AdamW(0.9, 0.999, 1e-8, 0.0, frozenset()),
        parameters,
        seed=1,
        max_grad_norm=0.0,
        is_packed=False,
        is_compiled=how == "compiled",
        is_blockwise=how == "block by block",
    )


def batches_of(size: int, *, is_kto: bool = False):
    batches = ordered_batches(rows_of(is_kto=is_kto), size)
    batches.values = np.linspace(-60, -90, 2 * len(SIZES)).reshape(-1, 2)
    return list(batches)


def alike(found, expected) -> None:
    gradients, result = found
    expected_gradients, expected_result = expected
    assert result.loss == pytest.approx(expected_result.loss, rel=1e-5, abs=1e-6)
    assert result.metrics == pytest.approx(dict(expected_result.metrics), rel=1e-5, abs=1e-5)
    assert result.num_targets == expected_result.num_targets == len(SIZES)
    scale = max(float(mx.abs(value).max()) for value in expected_gradients.values())
    assert scale > 1e-3
    for name, value in expected_gradients.items():
        assert float(mx.abs(gradients[name] - value).max()) <= 1e-5 * scale, name


#: On a CPU compiling builds C++ for up to 25 s.
COMPILED = pytest.param("compiled", marks=pytest.mark.slow)


@pytest.mark.parametrize("model_type", ["llama", "gemma", "gpt_neox"])
@pytest.mark.parametrize("how", ["graph", "block by block", COMPILED])
def test_a_shared_prompt_gives_what_two_sequences_give(load_tiny, model_type, how):
    shared = trainer_of(load_tiny(model_type), "dpo", is_shared=True, how=how)
    assert why_not_shared(SplitModel(load_tiny(model_type))) == ""
    apart = trainer_of(load_tiny(model_type), "dpo", is_shared=False)
    found = shared.compute(batches_of(3), 0)
    shared.close()
    alike(found, apart.compute(batches_of(5), 0))


@pytest.mark.some(4)
@pytest.mark.parametrize("task", ["dpo", "cdpo", "rdpo", "ipo", "simpo", "orpo", "kto"])
def test_no_task_depends_on_microbatches_halves_or_paths(load_tiny, task):
    expected = trainer_of(load_tiny("llama"), task, is_shared=False).compute(batches_of(5, is_kto=task == "kto"), 0)
    for how, size in (("graph", 2), ("block by block", 2), ("block by block", 1)):
        trainer = trainer_of(load_tiny("llama"), task, is_shared=True, how=how)
        found = trainer.compute(batches_of(size, is_kto=task == "kto"), 0)
        trainer.close()
        alike(found, expected)


@pytest.mark.parametrize("how", ["graph", "block by block", COMPILED])
def test_every_weight_learns_through_the_head_too(load_tiny, how):
    """The gradient of a tied head is a sum over targets, each with the weight of its pair."""
    expected = trainer_of(load_tiny("gemma"), "dpo", is_shared=False, is_full=True).compute(batches_of(5), 0)
    trainer = trainer_of(load_tiny("gemma"), "dpo", is_shared=True, how=how, is_full=True)
    found = trainer.compute(batches_of(2), 0)
    trainer.close()
    alike(found, expected)


@pytest.mark.parametrize("how", ["graph", "block by block"])
@pytest.mark.parametrize("is_shared", [True, False])
def test_log_probabilities_are_those_of_each_answer_alone(load_tiny, how, is_shared):
    trainer = trainer_of(load_tiny("llama"), "dpo", is_shared=is_shared, how=how)
    reference = trainer._objective.reference
    assert reference is not None
    trainer.load_into_model()
    rows = rows_of()
    for batch in batches_of(2):
        found = trainer.row_outputs(reference, batch)
        assert found.shape == (len(batch.rows), 2)
        for numbers, row in zip(found, batch.rows, strict=True):
            prefix, first, _ = (int(value) for value in rows[row].values[:3])
            ids, mask = rows[row].ids, rows[row].loss_mask
            for number, chosen in zip(
                numbers, (np.r_[0 : prefix + first], np.r_[0:prefix, prefix + first : len(ids)]), strict=True
            ):
                logits = trainer._model(mx.array(ids[chosen])[None])[0].astype(mx.float32)
                logps = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
                targets = [place for place in range(1, len(chosen)) if mask[chosen][place]]
                alone = sum(logps[place - 1, int(ids[chosen][place])].item() for place in targets)
                assert number == pytest.approx(alone, rel=1e-5)
    trainer.close()


def test_a_model_with_learned_positions_says_so_and_trains_on_two_sequences(load_tiny):
    model = load_tiny("gpt2")
    assert why_not_shared(SplitModel(model)) == "the model has learned positions (model.wpe)"
    _, result = trainer_of(model, "dpo", is_shared=False).compute(batches_of(5), 0)
    assert np.isfinite(result.loss)


def test_a_sliding_window_counts_positions_and_not_places():
    """The second answer lies far behind its prompt in the sequence, and beside it in its own."""
    parts, positions = mx.array([[0, 0, 1, 1, 1, 2, 2]]), mx.array([[0, 1, 2, 3, 4, 2, 3]])
    seen = np.array(PartMask(parts, positions).make_mask(7, window_size=3))[0, 0]
    assert [np.flatnonzero(row).tolist() for row in seen] == [
        [0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [0, 1, 5], [1, 5, 6],
    ]  # fmt: skip


def test_a_model_that_rotates_with_code_of_its_own_is_found_out(load_tiny, monkeypatch):
    monkeypatch.setattr("mlx_finetune.model.inside.shared_prefix.ROTARY", (mx.Dtype,))
    assert "would not be those of two sequences" in why_not_shared(SplitModel(load_tiny("llama")))
