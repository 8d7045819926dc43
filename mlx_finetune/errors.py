"""Everything a user can cause, as exceptions that carry a sentence and a way out.

    MlxftError              1   something the user can mend
    +-- UsageError          2   wrong arguments on the command line
    +-- RecipeError         2   one or more problems in a recipe, all of them at once
    +-- DataError           1   files or rows that cannot be used
    +-- ModelError          1   a model, tokenizer or adapter that cannot be used
    +-- RunError            1   a run folder or checkpoint that cannot be used
    +-- TrainingError       1   training had to stop (non-finite loss, no target left)
    +-- StorageError        1   the disk refused to take what was to be written
    |   +-- NoSpaceError    1   it is full
    +-- DoesNotFitError     3   the plan says no: memory or disk
    +-- Interrupted       130   stopped by a signal, after everything was saved (143 TERM, 129 HUP)

The number is the exit code. ``cli.py`` prints ``error: message`` and ``hint: hint``; any other exception
is a bug of ours and keeps its traceback.
"""

from collections.abc import Sequence
from dataclasses import dataclass

#: Exit code of a training process whose disk was too full, or too broken, for a last word; never mlxft's own.
EXIT_NO_SPACE = 74


class MlxftError(Exception):
    """Base of every error a user can cause. ``message`` says what is wrong, ``hint`` what to do."""

    exit_code: int = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MlxftError):
    """The command line asks for something that does not exist or does not go together."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, where it is, and one way to mend it. ``where`` is ``file:line`` or empty."""

    where: str
    message: str
    hint: str = ""


class RecipeError(MlxftError):
    """All problems of a recipe together, in file order."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems, "a RecipeError without a problem"
        first = problems[0]
        super().__init__(f"{first.where}: {first.message}" if first.where else first.message, first.hint)
        self.problems = tuple(problems)


class DataError(MlxftError):
    """Training data that cannot be read or used. ``problems`` holds every one found."""

    def __init__(self, message: str, hint: str = "", problems: Sequence[Problem] = ()) -> None:
        super().__init__(message, hint)
        self.problems = tuple(problems)


def further_problems(error: DataError) -> tuple[Problem, ...]:
    """The problems of ``error``, each once; none where its message says the only one."""
    found = tuple(dict.fromkeys(error.problems))
    return () if len(found) == 1 and found[0].message in error.message else found


class ModelError(MlxftError):
    """A model, tokenizer or adapter that is missing, damaged, refused or of the wrong kind."""


class RunError(MlxftError):
    """A run folder or checkpoint that is missing, damaged, in use, or made by another recipe."""


class TrainingError(MlxftError):
    """Training had to stop while the weights were still good."""


class StorageError(MlxftError):
    """The disk refused a write; what was saved before is as it was."""


class NoSpaceError(StorageError):
    """There is no room on the disk for what was to be written."""


class DoesNotFitError(MlxftError):
    """The plan needs more memory or disk than there is."""

    exit_code = 3


class Interrupted(MlxftError):
    """A signal ended the work after everything was saved. ``exit_code`` is 128 + the signal number."""

    def __init__(self, message: str, hint: str = "", *, signal_number: int = 2) -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signal_number
