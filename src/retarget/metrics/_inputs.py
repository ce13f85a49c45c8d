"""Convert arrays of any kind to NumPy and refuse bad predictions, in one place for all metrics."""

import operator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer

from retarget.errors import UserError

Predictions = Float[Any, "samples classes"] | Float[Any, "samples"]
"""Probabilities [N, C]; or confidences [N], given with booleans ``correct`` [N] instead of labels."""
Labels = Integer[Any, "samples"] | Bool[Any, "samples"]

SUM_TOLERANCE = 1e-3
_TELLING = 8  # rows from which on logits that could be probabilities are taken for them
BLOCK = 2**16  # values; 512 KiB of float64
BFLOAT16_SUM_TOLERANCE = 1e-2  # a bfloat16 near 1 is off by up to 0.002, and a row sums several
DIGITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}  # binary, of a number's significand


class Judged(NamedTuple):
    """What ranking and calibration depend on.

    Attributes:
        confidence: [N] float64, the largest probability of each sample.
        correct: [N] bool, whether the predicted class (the first one with that probability) is the label.
        digits: binary digits of a confidence in the type in which it was given, one of ``DIGITS``: 0.6 is another
            number in float32 than in float64.
    """

    confidence: Float[np.ndarray, "samples"]
    correct: Bool[np.ndarray, "samples"]
    digits: int = DIGITS["float64"]


def as_numpy(value: Any) -> np.ndarray:
    """A NumPy array or a torch tensor, on any device, as a NumPy array; torch itself is not imported."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if value.dtype.is_floating_point and value.dtype.itemsize < 4:
            value = value.float()  # NumPy has no bfloat16
        return value.numpy()
    value = np.asarray(value)
    return value.astype(np.float32) if value.dtype == np.float16 else value


def digits_of(value: Any) -> int:
    """Binary digits of the numbers in an array or a tensor, at most float64's, in which all metrics compute."""
    dtype = getattr(value, "dtype", None)
    return DIGITS.get(getattr(dtype, "name", str(dtype).removeprefix("torch.")), DIGITS["float64"])


def checked_integer(value: Any, name: str) -> int:
    """Refuse what is not an integer, a float without a fraction too."""
    try:
        return operator.index(value)
    except TypeError:
        raise UserError(f"{name} must be an integer: got {value!r}") from None


class Rows(NamedTuple):
    """Facts about the rows of a matrix, from a single pass over it.

    Attributes:
        total: [N], sum of each row.
        top: [N], column of each row's largest value (the first of equal ones).
        lowest: the smallest value in the matrix; NaN if it contains a NaN.
    """

    total: Float[np.ndarray, "samples"]
    top: Integer[np.ndarray, "samples"]
    lowest: float


def checked_matrix(value: Any, name: str) -> tuple[np.ndarray, Rows]:
    """Refuse a matrix that is not finite floating point [N, C] with N, C ≥ 1; returns it and facts about its rows."""
    array = as_numpy(value)
    if array.ndim != 2 or array.dtype.kind != "f":
        raise UserError(f"{name} must be floating point of shape [samples, classes]: got {array.dtype} {array.shape}")
    if 0 in array.shape:
        raise UserError(f"{name} are empty: their shape is {array.shape}")
    rows = _read(array)
    if not np.isfinite(rows.total).all():  # a value is not finite, or the sum overflows
        bad = ~np.isfinite(array)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise UserError(f"{name} of row {row}, class {column}, are {array[row, column]}: they must be finite")
    return array, rows


def checked_logits(value: Any) -> np.ndarray:
    """Refuse logits [N, C] that are not finite, or that are probabilities: for these every metric would be another.

    Rows of logits hardly ever sum to 1 without a negative one among them; eight such rows are no chance. Rows of zeros
    and ones alone may be either.
    """
    array, rows = checked_matrix(value, "logits")
    like_probs = len(array) >= _TELLING and rows.lowest >= 0 and (np.abs(rows.total - 1) <= SUM_TOLERANCE).all()
    if like_probs and not np.isin(array, (0, 1)).all():
        raise UserError(
            f"all {len(array):,} rows of logits are at least 0 and sum to 1, so they are probabilities: pass the "
            "logits, or the probabilities' logarithms"
        )
    return array


