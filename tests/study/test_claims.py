import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats
from tasks_for_tests import plan

from retarget.study.claims import judge
from retarget.study.config import SHARE, Claim, Metric

METRICS = (
    Metric(name="acc", label="accuracy", unit="%", better="higher"),
    Metric(name="loss", label="loss", better="lower"),
    Metric(name="bytes", label="bytes", better="lower", deterministic=True),
    Metric(name="share", label="share", **SHARE, better="higher"),
)


def claim(name="c", metric="acc", direction="higher", arms=("treated", "control"), effect=0.5, **more):
    return Claim(id=name, sentence="S.", metric=metric, direction=direction, arms=arms, smallest_effect=effect, **more)


def verdicts(claims, arms, seeds=5, level=0.95, items=None):
    """Judge with ``arms = {arm: {metric: values}}``."""
    study = plan(seeds=list(range(seeds)), metrics=METRICS, claims=tuple(claims), level=level)
    return [found.model_dump(mode="json") for found in judge(study, {"default": arms}, items)]


def one(treated, control, **more):
    metric = more.get("metric", "acc")
    (found,) = verdicts([claim(**more)], {"treated": {metric: treated}, "control": {metric: control}}, len(treated))
    return found


CONTROL = [50.0, 51.0, 49.5, 50.2, 50.4]


def lifted(by, jitter=0.1):
    return [value + by + jitter * (-1) ** i * (1 + i / 7) for i, value in enumerate(CONTROL)]


def test_a_clear_gain_holds():
    found = one(lifted(1.0), CONTROL)
    low, high = stats.ttest_1samp(np.subtract(lifted(1.0), CONTROL), 0).confidence_interval(0.95)
    assert found["verdict"] == "holds"
    assert found["estimate"] == pytest.approx(np.mean(lifted(1.0)) - np.mean(CONTROL))
    assert found["interval"] == pytest.approx([low, high])
    assert (found["n"], found["level"], found["unit"]) == (5, 0.95, "%")
    assert found["p_holds"] == found["p_holds_adjusted"] < 0.025
    assert found["p_fails"] > 0.9
    assert not found["below_smallest_effect"]
    assert found["seeds_needed"] is None


def test_a_lower_loss_is_a_gain_and_its_numbers_keep_their_sign():
    found = one(lifted(-1.0), CONTROL, metric="loss", direction="lower")
    assert found["verdict"] == "holds"
    assert found["estimate"] < 0
    assert found["interval"][0] < found["interval"][1] < 0
    assert one(lifted(1.0), CONTROL, metric="loss", direction="lower")["verdict"] == "does not hold"


def test_a_gain_surely_smaller_than_what_matters_holds_and_says_so():
    found = one(lifted(0.2, jitter=0.01), CONTROL)
    assert found["verdict"] == "holds"
    assert found["below_smallest_effect"]


def test_a_difference_surely_short_of_the_smallest_effect_does_not_hold():
    found = one(lifted(0.02), CONTROL)
    assert found["verdict"] == "does not hold"
    assert found["interval"][0] < 0 < found["interval"][1] < 0.5
    assert one(lifted(-2.0), CONTROL)["verdict"] == "does not hold"


def test_a_wide_interval_says_how_many_seeds_would_decide():
    found = one(lifted(0.3, jitter=0.5), CONTROL)
    assert found["verdict"] == "not enough evidence"
    sd = np.std(np.subtract(lifted(0.3, jitter=0.5), CONTROL), ddof=1)
    distance, counts = max(found["estimate"], 0.5 - found["estimate"]), np.arange(6, 1000)
    power = stats.nct.sf(stats.t.ppf(0.975, counts - 1), counts - 1, distance * np.sqrt(counts) / sd)
    assert found["seeds_needed"] == counts[power >= 0.8][0]


