"""The rules of the verdict, and the null."""

import pytest
from scipy.stats import binom

from retarget.audit.calibration import LEAST, Family, Null, NullModel, false_positives, nearest, p_value, shipped
from retarget.audit.verdict import BEYOND, ELSEWHERE, decide

KNOWN = Family(name="8×8, 1 channel", scores=[0.05 + n / 400 for n in range(40)], own=LEAST)
OTHERS = KNOWN.model_copy(update={"own": LEAST - 1})
UNKNOWN = Family(name="8×8, 1 channel", scores=[0.1] * 40, unlike="no clean model is 64×64")


def model(score=0.1, side=8, channels=1, residual=0.01):
    return NullModel(
        score=score, side=side, channels=channels, case="plain", schedule="linear", residual=residual, spread=1
    )


@pytest.mark.parametrize(("score", "strength", "family", "verdict"), [
    (0.60, 0.2, KNOWN, "trojaned"), (0.60, 0.4, OTHERS, "trojaned"), (0.60, 0.4, UNKNOWN, "undecided"),
    (1.10, 0.2, UNKNOWN, "undecided"), (1.10, 0.4, OTHERS, "trojaned"), (1.10, 0.4, UNKNOWN, "trojaned"),
])  # fmt: skip
def test_a_change_elsewhere_decides_alone_only_if_it_is_thrice_that_of_clean_networks(score, strength, family, verdict):
    found = decide(score, 0.7, strength, family, "elsewhere")
    assert found[0] == verdict
    assert ("changes its answer far from a local trigger by 0.70 of its size" in found[2]) == (strength >= 0.18)
    assert max(one.statistics["score_elsewhere"] for one in shipped().models) < ELSEWHERE / 3


@pytest.mark.parametrize(("score", "verdict"), [(0.44, "undecided"), (0.49, "undecided"), (0.5, "trojaned")])
def test_without_comparable_models_the_score_of_a_picture_known_by_heart_decides_nothing(score, verdict):
    assert decide(score, 0.64, 0.32, UNKNOWN)[0] == verdict
    assert decide(score, 0.64, 0.32, OTHERS)[0] == "trojaned"


def test_a_picture_that_is_known_by_heart_is_undecided_at_most():
    for family in (KNOWN, OTHERS, UNKNOWN):
        assert decide(0.6, 0.6, 0.4, family)[0] == "trojaned"
        verdict, code, reason, _ = decide(0.6, 0.6, 0.4, family, known_by_heart=True)
        assert (verdict, code) == ("undecided", 3)
        assert "undoes a trigger by 0.60" in reason
        assert "is a picture that the network also draws from plain noise" in reason
    assert decide(0.05, 0.6, 0.4, KNOWN, known_by_heart=True)[0] == "nothing found"


@pytest.mark.parametrize(("score", "rise", "verdict"), [
    (0.12, 0.0, "nothing found"), (0.12, 0.02, "nothing found"), (0.12, 0.05, "undecided"),
    (0.03, 0.05, "nothing found"), (0.3, 0.2, "trojaned"),
])  # fmt: skip
def test_nothing_is_found_only_if_another_ascent_like_the_last_would_change_nothing(score, rise, verdict):
    found, code, reason, rate = decide(score, 0.6, 0.4, KNOWN, rise=rise)
    assert found == verdict
    assert ("has not converged: its last ascent raised the score by 0.05" in reason) == (code == 3)
    assert rate.known


def test_an_undecided_verdict_says_what_keeps_it_so():
    weak = decide(0.3, 0.3, 0.2, OTHERS)[2]
    assert "the score, 0.30, is higher than those of 40 of 40 clean models, but its trigger is weak" in weak
    assert f"strength 0.20), and only {LEAST - 1} of these models have exactly this shape" in weak
    some = decide(0.3, 0.3, 0.1, KNOWN.model_copy(update={"scores": [*KNOWN.scores, 0.4]}))[2]
    assert some == "the score, 0.30, is higher than those of 40 of 41 clean models, but no trigger fires"
    assert "fires" not in decide(0.3, 0.6, 0.1, UNKNOWN)[2]
    assert "a trigger fires, too weakly to decide alone" in decide(0.3, 0.6, 0.2, UNKNOWN)[2]


