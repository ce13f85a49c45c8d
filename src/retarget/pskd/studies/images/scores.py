"""Metrics of one run, computed from its saved predictions."""

from collections.abc import Mapping

import numpy as np
from scipy.special import log_softmax

from retarget.metrics import calibration as c

TEMPERATURES = (0.1, 10.0)
"""Range of the fitted temperature: a faultless validation part would ask for 0, which makes every confidence 1."""


def scores(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The metrics of ``retarget.pskd.studies.images.plan.METRICS`` that follow from predictions.

    Args:
        arrays: ``test_logits``, ``val_logits`` [N, C] at the last epoch, ``test_logits_selected`` and
            ``val_logits_selected`` at the epoch of the highest validation accuracy, ``test_labels``, ``val_labels``
            [N], ``selected_epoch`` [1].

    Returns:
        Percentages in percent, AURC and similar times 1000, as the paper prints them. ``*_scaled`` are computed after
        a temperature fitted on the validation part.
    """
    labels = arrays["test_labels"]
    temperature = fitted_temperature(arrays)
    raw = _of(arrays["test_logits"], labels)
    scaled = _of(arrays["test_logits"], labels, temperature)
    selected = _of(arrays["test_logits_selected"], labels)
    return {
        **raw,
        **{f"{name}_scaled": scaled[name] for name in ("nll", "ece", "aurc")},
        **{f"{name}_selected": selected[name] for name in ("top1", "nll", "ece", "aurc")},
        "temperature": temperature,
        "selected_epoch": float(arrays["selected_epoch"][0]),
    }


def fitted_temperature(arrays: Mapping[str, np.ndarray]) -> float:
    """The temperature that fits the validation part best, within ``TEMPERATURES``."""
    return c.fit_temperature(arrays["val_logits"], arrays["val_labels"], bounds=TEMPERATURES)


def log_losses(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """NLL of each sample, [N], from logits: finite even if the probability would round to 0."""
    return -log_softmax(logits.astype(np.float64) / temperature, axis=1)[np.arange(len(labels)), labels]


def _of(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> dict[str, float]:
    probs = c.apply_temperature(logits, temperature)
    found = {
        "top1": 100 * (1 - c.top_k_error(probs, labels, 1)),
        "nll": float(log_losses(logits, labels, temperature).mean()),
        "ece": 100 * c.expected_calibration_error(probs, labels),
        "ece_mass": 100 * c.expected_calibration_error(probs, labels, bins=15, scheme="equal_mass", debiased=True),
        "aurc": 1000 * c.aurc(probs, labels),
        "excess_aurc": 1000 * c.excess_aurc(probs, labels),
        "augrc": 1000 * c.augrc(probs, labels),
        "failure_auroc": 100 * c.failure_auroc(probs, labels),
        "brier": c.brier_score(probs, labels),
    }
    if probs.shape[1] > 5:
        found["top5"] = 100 * (1 - c.top_k_error(probs, labels, 5))
    return found