def test_non_inferiority_is_tested_against_the_margin():
    assert one(lifted(-0.2), CONTROL, margin=0.5)["verdict"] == "holds"
    assert one(lifted(-1.0), CONTROL, margin=0.5)["verdict"] == "does not hold"
    unsure = one(lifted(-0.45), CONTROL, margin=0.5)
    assert unsure["verdict"] == "not enough evidence"
    assert unsure["seeds_needed"] > 5
    assert one(lifted(0.2), CONTROL, metric="loss", direction="lower", margin=0.5)["verdict"] == "holds"


def test_one_arm_is_compared_with_a_constant():
    arms = {"treated": {"acc": lifted(0.0)}}
    found = verdicts([claim(arms=("treated",), against=45.0)], arms)[0]
    assert found["verdict"] == "holds"
    assert found["estimate"] == pytest.approx(np.mean(lifted(0.0)) - 45)
    assert verdicts([claim(arms=("treated",), against=55.0)], arms)[0]["verdict"] == "does not hold"


def test_an_interval_ends_where_no_difference_can_be_and_decides_the_same():
    treated, control = [0.0, 1.0, 99.0], [0.0, 1.0, 0.0]
    free, bounded = (one(treated, control, metric=metric) for metric in ("acc", "share"))
    assert free["interval"][0] < -100
    assert free["interval"][1] > 100
    assert bounded["interval"] == [-100, 100]
    for key in ("verdict", "estimate", "p_holds", "p_fails", "seeds_needed", "level"):
        assert bounded[key] == free[key]
    arms = {"treated": {"share": treated, "acc": treated}, "control": {"share": control, "acc": control}}
    assert verdicts([claim(arms=("treated",), metric="share", against=5.0)], arms, 3)[0]["interval"] == [-5, 95]
    assert verdicts([claim(shown="share")], arms, 3)[0]["shown"]["interval"] == [-100, 100]
    assert Metric.model_validate({"name": "auc", "label": "AUC", "bounds": [0, 1]}).bounds == (0, 1)  # as TOML has it
    with pytest.raises(ValidationError, match="give the smaller one first"):
        Metric(name="auc", label="AUC", bounds=(1, 0))


def test_what_was_never_run_is_not_measured():
    for arms in ({}, {"treated": {"acc": CONTROL}}, {"treated": {"acc": [None] * 5}, "control": {"acc": CONTROL}}):
        (found,) = verdicts([claim()], arms)
        assert found["verdict"] == "not measured"
        assert found["estimate"] is found["interval"] is found["p_holds"] is found["p_fails"] is None
        assert found["n"] == 0
    found = verdicts([claim(condition="windy")], {"treated": {"acc": CONTROL}, "control": {"acc": CONTROL}})[0]
    assert found["verdict"] == "not measured"


def test_seeds_that_failed_leave_the_pairs_that_are_whole():
    found = one([*lifted(1.0)[:3], None, lifted(1.0)[4]], [None, *CONTROL[1:]])
    assert found["n"] == 3
    assert found["verdict"] == "holds"


def test_one_seed_decides_nothing():
    found = one([60.0], [50.0])
    assert found["verdict"] == "not enough evidence"
    assert found["estimate"] == 10
    assert found["interval"] is None
    assert found["p_holds"] is found["p_fails_adjusted"] is found["seeds_needed"] is None


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_the_rounding_error_of_equal_values_is_no_difference(seeds):
    treated, control = [0.1 + 0.2] * seeds, [0.3] * seeds
    assert treated[0] - control[0] != 0
    found = one(treated, control, shown="loss")
    assert found["estimate"] == 0
    both = {"treated": {"acc": treated, "loss": treated}, "control": {"acc": control, "loss": control}}
    (found,) = verdicts([claim(shown="loss")], both, seeds)
    assert found["shown"]["estimate"] == 0
    tiny = [value * 1e-15 for value in range(1, seeds + 1)]
    assert one([2 * value for value in tiny], tiny)["estimate"] == pytest.approx(sum(tiny) / seeds), "of small values"


