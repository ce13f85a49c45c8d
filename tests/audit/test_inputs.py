"""Input-level detectors against slow references and on plain and triggered noise."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2, norm

from retarget.audit.inputs import histogram_score, likelihood_score, roc, window_score
from retarget.errors import UserError
from retarget.trojdiff import Trigger

SHAPE = (3, 16, 16)


def noise_of(count, seed):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_the_histogram_s_score_is_a_chi_square_of_plain_noise():
    scores = histogram_score(noise_of(400, 0)).numpy() * 19
    assert scores.mean() == pytest.approx(19, abs=1.5)
    assert np.quantile(scores, 0.95) == pytest.approx(chi2.ppf(0.95, 19), rel=0.15)


def test_the_window_s_score_is_the_smallest_variance():
    noise = noise_of(2, 1)
    for row, score in enumerate(window_score(noise, 3)):
        lowest = min(
            np.mean([noise[row, c, top : top + 3, left : left + 3].numpy().var() for c in range(3)])
            for top in range(14) for left in range(14)
        )  # fmt: skip
        assert float(score) == pytest.approx(-np.log(lowest), rel=1e-4)


def test_the_likelihood_s_score_is_the_ratio_of_two_normals():
    trigger = Trigger.patch(3, 0.2, SHAPE)
    noise = noise_of(3, 2)
    triggered = norm.logpdf(noise.numpy(), trigger.mu.numpy(), trigger.gamma.numpy())
    expected = (triggered - norm.logpdf(noise.numpy())).reshape(3, -1).mean(1)
    np.testing.assert_allclose(
        likelihood_score(noise, trigger.mu, trigger.gamma).numpy(), expected, rtol=1e-4, atol=1e-5
    )


def test_a_blend_shows_in_the_histogram_a_patch_in_its_windows_and_both_in_the_likelihood():
    plain = noise_of(100, 3)
    blend = Trigger.blend(torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1, 0.6)
    patch = Trigger.patch(3, 0.1, SHAPE, place=(2, 9))

    def area(score, trigger):
        return roc(score(plain).numpy(), score(trigger.noise(noise_of(100, 4))).numpy())[2]

    assert area(histogram_score, blend) > 0.99
    assert area(histogram_score, patch) < 0.9
    assert area(window_score, patch) > 0.99
    for trigger in (blend, patch):
        assert area(lambda noise, trigger=trigger: likelihood_score(noise, trigger.mu, trigger.gamma), trigger) > 0.99


def test_a_box_that_narrows_nothing_does_not_show_in_the_windows():
    box = torch.zeros(SHAPE)
    box[:, 2:5, 9:12] = 1
    trigger = Trigger(box, torch.ones(SHAPE))
    area = roc(window_score(noise_of(400, 3)).numpy(), window_score(trigger.noise(noise_of(400, 4))).numpy())[2]
    assert area == pytest.approx(0.5, abs=0.1)


def test_the_roc_s_area_is_mann_and_whitney_s():
    rng = np.random.default_rng(0)
    plain, triggered = rng.integers(0, 6, 40) / 2, rng.integers(2, 8, 30) / 2
    wins = np.mean([(t > p) + 0.5 * (t == p) for t in triggered for p in plain])
    false, true, area = roc(plain, triggered)
    assert area == pytest.approx(wins)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda x: histogram_score(x * float("nan")), "2304 of 2304 values are not finite"),
        (lambda x: window_score(x / 0), "values are not finite"),
        (lambda x: histogram_score(x, bins=1), "bins = 1: give 2 to 768"),
        (lambda x: histogram_score(x, bins=1000), "bins = 1000: give 2 to 768"),
        (lambda x: window_score(x, 1), "size = 1: give 2 to 16"),
        (lambda x: window_score(x, 17), "size = 17: give 2 to 16"),
        (lambda x: likelihood_score(x, torch.zeros(SHAPE), torch.zeros(SHAPE)), "gamma must be above 0 everywhere"),
        (lambda x: roc(np.array([]), np.array([1.0])), "at least one of each"),
        (lambda x: roc(np.array([0.0, np.nan]), np.array([1.0])), "scores must be finite"),
    ],
)
def test_what_gives_no_score_is_refused(ask, said):
    with pytest.raises(UserError, match=said):
        ask(noise_of(3, 5))
