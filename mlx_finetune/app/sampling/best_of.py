"""Ways to answer with k samples, compared on the same problems: greedy, random pick, majority, oracle, and the pick by
the scores of a model, which goes by what that is: verifier or reward model.

Every figure is a share of problems with an interval over problems, every comparison is paired. ``random`` is what a
blind pick gives on average, not one draw; ``oracle`` is right where any answer is, the most a scorer could reach.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlx_finetune.app.sampling.folder import SampledProblem
from mlx_finetune.errors import RunError
from mlx_finetune.scoring.auc import Area, area_over_all, area_within, interval_words, mean_area
from mlx_finetune.scoring.intervals import Interval, bootstrap_mean, paired_bootstrap, wilson
from mlx_finetune.scoring.picks import best_of, majority, pair_title, pass_at_k, ranked, way_title
from mlx_finetune.units import counted

GREEDY, RANDOM, MAJORITY, ORACLE = "greedy", "random", "majority", "oracle"
AREAS = {"auc": "any two answers", "auc_within": "two to one problem", "told_apart": "mean of problems"}

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Share:
    """A share of the problems with its 95 % interval; ``num_right`` where a problem is either right or wrong."""

    name: str
    value: float
    low: float
    high: float
    num_right: int | None


@dataclass(frozen=True, slots=True)
class Compared:
    """``first`` minus ``second`` on the same problems, with its 95 % interval."""

    first: str
    second: str
    value: float
    low: float
    high: float

    @property
    def is_sure(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class AtN:
    """What n of the k answers give on average: any right (pass@n), and the best by the scores, where there are some."""

    n: int
    any_right: float
    best_scored: float | None


@dataclass(frozen=True, slots=True)
class Separation:
    """An area under the ROC curve of the scores with its 95 % interval over ``num_problems``, None where
    these give none."""

    name: str
    value: float
    low: float | None
    high: float | None
    num_problems: int


@dataclass(frozen=True, slots=True)
class BestOf:
    """The whole comparison. ``nothing_found`` and ``cut`` are shares of all drawn answers.

    ``scorer`` is what gave the scores, "" without any. How often it puts a right answer above a wrong one, 0.5 being
    chance: ``auc`` over all pairs of answers,
    ``auc_within`` over those to the same problem, ``told_apart`` as the mean of the problems that have both kinds.
    """

    num_problems: int
    k: int
    ways: tuple[Share, ...]
    compared: tuple[Compared, ...]
    at_n: tuple[AtN, ...]
    nothing_found: float
    cut: float
    mean_tokens: float
    scorer: str = ""
    told_apart: Separation | None = None
    auc: Separation | None = None
    auc_within: Separation | None = None

    @property
    def areas(self) -> list[Separation]:
        """The three, as far as they are there."""
        return [one for one in (self.auc, self.auc_within, self.told_apart) if one is not None]


def compare(
    problems: Sequence[SampledProblem],
    scores: Sequence[Sequence[float]] | None,
    *,
    seed: int,
    scorer: str = "verifier",
) -> BestOf:
    """Every way on ``problems``; ``scores`` are the ``scorer``'s, for each problem one of each drawn answer.

    Raises ``RunError`` where the problems have different numbers of answers.
    """
    k = len(problems[0].drawn)
    strange = next((one for one in problems if len(one.drawn) != k), None)
    if strange is not None:
        raise RunError(
            f"{strange.where} has {len(strange.drawn)} answers and {problems[0].where} {k}",
            "finish the sampling: run the mlxft sample command again",
        )
    scorer = scorer if scores is not None else ""
    values = _values(problems, scores, scorer)
    answers = [sample for problem in problems for sample in problem.drawn]
    right = [[sample.right for sample in problem.drawn] for problem in problems]
    return BestOf(
        num_problems=len(problems),
        k=k,
        ways=tuple(_share(name, one, seed) for name, one in values.items()),
        compared=tuple(
            _compared(values, *pair, seed) for pair in _pairs(scorer) if all(name in values for name in pair)
        ),
        at_n=tuple(_at_n(right, scores, n) for n in _steps(k)),
        nothing_found=_mean([sample.found is None for sample in answers]),
        cut=_mean([sample.finish != "stop" for sample in answers]),
        mean_tokens=_mean([sample.tokens for sample in answers]),
        scorer=scorer,
        **({} if scores is None else _areas(right, scores, seed)),
    )


def _pairs(scorer: str) -> Sequence[tuple[str, str]]:
    """Comparisons, the first minus the second, where both are there."""
    return (scorer, RANDOM), (scorer, GREEDY), (scorer, MAJORITY), (MAJORITY, RANDOM), (ORACLE, scorer)


def _values(
    problems: Sequence[SampledProblem], scores: Sequence[Sequence[float]] | None, scorer: str
) -> Mapping[str, Sequence[float]]:
    """Way -> one number a problem, 0 to 1."""
    found: dict[str, list[float]] = {}
    greedy = [problem.greedy for problem in problems]
    if all(one is not None for one in greedy):
        found[GREEDY] = [float(one.right) for one in greedy if one is not None]
    found[RANDOM] = [_mean([sample.right for sample in problem.drawn]) for problem in problems]
    found[MAJORITY] = [float(_majority_is_right(problem)) for problem in problems]
    if scores is not None:
        picks = [ranked(one)[0] for one in scores]
        found[scorer] = [float(problem.drawn[pick].right) for problem, pick in zip(problems, picks, strict=True)]
    found[ORACLE] = [float(any(sample.right for sample in problem.drawn)) for problem in problems]
    return found


def _majority_is_right(problem: SampledProblem) -> bool:
    chosen = majority([sample.found for sample in problem.drawn])
    return chosen is not None and problem.drawn[chosen].right


def _share(name: str, values: Sequence[float], seed: int) -> Share:
    """The mean of shares; a bootstrap of values that are all alike would claim certainty, and Wilson's does not."""
    is_rate = name != RANDOM
    if is_rate or len(set(values)) == 1:
        interval = wilson(round(sum(values)), len(values))
    else:
        interval = bootstrap_mean(values, seed=seed)
    return Share(name, _mean(values), interval.low, interval.high, int(sum(values)) if is_rate else None)


