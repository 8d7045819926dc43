"""A report of problems for tests in which there must be none."""

import pytest

from mlx_finetune.errors import Problem


def no_problem(problem: Problem) -> None:
    """Fail with the problem that was reported."""
    pytest.fail(f"{problem.where}: {problem.message}")
