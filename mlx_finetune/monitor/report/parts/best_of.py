"""What a verifier's pick of sampled answers is worth, as ``mlxft eval --samples`` found it: ways side by side."""

from dataclasses import dataclass
from pathlib import Path

from mlx_finetune import rundir
from mlx_finetune.journal import NOT_NOTED, of_other_weights
from mlx_finetune.monitor.report.chart import interval_picture
from mlx_finetune.monitor.report.facts import ReportFacts
from mlx_finetune.monitor.report.markup import Child, Html, code, foreign, older_note, section, table, tag
from mlx_finetune.monitor.report.typed import read_kept
from mlx_finetune.rundir import RunDir
from mlx_finetune.scoring.auc import interval_words
from mlx_finetune.scoring.picks import pair_title, way_title
from mlx_finetune.units import counted

_MOST = 8
_HOW_TO_READ = (
    "Several answers were drawn to each problem, and every way picks one of the same answers. Random is what a blind "
    "pick gives on average; oracle is right where any answer is, the most that a pick could reach. 95 times of 100 "
    "an interval holds the true value."
)


@dataclass(frozen=True, slots=True)
class Share:
    """A share of the problems with its interval."""

    name: str
    value: float
    low: float
    high: float
    num_right: int | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """The first way minus the second, paired."""

    first: str
    second: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class AtN:
    """What n answers give: any right, and the best by the scores of a verifier or of a reward model."""

    n: int
    any_right: float
    verifier: float | None = None
    reward_model: float | None = None

    @property
    def best_scored(self) -> float | None:
        """The one that is there; both are called a verifier's where they were kept before."""
        return self.verifier if self.reward_model is None else self.reward_model


@dataclass(frozen=True, slots=True)
class Area:
    """How often a right answer scores above a wrong one, with its interval, None where the problems give none."""

    value: float
    low: float | None
    high: float | None
    num_problems: int


@dataclass(frozen=True, slots=True)
class BestOf:
    """One best_of/NAME.json; what it has beside this is left to the file. ``remark`` is about its problems, or "".

    ``scorer`` is what gave the scores, in words, ``verifier`` or ``reward_model`` which model that was."""

    name: str
    measured: str
    samples: str
    num_problems: int
    k: int
    ways: tuple[Share, ...]
    compared: tuple[Compared, ...]
    at_n: tuple[AtN, ...]
    remark: str = ""
    scorer: str = "verifier"
    told_apart: Area | None = None
    auc: Area | None = None
    auc_within: Area | None = None
    verifier: str = ""
    reward_model: str = ""
    step: int | None = NOT_NOTED


def best_of(facts: ReportFacts) -> Html | None:
    """The section; None where no samples were judged."""
    run = RunDir(Path(facts.run.path))
    found, damaged = read_kept(run.file(rundir.BEST_OF), BestOf)
    if not found and not damaged:
        return None
    return section(
        "picks",
        "Picking one of several answers",
        tag("p", _HOW_TO_READ, class_="hint"),
        *(_comparison(one, _other_weights(run, one)) for one in found[:_MOST]),
        tag("p", f"{counted(len(found) - _MOST, 'older comparison')} left out.") if len(found) > _MOST else None,
        *(tag("p", code(f"{rundir.BEST_OF}/{name}"), " cannot be read and is left out.") for name in damaged[:20]),
    )


def _other_weights(run: RunDir, one: BestOf) -> str:
    return of_other_weights(run, one.step, measured=one.measured, subject=one.reward_model or one.verifier)


def _comparison(one: BestOf, other_weights: str) -> Html:
    few = None if one.num_problems >= 30 else tag("p", "Few problems: look at the intervals first.")
    where = f"{counted(one.num_problems, 'problem')}, {one.k} answers each, "
    return tag(
        "article",
        tag("h3", foreign(one.name, 80), " ", tag("span", where, foreign(one.samples, 200), class_="same")),
        older_note(other_weights),
        few,
        tag("p", foreign(one.remark, 400)) if one.remark else None,
        _ways(one),
        _differences(one),
        _of_n(one),
        _areas(one),
        class_="evaluation",
    )


def _ways(one: BestOf) -> Html:
    rows: list[list[Child]] = [
        [
            foreign(way_title(way.name, one.scorer), 60),
            _value(way, one.num_problems),
            f"{way.low:.3f} to {way.high:.3f}",
        ]
        for way in one.ways
    ]
    return table(("", "right", "95 % interval"), rows, class_="figures")


def _differences(one: BestOf) -> Html:
    rows: list[list[Child]] = []
    for pair in one.compared:
        look = "better" if pair.low > 0 else "worse" if pair.high < 0 else "unsure"
        rows.append(
            [
                foreign(pair_title(pair.first, pair.second, one.scorer), 80),
                f"{pair.value:+.3f}",
                f"{pair.low:+.3f} to {pair.high:+.3f}",
                interval_picture(pair.low, pair.value, pair.high, look=look),
                tag("b", {"better": "more", "worse": "less", "unsure": "unsure"}[look], class_=look),
            ]
        )
    return table(("paired difference", "", "95 % interval", "", ""), rows, class_="figures")


def _of_n(one: BestOf) -> Html:
    rows: list[list[Child]] = [["any right (pass@n)", *(f"{at.any_right:.3f}" for at in one.at_n)]]
    if any(at.best_scored is not None for at in one.at_n):
        rows.append(
            [
                foreign(f"{one.scorer}'s best", 60),
                *("" if at.best_scored is None else f"{at.best_scored:.3f}" for at in one.at_n),
            ]
        )
    return table(("of n answers", *(str(at.n) for at in one.at_n)), rows, class_="figures")


def _areas(one: BestOf) -> Html | None:
    """How well the verifier's scores tell right from wrong; None for a comparison without a verifier."""
    named = (
        ("any two answers", one.auc),
        ("two answers to one problem", one.auc_within),
        ("mean of problems", one.told_apart),
    )
    rows: list[list[Child]] = [
        [title, f"{area.value:.3f}", interval_words(area.low, area.high, area.num_problems)]
        for title, area in named
        if area is not None
    ]
    head = ("a right answer scores above a wrong one", "AUC (chance is 0.5)", "95 % interval")
    return table(head, rows, class_="figures") if rows else None


def _value(way: Share, num_problems: int) -> str:
    """``41 of 50`` for a rate of few problems."""
    if way.num_right is not None and num_problems < 1000:
        return f"{way.num_right} of {num_problems}"
    return f"{way.value:.3f}"
