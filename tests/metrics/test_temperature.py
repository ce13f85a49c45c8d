"""Temperature scaling against a grid, and its invariances."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from retarget.errors import UserError
from retarget.metrics import accuracy, apply_temperature, fit_temperature, negative_log_likelihood, softmax
from retarget.metrics._temperature import log_losses_of_logits


def held_out(seed: int, samples: int = 150, classes: int = 4, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are ``scale`` times too large for the labels drawn from them."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(samples, classes))
    labels = np.array([rng.choice(classes, p=row) for row in softmax(logits)])
    return scale * logits, labels


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_no_point_of_a_grid_is_better(scale):
    logits, labels = held_out(seed=1, scale=scale)

    def loss(temperature: float) -> float:
        return -log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean()

    fitted = fit_temperature(logits, labels)
    grid = np.geomspace(0.01, 100, 4001)
    losses = [loss(t) for t in grid]
    best = int(np.argmin(losses))
    assert loss(fitted) <= losses[best] + 1e-14
    assert grid[best - 1] <= fitted <= grid[best + 1]
    assert negative_log_likelihood(apply_temperature(logits, fitted), labels) == pytest.approx(loss(fitted), rel=1e-12)


@given(seed=st.integers(0, 10_000), scale=st.floats(0.2, 5))
def test_scaled_logits_have_the_scaled_temperature(seed, scale):
    logits, labels = held_out(seed)
    assert fit_temperature(scale * logits, labels) == pytest.approx(scale * fit_temperature(logits, labels), rel=1e-8)


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.1, 50))
def test_temperature_does_not_change_the_predictions(seed, temperature):
    logits, labels = held_out(seed)
    np.testing.assert_array_equal(apply_temperature(logits, temperature).argmax(1), logits.argmax(1))
    assert accuracy(apply_temperature(logits, temperature), labels) == accuracy(softmax(logits), labels)


def test_large_logits_do_not_overflow_and_tensors_are_taken():
    logits = torch.tensor([[1e4, 0.0, -1e4]], dtype=torch.float32)
    assert softmax(logits).tolist() == [[1.0, 0.0, 0.0]]
    np.testing.assert_allclose(softmax(logits / 1e4), torch.softmax(logits.double() / 1e4, 1).numpy(), rtol=1e-7)
    assert softmax(logits).dtype == np.float64


def test_a_bound_is_returned_where_the_loss_has_no_minimum_between():
    logits = np.array([[2.0, 0.0], [0.0, 2.0]])
    assert fit_temperature(logits, np.array([0, 1])) == 0.01
    assert fit_temperature(logits, np.array([1, 0])) == 100.0
    assert fit_temperature(logits, np.array([0, 1]), bounds=(0.5, 2.0)) == 0.5


def test_logits_that_are_equal_within_each_row_leave_the_temperature_at_one():
    assert fit_temperature(np.array([[3.0, 3.0], [1.0, 1.0]]), np.array([0, 1])) == 1.0


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(UserError, match=f"temperature must be positive and finite: got {temperature}"):
        apply_temperature(np.zeros((1, 2)), temperature)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (2.0, 1.0), (1.0, float("inf"))])
def test_bad_bounds_are_refused(bounds):
    with pytest.raises(UserError, match="bounds of the temperature"):
        fit_temperature(np.zeros((1, 2)), np.array([0]), bounds)


@pytest.mark.parametrize("logarithm", [True, False])
def test_probabilities_are_not_taken_for_logits(logarithm):
    """The temperature fitted to probabilities would say the opposite: .4 in place of 5.4."""
    rng = np.random.default_rng(0)
    logits = 5 * rng.normal(size=(200, 4))
    labels = np.where(rng.random(200) < 0.6, logits.argmax(1), rng.integers(0, 4, 200))
    probs = apply_temperature(logits, 1.0)
    if logarithm:
        assert fit_temperature(np.log(probs), labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-6)
        return
    told = r"^all 200 rows of logits are at least 0 and sum to 1, so they are probabilities: pass the logits, or the"
    for misused in (
        lambda: fit_temperature(probs, labels), lambda: apply_temperature(probs, 2.0), lambda: softmax(probs),
        lambda: log_losses_of_logits(probs, labels),
    ):  # fmt: skip
        with pytest.raises(UserError, match=told):
            misused()
    assert apply_temperature(np.eye(10), 1.0).max() < 0.3, "zeros and ones may be logits"
