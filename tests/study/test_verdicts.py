"""Verdicts of whole studies against the slow reference, with families, looks, floors and several sets."""

import numpy as np
import pytest
from pydantic import ValidationError
from reference_verdicts import verdicts, verdicts_with_looks
from scipy import stats
from tasks_for_tests import plan

from retarget.errors import UserError
from retarget.study.claims import judge, outlooks
from retarget.study.config import Arm, Claim, Condition, Metric, StudyPlan, refuse_unknown
from retarget.study.power import inflation, power, seeds_for

ACCURACY = Metric(name="acc", label="accuracy", unit="%", better="higher")


def claim(name, arm, effect=1.0, **more):
    whole = dict(id=name, sentence="S.", metric="acc", direction="higher", arms=(arm, "control"))
    return Claim.model_validate(whole | dict(smallest_effect=effect) | more)


def study(claims, seeds, conditions=("default",), **more):
    whole = dict(
        arms=tuple(Arm(name=arm, label=arm) for arm in sorted({arm for one in claims for arm in one.arms})),
        seeds=tuple(range(seeds)), metrics=(ACCURACY,), claims=tuple(claims),
        conditions=tuple(Condition(name=name) for name in conditions),
    )  # fmt: skip
    return StudyPlan.model_validate(plan().model_dump() | whole | more)


def judged(claims, differences, seeds, **more):
    """Judge claims whose treated arm lies by ``differences[arm]`` over a control that is 50 on every seed and more."""
    control = 50 + np.linspace(-1, 1, seeds)
    arms = {name: {"acc": (control + np.asarray(values)).tolist()} for name, values in differences.items()}
    return judge(study(claims, seeds, **more), {"default": {"control": {"acc": control.tolist()}, **arms}})


@pytest.mark.parametrize("seed", range(30))
def test_verdicts_equal_the_reference(seed):
    rng = np.random.default_rng(seed)
    count, seeds = int(rng.integers(1, 7)), int(rng.integers(2, 9))
    differences = {f"arm{i}": rng.normal(rng.choice([-1, 0, 0.5, 1, 2]), 0.4, seeds) for i in range(count)}
    margins = [rng.choice([None, 0.5]) for _ in differences]
    directions = [str(one) for one in rng.choice(["higher", "lower"], count)]
    claims = [
        claim(arm, arm, margin=margin, direction=direction)
        for arm, margin, direction in zip(differences, margins, directions, strict=True)
    ]
    signs = [1 if direction == "higher" else -1 for direction in directions]
    expected = verdicts([
        (sign * values, 1.0, margin) for sign, values, margin in zip(signs, differences.values(), margins, strict=True)
    ])  # fmt: skip
    found = judged(claims, differences, seeds)
    assert [one.verdict for one in found] == expected
    for one, sign, margin in zip(found, signs, margins, strict=True):
        low, high = sorted(sign * end for end in one.interval)
        above, below = (0, 1) if margin is None else (-margin, -margin)
        assert (low > above) == (one.verdict == "holds")
        assert (high < below) == (one.verdict == "does not hold" or one.below_smallest_effect)


@pytest.mark.parametrize("seed", range(20))
def test_verdicts_of_planned_looks_equal_the_reference(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 5))
    differences = {f"arm{i}": rng.normal(rng.choice([-1, 0, 1, 2]), 0.5, 10) for i in range(count)}
    looks = ((3, 0.2), (5, 0.3), (10, 0.5))
    expected = verdicts_with_looks([(values, 1.0, None) for values in differences.values()], looks)
    found = judged([claim(arm, arm) for arm in differences], differences, 10, looks=(3, 5, 10))
    assert [one.verdict for one in found] == [verdict for verdict, _ in expected]
    for one in found:
        low, high = one.interval
        assert (low > 0) == (one.verdict == "holds")
        assert high < 1 or one.verdict != "does not hold"


def test_a_verdict_of_a_planned_look_stands_and_names_its_look():
    differences = {"arm": [2.0, 2.1, 1.9, -3.0, 4.0, -5.0, 1.0, -2.0, 0.0, 1.0]}
    one = judged([claim("a", "arm")], differences, 10, looks=(3, 5, 10))[0]
    assert (one.verdict, one.look, one.n) == ("holds", 3, 3)
    assert one.estimate == pytest.approx(2.0)
    assert one.latest == pytest.approx(np.mean(differences["arm"]))
    assert judged([claim("a", "arm")], differences, 10)[0].verdict == "not enough evidence"


def test_a_denial_of_an_early_look_stands_too_though_the_claim_would_hold_later():
    differences = {"arm": [0.0, 0.1, -0.1, *[3.0, 3.1, 2.9, 3.0, 3.1, 2.9, 3.0]]}
    one = judged([claim("a", "arm")], differences, 10, looks=(3, 5, 10))[0]
    assert (one.verdict, one.look, one.estimate) == ("does not hold", 3, pytest.approx(0.0))
    assert not one.below_smallest_effect
    assert judged([claim("a", "arm")], differences, 10)[0].verdict == "holds"