def _compared(values: Mapping[str, Sequence[float]], first: str, second: str, seed: int) -> Compared:
    """The mean difference; of differences that are all alike Wilson's interval, stretched from 0 to 1 to -1 to 1."""
    found = paired_bootstrap(values[second], values[first], seed=seed)
    interval: Interval = found.interval
    if interval.low == interval.high:
        half = wilson(round((1 + found.value) / 2 * len(values[first])), len(values[first]))
        interval = Interval(2 * half.low - 1, 2 * half.high - 1)
    return Compared(first, second, found.value, interval.low, interval.high)


def _at_n(right: Sequence[Sequence[bool]], scores: Sequence[Sequence[float]] | None, n: int) -> AtN:
    any_right = _mean([pass_at_k(len(one), sum(one), n) for one in right])
    if scores is None:
        return AtN(n, any_right, None)
    return AtN(n, any_right, _mean([best_of(mine, one, n) for mine, one in zip(scores, right, strict=True)]))


def _areas(
    right: Sequence[Sequence[bool]], scores: Sequence[Sequence[float]], seed: int
) -> dict[str, Separation | None]:
    found = {
        "auc": area_over_all(scores, right, seed=seed),
        "auc_within": area_within(scores, right, seed=seed),
        "told_apart": mean_area(scores, right, seed=seed),
    }
    return {name: one and _separation(name, one) for name, one in found.items()}


def _separation(name: str, area: Area) -> Separation:
    low, high = (area.interval.low, area.interval.high) if area.interval else (None, None)
    return Separation(name, area.value, low, high, area.num_problems)


