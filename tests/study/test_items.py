"""Binary pairs, shares and resamples over items: against published examples and independent implementations."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import proportion_confint
from tasks_for_tests import plan

from retarget.errors import UserError
from retarget.study.claims import judge
from retarget.study.config import Arm, Claim, Condition, Metric, StudyPlan
from retarget.study.evidence import Draws, Pairs, SmallestShare, over_items
from retarget.study.items import (
    Groups,
    PairedCounts,
    Resampled,
    Shares,
    mcnemar,
    newcombe_bound,
    paired_items,
)

counts = st.integers(0, 60)
Z95 = float(stats.norm.ppf(0.975))


@given(counts, counts)
def test_exact_mcnemar_equals_statsmodels(first, second):
    two_sided = statsmodels_mcnemar([[5, first], [second, 7]], exact=True).pvalue
    one = mcnemar(max(first, second), min(first, second), exact=True)
    assert min(1, 2 * one) == pytest.approx(two_sided, abs=1e-12)


@given(counts, counts)
def test_mid_p_is_the_exact_tail_less_half_of_what_was_seen(first, second):
    n = first + second
    tail = stats.binom.sf(first - 1, n, 0.5) if n else 1.0
    seen = stats.binom.pmf(first, n, 0.5) if n else 0.0
    assert mcnemar(first, second) == pytest.approx(tail - seen / 2, abs=1e-12)
    if n:
        assert mcnemar(first, second) + mcnemar(second, first) == pytest.approx(1)


def test_the_published_example_of_the_mid_p_test():
    """Fagerland, Lydersen and Laake (2013): airway hyper-responsiveness before and after a transplantation."""
    assert 2 * mcnemar(7, 1, exact=True) == pytest.approx(0.0703, abs=5e-5)
    assert 2 * mcnemar(7, 1) == pytest.approx(0.0391, abs=5e-5)


def newcombe_by_hand(a, b, c, d, level):
    """Method 10, from statsmodels' Wilson intervals and the correction of phi as the paper words it."""
    n = a + b + c + d
    l1, u1 = proportion_confint(a + b, n, 1 - level, "wilson")
    l2, u2 = proportion_confint(a + c, n, 1 - level, "wilson")
    p1, p2 = (a + b) / n, (a + c) / n
    denominator = math.sqrt((a + b) * (c + d) * (a + c) * (b + d))
    q = a * d - b * c
    q = q - n / 2 if q > n / 2 else 0 if q >= 0 else q
    phi = q / denominator if denominator else 0
    low = p1 - p2 - math.sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2)
    high = p1 - p2 + math.sqrt((u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2)
    return low, high


@given(st.tuples(counts, counts, counts, counts).filter(sum), st.sampled_from([0.8, 0.95, 0.99]))
def test_newcombe_equals_an_independent_implementation(table, level):
    found = newcombe_bound(*table, float(stats.norm.ppf((1 + level) / 2)))
    np.testing.assert_allclose(found, newcombe_by_hand(*table, level), atol=1e-9)


@pytest.mark.parametrize(
    ("table", "interval"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),  # Newcombe (1998), table II
        ((1, 1, 7, 12), (-0.507, -0.026)),  # Fagerland, Lydersen and Laake (2014), airway hyper-responsiveness
        ((59, 6, 16, 80), (-0.1186, -0.0046)),  # Fagerland, Lydersen and Laake (2017), response to therapy
    ],
)
def test_published_examples_of_newcombe_s_interval(table, interval):
    np.testing.assert_allclose(newcombe_bound(*table, Z95), interval, atol=6e-4)


@given(
    st.tuples(counts, counts, counts, counts).filter(sum), st.one_of(st.just(0.0), st.floats(-0.9, 0.9)),
    st.sampled_from([0.1, 0.025, 0.002]),
)  # fmt: skip
@example((15, 10, 3, 2), 0.0, 0.025)
def test_a_pair_s_bounds_exclude_what_its_tests_reject(table, bound, alpha):
    pairs = Pairs(*table, scale=100.0, exact=False)
    if abs(pairs.p_above(100 * bound) - alpha) > 1e-6:
        assert (pairs.lower(alpha) > 100 * bound) == (pairs.p_above(100 * bound) <= alpha)
    if abs(pairs.p_below(100 * bound) - alpha) > 1e-6:
        assert (pairs.upper(alpha) < 100 * bound) == (pairs.p_below(100 * bound) <= alpha)
    assert pairs.p_above(0) >= mcnemar(table[1], table[2])
    assert pairs.lower(alpha) <= pairs.estimate <= pairs.upper(alpha)


