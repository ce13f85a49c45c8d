"""Verdicts are wrong no more often than the page says: simulated studies with a known truth."""

import math

import pytest
from simulated_studies import CELLS, Cell, wrong_verdicts

ERROR = 0.025


def most(studies):
    """2.5 % plus three standard errors of a simulation of that size."""
    return studies * ERROR + 3 * math.sqrt(studies * ERROR * (1 - ERROR))


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_each_kind_of_wrong_verdict_is_as_rare_as_stated(cell):
    held, failed = wrong_verdicts(cell, 10_000)
    assert held <= most(10_000)
    assert failed <= most(10_000)


@pytest.mark.parametrize(
    ("cell", "studies"),
    [
        (Cell(16, 10, False, "smallest", False), 2000),  # by the levels of the test of 0, 86 of these are wrong
        (Cell(4, 5, True, "mixed", False), 600),
        (Cell(4, 10, False, "none", True), 600),
        (Cell(1, 3, False, "smallest", True), 600),
    ],
    ids=str,
)
def test_a_small_form_errs_no_more_than_stated(cell, studies):
    held, failed = wrong_verdicts(cell, studies)
    assert held <= most(studies)
    assert failed <= most(studies)
    assert held + failed > 0, "a test that never errs tests nothing"