def test_the_seeds_that_would_decide_are_reckoned_at_the_error_of_the_nearer_test():
    """The other claim holds, so this one may spend the whole error on holding, and half of it on not holding."""
    values = {"arm": [0.9, -0.5, 1.4, 0.3, 0.8], "sure": [3.0, 3.1, 2.9, 3.0, 3.2]}
    for effect, distance, error in ((1.0, 0.58, 0.025), (1.3, 0.72, 0.0125)):
        one, sure = judged([claim("a", "arm", effect), claim("b", "sure", 2.0)], values, 5)
        assert (one.verdict, sure.verdict) == ("not enough evidence", "holds")
        assert one.seeds_needed == seeds_for(distance, np.std(values["arm"], ddof=1), error, more_than=5)


def test_between_looks_nothing_is_judged_anew():
    early = judged([claim("a", "arm")], {"arm": [2.0, 2.1]}, 2, looks=(3, 5))[0]
    assert (early.verdict, early.interval, early.reason) == (
        "not enough evidence", None, "the first planned look is at 3 seeds"
    )  # fmt: skip
    wide = [2.0, -1.0, 0.3]
    at_three = judged([claim("a", "arm")], {"arm": wide}, 3, looks=(3, 5))[0]
    at_four = judged([claim("a", "arm")], {"arm": [*wide, 9.0]}, 4, looks=(3, 5))[0]
    assert at_four.reason == "the next planned look is at 5 seeds"
    assert at_four.interval == at_three.interval
    assert at_four.latest == pytest.approx(10.3 / 4)


def test_looks_spend_their_shares_of_the_error():
    values = [1.0, 0.2, 0.5]
    half = judged([claim("a", "arm")], {"arm": values}, 3, looks=(3, 10), look_weights=(0.4, 0.6))[0]
    mean, sd = np.mean(values), np.std(values, ddof=1)
    assert half.interval[0] == pytest.approx(mean - stats.t.ppf(1 - 0.4 * 0.025, 2) * sd / np.sqrt(3))
    assert half.level == pytest.approx(1 - 0.4 * 0.05)


def test_primary_and_secondary_claims_are_two_families():
    """Nine more secondary claims leave a primary verdict as it is alone."""
    barely = {"arm": [1.0, 0.4, 0.9, 0.3, 1.6]}
    rng = np.random.default_rng(0)
    others = {f"other{i}": rng.normal(0, 3, 5) for i in range(9)}
    alone = judged([claim("a", "arm")], barely, 5)[0]
    assert alone.verdict == "holds"
    second = [claim(name, name, family="secondary") for name in others]
    both = judged([claim("a", "arm"), *second], barely | others, 5)
    assert both[0] == alone
    assert {one.family for one in both[1:]} == {"secondary"}
    crowded = judged([claim("a", "arm"), *[claim(name, name) for name in others]], barely | others, 5)
    assert crowded[0].verdict == "not enough evidence"


def test_a_control_below_its_floor_makes_no_test_of_the_claim():
    differences = {"arm": [2.0, 2.1, 1.9, 2.0, 2.2], "sure": [3.0, 3.1, 2.9, 3.0, 3.2]}
    low = claim("a", "arm", floor=("acc", 60.0))
    missed, sure = judged([low, claim("b", "sure")], differences, 5)
    assert missed.verdict == "not measured"
    assert missed.reason == "Not a test of the claim: accuracy of control is 50 %, but a test needs at least 60 %"
    assert missed.estimate is missed.interval is None
    assert sure.level == pytest.approx(1 - 0.025 / 2 - 0.025 / 2), "a claim below its floor stays in its family"
    assert judged([claim("a", "arm", floor=("acc", 49.0))], differences, 5)[0].verdict == "holds"
    unknown = judged([claim("a", "arm", floor=("bleu", 1.0))], differences, 5)[0]
    assert unknown.verdict == "not measured"
    assert "bleu of control is missing" in unknown.reason


