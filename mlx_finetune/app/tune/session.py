"""One ``mlxft tune`` from the first process to the set that is kept: stages, rounds, and the time that is left.

The first process runs the defaults, is not counted, and says how many steps the others take. Nothing begins that
would end after ``BUDGET_SECONDS``, and what does not end by then is killed. A candidate that fails is out; defaults
that fail twice end the session. Whatever was settled before Ctrl-C counts.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from mlx_finetune.app.tune.children import Report, RunTrial
from mlx_finetune.errors import DoesNotFitError, MlxftError, RunError
from mlx_finetune.hardware.tune import (
    ROUNDS,
    Case,
    Failure,
    Result,
    Run,
    candidates,
    is_open,
    settle,
    stages,
)
from mlx_finetune.hardware.tuned import NOTHING_TUNED, Tried, TunedSettings

BUDGET_SECONDS = 300.0
PATIENCE = 5.0  # times as long as the first process took, until another one is taken to hang
LEAST_TIMEOUT = 20.0
_MOST_FAILURES = 2  # of the best so far, which worked before


class Progress(Protocol):
    """Whoever shows what goes on."""

    def begin(self, settings: TunedSettings, round_number: int) -> None:
        """A process starts; the first one, which is not counted, in round 0."""
        ...

    def settled(self, tried: Sequence[Tried]) -> None:
        """A stage is over."""
        ...


@dataclass(slots=True)
class Session:
    """The state of one tuning. ``clock`` counts seconds, from wherever."""

    trial: RunTrial
    progress: Progress
    budget: float = BUDGET_SECONDS
    clock: Callable[[], float] = time.monotonic
    settings: TunedSettings = NOTHING_TUNED
    tried: list[Tried] = field(default_factory=list[Tried])
    case: Case | None = None
    num_runs: int = 0
    ended_early: str = ""
    others: list[float] = field(default_factory=list[float])
    _began: float = 0.0
    _num_steps: int = 0
    _typical: list[float] = field(default_factory=list[float])
    _failures: int = 0

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return self.clock() - self._began

    @property
    def has_compared(self) -> bool:
        """True where something is known of at least one candidate."""
        return any(one.verdict != "unsure" or one.rounds for one in self.tried)

    @property
    def others_share(self) -> float:
        """Of the processors, used by other programs while a process was measured: the median."""
        return median(self.others) if self.others else 0.0

    def run(self) -> None:
        """Try everything there is time for. Raises ``MlxftError`` where not even the defaults can be measured."""
        self._began = self.clock()
        first = self._measure(NOTHING_TUNED, 0) or Failure("timed_out", f"not within {self.budget:.0f} s")
        if isinstance(first, Failure):
            raise _refusal(first)
        self.case, self._num_steps = first.case, len(first.run.seconds)
        for stage in stages(first.case):
            found = candidates(stage, self.case)
            if found and not self._try(self.case, found):
                self.ended_early = f"the {self.budget:.0f} s for it were up"
                return

    def _try(self, case: Case, found: Sequence[TunedSettings]) -> bool:
        """One stage; False where the time was up."""
        best: list[Run | None] = []
        results: dict[TunedSettings, list[Result | None]] = {one: [] for one in found}
        left, is_time = list(found), True
        while left and len(best) < ROUNDS and is_time:
            is_time = self._round(left, best, results)
            left = [one for one in left if is_open(case, one, best, results[one])]
        tried, kept = settle(case, best, results)
        self.tried += tried
        self.progress.settled(tried)
        if kept is not None:
            self.settings = self.settings.merged(kept)
            self.case = case.with_settings(kept)
        return is_time

    def _round(
        self,
        left: Sequence[TunedSettings],
        best: list[Run | None],
        results: dict[TunedSettings, list[Result | None]],
    ) -> bool:
        """The best so far and every candidate that is ``left`` once; False where the time was up before the end."""
        number = len(best)
        order: list[TunedSettings | None] = [None, *left]
        best.append(None)
        for one in left:
            results[one].append(None)
        for one in order if number % 2 == 0 else reversed(order):
            if not self._has_time():
                return False
            result = self._measure(self.settings if one is None else self.settings.merged(one), number + 1)
            if result is None:
                return False
            if one is not None:
                results[one][number] = result.run if isinstance(result, Report) else result
            elif isinstance(result, Report):
                best[number] = result.run
            else:
                self._failures += 1
                if self._failures >= _MOST_FAILURES:
                    raise _refusal(result)
        return True

    def _has_time(self) -> bool:
        return self.elapsed + 1.2 * median(self._typical) <= self.budget

    def _measure(self, settings: TunedSettings, round_number: int) -> Report | Failure | None:
        """What a process with ``settings`` said; None where it was killed because the time for everything was up."""
        self.progress.begin(settings, round_number)
        left = max(1.0, self.budget - self.elapsed)
        patience = max(LEAST_TIMEOUT, PATIENCE * median(self._typical)) if self._typical else left
        began = self.clock()
        found = self.trial(settings, self._num_steps, min(left, patience))
        self.num_runs += 1
        if isinstance(found, Failure) and found.verdict == "timed_out" and left <= patience:
            return None
        if isinstance(found, Report):
            self._typical.append(self.clock() - began)
            self.others.append(found.others_share)
            if self._num_steps and len(found.run.seconds) != self._num_steps:
                return Failure("crashed", "it took another number of steps than it was asked for")
        return found


def _refusal(failure: Failure) -> MlxftError:
    """Why there is nothing to compare with."""
    message = f"the defaults themselves cannot be measured: {failure.message}"
    if failure.verdict == "no_memory":
        return DoesNotFitError(message, "close other programs, or tune for a smaller recipe: mlxft tune RECIPE")
    return RunError(message, "see what is wrong with: mlxft doctor")
