"""Near easy problems are problems that the base model solves sometimes, or there are none."""

import numpy as np
import pytest

from retarget.pope.studies.easy import EASY_RANGE, ROUNDS, far_problems, near_problems
from retarget.pope.studies.worlds import corpus_of

CHAIN = corpus_of("chain", "terse")
HABITS = corpus_of("arms", "terse")


def rates_by_length(rate):
    """Success rates that depend on the length and, a little, on the start."""
    return lambda problems: np.array([rate(len(one.meta["operations"]), one.meta["start"]) for one in problems])


def test_a_base_that_solves_a_length_always_or_never_has_no_near_problems():
    near = near_problems(CHAIN, 8, 0, rates_by_length(lambda length, start: 0.97 if length <= 4 else 0.0))
    assert (near.problems, near.within) == ([], 0)
    assert near.candidates == 6 * 3  # one round: no length is more promising than another


def test_problems_at_the_middle_of_the_range_are_chosen_and_none_twice():
    def graded(length, start):
        return 0.97 if length < 4 else 0.04 * (start + 1) if length == 4 else 0.0

    near = near_problems(CHAIN, 8, 0, rates_by_length(graded))
    assert len({one.id for one in near.problems}) == 8
    found = rates_by_length(graded)(near.problems)
    assert ((found >= EASY_RANGE[0]) & (found <= EASY_RANGE[1])).all()
    assert {len(one.meta["operations"]) for one in near.problems} == {4}
    assert near.within >= 8, "later rounds draw the length at which the first found some"
    assert near == near_problems(CHAIN, 8, 0, rates_by_length(graded))


def test_too_few_are_not_filled_up():
    near = near_problems(
        CHAIN, 40, 0, rates_by_length(lambda length, start: 0.5 * ((length, start) in ((4, 7), (3, 2))))
    )
    assert near.problems == []
    assert 0 < near.within < 40
    assert 80 < near.candidates <= ROUNDS * 100, "it gives up"


@pytest.mark.parametrize("corpus", [CHAIN, HABITS])
def test_far_problems_are_the_shortest(corpus):
    problems = far_problems(corpus, 8, 3)
    assert {len(one.meta["operations"]) for one in problems} == {corpus.short[0]}
    assert len({one.id for one in problems}) == 8