@pytest.mark.parametrize("by", [0.0, 2.0, -2.0])
@pytest.mark.parametrize("seeds", [2, 5])
def test_differences_without_spread_decide_nothing(by, seeds):
    found = one([value + by for value in CONTROL[:seeds]], CONTROL[:seeds])
    assert found["verdict"] == "not enough evidence"
    assert found["estimate"] == pytest.approx(by)
    assert found["interval"] is None, "one of no width would claim certainty"
    assert "same on every seed" in found["reason"]


@pytest.mark.parametrize("margin", [None, 0.5])
def test_identical_arms_never_hold(margin):
    """PS-KD with alpha_T = 0 is its own control, up to the last bits of a logged loss."""
    noisy = [value * (1 + 1e-9 * (i + 1)) for i, value in enumerate(CONTROL)]
    for treated in (CONTROL, noisy):
        for direction in ("higher", "lower"):
            assert one(treated, CONTROL, direction=direction, margin=margin)["verdict"] == "not enough evidence"


def test_a_metric_declared_deterministic_is_judged_as_it_is():
    found = one([10.0, 10.0], [100.0, 100.0], metric="bytes", direction="lower", effect=1)
    assert found["verdict"] == "holds"
    assert found["interval"] == [-90, -90]
    assert found["p_holds"] is None
    assert one([10.0], [100.0], metric="bytes", direction="lower", effect=1)["verdict"] == "holds"
    assert one([100.0] * 2, [100.0] * 2, metric="bytes", direction="lower", effect=1)["verdict"] == "does not hold"
    varying = one([10.0, 190.0], [100.0, 100.0], metric="bytes", direction="lower", effect=1)
    assert varying["verdict"] == "not enough evidence"
    assert varying["p_holds"] is not None


SIZE = Metric(name="size", label="size", deterministic=True)


@pytest.mark.parametrize(
    ("treated", "control", "more", "verdict", "estimate"),
    [
        ([0.1 + 0.2] * 3, [0.3] * 3, {}, "does not hold", 0.0),
        ([0.1 + 0.2, 0.3], [0.3, 0.3], {}, "does not hold", 0.0),
        ([0.3 - 0.1], [0.2 + 0.1], {"margin": 0.1}, "holds", -0.1),
        ([0.31], [0.3], {}, "holds", 0.01),
        ([10_000_001.0], [10_000_000.0], {}, "holds", 1.0),
        ([0.1 + 0.2], [], {"against": 0.3, "arms": ("treated",)}, "does not hold", 0.0),
    ],
)
def test_the_rounding_error_of_a_deterministic_metric_is_no_difference(treated, control, more, verdict, estimate):
    """0.1 + 0.2 is not 0.3 in binary numbers, but whole numbers have no rounding error."""
    study = plan(metrics=(SIZE,), seeds=list(range(len(treated))), claims=(claim(metric="size", effect=5, **more),))
    (found,) = judge(study, {"default": {"treated": {"size": treated}, "control": {"size": control}}})
    assert found.verdict == verdict
    assert found.estimate == pytest.approx(estimate, abs=0 if estimate == 0 else 1e-9)
    assert found.interval == (found.estimate, found.estimate)


def test_holm_over_the_measured_claims_decides_in_each_chain():
    """p = 0.02 alone would hold; as one of three measured claims, behind a certain one, it does not."""
    wobble = np.array([-1.0, 0.2, 0.5, 1.1, -0.8])
    wobble = (wobble - wobble.mean()) / wobble.std(ddof=1)
    barely = [float(c + d) for c, d in zip(CONTROL, 1.45 + wobble, strict=True)]
    arms = {
        "control": {"acc": CONTROL},
        "barely": {"acc": barely},
        "sure": {"acc": lifted(5.0)},
        "equal": {"acc": [value + one for value, one in zip(CONTROL, wobble, strict=True)]},
    }
    alone = verdicts([claim("a", arms=("barely", "control"), effect=3)], arms)[0]
    assert alone["verdict"] == "holds"
    assert 0.0125 < alone["p_holds"] < 0.025
    family = [claim(name, arms=(name, "control"), effect=3) for name in ("barely", "sure", "equal", "absent")]
    barely, sure, equal, absent = verdicts(family, arms)
    assert [barely["verdict"], sure["verdict"]] == ["not enough evidence", "holds"]
    assert [equal["verdict"], absent["verdict"]] == ["does not hold", "not measured"]
    # "holds": sure is rejected at a third, the others stay at a half; "does not hold": equal is rejected at a third
    assert sure["level"] == pytest.approx(1 - 0.025 / 3 - 0.025 / 2)
    assert barely["level"] == pytest.approx(1 - 0.025 / 2 - 0.025 / 2)
    assert equal["level"] == pytest.approx(1 - 0.025 / 2 - 0.025 / 3)
    assert barely["p_holds_adjusted"] == pytest.approx(2 * barely["p_holds"])
    assert barely["interval"][0] < 0


