import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_finetune.dataset.stream import Batch
from mlx_finetune.train import losses
from mlx_finetune.train.losses import cross_entropy, cross_entropy_only
from mlx_finetune.train.objectives.next_token import target_arrays

VOCAB, WIDTH = 300, 16


def batch_of(loss_mask, segment_ids, tokens=None):
    shape = np.asarray(segment_ids).shape
    tokens = np.arange(np.prod(shape)).reshape(shape) if tokens is None else np.asarray(tokens)
    mask, segments = np.asarray(loss_mask, np.bool_), np.asarray(segment_ids, np.int32)
    return Batch(tokens.astype(np.int32), mask, segments, (0,), is_packed=False)


def itself(_, hidden):
    return hidden


def loss_of(scores, targets, *, uses_numpy):
    return cross_entropy_only(itself, mx.array(scores), mx.array(targets), vocab_size=5, uses_numpy=uses_numpy).item()


@pytest.fixture(params=[False, True], ids=["mlx", "numpy"])
def uses_numpy(request):
    return request.param


def test_uniform_logits_cost_ln_v_for_every_target(uses_numpy):
    loss = loss_of(np.zeros((2, VOCAB), np.float32), [1, 2], uses_numpy=uses_numpy)
    assert loss == pytest.approx(2 * math.log(VOCAB), rel=1e-6)


def test_the_target_at_i_is_predicted_from_the_position_before_it():
    batch = batch_of([[False, True, True]], [[1, 1, 1]], tokens=[[0, 3, 4]])
    assert batch.target_positions.tolist() == [0, 1]
    assert batch.target_tokens.tolist() == [3, 4]


def test_padded_targets_add_nothing_even_when_their_loss_is_infinite(uses_numpy):
    scores = np.array([[0.0, -math.inf], [0.0, 0.0]], np.float32)
    assert loss_of(scores, [-1, 1], uses_numpy=uses_numpy) == pytest.approx(math.log(2), rel=1e-6)


def test_first_token_of_a_document_is_never_a_target():
    assert batch_of([[1] * 6], [[1, 1, 2, 2, 2, 0]]).target_positions.tolist() == [0, 2, 3]


def test_padding_is_never_a_target():
    assert batch_of([[1] * 5], [[1, 1, 0, 0, 0]]).target_positions.tolist() == [0]


def test_positions_count_through_the_rows_of_a_batch():
    batch = batch_of([[0, 1, 0], [0, 0, 1]], [[1, 1, 1], [1, 1, 1]])
    assert batch.target_positions.tolist() == [0, 3]
    assert batch.num_targets == 2


def test_compiled_functions_see_targets_in_few_sizes():
    masks = (np.arange(65) < count for count in range(2, 66))
    sizes = {target_arrays(batch_of(mask[None], np.ones((1, 65))), 4)[1].shape[0] for mask in masks}
    assert sizes == {16, 32, 48, 64}


def test_mlx_lm_still_trains_one_padding_token_a_row_and_we_do_not():
    from mlx_lm.tuner.trainer import default_loss

    def model(inputs):
        return mx.zeros((*inputs.shape, 7))

    row = mx.array([[3, 4, 5, 0, 0]])  # three tokens, two of them targets
    _, theirs = default_loss(model, row, mx.array([[0, 3]]))
    assert theirs.item() == 3
    assert batch_of([[False, True, True, False, False]], [[1, 1, 1, 0, 0]]).num_targets == 2


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(37, WIDTH)).astype(np.float32)
    weight = rng.normal(size=(VOCAB, WIDTH)).astype(np.float32)
    targets = rng.integers(0, VOCAB, 37)
    targets[[3, 36]] = -1
    return hidden, weight, targets.astype(np.int32)


def set_chunk(monkeypatch, rows, vocab_size=VOCAB):
    monkeypatch.setattr(losses, "CHUNK_BYTES", rows * 4 * vocab_size)
    monkeypatch.setattr(losses, "GPU_CHUNKS", 1)


def in_fp64(hidden, weight, targets):
    """Loss and both gradients of ``softmax(capped(h W^T))`` by hand, in fp64."""
    raw = hidden.astype(np.float64) @ weight.T.astype(np.float64)
    capped = 5 * np.tanh(raw / 5)
    exp = np.exp(capped - capped.max(1, keepdims=True))
    shares = exp / exp.sum(1, keepdims=True)
    kept = np.flatnonzero(targets >= 0)
    loss = -np.log(shares[kept, targets[kept]]).sum()
    slope = shares.copy()
    slope[kept, targets[kept]] -= 1
    slope[targets < 0] = 0
    slope *= 1 - (capped / 5) ** 2
    return loss, slope @ weight, slope.T @ hidden


@pytest.mark.parametrize("chunk", [16, 20, 64])
def test_chunks_give_loss_and_gradients_of_the_whole_in_fp64(rows, uses_numpy, chunk, monkeypatch):
    set_chunk(monkeypatch, chunk)
    hidden, weight, targets = rows

    def logits(outer, part):
        return 5 * mx.tanh(part @ outer["weight"].T / 5)

    def loss(outer, part):
        return 3 * cross_entropy(logits, outer, part, mx.array(targets), vocab_size=VOCAB, uses_numpy=uses_numpy)

    value, (d_outer, d_hidden) = mx.value_and_grad(loss, argnums=(0, 1))({"weight": mx.array(weight)}, mx.array(hidden))
    expected, expected_hidden, expected_weight = in_fp64(*rows)
    assert value.item() / 3 == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(np.asarray(d_hidden) / 3, expected_hidden, atol=2e-5)
    np.testing.assert_allclose(np.asarray(d_outer["weight"]) / 3, expected_weight, atol=2e-5)


