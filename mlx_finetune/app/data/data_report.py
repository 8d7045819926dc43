"""What ``data check`` and ``data stats`` print: a report as lines, and as JSON. Imports no model library."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from mlx_finetune.dataset.check import DataReport
from mlx_finetune.dataset.labels import balance
from mlx_finetune.dataset.stats import Lengths
from mlx_finetune.dataset.tokens import Outcome
from mlx_finetune.errors import Problem
from mlx_finetune.units import counted, format_count

BAR_WIDTH = 40
#: Outcomes of rows that no training sees, beside those that are too long.
LEFT_OUT = {
    "refused": "could not be rendered and are left out",
    "no_target": "have nothing to learn and are left out",
    "same_answers": "have two equal answers and are left out",
}


@dataclass(frozen=True, slots=True)
class TokenReport:
    """The rows of all splits in tokens: ``num_cut`` are longer than ``max_seq_length``; shares are 0 to 1.

    ``outcomes`` are those of a training, what becomes of rows that are too long included; ``errors`` would stop it.
    ``of_a_row`` is a sentence where something else is learned of a row than its targets.
    """

    lengths: Lengths
    max_seq_length: int
    truncation: str
    num_cut: int
    target_share: float
    method: str
    outcomes: Mapping[str, Outcome]
    errors: tuple[Problem, ...] = ()
    of_a_row: str = ""

    @property
    def cut_share(self) -> float:
        """Rows that are longer than ``max_seq_length``, as a share of all."""
        return self.num_cut / self.lengths.count if self.lengths.count else 0.0

    @property
    def num_warnings(self) -> int:
        """Rows that are dropped, cut, refused or changed on the way to tokens; of those that are split nothing is
        lost."""
        return sum(outcome.count for name, outcome in self.outcomes.items() if name != "split")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """The first rows of each outcome; the last of them says how many more there are."""
        return tuple(problem for name, one in self.outcomes.items() if name != "split" for problem in one.shown())


def num_errors(report: DataReport, tokens: TokenReport | None) -> int:
    """What a training would refuse: rows, files, and splits without a row that can be used."""
    return report.num_errors + (len(tokens.errors) if tokens else 0)


def num_warnings(report: DataReport, tokens: TokenReport | None) -> int:
    """Rows and files with something to know, those not listed included."""
    return report.num_warnings + (tokens.num_warnings if tokens else 0)


def report_json(report: DataReport, tokens: TokenReport | None = None) -> Mapping[str, object]:
    """The whole report as plain values, for ``--json``."""
    fields: dict[str, object] = {
        "files": [asdict(file) for file in report.files],
        "rows": dict(report.rows),
        "num_errors": num_errors(report, tokens),
        "errors": [asdict(problem) for problem in (*report.errors, *(tokens.errors if tokens else ()))],
        "num_warnings": num_warnings(report, tokens),
        "warnings": [asdict(problem) for problem in (*report.warnings, *(tokens.warnings if tokens else ()))],
        "num_duplicates": report.num_duplicates,
        "num_leaks": report.num_leaks,
        "lengths": asdict(report.lengths),
        "roles": dict(report.roles),
        "turns": {str(number): count for number, count in report.turns.items()},
        "labels": dict(report.labels),
    }
    if tokens is not None:
        fields["tokens"] = {
            **asdict(tokens.lengths),
            "max_seq_length": tokens.max_seq_length,
            "num_cut": tokens.num_cut,
            "cut_share": tokens.cut_share,
            "target_share": tokens.target_share,
            "mask_method": tokens.method,
            "outcomes": {name: outcome.count for name, outcome in tokens.outcomes.items()},
        }
    return fields


def problem_lines(report: DataReport, tokens: TokenReport | None = None) -> Iterator[str]:
    """``error:``, ``warning:`` and ``hint:`` lines of every problem kept, errors first."""
    errors = (*report.errors, *(tokens.errors if tokens else ()))
    for level, problems in (("error", errors), ("warning", report.warnings)):
        for problem in problems:
            yield from _problem_lines(level, problem)
    if tokens is None:
        return
    if tokens.num_cut and tokens.truncation != "split":
        limit = f"max_seq_length = {tokens.max_seq_length}"
        yield f"warning: {_longer(tokens)} longer than {limit}"
        yield f"hint: truncation = {tokens.truncation}; 99 % of the rows have at most {tokens.lengths.p99} tokens"
    for name, outcome in tokens.outcomes.items():
        for problem in outcome.shown() if name != "split" else ():
            yield from _problem_lines("warning", replace(problem, hint=""))
        if hints := dict.fromkeys(problem.hint for problem in outcome.rows if problem.hint):
            yield f"hint: {'; or '.join(hints)}"


def _left_out(report: DataReport, tokens: TokenReport) -> Iterator[str]:
    """Each reason beside their length why rows are left out, with how many they are."""
    for name, words in LEFT_OUT.items():
        if name in tokens.outcomes:
            yield f"{tokens.outcomes[name].count:,} of {counted(report.num_rows, 'row')} {words}"


def _longer(tokens: TokenReport) -> str:
    """``26 of 29 rows (89.7%) are``."""
    share = f"{tokens.num_cut:,} of {counted(tokens.lengths.count, 'row')} ({tokens.cut_share:.1%})"
    return f"{share} {'is' if tokens.num_cut == 1 else 'are'}"


def _problem_lines(level: str, problem: Problem) -> Iterator[str]:
    yield f"{level}: {problem.where}: {problem.message}" if problem.where else f"{level}: {problem.message}"
    if problem.hint:
        yield f"hint: {problem.hint}"


def summary_lines(report: DataReport, tokens: TokenReport | None = None) -> Iterator[str]:
    """Files, formats, repeats and lengths, for a person."""
    for file in report.files:
        split = f" [{file.split}]" if len(report.rows) > 1 else ""
        yield f"{file.source}{split}: {counted(file.rows, 'row')}, format {file.format or 'unknown'}"
    if report.num_duplicates:
        verb = "repeats" if report.num_duplicates == 1 else "repeat"
        yield f"{report.num_duplicates} of {counted(report.num_rows, 'row')} {verb} an earlier one"
    if report.num_leaks:
        verb = "stands" if report.num_leaks == 1 else "stand"
        yield f"{counted(report.num_leaks, 'row')} {verb} in more than one split"
    if report.labels:
        yield balance(report.labels)
    lengths = tokens.lengths if tokens else report.lengths
    yield from _length_lines(lengths)
    if tokens is not None:
        yield from _left_out(report, tokens)
        limit = f"max_seq_length = {tokens.max_seq_length}"
        longer = _longer(tokens) if tokens.num_cut else "no row is"
        yield f"{longer} longer than {limit} (truncation = {tokens.truncation})"
        targets = f"{tokens.target_share:.1%} of the tokens are targets ({tokens.method})"
        yield tokens.of_a_row or targets


def stats_lines(report: DataReport, tokens: TokenReport | None = None) -> Iterator[str]:
    """``summary_lines`` with roles and turns."""
    yield from summary_lines(report, tokens)
    if report.roles:
        yield "turns by role: " + ", ".join(f"{role} {count}" for role, count in report.roles.items())
        shown = list(report.turns.items())[:10]
        more = ", ..." if len(report.turns) > len(shown) else ""
        yield "turns in a row: " + ", ".join(f"{number} in {counted(count, 'row')}" for number, count in shown) + more


def _length_lines(lengths: Lengths) -> Iterator[str]:
    if not lengths.count:
        return
    yield (
        f"{format_count(lengths.total)} {lengths.unit}; a row has {lengths.mean:.0f} on average, half have at most "
        f"{lengths.median}, 90 % {lengths.p90}, 99 % {lengths.p99}, the longest {lengths.longest}"
    )
    most = max(bucket.count for bucket in lengths.histogram)
    for bucket in lengths.histogram:
        bar = "#" * max(round(BAR_WIDTH * bucket.count / most), 1 if bucket.count else 0)
        yield f"  {bucket.low:>8} - {bucket.high - 1:<8} {bucket.count:>8}  {bar}".rstrip()