def test_tests_of_pairs_err_as_often_as_stated():
    rng = np.random.default_rng(0)
    studies, alpha, wrong = 4000, 0.025, np.zeros(2)
    for _ in range(studies):
        both, first, second, neither = map(int, rng.multinomial(150, [0.6, 0.1, 0.1, 0.2]))
        found = Pairs(both, first, second, neither, 1.0, False)
        wrong += [found.p_above(0.0) <= alpha, found.p_below(0.0) <= alpha]
    assert (wrong <= stats.binom.ppf(0.999, studies, alpha)).all()
    assert (wrong > 0).all()


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(50, 90)), min_size=1, max_size=4), st.floats(0.05, 95))
def test_shares_are_bounded_by_what_their_tests_reject(cells, against):
    found = SmallestShare(tuple(cells), against, 100.0)
    for alpha in (0.025, 0.003):
        if abs(found.p_above(1.0) - alpha) > 1e-9:
            assert (found.lower(alpha) > 1.0) == (found.p_above(1.0) <= alpha)
        if abs(found.p_below(1.0) - alpha) > 1e-9:
            assert (found.upper(alpha) < 1.0) == (found.p_below(1.0) <= alpha)
    hits, trials = min(cells, key=lambda cell: cell[0] / cell[1])
    assert found.estimate == pytest.approx(100 * hits / trials - against)


def test_every_share_must_be_above_and_the_choice_of_the_lowest_is_corrected():
    cells = ((80, 200), (95, 200), (60, 100))
    found = SmallestShare(cells, 50.0, 100.0)
    assert found.p_below(1.0) == pytest.approx(3 * stats.binomtest(80, 200, 0.51, "less").pvalue)
    assert found.p_above(1.0) == pytest.approx(stats.binomtest(80, 200, 0.51, "greater").pvalue)
    assert SmallestShare(cells[2:], 50.0, 100.0).p_below(20.0) == pytest.approx(
        stats.binomtest(60, 100, 0.7, "less").pvalue
    )
    exact = stats.binomtest(80, 200).proportion_ci(0.95)
    assert found.lower(0.025) == pytest.approx(100 * exact.low - 50)
    assert SmallestShare(cells[:1], 50.0, 100.0).upper(0.025) == pytest.approx(100 * exact.high - 50)


@pytest.mark.parametrize("against", [0.2, 1.0, 10.0, 50.0, 95.0])
@pytest.mark.parametrize("trials", [1, 4, 15, 60])
def test_few_trials_decide_as_rarely_as_the_level_says(against, trials):
    """Both errors by enumeration; the score test called one hit in one trial significantly above 10 %."""
    counts, share = np.arange(trials + 1), against / 100
    chances = stats.binom.pmf(counts, trials, share)
    for wrong in ("p_above", "p_below"):
        p_values = [getattr(SmallestShare(((int(k), trials),), against, 100.0), wrong)(0.0) for k in counts]
        assert chances[np.array(p_values) <= 0.025].sum() <= 0.025


def test_shares_of_which_lower_is_better_are_judged_by_the_largest():
    """The share of errors is the complement of the share of successes, so its evidence is too."""
    errors = over_items(Shares(cells=[(0, 100), (30, 100), (60, 100)]), "lower", 50.0)
    successes = over_items(Shares(cells=[(100, 100), (70, 100), (40, 100)]), "higher", 50.0)
    assert errors == successes
    assert errors.estimate == pytest.approx(-10.0), "the largest share is 60 %, 10 points worse than 50 %"


def test_a_claim_that_every_share_stays_below_a_constant_fails_by_one_cell():
    one = claim(arms=("treated",), against=50.0, direction="lower", about="method", smallest_effect=5.0)
    shares = Shares(cells=[(0, 100), (100, 100)])
    found = judged([one], {"c": shares}, 3, {"treated": {"acc": [100.0] * 3}})[0]
    assert (found.verdict, found.estimate) == ("does not hold", 50.0)
    low, high = found.interval
    assert 0 < low < 50 == high


def test_binary_items_are_counted():
    found = paired_items([1, 1, 0, 0, 1], [1, 0, 1, 0, 0])
    assert found == PairedCounts(both=1, treated=2, control=1, neither=1, scale=1)
    assert paired_items([100, 0.0], [0, 0]).scale == 100
    assert paired_items([0, 0], [0, 0]) == PairedCounts(both=0, treated=0, control=0, neither=2)


