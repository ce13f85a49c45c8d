"""Items of which only a few differ: a bootstrap of them is sure of what two items show."""

import numpy as np
import pytest
from scipy import stats

from retarget.study.evidence import over_items
from retarget.study.items import Groups, Resampled, paired_items

HALF = np.full(500, 0.5)


def evidence(differences, groups=None):
    return over_items(paired_items(HALF + differences, HALF, groups), "higher", None)


def some(count, size=0.5):
    return np.where(np.arange(500) < count, size, 0.0)


@pytest.mark.parametrize("gain", [0.0, 0.25])
def test_two_items_that_differ_from_the_others_show_no_change_but_a_small_one(gain):
    """The sign test gives 1/4. That the change is within .05 of what all others share is known all the same."""
    found = evidence(gain + some(2))
    assert found.p_above(gain) > 0.25
    assert found.p_above(gain - 0.05) < 0.025
    assert found.p_below(gain + 0.05) < 0.025
    assert found.estimate == pytest.approx(gain + 0.002)


def test_a_dozen_items_that_all_improve_are_enough_and_more_are_resampled():
    assert evidence(some(12)).p_above(0) < 0.025
    assert isinstance(paired_items(HALF + some(19), HALF), Groups)
    assert isinstance(paired_items(HALF + some(20), HALF), Resampled)


def test_the_error_is_that_of_the_few_with_two_large_differences_added():
    differences = some(3) - 2 * some(1)
    found = paired_items(HALF + differences, HALF)
    squares = ((differences - differences.mean()) ** 2).sum() + 2 * 1.0**2  # the largest value of an item is 1
    assert found.error == pytest.approx(np.sqrt(squares) / 500)
    assert evidence(differences).p_above(0) == pytest.approx(stats.t.sf(found.estimate / found.error, df=3))


def unchanged_on_average(rng, kind, count):
    """Differences whose expected mean is 0, of which about ``count`` of 500 are not 0."""
    at = rng.random(500) * 500 / count
    if kind == "both signs":  # items from -1 to 1, and losses of nearly the whole range
        return np.where(at < 0.875, 0.25, np.where(at < 1, -1.75, 0.0))
    if kind == "marks":
        return np.where(at < 0.5, 0.5, np.where(at < 1, -0.5, 0.0))
    return np.where(at < 0.9, 0.05, np.where(at < 1, -0.45, 0.0))  # many small gains, few large losses


@pytest.mark.parametrize("kind", ["marks", "rare losses", "both signs"])
@pytest.mark.parametrize("count", [3, 8, 15])
def test_wrong_verdicts_stay_below_their_level(kind, count):
    rng = np.random.default_rng(count)
    control = np.where(np.arange(500) % 2, 0.99, -0.99) if kind == "both signs" else HALF
    wrong = 0
    for _ in range(400):
        treated = control + unchanged_on_average(rng, kind, count)
        wrong += over_items(paired_items(treated, control), "higher", None).p_above(0) <= 0.025
    assert wrong <= stats.binom.ppf(0.999, 400, 0.025)


def test_groups_of_which_a_few_differ_are_units():
    """Prompts asked twice: both answers of three prompts change."""
    groups = np.repeat(np.arange(250), 2).tolist()
    found = evidence(some(6), groups)
    assert found.n == 500
    assert found.p_above(0) > evidence(some(6)).p_above(0) > 0.025
