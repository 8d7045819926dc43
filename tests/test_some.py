"""Which cases of a test marked ``some(n)`` always run."""

import pytest
from conftest import others_of


@pytest.mark.parametrize(
    ("num_cases", "num_kept", "expected"),
    [(8, 3, {1, 3, 4, 6, 7}), (4, 1, {1, 2, 3}), (4, 4, set()), (2, 5, set()), (1, 1, set())],
)
def test_the_first_case_and_those_at_even_distances_always_run(
    num_cases: int, num_kept: int, expected: set[int]
) -> None:
    assert others_of(num_cases, num_kept) == expected


@pytest.mark.some(2)
@pytest.mark.parametrize("case", range(5))
def test_the_others_are_slow(request: pytest.FixtureRequest, case: int) -> None:
    if request.session.testscollected > 1:  # a case that is asked for by its name alone runs
        assert (request.node.get_closest_marker("slow") is None) == (case in {0, 2})