def checked_probs(value: Any) -> tuple[Float[np.ndarray, "samples classes"], Rows]:
    """Refuse probabilities [N, C] that are not finite, are negative, or whose rows do not sum to 1 within tolerance."""
    array, rows = checked_matrix(value, "probabilities")
    tolerance = BFLOAT16_SUM_TOLERANCE if str(getattr(value, "dtype", "")) == "torch.bfloat16" else SUM_TOLERANCE
    if rows.lowest < 0:
        row, column = np.argwhere(array < 0)[0]
        raise UserError(
            f"the probability of row {row}, class {column}, is {array[row, column]:g}, which is negative: "
            "pass probabilities, not logits (apply_temperature(logits, 1.0) converts them)"
        )
    bad = np.abs(rows.total - 1) > tolerance
    if bad.any():
        row = int(bad.argmax())
        raise UserError(
            f"probabilities of row {row} sum to {rows.total[row]:g}, not to 1 within {tolerance:g}: "
            "pass probabilities, not logits (apply_temperature(logits, 1.0) converts them)"
        )
    return array, rows


def checked_labels(value: Any, num_samples: int, num_classes: int) -> Integer[np.ndarray, "samples"]:
    """Refuse labels that are not integers [N] in [0, C)."""
    labels = as_numpy(value)
    if labels.shape != (num_samples,) or labels.dtype.kind not in "iu":
        raise UserError(f"labels must be integers of shape ({num_samples},): got {labels.dtype} {labels.shape}")
    bad = (labels < 0) | (labels >= num_classes)
    if bad.any():
        row = int(bad.argmax())
        raise UserError(f"label {labels[row]} of row {row} lies outside the classes [0, {num_classes})")
    return labels


def judge(probs: Any, labels: Any, *, probabilities: bool = True) -> Judged:
    """Confidence and correctness, from probabilities and labels or from confidences and ``correct``.

    Args:
        probs: probabilities [N, C], or confidences [N].
        labels: labels [N] for the first form, booleans [N] for the second.
        probabilities: whether confidences must lie in [0, 1]; a ranking accepts any finite score.

    Raises:
        UserError: there are no samples, a shape or type does not fit, or a value is bad; the message names its row.
    """
    if np.ndim(probs) != 1:
        checked, rows = checked_probs(probs)
        labels = checked_labels(labels, *checked.shape)
        confidence = checked[np.arange(len(checked)), rows.top].astype(np.float64)
        return Judged(confidence, rows.top == labels, digits_of(probs))
    confidence, correct = as_numpy(probs).astype(np.float64), as_numpy(labels)
    if correct.dtype != np.bool_ or correct.shape != confidence.shape:
        raise UserError(
            f"confidences [samples] need booleans of the same shape, correct or not: got {confidence.shape} "
            f"with {correct.dtype} {correct.shape} (labels need probabilities [samples, classes])"
        )
    if not len(confidence):
        raise UserError("confidences are empty: there are no samples")
    bad = ~np.isfinite(confidence)
    if probabilities:
        bad |= (confidence < 0) | (confidence > 1 + SUM_TOLERANCE)
    if bad.any():
        row = int(bad.argmax())
        wanted = "lie in [0, 1]" if probabilities else "be finite"
        raise UserError(f"confidence {confidence[row]:g} of row {row} must {wanted}")
    return Judged(confidence, correct, digits_of(probs))


def _read(array: np.ndarray) -> Rows:
    """Pass over a matrix once, in blocks that fit in the processor's cache, so that time is linear in N."""
    total, top = np.empty(len(array), array.dtype), np.empty(len(array), np.intp)
    lowest, ones = np.inf, np.ones(array.shape[1], array.dtype)
    step = max(1, BLOCK // array.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(array), step):
            block = array[start : start + step]
            total[start : start + step] = block @ ones
            block.argmax(1, out=top[start : start + step])
            lowest = np.minimum(lowest, block.min())
    return Rows(total, top, float(lowest))