def test_a_floor_may_be_that_of_an_arm_which_the_claim_does_not_compare():
    """A wider clip changes nothing where the usual one clips nothing; how much the compared arms clip says nothing."""
    wide = claim("a", "arm", floor=("clipped", 1.0), floor_arm="usual")
    clipped = Metric(name="clipped", label="clipped tokens", unit="%")
    study_of = study([wide], 2, metrics=(ACCURACY, clipped))
    values = {"control": {"acc": [50.0, 50.5], "clipped": [0.0, 0.0]}, "arm": {"acc": [70.0, 71.0]}}
    for there, verdict, reason in (
        ([0.1, 0.3], "not measured", "Not a test of the claim: clipped tokens of usual is 0.2 %, but a test needs at "
         "least 1 %"),
        ([3.0, 5.0], "holds", ""),
        (None, "not measured", "The claim cannot be tested: clipped tokens of usual is missing, and it must reach a "
         "floor"),
    ):  # fmt: skip
        (found,) = judge(study_of, {"default": values | ({"usual": {"clipped": there}} if there else {})})
        assert (found.verdict, found.reason) == (verdict, reason)
    with pytest.raises(UserError, match="claim a names the arm usual, but the study has arm, control"):
        refuse_unknown(study_of, "plan", ["arm", "control"])
    with pytest.raises(ValidationError, match="names floor_arm 'usual', but has no floor"):
        claim("a", "arm", floor_arm="usual")
    assert "floor_arm" not in claim("a", "arm", floor=("acc", 1.0)).stated(), "hashes of earlier claims stay"


def test_a_metric_s_floor_holds_for_the_control_of_every_claim_and_changes_no_claim():
    """With BLEU 0 in both arms, a claim about calibration gets no verdict."""
    bleu = Metric(name="bleu", label="BLEU", better="higher", floor=1.0)
    values = {arm: {"acc": [50.0 + lift, 50.5 + lift]} for arm, lift in (("control", 0.0), ("arm", 3.0))}
    one, constant = claim("a", "arm"), claim("b", "arm", arms=("arm",), against=10.0)
    study_of = study([one, constant], 2, metrics=(ACCURACY, bleu))
    assert study_of.claims_hash() == study([one, constant], 2).claims_hash()
    for score, verdict in ((0.0, "not measured"), (20.0, "not enough evidence")):
        scored = {arm: metrics | {"bleu": [score, score]} for arm, metrics in values.items()}
        judged_one, judged_constant = judge(study_of, {"default": scored})
        assert judged_one.verdict == verdict
        assert judged_constant.verdict == "holds", "it has no control"
    assert judge(study_of, {"default": values})[0].verdict == "not enough evidence", "what has no BLEU is no translator"


def test_a_floor_may_be_another_metric_of_the_same_control():
    """Chance depends on the classes, which the runs know and the plan does not."""
    accuracy = Metric(name="acc", label="accuracy", better="higher", floor="chance")
    study_of = study([claim("a", "arm")], 2, metrics=(accuracy, Metric(name="chance", label="chance")))
    for chance, verdict in (([60.0, 62.0], "not measured"), ([10.0, None], "holds"), (None, "holds")):
        values = {"control": {"acc": [50.0, 50.5]}, "arm": {"acc": [70.0, 71.0], "chance": [99.0, 99.0]}}
        values["control"] |= {"chance": chance} if chance else {}
        (found,) = judge(study_of, {"default": values})
        assert found.verdict == verdict
        missed = "Not a test of the claim: accuracy of control is 50.25, but a test needs at least 61 (chance)"
        assert found.reason == (missed if verdict == "not measured" else "")


@pytest.mark.parametrize("of_claim", [True, False])
def test_a_treated_arm_that_has_learnt_nothing_is_not_well_calibrated(of_claim):
    """Its calibration error is 0, since it is never confident; its accuracy may still be judged worse."""
    accuracy = Metric(name="acc", label="accuracy", better="higher", floor=None if of_claim else 10.0,
                      floor_for="every arm")  # fmt: skip
    floor = {"floor": ("acc", 10.0)} if of_claim else {}
    ece = claim("a", "arm", metric="ece", direction="lower", **floor)
    plan = study([ece, claim("b", "arm", **floor)], 2, metrics=(accuracy, Metric(name="ece", label="ECE")))
    for reached, expected in ((0.0, ["not measured", "does not hold"]), (50.0, ["holds", "does not hold"])):
        values = {"control": {"acc": [60.0, 60.5], "ece": [9.0, 9.1]},
                  "arm": {"acc": [reached, reached + 0.4], "ece": [0.1, 0.3]}}  # fmt: skip
        found = judge(plan, {"default": values})
        assert [one.verdict for one in found] == expected
    assert "accuracy of arm is 0.2, but a test needs at least 10" in judge(plan, {"default": {
        "control": values["control"], "arm": {"acc": [0.0, 0.4], "ece": [0.1, 0.3]}}})[0].reason  # fmt: skip


def test_the_floor_of_a_metric_of_which_lower_is_better_is_a_ceiling():
    values = {"default": {"control": {"acc": [3.0, 3.1]}, "arm": {"acc": [1.0, 1.2]}}}
    lower = Metric(name="acc", label="perplexity", better="lower")
    for bound, verdict in ((2.0, "not measured"), (4.0, "holds")):
        one = claim("a", "arm", direction="lower", floor=("acc", bound))
        assert judge(study([one], 2, metrics=(lower,)), values)[0].verdict == verdict


