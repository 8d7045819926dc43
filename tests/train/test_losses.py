import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_finetune.train.losses import cross_entropy_sum, target_mask


def test_uniform_logits_cost_ln_v_for_every_target():
    mask = mx.array([[True, False, True]])
    loss_sum, count = cross_entropy_sum(mx.zeros((1, 3, 300)), mx.array([[1, 2, 3, 4]]), mask)
    assert count.item() == 2
    assert loss_sum.item() == pytest.approx(2 * math.log(300), rel=1e-6)


def test_the_target_at_i_is_predicted_from_the_position_before_it():
    logits = np.full((1, 2, 5), -30.0, np.float32)
    logits[0, 0, 3] = logits[0, 1, 4] = 30.0
    tokens = mx.array([[0, 3, 4]])
    loss_sum, _ = cross_entropy_sum(mx.array(logits), tokens, mx.array([[True, True]]))
    assert loss_sum.item() == pytest.approx(0.0, abs=1e-6)


def test_masked_positions_add_nothing_even_when_their_loss_is_infinite():
    logits = mx.array([[[0.0, -math.inf], [0.0, 0.0]]])
    loss_sum, count = cross_entropy_sum(logits, mx.array([[0, 1, 1]]), mx.array([[False, True]]))
    assert count.item() == 1
    assert loss_sum.item() == pytest.approx(math.log(2), rel=1e-6)


def test_first_token_of_a_document_is_never_a_target():
    mask = target_mask(mx.ones((1, 6), mx.bool_), mx.array([[1, 1, 2, 2, 2, 0]]))
    assert mask.tolist() == [[True, False, True, True, False]]


def test_padding_is_never_a_target():
    mask = target_mask(mx.ones((1, 5), mx.bool_), mx.array([[1, 1, 0, 0, 0]]))
    assert mask.tolist() == [[True, False, False, False]]


def test_mlx_lm_still_trains_one_padding_token_a_row_and_we_do_not():
    from mlx_lm.tuner.trainer import default_loss

    def model(inputs):
        return mx.zeros((*inputs.shape, 7))

    row = mx.array([[3, 4, 5, 0, 0]])  # three tokens, two of them targets
    _, theirs = default_loss(model, row, mx.array([[0, 3]]))
    assert theirs.item() == 3
    mask = target_mask(mx.array([[False, True, True, False, False]]), mx.array([[1, 1, 1, 0, 0]]))
    _, ours = cross_entropy_sum(model(row[:, :-1]), row, mask)
    assert ours.item() == 2
