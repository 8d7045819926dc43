"""Losses on preferences from log-probabilities of whole answers (ALGORITHMS.md 6). Everything in fp32, nats.

``logps`` (B, 2) are ``sum log pi(y | x)`` of the first and the second answer, ``lengths`` (B, 2) their tokens, end
token included, ``reference`` (B, 2) the same of the policy at step 0. With ``r = logps - reference``, ``h = r_w - r_l``
and means ``a = logps / lengths``:

- dpo (Rafailov et al. 2023, 2305.18290, eq. 7): ``-log sigmoid(beta h)``
- cdpo (Mitchell 2023): ``-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)``
- rdpo (Chowdhury et al. 2024, 2403.00409): ``[-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)] / (1 - 2e)``
- ipo (Azar et al. 2023, 2310.12036, eq. 17): ``(h - 1 / (2 beta))^2``, on sums or on means of tokens
- simpo (Meng et al. 2024, 2405.14734, eq. 6): ``-log sigmoid(beta (a_w - a_l) - gamma)``
- orpo (Hong et al. 2024, 2403.07691, eq. 6): ``-a_w - l log sigmoid(o(a_w) - o(a_l))``, ``o(a) = a - log(1 - e^a)``
- kto (Ethayarajh et al. 2024, 2402.01306): good ``1 - sigmoid(beta (r - z0))``, bad ``1 - sigmoid(beta (z0 - r))``

Differences: TRL's orpo multiplies the odds ratio by ``beta``, which is ``odds_weight`` here; its dpo adds ``rpo_alpha``
times a loss averaged over a batch, ``alpha`` here one averaged over each answer.
"""

import mlx.core as mx

from mlx_finetune.recipe.preference import PreferenceRecipe

_LARGEST_MEAN = -1e-6  # of a log-probability: the odds of a certain answer are infinite


def negative_log_sigmoid(x: mx.array) -> mx.array:
    """``-log sigmoid(x) = log(1 + e^-x)``, exact for large ``|x|``."""
    return mx.logaddexp(mx.array(0.0), -x)


def pair_losses(
    task: str, settings: PreferenceRecipe, logps: mx.array, lengths: mx.array, reference: mx.array | None
) -> tuple[mx.array, mx.array]:
    """The loss of each pair, (B,), and the rewards of its answers, (B, 2): what the policy prefers them by.

    Rewards are ``beta r`` with a reference, ``beta a`` for simpo and ``odds_weight a`` for orpo. ``settings`` are those
    of ``preference_settings``.
    """
    means = logps / lengths
    if task == "simpo":
        rewards = _number(settings.beta) * means
        return negative_log_sigmoid(_difference(rewards) - _number(settings.gamma)), rewards
    if task == "orpo":
        bounded = mx.minimum(means, _LARGEST_MEAN)
        odds = bounded - mx.log1p(-mx.exp(bounded))
        weight = _number(settings.odds_weight)
        return -means[:, 0] + weight * negative_log_sigmoid(_difference(odds)), weight * means
    assert reference is not None, f"{task} compares with a reference"
    beta = _number(settings.beta)
    moved = logps - reference
    rewards = beta * moved
    losses = _referenced(task, settings, moved, lengths)
    if settings.alpha:
        losses = losses - settings.alpha * means[:, 0]
    return losses, rewards


def _referenced(task: str, settings: PreferenceRecipe, moved: mx.array, lengths: mx.array) -> mx.array:
    """The loss of each pair from how far both log-probabilities have moved, (B, 2)."""
    beta = _number(settings.beta)
    if task == "ipo":
        h = _difference(moved / lengths if settings.length_normalise else moved)
        return mx.square(h - 1 / (2 * beta))
    h = beta * _difference(moved)
    if task == "dpo":
        return negative_log_sigmoid(h)
    smoothing = _number(settings.label_smoothing)
    right, wrong = (1 - smoothing) * negative_log_sigmoid(h), smoothing * negative_log_sigmoid(-h)
    if task == "cdpo":
        return right + wrong
    assert task == "rdpo", task
    return (right - wrong) / (1 - 2 * smoothing)


def kto_losses(
    settings: PreferenceRecipe, logps: mx.array, reference: mx.array, is_good: mx.array, z0: mx.array
) -> tuple[mx.array, mx.array]:
    """The loss of each answer, weighted by its kind, and its reward ``beta r``, both (B,). All arguments are (B,).

    ``z0 = max(0, mean of r over mismatched pairs)`` of the whole step, without a gradient.
    """
    beta = _number(settings.beta)
    moved = logps - reference
    sign = 2 * is_good - 1
    losses = 1 - mx.sigmoid(beta * sign * (moved - z0))
    weights = mx.where(is_good > 0, _number(settings.good_weight), _number(settings.bad_weight))
    return weights * losses, beta * moved


def _difference(values: mx.array) -> mx.array:
    return values[:, 0] - values[:, 1]


def _number(value: object) -> float:
    assert isinstance(value, int | float), f"settled before: {value!r}"
    return float(value)
