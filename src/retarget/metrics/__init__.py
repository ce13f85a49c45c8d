"""Measure how accurate, how well calibrated and how well ranked predictions are; knows no method.

Everything public is imported from here and loaded on first use: ``pass_at_k`` needs only NumPy, and only the classes
need torchmetrics. The seven measures of calibration and ranking are there twice under one name, ``brier_score`` the
function and ``BrierScore`` the ``torchmetrics.Metric``. ``generative`` (FID, KID) is imported by its own name.
"""

from typing import TYPE_CHECKING

from retarget.lazy import lazy

if TYPE_CHECKING:
    from retarget.metrics.calibration import (
        ReliabilityBins,
        RiskCoverage,
        accuracy,
        apply_temperature,
        augrc,
        aurc,
        brier_score,
        excess_aurc,
        expected_calibration_error,
        failure_auroc,
        fit_temperature,
        negative_log_likelihood,
        reliability_diagram,
        risk_coverage_curve,
        softmax,
        top_k_error,
    )
    from retarget.metrics.passk import pass_at_k
    from retarget.metrics.torchmetrics import (
        AUGRC,
        AURC,
        BrierScore,
        ExcessAURC,
        ExpectedCalibrationError,
        FailureAUROC,
        NegativeLogLikelihood,
    )

__all__ = [
    "AUGRC",
    "AURC",
    "BrierScore",
    "ExcessAURC",
    "ExpectedCalibrationError",
    "FailureAUROC",
    "NegativeLogLikelihood",
    "ReliabilityBins",
    "RiskCoverage",
    "accuracy",
    "apply_temperature",
    "augrc",
    "aurc",
    "brier_score",
    "excess_aurc",
    "expected_calibration_error",
    "failure_auroc",
    "fit_temperature",
    "negative_log_likelihood",
    "pass_at_k",
    "reliability_diagram",
    "risk_coverage_curve",
    "softmax",
    "top_k_error",
]
__getattr__, __dir__ = lazy(
    __name__,
    dict.fromkeys(__all__, "calibration")
    | {
        "pass_at_k": "passk",
        "AUGRC": "torchmetrics",
        "AURC": "torchmetrics",
        "BrierScore": "torchmetrics",
        "ExpectedCalibrationError": "torchmetrics",
        "ExcessAURC": "torchmetrics",
        "FailureAUROC": "torchmetrics",
        "NegativeLogLikelihood": "torchmetrics",
    },
    renamed={
        "AreaUnderGeneralisedRiskCoverage": "AUGRC",
        "AreaUnderRiskCoverage": "AURC",
        "BrierMetric": "BrierScore",
        "CalibrationErrorMetric": "ExpectedCalibrationError",
        "ExcessAreaUnderRiskCoverage": "ExcessAURC",
        "FailureDetectionMetric": "FailureAUROC",
        "LogLikelihoodMetric": "NegativeLogLikelihood",
    },
)