SHAPED = KNOWN.model_copy(update={"shape": LEAST, "highest": 0.3})


@pytest.mark.parametrize(("score", "strength", "changes", "verdict", "words"), [
    (0.40, 0.1, {}, "trojaned", "0.40, is 1.3 times that of the highest of all comparable clean models, although the "
                                "trigger does not fire in the middle of the schedule"),
    (0.40, 0.2, {"own": LEAST - 1}, "trojaned", "although the trigger fires weakly (strength 0.20)"),
    (0.40, 0.2, {}, "trojaned", "and it fires weakly (strength 0.20)"),
    (0.60, 0.3, {}, "trojaned", "undoes a trigger by 0.45 on new noise, and it fires"),
    (0.40, None, {}, "undecided", "no trigger fires"),
    (0.38, 0.1, {}, "undecided", "no trigger fires"),
    (0.40, 0.1, {"shape": LEAST - 1}, "undecided", "no trigger fires"),
    (0.40, 0.1, {"highest": None}, "undecided", "no trigger fires"),
    (0.40, 0.1, {"unlike": "no clean model is 64×64"}, "undecided", "no clean model is 64×64"),
])  # fmt: skip
def test_a_score_far_above_all_clean_models_decides_without_a_trigger_that_fires(
    score, strength, changes, verdict, words
):
    found = decide(score, 0.45, strength, SHAPED.model_copy(update=changes))
    assert found[0] == verdict
    assert words in found[2]


def test_no_clean_model_of_the_null_is_far_above_the_others():
    null = shipped()
    ratios = []
    for number, one in enumerate(null.models):
        others = null.model_copy(update={"models": [*null.models[:number], *null.models[number + 1 :]]})
        highest = nearest(one.side, one.channels, one.residual, others, null.search).highest
        ratios += [one.score / highest] if highest else []
    assert len(ratios) > len(null.models) / 2, "most are comparable with others"
    assert max(ratios) < BEYOND


@pytest.mark.parametrize(
    ("score", "undo", "strength", "family", "verdict", "code", "known"),
    [
        (0.08, 0.1, None, KNOWN, "nothing found", 0, True),
        (0.80, 0.9, 0.8, KNOWN, "trojaned", 1, True),
        (0.30, 0.3, 0.2, KNOWN, "trojaned", 1, True),
        (0.80, 0.9, 0.1, KNOWN, "undecided", 3, True),
        (0.30, 0.3, 0.2, OTHERS, "undecided", 3, True),
        (0.30, 0.5, 0.2, OTHERS, "undecided", 3, True),
        (0.24, 0.5, 0.4, OTHERS, "undecided", 3, True),
        (0.30, 0.5, 0.4, OTHERS, "trojaned", 1, True),
        (0.08, 0.1, None, OTHERS, "nothing found", 0, True),
        (0.14, 0.2, 0.4, Family(name="", scores=[0.01] * 40), "nothing found", 0, True),
        (0.80, 0.9, 0.8, UNKNOWN, "trojaned", 1, False),
        (0.80, 0.9, 0.2, UNKNOWN, "undecided", 3, False),
        (0.40, 0.4, 0.4, UNKNOWN, "undecided", 3, False),
        (0.80, 0.9, 0.1, UNKNOWN, "undecided", 3, False),
        (0.05, 0.0, None, UNKNOWN, "undecided", 3, False),
        (0.20, 0.9, 0.8, UNKNOWN, "undecided", 3, False),  # undone, but hardly beyond its controls
        (0.60, -0.2, 0.8, UNKNOWN, "trojaned", 1, False),  # amplified in the middle of the schedule
        (0.30, -0.9, 0.8, UNKNOWN, "undecided", 3, False),  # amplified, but hardly beyond its controls
    ],
)
def test_the_verdict(score, undo, strength, family, verdict, code, known):
    found = decide(score, undo, strength, family)
    assert found[:2] == (verdict, code)
    assert found[3].known == known
    assert found[3].sentence
    assert ("amplifies" in found[2]) == (undo < 0 and strength >= 0.18)


def test_the_p_value_counts_ties_against_the_alarm():
    assert p_value(0.3, [0.1, 0.3, 0.5]) == pytest.approx(3 / 4)
    assert p_value(1.0, [0.0] * 99) == pytest.approx(0.01)