SETS = {"a": [1.0, 1.2, 0.8, 1.1], "b": [0.5, 0.9, 0.6, 0.7], "c": [0.1, 0.3, -0.1, 0.2]}


def across(kind, sets=SETS, **more):
    conditions = {
        name: {"control": {"acc": [50.0] * 4}, "arm": {"acc": [50 + one for one in values]}}
        for name, values in sets.items()
    }
    one = claim("x", "arm", across=kind, **more)
    return judge(study([one], 4, tuple(sets)), conditions)[0]


def test_on_every_set_is_the_largest_p():
    found = across("every")
    p_values = [stats.ttest_1samp(values, 0, alternative="greater").pvalue for values in SETS.values()]
    assert found.p_holds == pytest.approx(max(p_values))
    assert found.estimate == pytest.approx(min(np.mean(values) for values in SETS.values()))
    below = min(stats.ttest_1samp(values, 1.0, alternative="less").pvalue for values in SETS.values())
    assert found.p_fails == pytest.approx(min(1, 3 * below))
    bounds = [np.mean(one) - np.std(one, ddof=1) / 2 * stats.t.ppf(0.975, 3) for one in SETS.values()]
    above = [np.mean(one) + np.std(one, ddof=1) / 2 * stats.t.ppf(1 - 0.025 / 3, 3) for one in SETS.values()]
    assert found.interval == pytest.approx((min(bounds), min(above)))
    assert found.verdict == "does not hold", "on one set it is surely below 1"
    assert across("every", {name: SETS[name] for name in "ab"}, effect=0.3).verdict == "holds"


def test_on_average_is_a_t_over_the_seeds_means():
    found = across("average")
    means = np.mean(list(SETS.values()), 0)
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert found.interval == pytest.approx([expected.low, expected.high])
    assert (found.n, found.condition, found.across) == (4, "", "average")
    conditions = {
        name: {"control": {"acc": [50.0] * 4}, "arm": {"acc": [50 + one for one in values]}}
        for name, values in SETS.items()
    }
    conditions["b"]["arm"]["acc"][1] = None  # a seed that is not whole on every set takes no part
    (found,) = judge(study([claim("x", "arm", across="average")], 4, tuple(SETS)), conditions)
    assert (found.n, found.estimate) == (3, pytest.approx(np.delete(means, 1).mean()))


def test_on_new_sets_is_a_t_over_the_sets_means():
    found = across("new")
    means = [np.mean(values) for values in SETS.values()]
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert found.interval == pytest.approx([expected.low, expected.high])
    assert found.n == 3
    assert found.reason == "these sets cannot tell what happens on new ones"


def test_a_set_that_was_not_run_leaves_a_claim_across_sets_unmeasured():
    for kind in ("every", "average", "new"):
        assert across(kind, conditions=("a", "absent")).verdict == "not measured"
    assert across("average", conditions=("a", "b")).estimate == pytest.approx(np.mean([SETS["a"], SETS["b"]]))


def test_the_power_of_planned_looks_is_that_of_the_share_which_the_last_one_spends():
    one = [claim("a", "arm")]
    values = {"default": {"control": {"acc": [50.0, 50.0, 50.0]}, "arm": {"acc": [50.0, 51.0, 52.0]}}}
    plain, looks = study(one, 3), study(one, 3, looks=(3, 5, 10))
    (at_ten,) = outlooks(plain, values, 3, 10)
    assert at_ten.alone == pytest.approx(power(1.0, inflation(3), 10, 0.025))
    (of_look,) = outlooks(looks, values, 3, 12)
    assert (of_look.n, of_look.alone) == (10, pytest.approx(power(1.0, inflation(3), 10, 0.5 * 0.025)))
    assert outlooks(looks, values, 3, 2)[0].alone == 0


def test_new_fields_at_their_defaults_change_no_hash():
    one = plan()
    assert one.claims_hash() == plan(claims=tuple(c.model_copy() for c in one.claims)).claims_hash()
    assert set(one.claims[0].stated()) == {"id", "sentence", "metric", "direction", "arms", "smallest_effect"}
    assert one.claims_hash() == "41c901c17fa1ac26"
    assert one.with_looks([3, 5, 10]).claims_hash() != one.claims_hash()
    assert one.with_looks([3, 5, 10]).claims_hash() != one.with_looks([3, 5, 10], [0.1, 0.2, 0.7]).claims_hash()
    assert one.with_looks([3, 5, 10]).planned_looks == ((3, 0.2), (5, 0.3), (10, 0.5))
    assert one.with_looks([4, 8]).planned_looks == ((4, 0.5), (8, 0.5))
    for weights in ([float("nan")] * 3, [0.5, 0.5, 0.0]):
        with pytest.raises(UserError, match="the weight of a look must be above 0"):
            one.with_looks([3, 5, 10], weights)
