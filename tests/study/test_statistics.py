import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from reference_verdicts import closed_holm
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from retarget.errors import UserError
from retarget.study.evidence import Undecided, over_seeds
from retarget.study.statistics import bootstrap_difference, holm, paired_differences, t_interval, wilson_interval

numbers = st.floats(-100, 100).map(lambda x: round(x, 3))


@given(st.lists(numbers, min_size=2, max_size=8), st.floats(0.6, 0.999))
def test_t_interval_and_tests_equal_scipys(values, level):
    assume(np.std(values) > 1e-3)
    interval = stats.ttest_1samp(values, 0).confidence_interval(level)
    np.testing.assert_allclose(t_interval(values, level), [interval.low, interval.high], rtol=1e-9, atol=1e-9)
    found = over_seeds(values, scale=1)
    assert (found.estimate, found.n) == (pytest.approx(np.mean(values), abs=1e-12), len(values))
    for side, p_value in (("greater", found.p_above(0.25)), ("less", found.p_below(0.25))):
        assert p_value == pytest.approx(stats.ttest_1samp(values, 0.25, alternative=side).pvalue, rel=1e-7)
    assert found.lower((1 - level) / 2) == pytest.approx(interval.low, rel=1e-9, abs=1e-9)
    assert found.upper((1 - level) / 2) == pytest.approx(interval.high, rel=1e-9, abs=1e-9)


def test_an_interval_of_one_difference_is_refused():
    with pytest.raises(UserError, match="at least two differences, not 1"):
        t_interval([1.0], 0.95)
    with pytest.raises(UserError, match="a level must lie between 0 and 1, not 95"):
        t_interval([1.0, 2.0], 95)


def test_a_pair_needs_both_seeds():
    assert paired_differences([1.0, None, 3.0, 4.0], [0.5, 1.0, None, 1.0]) == [0.5, 3.0]
    with pytest.raises(ValueError, match="argument 2 is longer"):
        paired_differences([1.0], [1.0, 2.0])


def test_differences_without_spread_have_no_test():
    assert over_seeds([0.5], scale=1) == Undecided(0.5, 1, "one seed has no spread")
    same = over_seeds([0.5, 0.5], scale=1)
    assert (same.estimate, same.n, same.p_above(0), same.p_below(9)) == (0.5, 2, 1.0, 1.0)
    rounding = [97.5 - 97.0, 97.1 - 96.6, 33.1 - 32.5999999]  # 0.5, up to the last bits and float32
    assert len(set(rounding)) > 1
    assert isinstance(over_seeds(rounding, scale=97.5), Undecided)


@pytest.mark.parametrize("seed", range(6))
def test_holm_equals_statsmodels_and_closed_testing(seed):
    rng = np.random.default_rng(seed)
    p_values = list(np.round(rng.random(seed + 1) ** 4, 3))  # small ones and, by rounding, equal ones
    alpha = (0.1, 0.05, 0.01)[seed % 3]
    found = holm(p_values, alpha)
    rejected, adjusted, *_ = multipletests(p_values, alpha=alpha, method="holm")
    np.testing.assert_array_equal(found.rejected, rejected)
    np.testing.assert_array_equal(found.rejected, closed_holm(p_values, alpha))
    np.testing.assert_allclose(found.adjusted, adjusted, rtol=1e-12)


@given(
    st.lists(st.lists(numbers, min_size=2, max_size=6), min_size=1, max_size=8),
    st.sampled_from([0.0, 1.0, -3.5]),
)
def test_a_bound_excludes_the_null_exactly_when_holm_rejects(samples, null):
    assume(all(np.std(sample) > 1e-3 for sample in samples))
    spreads = [over_seeds(sample, 1) for sample in samples]
    for test, bound, side in (("p_above", "lower", 1), ("p_below", "upper", -1)):
        p_values = [getattr(one, test)(null) for one in spreads]
        found = holm(p_values, 0.025)
        for one, p_value, alpha, rejected in zip(spreads, p_values, found.alphas, found.rejected, strict=True):
            assume(abs(p_value - alpha) > 1e-12)  # exactly on the edge, rounding decides
            assert (side * getattr(one, bound)(alpha) > side * null) == rejected


def test_holm_shares_by_hand():
    found = holm([0.04, 0.001, 0.015, 0.9], 0.05)
    # 0.001 ≤ 0.05 / 4 and 0.015 ≤ 0.05 / 3 are rejected; 0.04 > 0.05 / 2 stops, and 0.9 stays at that share
    assert found.rejected == (False, True, True, False)
    np.testing.assert_allclose(found.alphas, [0.05 / 2, 0.05 / 4, 0.05 / 3, 0.05 / 2])
    assert holm([], 0.05) == ((), (), ())


@given(st.integers(1, 400), st.data(), st.sampled_from([0.8, 0.95]))
def test_wilson_equals_statsmodels(trials, data, level):
    successes = data.draw(st.integers(0, trials))
    expected = proportion_confint(successes, trials, 1 - level, "wilson")
    np.testing.assert_allclose(wilson_interval(successes, trials, level), expected, atol=1e-9)


def test_a_share_above_one_is_refused():
    with pytest.raises(UserError, match="5 of 4 is not a share"):
        wilson_interval(5, 4)


def mean(values):
    return float(values.mean())


def test_the_bootstrap_draws_the_same_items_for_both_arms_and_all_seeds():
    rng = np.random.default_rng(0)
    control = [(rng.normal(size=200) * 100,) for _ in range(3)]
    treated = [(array + 0.25,) for (array,) in control]
    interval = bootstrap_difference(mean, treated, control, resamples=50, rng=rng)
    np.testing.assert_allclose(interval, 0.25, atol=1e-9)


def test_the_bootstrap_of_a_mean_is_the_normal_interval():
    rng = np.random.default_rng(1)
    shared = rng.normal(size=2000)
    difference = shared + 0.3  # the same item effect in every seed does not average out over seeds
    control = [(rng.normal(size=2000),) for _ in range(4)]
    treated = [(array + difference,) for (array,) in control]
    low, high = bootstrap_difference(mean, treated, control, resamples=2000, rng=rng, level=0.9)
    half = stats.norm.ppf(0.95) * difference.std() / math.sqrt(2000)
    np.testing.assert_allclose([low, high], [difference.mean() - half, difference.mean() + half], atol=0.1 * half)


def test_the_bootstrap_keeps_the_arrays_of_a_run_together():
    labels = np.arange(100) % 5
    right, wrong = (labels, labels), (labels, (labels + 1) % 5)

    def accuracy(predicted, true):
        return float((predicted == true).mean())

    assert bootstrap_difference(accuracy, [right], [wrong], resamples=20) == (1.0, 1.0)


def test_the_bootstrap_refuses_runs_that_do_not_match():
    with pytest.raises(UserError, match=r"the same items in every run, but their numbers are \[200, 300\]"):
        bootstrap_difference(mean, [(np.ones(200),)], [(np.ones(300),)])
    with pytest.raises(UserError, match="the same seeds of both arms, not 1 and 2"):
        bootstrap_difference(mean, [(np.ones(200),)], [(np.ones(200),)] * 2)
    with pytest.raises(UserError, match="not 0 and 0"):
        bootstrap_difference(mean, [], [])


def test_there_is_no_bootstrap_interval_of_few_items():
    assert bootstrap_difference(mean, [(np.ones(99),)], [(np.ones(99),)]) is None
    assert bootstrap_difference(mean, [(np.ones(100),)], [(np.ones(100),)]) == (0.0, 0.0)