def test_the_bound_is_clopper_and_pearson_s():
    bound = false_positives(2, 30)
    assert binom.cdf(2, 30, bound) == pytest.approx(0.05)
    assert false_positives(3, 3) == 1


def test_a_checkpoint_unlike_every_clean_model_has_no_error_rate():
    null = Null(search="s", command="", models=[model() for _ in range(LEAST)] + [model(side=16)])
    assert nearest(8, 1, 0.01, null, "s").unlike == ""
    assert len(nearest(8, 1, 0.01, null, "s").scores) == LEAST
    assert len(nearest(12, 1, 0.01, null, "s").scores) == LEAST + 1
    assert "32" in nearest(32, 1, 0.01, null, "s").unlike
    assert "4×4" in nearest(4, 1, 0.01, null, "s").unlike
    assert (nearest(8, 1, 0.01, null, "s").own, nearest(12, 1, 0.01, null, "s").own) == (LEAST, 0)
    wide = null.model_copy(update={"models": [*null.models, model(side=32, channels=3)]})
    assert nearest(28, 1, 0.01, wide, "s").unlike == "", "between the null's sides, with channels that it has"
    assert "channels" in nearest(28, 4, 0.01, wide, "s").unlike
    assert "channels" in nearest(8, 3, 0.01, null, "s").unlike
    assert "settings" in nearest(8, 1, 0.01, null, "another").unlike
    assert "error" in nearest(8, 1, 0.5, null, "s").unlike
    assert nearest(8, 1, 0.0, null, "s").unlike == "", "a perfect network is compared with the best"
    assert "ends at ᾱ = 0.048" in nearest(8, 1, 0.01, null, "s", 0.048).unlike
    assert "searched at ᾱ = 0.83" in nearest(8, 1, 0.01, null, "s", 4e-5, 0.83).unlike, "a schedule of three steps"
    assert nearest(8, 1, 0.01, null, "s", 4e-5, 0.13).unlike == ""
    assert nearest(8, 1, 0.01, null, "s", 0.0047).unlike == "", "the end of Stable Diffusion's schedule"
    few = Null(search="s", command="", models=[model()])
    assert "1 clean" in nearest(8, 1, 0.01, few, "s").unlike
    assert nearest(8, 1, 0.01, Null(search="s", command="", models=[]), "s").unlike


def test_a_checkpoint_is_compared_with_clean_models_that_are_trained_about_as_well():
    """What has hardly learnt scores higher: the poor ones neither raise the bar of the good nor lower their own."""
    good = [model(score=0.1 + n / 1000, residual=0.004) for n in range(LEAST)]
    other = [model(score=0.2, side=16, residual=0.03) for _ in range(LEAST - 4)]
    poor = [model(score=0.4, residual=0.1) for _ in range(4)]
    null = Null(search="s", command="", models=[*good, *other, *poor])
    assert sorted(nearest(8, 1, 0.005, null, "s").scores) == [one.score for one in good]
    family = nearest(8, 1, 0.06, null, "s")
    assert sorted(family.scores) == [0.2] * (LEAST - 4) + [0.4] * 4
    assert (family.own, family.unlike) == (4, "")
    far = nearest(16, 1, 0.25, null, "s")
    assert len(far.scores) == LEAST
    assert far.scores[:4] == [0.4] * 4
    assert "nearest in training" in far.name


def test_models_with_as_many_channels_come_before_all_others():
    """Networks of photographs score higher than those of grey figures, and must not raise the bar of these."""
    grey = [model(score=0.1, side=side) for side in (8, 16) for _ in range(LEAST - 5)]
    null = Null(search="s", command="", models=[*grey, *(model(score=0.4, side=16, channels=3) for _ in range(9))])
    family = nearest(16, 1, 0.01, null, "s")
    assert family.scores == [0.1] * 2 * (LEAST - 5)
    assert (family.own, family.name) == (LEAST - 5, "any side, 1 channel, trained about as well")
    assert 0.4 in nearest(16, 3, 0.01, null, "s").scores
    assert len(nearest(16, 3, 0.01, null, "s").scores) == len(null.models)