def _steps(k: int) -> list[int]:
    """1, 2, 4, ... and k."""
    return sorted({n for n in (2**power for power in range(20)) if n < k} | {k})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def to_json(found: BestOf, facts: Mapping[str, object]) -> dict[str, object]:
    """Everything as plain values, with ``facts`` about where it is from."""
    plain: dict[str, Any] = asdict(found)
    for one, compared in zip(plain["compared"], found.compared, strict=True):
        one["is_sure"] = compared.is_sure
    for at in plain["at_n"]:
        best = at.pop("best_scored")
        at |= {key_of(found.scorer): best} if found.scorer else {}
    return {"format_version": FORMAT_VERSION, **facts, **plain}


def key_of(scorer: str) -> str:
    """What a scorer is called in the keys of JSON."""
    return scorer.replace(" ", "_")


def csv_text(found: BestOf) -> str:
    """One line for each figure."""
    lines = ["figure,value,low,high,problems"]
    for way in found.ways:
        lines.append(f"{way.name},{way.value:.6f},{way.low:.6f},{way.high:.6f},{found.num_problems}")
    for one in found.compared:
        name = f"{one.first} - {one.second}"
        lines.append(f"{name},{one.value:.6f},{one.low:.6f},{one.high:.6f},{found.num_problems}")
    for at in found.at_n:
        lines.append(f"any of {at.n} right,{at.any_right:.6f},,,{found.num_problems}")
        if at.best_scored is not None:
            lines.append(f"{found.scorer}'s best of {at.n},{at.best_scored:.6f},,,{found.num_problems}")
    for one in found.areas:
        ends = ["" if end is None else f"{end:.6f}" for end in (one.low, one.high)]
        lines.append(f"{one.name},{one.value:.6f},{ends[0]},{ends[1]},{one.num_problems}")
    return "\n".join(lines) + "\n"


def lines(found: BestOf, remark: str = "") -> list[str]:
    """The comparison for a terminal, below the ``remark`` on its problems."""
    few = "; few problems: look at the intervals first" if found.num_problems < 30 else ""
    made = [
        f"{counted(found.num_problems, 'problem')}, {found.k} answers drawn for each{few}",
        *([remark] if remark else []),
        "",
    ]
    made.append(f"{'':<22}{'right':>9}   95 % interval")
    for way in found.ways:
        share = f"{way.num_right}/{found.num_problems}" if way.num_right is not None else f"{way.value:.3f}"
        made.append(f"{way_title(way.name, found.scorer):<22}{share:>9}   {way.low:.3f} to {way.high:.3f}")
    made += ["", f"{'paired difference':<22}{'':>9}   95 % interval"]
    for one in found.compared:
        sure = "" if one.is_sure else "   unsure: the interval holds 0"
        pair = pair_title(one.first, one.second, found.scorer)
        made.append(f"{pair:<23}{one.value:>+8.3f}   {one.low:+.3f} to {one.high:+.3f}{sure}")
    made += ["", f"{'of n answers':<22}" + "".join(f"{at.n:>9}" for at in found.at_n)]
    made.append(f"{'any right (pass@n)':<22}" + "".join(f"{at.any_right:>9.3f}" for at in found.at_n))
    picks = [at.best_scored for at in found.at_n if at.best_scored is not None]
    if picks:
        label = f"{found.scorer}'s best"
        made.append(f"{label:<22}" + "".join(f"{pick:>9.3f}" for pick in picks))
    if found.areas:
        made += ["", f"{'right above wrong':<22}{'AUC':>9}   95 % interval; chance is 0.5"]
    for one in found.areas:
        span = interval_words(one.low, one.high, one.num_problems)
        made.append(f"{AREAS[one.name]:<22}{one.value:>9.3f}   {span}")
    made += [
        "",
        f"Drawn answers: {found.mean_tokens:.1f} tokens on average, {100 * found.cut:.1f} % cut at the limit, "
        f"{100 * found.nothing_found:.1f} % say nothing the rule can read.",
    ]
    return made
