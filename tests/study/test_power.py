import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from retarget.errors import UserError
from retarget.study.power import MOST_SEEDS, inflation, outlook, power, seeds_for


def reference_power(distance, sd, counts, alpha):
    critical = stats.t.ppf(1 - alpha, counts - 1)
    return stats.nct.sf(critical, counts - 1, distance * np.sqrt(counts) / sd)


@given(st.floats(0.0, 5), st.floats(0.1, 10), st.integers(2, 60), st.sampled_from([0.025, 0.025 / 16]))
@example(5.0, 0.71875, 37, 0.0015625)
@example(5.0, 0.1, 2, 0.0015625)
def test_power_equals_scipys_noncentral_t(distance, sd, n, alpha):
    expected = float(reference_power(distance, sd, np.array([n]), alpha)[0])
    assert power(distance, sd, n, alpha) == pytest.approx(expected, abs=1e-6)


@given(st.floats(0.05, 50), st.floats(0.01, 10), st.integers(1, 30), st.sampled_from([0.025, 0.005]))
def test_seeds_for_is_the_smallest_number_with_that_power(distance, sd, n, alpha):
    found = seeds_for(distance, sd, alpha, more_than=n)
    counts = np.arange(max(n + 1, 2), 4000)
    enough = counts[reference_power(distance, sd, counts, alpha) >= 0.8]
    if found is not None and found < 4000:
        assert found == enough[0]
    else:
        assert not len(enough)


def test_power_by_simulation():
    rng = np.random.default_rng(0)
    draws = rng.normal(1.0, 1.0, (20_000, 6))
    share = np.mean(stats.ttest_1samp(draws, 0, axis=1, alternative="greater").pvalue <= 0.025)
    assert power(1.0, 1.0, 6, 0.025) == pytest.approx(share, abs=0.012)


def test_seeds_without_end_are_none():
    assert seeds_for(0.001, 1.0, 0.025) is None
    assert seeds_for(0.0, 1.0, 0.025) is None
    assert seeds_for(1.0, 1.0, 0.025, more_than=MOST_SEEDS) is None


def test_a_pilot_s_spread_is_enlarged():
    """By the factor that keeps it above the true one in four of five pilots."""
    assert [round(inflation(n), 2) for n in (3, 5, 10)] == [2.12, 1.56, 1.29]
    draws = np.random.default_rng(0).normal(size=(20_000, 5)).std(axis=1, ddof=1)
    assert np.mean(draws * inflation(5) < 1) == pytest.approx(0.2, abs=0.01)
    with pytest.raises(UserError, match="at least two seeds, not 1"):
        inflation(1)


def test_an_outlook_reckons_with_the_enlarged_spread_alone_and_in_its_family():
    found = outlook("c", 1.0, 3, 1.0, 10, 0.025, 4)
    assert (found.sd, found.inflated) == (1.0, pytest.approx(inflation(3)))
    assert found.alone == pytest.approx(power(1.0, inflation(3), 10, 0.025))
    assert found.in_family == pytest.approx(power(1.0, inflation(3), 10, 0.025 / 4))
    assert found.in_family < found.alone
    assert (
        power(1.0, inflation(3), found.seeds_alone, 0.025)
        >= 0.8
        > power(1.0, inflation(3), found.seeds_alone - 1, 0.025)
    )
    assert found.seeds_in_family > found.seeds_alone