def test_other_items_are_resampled_and_too_few_are_refused():
    rng = np.random.default_rng(0)
    treated, control = rng.normal(0.3, 1, 400), rng.normal(0, 1, 400)
    found = paired_items(treated, control)
    assert isinstance(found, Resampled)
    difference = treated - control
    half = stats.norm.ppf(0.975) * difference.std() / 20
    evidence = over_items(found, "higher", None)
    assert (evidence.lower(0.025), evidence.upper(0.025)) == pytest.approx(
        (difference.mean() - half, difference.mean() + half), abs=0.15 * half
    )
    with pytest.raises(
        UserError, match="99 items are too few for an interval over items that are not binary: 100 are needed"
    ):
        paired_items(treated[:99], control[:99])
    with pytest.raises(UserError, match="lists of equal length"):
        paired_items([1.0], [1.0, 2.0])


def test_draws_are_tested_by_the_share_on_the_wrong_side():
    draws = Draws(tuple(range(1, 1000)), 500.0, 400)
    assert draws.p_above(10) == pytest.approx(11 / 1000)
    assert draws.p_below(990) == pytest.approx(11 / 1000)
    for alpha in (0.011, 0.025):
        for bound in (9.5, 10.5, 24.5, 25.5):
            assert (draws.lower(alpha) > bound) == (draws.p_above(bound) <= alpha)
            assert (draws.upper(alpha) < 1000 - bound) == (draws.p_below(1000 - bound) <= alpha)