def test_the_sum_without_a_gradient_is_the_same(rows, uses_numpy, monkeypatch):
    set_chunk(monkeypatch, 16)
    hidden, weight, targets = (mx.array(one) for one in rows)
    linear = nn.Linear(WIDTH, VOCAB, bias=False)
    linear.weight = weight

    def logits(_, part):
        return linear(part)

    both = [
        cross_entropy(logits, {}, hidden, targets, vocab_size=VOCAB, uses_numpy=uses_numpy),
        cross_entropy_only(logits, hidden, targets, vocab_size=VOCAB, uses_numpy=uses_numpy),
    ]
    assert both[0].item() == pytest.approx(both[1].item(), rel=1e-6)


def test_no_logits_of_all_targets_exist_at_once(monkeypatch):
    rows, vocab = 2048, 4096
    set_chunk(monkeypatch, 64, vocab)
    hidden = mx.random.normal((rows, 8), key=mx.random.key(0))
    weight = mx.random.normal((vocab, 8), key=mx.random.key(1))
    targets = mx.zeros((rows,), mx.int32)
    mx.eval(hidden, weight, targets)

    def loss(part):
        return cross_entropy(lambda _, h: h @ weight.T, {}, part, targets, vocab_size=vocab, uses_numpy=False)

    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.value_and_grad(loss)(hidden))
    assert mx.get_peak_memory() - before < rows * vocab * 4 / 4


@pytest.mark.parametrize("form", ["cross_entropy", "log_probs"])
def test_a_learned_heads_gradient_and_logits_are_gone_before_the_next_chunk(monkeypatch, form):
    """A chunk's logits and the gradient of the head take 1 MB each; those of two chunks at once would be 4."""
    rows, vocab, width = 256, 4096, 64
    set_chunk(monkeypatch, 64, vocab)
    hidden = mx.random.normal((rows, width), key=mx.random.key(0))
    weight = mx.random.normal((vocab, width), key=mx.random.key(1))
    targets = mx.zeros((rows,), mx.int32)
    mx.eval(hidden, weight, targets)

    def loss(weight, part):
        def logits(outer, h):
            return h @ outer["weight"].T

        return getattr(losses, form)(logits, {"weight": weight}, part, targets, vocab_size=vocab, uses_numpy=True).sum()

    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.value_and_grad(loss, argnums=(0, 1))(weight, hidden))
    assert mx.get_peak_memory() - before < 3e6


def linear(learned, hidden):
    """Logits of a head whose weight may be learned."""
    return hidden @ learned.get("head", HEAD).T


HEAD = mx.random.normal((VOCAB, WIDTH), key=mx.random.key(3))


@pytest.mark.parametrize("is_learned", [False, True])
def test_log_probabilities_and_their_gradients_are_those_of_log_softmax(monkeypatch, uses_numpy, is_learned):
    """Each target with a weight of its own, over several chunks, padding among them."""
    monkeypatch.setattr(losses, "chunk_rows", lambda vocab_size, *, uses_numpy: 16)
    hidden = mx.random.normal((50, WIDTH), key=mx.random.key(1))
    targets = mx.array([number % VOCAB if number % 7 else -1 for number in range(50)])
    weights = mx.random.normal((50,), key=mx.random.key(2))
    outer = {"head": HEAD} if is_learned else {}

    def plain(hidden, outer):
        scores = linear(outer, hidden)
        found = mx.take_along_axis(scores, mx.maximum(targets, 0)[:, None], axis=1)[:, 0] - mx.logsumexp(scores, axis=1)
        return mx.where(targets >= 0, found, 0.0)

    def ours(hidden, outer):
        return losses.log_probs(linear, outer, hidden, targets, vocab_size=VOCAB, uses_numpy=uses_numpy)

    only = losses.log_probs_only(linear, hidden, targets, vocab_size=VOCAB, uses_numpy=uses_numpy)
    expected = plain(hidden, outer)
    for found in (only, ours(hidden, outer)):
        assert mx.abs(found - expected).max() < 1e-5
    slopes = [
        mx.grad(lambda hidden, outer, form=form: (weights * form(hidden, outer)).sum(), argnums=(0, 1))(hidden, outer)
        for form in (ours, plain)
    ]
    assert mx.abs(slopes[0][0] - slopes[1][0]).max() < 1e-5
    if is_learned:
        assert mx.abs(slopes[0][1]["head"] - slopes[1][1]["head"]).max() < 1e-4


@pytest.mark.parametrize("is_learned", [False, True])
def test_the_gradients_of_cross_entropy_are_those_of_log_probabilities_to_the_last_bit(
    monkeypatch, uses_numpy, is_learned
):
    monkeypatch.setattr(losses, "chunk_rows", lambda vocab_size, *, uses_numpy: 16)
    hidden = mx.random.normal((50, WIDTH), key=mx.random.key(1))
    targets = mx.array([number % VOCAB if number % 7 else -1 for number in range(50)])
    outer = {"head": HEAD} if is_learned else {}

    def loss(outer, hidden, form):
        return form(linear, outer, hidden, targets, vocab_size=VOCAB, uses_numpy=uses_numpy).sum()

    slopes = mx.grad(lambda outer, hidden: loss(outer, hidden, cross_entropy), argnums=(0, 1))(outer, hidden)
    others = mx.grad(lambda outer, hidden: -loss(outer, hidden, losses.log_probs), argnums=(0, 1))(outer, hidden)
    assert np.array_equal(slopes[1], others[1])
    assert all(np.array_equal(slopes[0][name], others[0][name]) for name in outer)
