"""Time calibration and ranking metrics: growth with N, beside plain loops and torchmetrics."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from benchmarks._pairs import figure, interleaved
from retarget.metrics import aurc, expected_calibration_error, softmax

CLASSES = 100


def figures(smallest: bool = False) -> Iterator[dict[str, Any]]:
    """Time of each metric, its growth from N to 4N, and a plain loop's time over it; for ECE also torchmetrics'."""
    samples, pairs = (200, 2) if smallest else (50_000, 30)
    probs, labels = predictions(4 * samples)
    yield from time_growth_and_loop("ECE", expected_calibration_error, ece_loop, probs, labels, pairs)
    few, of_few = probs[:samples], labels[:samples]
    tensor, of_tensor = torch.from_numpy(few), torch.from_numpy(of_few)
    yield figure(
        f"ECE of {samples:,} × {CLASSES}: torchmetrics (a) over retarget (b)",
        interleaved(
            lambda: multiclass_calibration_error(tensor, of_tensor, num_classes=CLASSES, n_bins=10),
            lambda: expected_calibration_error(few, of_few),
            pairs,
        ),
        "ratio",
    )
    yield from time_growth_and_loop("AURC", aurc, aurc_loop, probs, labels, pairs)


def time_growth_and_loop(
    name: str,
    function: Callable[[np.ndarray, np.ndarray], float],
    loop: Callable[[np.ndarray, np.ndarray], float],
    probs: np.ndarray,
    labels: np.ndarray,
    pairs: int,
) -> Iterator[dict[str, Any]]:
    """Time at N, at 4N over N, and of the loop over that at N; expects 4N predictions."""
    samples = len(labels) // 4
    few, of_few = probs[:samples], labels[:samples]
    if abs(function(few, of_few) - loop(few, of_few)) > 1e-9:
        raise AssertionError(f"{name} and its loop disagree: {function(few, of_few)} and {loop(few, of_few)}")
    size = f"{name} of {samples:,} × {CLASSES}"
    grown = interleaved(lambda: function(probs, labels), lambda: function(few, of_few), pairs)
    yield figure(size, [1000 * seconds for seconds in grown.b], "ms", "<= 20", {"dtype": str(probs.dtype)})
    yield figure(f"{name} of 4N = {4 * samples:,} (a) over N = {samples:,} (b), 4 is linear", grown, "ratio", "<= 5")
    looped = interleaved(lambda: loop(few, of_few), lambda: function(few, of_few), pairs, warmup=1)
    yield figure(f"{size}: a plain loop (a) over retarget (b)", looped, "ratio")


def predictions(samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Float64 probabilities [N, C] and labels drawn from a flatter distribution."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(samples, CLASSES))
    return softmax(logits), (logits + 2 * rng.gumbel(size=logits.shape)).argmax(1)


def ece_loop(probs: np.ndarray, labels: np.ndarray) -> float:
    """Ten bins (lo, hi], one sample after the other."""
    count, confidence, right = [0] * 10, [0.0] * 10, [0] * 10
    for row, label in zip(probs, labels, strict=True):
        predicted = row.argmax()
        sure = float(row[predicted])
        place = next(i for i in range(10) if sure <= (i + 1) / 10)
        count[place] += 1
        confidence[place] += sure
        right[place] += bool(predicted == label)
    return sum(abs(right[i] - confidence[i]) for i in range(10) if count[i]) / len(labels)


def aurc_loop(probs: np.ndarray, labels: np.ndarray) -> float:
    """Error rates among the k most confident, one k after the other."""
    judged = []
    for row, label in zip(probs, labels, strict=True):
        predicted = row.argmax()
        judged.append((float(row[predicted]), bool(predicted != label)))
    judged.sort(key=lambda pair: -pair[0])
    wrong, total = 0, 0.0
    for k, (_, error) in enumerate(judged, start=1):
        wrong += error
        total += wrong / k
    return total / len(judged)