def test_the_shown_metric_stands_beside_and_decides_nothing():
    arms = {"treated": {"acc": lifted(1), "loss": lifted(-3)}, "control": {"acc": CONTROL, "loss": CONTROL}}
    both = verdicts([claim(shown="loss")], arms, items={"c": (0.5, 1.5)})[0]
    plain = verdicts([claim()], arms)[0]
    assert (both["shown"]["metric"], both["shown"]["n"]) == ("loss", len(CONTROL))
    assert both["shown"]["estimate"] == pytest.approx(-3, abs=0.1)
    low, high = both["shown"]["interval"]
    assert low < both["shown"]["estimate"] < high
    assert both["item_interval"] == [0.5, 1.5]
    assert plain["item_interval"] is plain["shown"] is None
    assert {**both, "shown": None, "item_interval": None} == plain
    missing = verdicts([claim(shown="f1")], arms)[0]
    assert missing["shown"] == {"metric": "f1", "n": None, "value": False, "estimate": None, "interval": None}


def test_beside_a_constant_stands_the_shown_metric_s_own_value():
    """The constant is one of accuracy: a loss minus an accuracy would be no number of anything."""
    losses = [2.0 + seed for seed in range(len(CONTROL))]
    arms = {"treated": {"acc": lifted(1), "loss": losses}, "control": {"acc": CONTROL}}
    shown = verdicts([claim(arms=("treated",), against=10.0, shown="loss")], arms)[0]["shown"]
    assert shown["value"]
    assert shown["estimate"] == pytest.approx(np.mean(losses))


def test_a_claim_compares_two_things():
    for wrong in (dict(arms=("a",)), dict(arms=("a", "b"), against=1.0), dict(arms=("a", "a"))):
        with pytest.raises(ValidationError, match=r"needs two arms, or one arm and a constant|with itself"):
            claim(**wrong)


@pytest.mark.parametrize("seeds", [3, 5])
def test_under_no_effect_a_study_with_any_claim_that_holds_is_no_more_frequent_than_stated(seeds):
    """Family-wise: six claims that share one control, so that their differences are dependent, as in a study."""
    rng = np.random.default_rng(seeds)
    names = [f"arm{i}" for i in range(6)]
    claims = [claim(name, arms=(name, "control"), direction=("higher", "lower")[i % 2]) for i, name in enumerate(names)]
    studies, wrong = 1500, 0
    for _ in range(studies):
        values = 50 + rng.normal(size=(7, seeds))
        arms = {name: {"acc": row.tolist()} for name, row in zip(["control", *names], values, strict=True)}
        wrong += any(found["verdict"] == "holds" for found in verdicts(claims, arms, seeds))
    # 2.5 % or fewer, and binomial error on top
    assert wrong <= stats.binom.ppf(0.999, studies, 0.025)
    assert wrong >= 1, "a test that never errs tests nothing"


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_true_effect_of_the_smallest_size_is_seldom_denied(seeds):
    rng = np.random.default_rng(seeds)
    studies, denied = 1500, 0
    for _ in range(studies):
        control = 50 + rng.normal(size=seeds)
        treated = control + 0.5 + 0.1 * rng.normal(size=seeds)
        found = one(treated.tolist(), control.tolist())
        denied += found["verdict"] == "does not hold"
    assert denied <= stats.binom.ppf(0.999, studies, 0.025)
