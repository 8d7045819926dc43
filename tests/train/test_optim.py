import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_finetune.recipe.training import TrainingRecipe
from mlx_finetune.train.optim import AdamW, build_schedule, decayed_names, global_norm
from mlx_finetune.train.step import clip


def make_optimizer(decayed=("w",), **settings):
    values = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.1} | settings
    return AdamW(**values, decayed=frozenset(decayed))


def run(optimizer, parameters, gradients, rates):
    state = optimizer.init(parameters)
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True)):
        parameters, state = optimizer.update(parameters, gradient, state, optimizer.hyperparameters(rate, step))
    return parameters


def test_first_step_has_bias_correction():
    after = run(make_optimizer(), {"w": mx.array([[1.0]])}, [{"w": mx.array([[0.5]])}], [0.1])
    assert after["w"].item() == pytest.approx(0.89, abs=1e-6)  # ALGORITHMS.md section 0; without correction 0.6738


def test_mlx_still_leaves_bias_correction_out_by_default():
    from mlx.optimizers import AdamW as Theirs

    theirs = Theirs(learning_rate=0.1, weight_decay=0.1)
    parameters = {"w": mx.array([1.0])}
    assert theirs.apply_gradients({"w": mx.array([0.5])}, parameters)["w"].item() == pytest.approx(0.6738, abs=1e-4)


def test_twenty_steps_equal_the_formula_in_float64():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3))
    gradients = rng.normal(size=(20, 4, 3))
    rates = [0.01 * (1 + step % 3) for step in range(20)]
    expected, m, v = weight.copy(), np.zeros((4, 3)), np.zeros((4, 3))
    for step, (g, lr) in enumerate(zip(gradients, rates, strict=True), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        expected *= 1 - lr * 0.1
        expected -= lr * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    steps = [{"w": mx.array(g.astype(np.float32))} for g in gradients]
    after = run(make_optimizer(), {"w": mx.array(weight.astype(np.float32))}, steps, rates)
    assert np.abs(np.array(after["w"]) - expected).max() < 1e-6


@pytest.mark.parity
def test_twenty_steps_equal_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    weight, gradients = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(20, 4, 3)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.tensor(weight))
    optimizer = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    for gradient in gradients:
        theirs.grad = torch.tensor(gradient)
        optimizer.step()
    ours = run(make_optimizer(), {"w": mx.array(weight)}, [{"w": mx.array(g)} for g in gradients], [0.01] * 20)
    assert np.abs(np.array(ours["w"]) - theirs.detach().numpy()).max() < 1e-6


def test_vectors_and_embeddings_are_not_decayed():
    parameters = {name: mx.zeros(shape) for name, shape in {"a": (2, 2), "norm": (2,), "embed": (5, 2)}.items()}
    assert decayed_names(parameters, ["embed"]) == {"a"}
    after = run(make_optimizer(decayed=()), {"w": mx.array([[1.0]])}, [{"w": mx.array([[0.0]])}], [0.1])
    assert after["w"].item() == 1.0


def test_a_zero_gradient_leaves_finite_weights():
    after = run(make_optimizer(weight_decay=0.0), {"w": mx.ones((2, 2))}, [{"w": mx.zeros((2, 2))}] * 3, [0.1] * 3)
    assert after["w"].tolist() == [[1.0, 1.0], [1.0, 1.0]]


def schedule(kind, *, warmup=4, total=20, **settings):
    training = TrainingRecipe.model_validate({"lr_scheduler": kind} | settings)
    return build_schedule(training, learning_rate=1.0, warmup_steps=warmup, total_steps=total)


def test_warm_up_starts_above_zero_and_ends_at_the_peak():
    rate = schedule("constant")
    assert [rate(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("cosine", {4: 1.0, 12: 0.55, 19: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 15 / 16)), 20: 0.1, 99: 0.1}),
        ("linear", {4: 1.0, 12: 0.5, 19: 1 / 16, 20: 0.0, 99: 0.0}),
        ("constant", {4: 1.0, 12: 1.0, 19: 1.0, 20: 1.0, 99: 1.0}),
        ("wsd", {4: 1.0, 16: 1.0, 18: 1 - math.sqrt(0.5), 20: 0.0, 99: 0.0}),
    ],
)
def test_schedule_values(kind, values):
    rate = schedule(kind)
    assert {step: pytest.approx(value, abs=1e-12) for step, value in values.items()} == {s: rate(s) for s in values}


def test_cosine_goes_to_the_ratio_that_is_asked_for():
    assert schedule("cosine", min_lr_ratio=0.0)(20) == pytest.approx(0.0, abs=1e-12)


def test_clip_scales_to_the_norm_and_reports_the_norm_before():
    gradients = {"a": mx.array([3.0]), "b": mx.array([4.0])}
    clipped, norm = clip(gradients, 1.0)
    assert norm.item() == pytest.approx(5.0)
    assert global_norm(clipped).item() == pytest.approx(1.0, abs=1e-5)
    unclipped, _ = clip(gradients, 0.0)
    assert unclipped["a"].item() == 3.0
    small, _ = clip({"a": mx.array([0.5])}, 1.0)
    assert small["a"].item() == 0.5
