"""Temperature scaling (Guo et al., ICML 2017): divide logits by one number, fitted on held-out samples."""

from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from retarget.errors import UserError
from retarget.metrics._inputs import as_numpy, checked_labels, checked_logits

TEMPERATURE_RANGE = (0.01, 100.0)


def softmax(logits: Float[Any, "samples classes"]) -> Float[np.ndarray, "samples classes"]:
    """Probabilities [N, C] in float64 from logits [N, C] of any floating type.

    Raises:
        UserError: there are no samples, the shape is wrong, or a logit is not finite (names its row and class); or
            the rows are probabilities.

    >>> softmax(np.array([[0.0, 0.0], [1000.0, 0.0]])).tolist()
    [[0.5, 0.5], [1.0, 0.0]]
    """
    return apply_temperature(logits, 1.0)


def apply_temperature(
    logits: Float[Any, "samples classes"], temperature: float
) -> Float[np.ndarray, "samples classes"]:
    """Probabilities ``softmax(logits / T)`` in float64; the predicted class does not change.

    Args:
        logits: [N, C].
        temperature: T > 0; a value above 1 makes predictions less confident.

    Raises:
        UserError: T is not one positive finite number, or the logits are bad (see :func:`softmax`).

    >>> apply_temperature(np.array([[np.log(9.0), 0.0]]), temperature=2.0).round(6).tolist()
    [[0.75, 0.25]]
    """
    number = as_numpy(temperature)
    if number.size != 1 or number.dtype.kind not in "fiu":
        raise UserError(f"temperature must be one number for all samples: got {temperature!r}")
    if not (np.isfinite(number) and number > 0):
        raise UserError(f"temperature must be positive and finite: got {temperature}")
    probs = _shifted(checked_logits(logits))
    probs /= float(number.item())
    np.exp(probs, out=probs)
    probs /= probs.sum(1, keepdims=True)
    return probs


def log_losses_of_logits(logits: Any, labels: Any) -> Float[np.ndarray, "samples"]:
    """``logsumexp(z) - z_label`` of each sample, [N]: finite where the label's probability would round to 0.

    Raises:
        UserError: see :func:`softmax`; or the labels are not integers [N] in [0, C).
    """
    shifted = _shifted(checked_logits(logits))
    labels = checked_labels(labels, *shifted.shape)
    of_label = shifted[np.arange(len(labels)), labels]
    return np.log(np.exp(shifted, out=shifted).sum(1)) - of_label


def fit_temperature(
    logits: Float[Any, "samples classes"],
    labels: Integer[Any, "samples"],
    bounds: tuple[float, float] = TEMPERATURE_RANGE,
) -> float:
    """The temperature that minimises the negative log-likelihood of held-out samples.

    With b = 1/T and p = softmax(b z) the loss is convex in b and its slope is ``mean(sum_c p_c z_c - z_y)``; the
    root of the slope is found by Brent's method between the bounds.

    Args:
        logits: [N, C], of samples that were *not* trained on.
        labels: [N], in [0, C).
        bounds: the lowest and the highest temperature, 0 < low < high.

    Returns:
        T. It is a bound if the loss still falls there: the lowest if every prediction is correct (more confidence
        always helps), the highest if the predictions are no better than chance. It is 1 if all logits of each sample
        are equal, so that T changes nothing.

    Raises:
        UserError: bad bounds, no samples, a shape that does not fit, or a bad value; the message names its row.

    >>> logits = np.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])  # three in four are right
    >>> round(fit_temperature(logits, np.array([0, 0, 0, 1])), 6)  # 2 / log 3
    1.820478
    """
    low, high = bounds
    if not 0 < low < high < np.inf:
        raise UserError(f"bounds of the temperature must be 0 < low < high: got {bounds}")
    shifted = _shifted(checked_logits(logits))
    labels = checked_labels(labels, *shifted.shape)
    if not shifted.any():
        return 1.0
    wanted = shifted[np.arange(len(labels)), labels].mean()
    buffer = np.empty_like(shifted)

    def slope(log_temperature: float) -> float:
        np.multiply(shifted, np.exp(-log_temperature), out=buffer)
        np.exp(buffer, out=buffer)
        expected = np.einsum("nc,nc->n", buffer, shifted) / buffer.sum(1)
        return float(expected.mean() - wanted)

    if slope(np.log(low)) <= 0:
        return float(low)
    if slope(np.log(high)) >= 0:
        return float(high)
    from scipy.optimize import root_scalar  # takes 0.4 s to import, and most callers never fit

    found = root_scalar(slope, bracket=(np.log(low), np.log(high)), method="brentq", xtol=1e-12)
    return float(np.exp(found.root))


def _shifted(logits: np.ndarray) -> Float[np.ndarray, "samples classes"]:
    """A float64 copy in which every row's largest logit is 0, so that no exponential overflows."""
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    return wide
