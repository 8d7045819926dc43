"""How long a plan says that a training will take, as lines for a person."""

from collections.abc import Iterator

from mlx_finetune.app.planning.plan import BUSY_SHARE, Plan
from mlx_finetune.hardware.planning.forecast import AnswerTimes
from mlx_finetune.hardware.planning.rollouts import ANSWER_SHARE, LEARNED_SHARE
from mlx_finetune.recipe.grpo import scorers_in
from mlx_finetune.units import format_seconds, format_step

_SOURCES = {
    "measured": "measured on this machine",
    "earlier runs": "from the speed of earlier runs on this machine",
    "chip table": "from the chip table, a range of two",
    "arithmetic": "by arithmetic",
}


def time_lines(plan: Plan) -> Iterator[str]:
    """A step and the whole run, with error bars and where they come from."""
    forecast = plan.forecast
    if forecast.step_seconds is None or forecast.finish_seconds is None:
        where = "not measured" if plan.source else "not known before the model is here"
        yield f"{where}, and no run on this machine has told yet"
        return
    calibrated = "" if forecast.is_calibrated else "; not calibrated: no trustworthy figure of this chip is known"
    yield f"{forecast.step_seconds.text(format_step)} a step, {_SOURCES[forecast.source]}{calibrated}"
    runs = len(plan.corrections.time_ratios)
    if plan.measured and runs:
        yield f"corrected by {runs} planned runs on this machine: x {plan.corrections.time_factor:.2f}"
    if forecast.answers is not None:
        yield from _answer_lines(plan, forecast.answers)
    if plan.measured is None:
        yield f"{forecast.finish_seconds.text(format_seconds)} for all steps, without evaluations and answers"
        return
    yield f"{forecast.finish_seconds.text(format_seconds)} from start to end, evaluations, answers and saving included"
    yield from _measuring_lines(plan)


def _answer_lines(plan: Plan, times: AnswerTimes) -> Iterator[str]:
    """What a step of a run takes that learns from its own answers, and what is assumed in it."""
    measures = "" if plan.mac else "; mlxft plan without --no-measure measures it"
    if times.saying is not None:
        long = f"assumed: each has {ANSWER_SHARE[1]:.0%} of grpo.max_tokens"
        how = f", and a token takes what reading the weights once does{measures}" * times.is_assumed
        yield f"in it: {times.saying.text(format_step)} to say the answers, {long}{how}"
    _, usual, _ = LEARNED_SHARE
    learning = [format_step(one) for one in (times.learning.low, times.learning.expected, times.learning.high)]
    yield (
        f"in it: {learning[1]} to learn from them, assumed: {usual:.0%} of the groups teach, as their rewards differ; "
        f"{learning[0]} where {LEARNED_SHARE[0]:.0%} do, {learning[2]} where all do"
    )
    named = " and ".join(scorers_in(plan.recipe.grpo.rewards)) if times.is_assumed else ""
    missing = [f"for {named} to score the answers"] * bool(named)
    missing += ["to say the answers, which is often most of it"] * (times.saying is None)
    if missing:
        yield f"without the time {' and '.join(missing)}{measures}"


def _measuring_lines(plan: Plan) -> Iterator[str]:
    measured = plan.measured
    assert measured is not None, "nothing was measured"
    many = len(measured.microbatches)
    share = f"; other programs used {measured.others_share:.0%} of the processors" * (
        measured.others_share >= BUSY_SHARE
    )
    if measured.score_seconds is not None:
        short, long = (format_step(seconds) for seconds in measured.score_seconds)
        named = " and ".join(scorers_in(plan.recipe.grpo.rewards))
        yield f"in it: {named} {'score' if ' and ' in named else 'scores'} an answer in {short} to {long}"
    cut = ", and then the time for it was up" * measured.is_cut_short
    yield f"{many} microbatches were timed in {format_seconds(measured.seconds)}{cut}{share}"
