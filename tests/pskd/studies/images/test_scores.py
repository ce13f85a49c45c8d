"""The metrics of a classifier's predictions, where they could be confidently wrong."""

import numpy as np
import pytest
from scipy.special import softmax

from retarget.metrics import calibration as c
from retarget.pskd.studies.images.analysis import remark
from retarget.pskd.studies.images.scores import UNKNOWN, fitted_temperature, log_odds, scores


def predictions(scale=1.0, wrong=60, faultless=False, classes=2):
    """2,000 test images and 100 validation images; the first ``wrong`` test images are wrong."""
    rng = np.random.default_rng(0)
    found = {}
    for part, count in (("test", 2000), ("val", 100)):
        labels = rng.integers(0, classes, count)
        logits = rng.normal(0, 1, (count, classes))
        logits[np.arange(count), labels] += (9 if faultless else 3) + rng.gamma(2, 1, count)
        if part == "test" or not faultless:
            lost = wrong if part == "test" else 5
            logits[:lost] = np.roll(logits[:lost], 1, axis=1) / 2
        found |= {f"{part}_logits": scale * logits, f"{part}_labels": labels}
    found |= {f"{name}_selected": found[name] for name in ("test_logits", "val_logits")}
    return found | {"selected_epoch": np.array([3])}


def test_the_ranking_does_not_depend_on_the_order_of_the_images():
    arrays = predictions(scale=40.0, classes=5)
    assert (softmax(arrays["test_logits"], 1).max(1) == 1).mean() > 0.5, "the confidences must round to 1"
    reordered = {name: one[::-1] if name.startswith("test") else one for name, one in arrays.items()}
    for name in ("aurc", "aurc_scaled", "excess_aurc", "augrc", "failure_auroc"):
        assert scores(arrays)[name] == pytest.approx(scores(reordered)[name], rel=1e-12)


def test_a_temperature_cannot_change_the_ranking_of_two_classes():
    found = scores(predictions(scale=8.0))
    assert found["aurc_scaled"] == pytest.approx(found["aurc"], rel=1e-12)


def test_log_odds_rank_as_probabilities_do():
    logits = np.random.default_rng(1).normal(0, 2, (500, 7))
    probs = softmax(logits, 1).max(1)
    np.testing.assert_allclose(1 / (1 + np.exp(-log_odds(logits))), probs, rtol=1e-12)
    correct = np.arange(500) % 3 > 0
    assert c.aurc(log_odds(logits), correct) == c.aurc(probs, correct)


def test_a_faultless_validation_part_tells_no_temperature():
    arrays = predictions(faultless=True)
    assert fitted_temperature(arrays) == UNKNOWN == 1.0
    found = scores(arrays)
    assert found["nll_scaled"] == found["nll"]
    assert "it cannot be told how confident it should be" in remark("cross_entropy", found)
    assert fitted_temperature(predictions()) != UNKNOWN