def test_groups_are_drawn_whole():
    """Every item five times is no more evidence than once, when the copies are one group."""
    rng = np.random.default_rng(1)
    treated, control = rng.normal(0.2, 1, 300), rng.normal(0, 1, 300)
    copies = np.repeat(np.arange(300), 5)
    once = over_items(paired_items(treated, control), "higher", None)
    five = over_items(paired_items(treated[copies], control[copies], copies.tolist()), "higher", None)
    apart = over_items(paired_items(treated[copies], control[copies]), "higher", None)
    width = once.upper(0.025) - once.lower(0.025)
    assert five.upper(0.025) - five.lower(0.025) == pytest.approx(width, rel=0.1)
    assert apart.upper(0.025) - apart.lower(0.025) == pytest.approx(width / math.sqrt(5), rel=0.1)
    assert isinstance(paired_items([1, 0] * 300, [0, 0] * 300, [i // 2 for i in range(600)]), Resampled)


def test_few_groups_are_judged_by_a_t_over_groups():
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(20), 10)
    effect = rng.normal(0.5, 1, 20)
    treated, control = rng.normal(size=200) + effect[groups], rng.normal(size=200)
    found = paired_items(treated, control, groups.tolist())
    assert isinstance(found, Groups)
    means = (treated - control).reshape(20, 10).mean(1)  # groups of one size: the t interval of their means
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    evidence = over_items(found, "higher", None)
    assert (evidence.lower(0.025), evidence.upper(0.025)) == pytest.approx((expected.low, expected.high))
    with pytest.raises(UserError, match="all items are in one group"):
        paired_items(treated, control, ["a"] * 200)


@pytest.mark.parametrize("count", [30, 150])
def test_groups_of_unequal_size_vary_as_a_robust_regression_says(count):
    """The mean over items of groups of one item or nine: few groups by a t test, many by the bootstrap."""
    groups = np.repeat(np.arange(count), np.where(np.arange(count) % 3, 1, 9))
    treated = np.where(groups % 3 == 0, groups % 2, 2.0) + 1.0
    control = np.zeros(len(groups))
    found = paired_items(treated, control, groups.tolist(), resamples=4000)
    fit = OLS(treated, np.ones(len(treated))).fit(cov_type="cluster", cov_kwds={"groups": groups})
    assert found.estimate == pytest.approx(fit.params[0]) == pytest.approx(treated.mean())
    if count == 30:
        assert fit.bse[0] < found.error < 1.3 * fit.bse[0], "which is too small for groups of unequal size"
    else:
        assert np.std(found.draws) == pytest.approx(fit.bse[0], rel=0.05)
        assert np.mean(found.draws) == pytest.approx(fit.params[0], rel=0.01)


@pytest.mark.parametrize("sizes", [(10,) * 12, (99, 1), (300, 100, 20), (200, *(20,) * 10)])
def test_groups_of_any_size_err_as_rarely_as_the_level_says(sizes):
    """Where all items of a group are alike, the squared error is unbiased, and false verdicts are as rare as stated."""
    groups, share = np.repeat(np.arange(len(sizes)), sizes), np.array(sizes) / sum(sizes)
    zeros, names = np.zeros(len(groups)), groups.tolist()
    squares = [paired_items((groups == one).astype(float), zeros, names).error ** 2 for one in range(len(sizes))]
    assert sum(squares) == pytest.approx((share**2).sum())
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(1000):
        effects = rng.normal(size=len(sizes))
        wrong += over_items(paired_items(effects[groups], zeros, names), "higher", None).p_above(0) <= 0.025
    assert wrong <= 40, "25 expected, plus three standard errors"


def test_one_large_group_that_disagrees_with_the_other_decides_nothing():
    items = paired_items([1.0] * 99 + [-1.0], [0.0] * 100, ["doc A"] * 99 + ["doc B"])
    evidence = over_items(items, "higher", None)
    assert evidence.p_above(0) > 0.1
    assert evidence.lower(0.025) < 0


def test_the_bootstrap_of_skewed_differences_is_studentised():
    """Most items gain a little and few lose much, .1 on average 0: percentiles are wrong in every twentieth study."""
    rng, wrong = np.random.default_rng(0), {"t": 0, "percentile": 0}
    for _ in range(200):
        lost = rng.random(400) < 0.02
        values = np.where(lost, -4.9, 0.1) + rng.normal(size=400) * 0.1
        found = paired_items(values, np.zeros(400), resamples=500)
        wrong["t"] += over_items(found, "higher", None).lower(0.025) > 0
        means = rng.choice(values, (500, 400)).mean(1)
        wrong["percentile"] += np.quantile(means, 0.025) > 0
    assert wrong["t"] <= 5 < wrong["percentile"]


def claim(name="c", **more):
    whole = dict(id=name, sentence="S.", metric="acc", direction="higher", arms=("treated", "control"),
                 smallest_effect=0.05, about="models")  # fmt: skip
    return Claim.model_validate(whole | more)


def judged(claims, items, seeds=1, values=None, bounds=None, intervals=None):
    arms = tuple(Arm(name=name, label=name) for name in ("treated", "control"))
    whole = dict(arms=arms, seeds=tuple(range(seeds)), claims=tuple(claims), conditions=(Condition(),),
                 metrics=(Metric(name="acc", label="accuracy", bounds=bounds),))  # fmt: skip
    study = StudyPlan.model_validate(plan().model_dump() | whole)
    values = values or {"treated": {"acc": [0.7] * seeds}, "control": {"acc": [0.5] * seeds}}
    return judge(study, {"default": values}, intervals, items)


BETTER = PairedCounts(both=400, treated=200, control=50, neither=350)


def test_one_run_of_each_arm_decides_claims_about_models_and_no_others():
    models, method = judged([claim(), claim("m", about="method")], {"c": BETTER, "m": BETTER})
    assert (models.verdict, models.n, models.about) == ("holds", 1000, "models")
    assert models.estimate == pytest.approx(0.15)
    assert method.verdict == "not enough evidence"
    assert method.reason == "one seed has no spread"
    low, high = newcombe_bound(400, 200, 50, 350, Z95)
    assert method.item_interval == pytest.approx((low, high))
    assert judged([claim(smallest_effect=0.3, direction="lower")], {"c": BETTER})[0].verdict == "does not hold"


def test_an_item_interval_that_decides_uses_the_level_of_its_family():
    """p = 0.02 over items holds alone and not as one of two: items pass Holm's procedure like seeds."""
    barely = PairedCounts(both=500, treated=60, control=39, neither=401)
    alone = judged([claim()], {"c": barely})[0]
    assert alone.verdict == "holds"
    assert 0.0125 < alone.p_holds < 0.025
    unsure = PairedCounts(both=500, treated=50, control=48, neither=402)
    both = judged([claim(smallest_effect=0.01), claim("d", smallest_effect=0.01)], {"c": barely, "d": unsure})
    assert [one.verdict for one in both] == ["not enough evidence", "not enough evidence"]
    assert both[0].interval[0] == pytest.approx(newcombe_bound(500, 60, 39, 401, float(stats.norm.ppf(1 - 0.0125)))[0])
    assert both[0].reason == "these items cannot tell"


def test_a_claim_about_models_without_items_is_not_measured():
    found = judged([claim()], {})[0]
    assert found.verdict == "not measured"
    assert found.reason == "It is about models, but there are no values of single items"


def test_a_share_that_is_the_same_on_every_seed_is_tested_in_its_family():
    """The weakest cell of a perfect attack: its items decide, at Holm's level and no longer beside it."""
    perfect = {"treated": {"acc": [100.0] * 3}, "control": {"acc": [50.0, 51.0, 50.5]}}
    one = claim(arms=("treated",), against=90.0, about="method", smallest_effect=1.0)
    shares = Shares(cells=[(100, 100), (98, 100)])
    found = judged([one], {"c": shares}, 3, perfect)[0]
    assert found.verdict == "holds"
    assert found.reason == "the same on every seed: decided by the interval over items"
    assert found.n == 3
    assert found.p_holds == pytest.approx(stats.binomtest(98, 100, 0.9, "greater").pvalue)
    weaker = [one, *(claim(f"x{i}", about="method", smallest_effect=1.0, direction="lower") for i in range(3))]
    assert judged(weaker, {"c": shares}, 3, perfect)[0].verdict == "holds"
    few = Shares(cells=[(96, 100), (100, 100)])
    assert judged([one], {"c": few}, 3, perfect)[0].verdict == "holds"
    assert judged(weaker, {"c": few}, 3, perfect)[0].verdict == "not enough evidence"


@pytest.mark.parametrize("bounds", [None, (0.0, 100.0)])
@pytest.mark.parametrize(
    ("values", "hits", "direction", "verdict"),
    [
        ([100.0, 100.0], 600, "higher", "holds"),
        ([0.0, 0.0], 0, "higher", "does not hold"),
        ([0.0, 0.0], 0, "lower", "holds"),
        ([82.0, 82.0], 492, "higher", "not enough evidence"),
        ([82.0, 82.0, 82.0], 492, "higher", "not enough evidence"),
        ([99.5, 99.5], 597, "higher", "not enough evidence"),
    ],
)
def test_only_a_perfect_share_is_decided_by_its_items(bounds, values, hits, direction, verdict):
    """Few seeds agree on 82 % by coincidence: with one image more in one of them nothing would be decided either."""
    one = claim(arms=("treated",), against=90.0, about="method", smallest_effect=1.0, direction=direction)
    shares = Shares(cells=[(hits, 600)])
    found = judged([one], {"c": shares}, len(values), {"treated": {"acc": values}}, bounds)[0]
    assert found.verdict == verdict
    assert found.n == len(values)
    if verdict == "not enough evidence":
        assert found.reason == "the difference is the same on every seed"
        assert found.interval is None
        assert found.p_holds is found.p_fails is None
        assert found.item_interval[0] < values[0] - 90 < found.item_interval[1], "shown beside the verdict"
    else:
        assert found.reason == "the same on every seed: decided by the interval over items"


def test_a_share_of_one_set_at_each_end_is_not_perfect():
    """Their average is 50 % on every seed, a coincidence like any other."""
    values = {"treated": {"acc": [100.0, 100.0]}}, {"treated": {"acc": [0.0, 0.0]}}
    one = claim(arms=("treated",), against=10.0, about="method", across="average")
    study = StudyPlan.model_validate(
        plan().model_dump()
        | dict(arms=(Arm(name="treated", label="treated"),), seeds=(0, 1), claims=(one,),
               conditions=(Condition(name="a"), Condition(name="b")),
               metrics=(Metric(name="acc", label="accuracy", bounds=(0.0, 100.0)),))
    )  # fmt: skip
    items = {"c": Shares(cells=[(600, 1200)])}
    found = judge(study, dict(zip("ab", values, strict=True)), items=items)[0]
    assert found.verdict == "not enough evidence"
    assert found.reason == "the difference is the same on every seed"


def test_an_interval_decides_a_perfect_share_if_the_metric_says_what_it_can_be():
    one, values = claim(arms=("treated",), against=90.0, about="method"), {"treated": {"acc": [100.0, 100.0]}}
    for bounds, verdict in [((0.0, 100.0), "holds"), (None, "not enough evidence")]:
        assert judged([one], {}, 2, values, bounds, intervals={"c": (9.5, 10.0)})[0].verdict == verdict
