"""Metrics of one run, computed from its saved predictions."""

from collections.abc import Mapping

import numpy as np
from scipy.special import log_softmax, logsumexp

from retarget.metrics import calibration as c

TEMPERATURES = (0.1, 10.0)
"""Range of the fitted temperature."""
UNKNOWN = 1.0
"""The temperature if the validation part is faultless: the best one would be 0, which makes every confidence 1."""


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
    """The temperature that fits the validation part best, in ``TEMPERATURES``; ``UNKNOWN`` if all of it is right."""
    if (arrays["val_logits"].argmax(1) == arrays["val_labels"]).all():
        return UNKNOWN
    return c.fit_temperature(arrays["val_logits"], arrays["val_labels"], bounds=TEMPERATURES)


def log_losses(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """NLL of each sample, [N], from logits: finite even if the probability would round to 0."""
    return -log_softmax(logits.astype(np.float64) / temperature, axis=1)[np.arange(len(labels)), labels]


def log_odds(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """The log odds of each sample's likeliest class, [N]: they rank as the probabilities do, but never round to 1."""
    scaled = np.sort(logits.astype(np.float64) / temperature, axis=1)
    return scaled[:, -1] - logsumexp(scaled[:, :-1], axis=1)


def _of(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> dict[str, float]:
    probs = c.apply_temperature(logits, temperature)
    ranked = log_odds(logits, temperature), logits.argmax(1) == labels
    found = {
        "top1": 100 * (1 - c.top_k_error(probs, labels, 1)),
        "nll": float(log_losses(logits, labels, temperature).mean()),
        "ece": 100 * c.expected_calibration_error(probs, labels),
        "ece_mass": 100 * c.expected_calibration_error(probs, labels, bins=15, scheme="equal_mass", debiased=True),
        "aurc": 1000 * c.aurc(*ranked),
        "excess_aurc": 1000 * c.excess_aurc(*ranked),
        "augrc": 1000 * c.augrc(*ranked),
        "failure_auroc": 100 * c.failure_auroc(*ranked),
        "brier": c.brier_score(probs, labels),
    }
    if probs.shape[1] > 5:
        found["top5"] = 100 * (1 - c.top_k_error(probs, labels, 5))
    return found
