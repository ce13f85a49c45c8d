"""Metrics of one run from its saved predictions: any of them can be computed again later."""

from collections.abc import Mapping

import numpy as np

from retarget.metrics import calibration as c


def scores(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The metrics of ``retarget.pskd.study.METRICS`` that follow from predictions.

    Args:
        arrays: ``test_logits``, ``val_logits`` [N, C] at the last epoch, ``test_logits_selected`` and
            ``val_logits_selected`` at the epoch of the highest validation accuracy, ``test_labels``, ``val_labels``
            [N], ``selected_epoch`` [1].

    Returns:
        Percentages in percent, AURC and its kin times 1000, as the paper prints them. ``*_scaled`` are taken after
        a temperature fitted on the validation part.
    """
    labels = arrays["test_labels"]
    temperature = c.fit_temperature(arrays["val_logits"], arrays["val_labels"])
    raw = _of(c.apply_temperature(arrays["test_logits"], 1.0), labels)
    scaled = _of(c.apply_temperature(arrays["test_logits"], temperature), labels)
    selected = _of(c.apply_temperature(arrays["test_logits_selected"], 1.0), labels)
    return {
        **raw,
        **{f"{name}_scaled": scaled[name] for name in ("nll", "ece", "aurc")},
        **{f"{name}_selected": selected[name] for name in ("top1", "nll", "ece", "aurc")},
        "temperature": temperature,
        "selected_epoch": float(arrays["selected_epoch"][0]),
    }


def _of(probs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {
        "top1": 100 * (1 - c.top_k_error(probs, labels, 1)),
        "top5": 100 * (1 - c.top_k_error(probs, labels, 5)),
        "nll": c.negative_log_likelihood(probs, labels),
        "ece": 100 * c.expected_calibration_error(probs, labels),
        "ece_mass": 100 * c.expected_calibration_error(probs, labels, bins=15, scheme="equal_mass", debiased=True),
        "aurc": 1000 * c.aurc(probs, labels),
        "excess_aurc": 1000 * c.excess_aurc(probs, labels),
        "augrc": 1000 * c.augrc(probs, labels),
        "failure_auroc": 100 * c.failure_auroc(probs, labels),
        "brier": c.brier_score(probs, labels),
    }
