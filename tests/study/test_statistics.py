import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from retarget.errors import UserError
from retarget.study.statistics import (
    MOST_SEEDS,
    bootstrap_difference,
    half_width,
    holm,
    paired_differences,
    paired_test,
    seeds_needed,
    t_interval,
    wilson_interval,
)

numbers = st.floats(-100, 100).map(lambda x: round(x, 3))


@given(st.lists(numbers, min_size=2, max_size=8), st.floats(0.6, 0.999))
def test_t_interval_and_test_equal_scipys(values, level):
    assume(np.std(values) > 1e-3)
    reference = stats.ttest_1samp(values, 0.25)
    interval = reference.confidence_interval(level)
    np.testing.assert_allclose(t_interval(values, level), [interval.low, interval.high], rtol=1e-9, atol=1e-9)
    test = paired_test(values, scale=1, null=0.25)
    assert test.p_value == pytest.approx(reference.pvalue, rel=1e-9)
    assert (test.estimate, test.n) == (pytest.approx(np.mean(values)), len(values))


def test_an_interval_of_one_difference_is_refused():
    with pytest.raises(UserError, match="at least two differences, not 1"):
        t_interval([1.0], 0.95)
    with pytest.raises(UserError, match="a level lies between 0 and 1, not at 95"):
        t_interval([1.0, 2.0], 95)


def test_differences_without_spread_have_no_test():
    assert paired_test([0.5], scale=1) == (0.5, None, 1, None)
    assert paired_test([0.5, 0.5], scale=1) == (0.5, 0.0, 2, None)
    rounding = [97.5 - 97.0, 97.1 - 96.6, 33.1 - 32.5999999]  # 0.5, up to the last bits and float32
    assert len(set(rounding)) > 1
    assert paired_test(rounding, scale=97.5).p_value is None


def test_a_pair_needs_both_seeds():
    assert paired_differences([1.0, None, 3.0, 4.0], [0.5, 1.0, None, 1.0]) == [0.5, 3.0]
    with pytest.raises(ValueError, match="argument 2 is longer"):
        paired_differences([1.0], [1.0, 2.0])


@pytest.mark.parametrize("seed", range(6))
def test_holm_equals_statsmodels(seed):
    rng = np.random.default_rng(seed)
    p_values = list(np.round(rng.random(seed + 1) ** 4, 3))  # small ones and, by rounding, equal ones
    level = (0.9, 0.95, 0.99)[seed % 3]
    found = holm(p_values, level)
    rejected, adjusted, *_ = multipletests(p_values, alpha=1 - level, method="holm")
    np.testing.assert_array_equal(found.rejected, rejected)
    np.testing.assert_allclose(found.adjusted, adjusted, rtol=1e-12)


@given(
    st.lists(st.lists(numbers, min_size=2, max_size=6), min_size=1, max_size=8),
    st.sampled_from([0.0, 1.0, -3.5]),
)
def test_an_interval_excludes_the_null_exactly_when_holm_rejects(samples, null):
    assume(all(np.std(sample) > 1e-3 for sample in samples))
    p_values = [paired_test(sample, 1, null).p_value for sample in samples]
    found = holm(p_values, 0.95)
    for sample, p_value, level, rejected in zip(samples, p_values, found.levels, found.rejected, strict=True):
        assume(abs(p_value - (1 - level)) > 1e-12)  # exactly on the edge, rounding decides
        low, high = t_interval(sample, level)
        assert (not low <= null <= high) == rejected


def test_holm_levels_by_hand():
    found = holm([0.04, 0.001, 0.015, 0.9], 0.95)
    # 0.001 ≤ 0.05 / 4 and 0.015 ≤ 0.05 / 3 are rejected; 0.04 > 0.05 / 2 stops, and 0.9 stays at that level
    assert found.rejected == (False, True, True, False)
    np.testing.assert_allclose(found.levels, [1 - 0.05 / 2, 1 - 0.05 / 4, 1 - 0.05 / 3, 1 - 0.05 / 2])
    assert holm([]) == ((), (), ())


@given(st.floats(0.05, 50), st.floats(0.01, 10), st.integers(1, 30), st.sampled_from([0.95, 0.99]))
def test_seeds_needed_is_the_smallest_number_that_decides(distance, sd, n, level):
    found = seeds_needed(distance, sd, n, level)
    counts = np.arange(max(n + 1, 2), MOST_SEEDS + 1)
    half = stats.t.ppf((1 + level) / 2, counts - 1) * sd / np.sqrt(counts)
    expected = counts[half < distance]
    assert found == (expected[0] if len(expected) else None)


def test_half_width_falls_with_n():
    widths = [half_width(1.0, n, 0.95) for n in range(2, 200)]
    assert widths == sorted(widths, reverse=True)
    assert widths[1] == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)  # three seeds: ± 2.5 sd


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
    labels = np.arange(50) % 5
    right, wrong = (labels, labels), (labels, (labels + 1) % 5)

    def accuracy(predicted, true):
        return float((predicted == true).mean())

    assert bootstrap_difference(accuracy, [right], [wrong], resamples=20) == (1.0, 1.0)


def test_the_bootstrap_refuses_runs_that_do_not_match():
    with pytest.raises(UserError, match=r"the same items in every run, and they have \[2, 3\]"):
        bootstrap_difference(mean, [(np.ones(2),)], [(np.ones(3),)])
    with pytest.raises(UserError, match="the same seeds of both arms, not 1 and 2"):
        bootstrap_difference(mean, [(np.ones(2),)], [(np.ones(2),)] * 2)
    with pytest.raises(UserError, match="not 0 and 0"):
        bootstrap_difference(mean, [], [])
