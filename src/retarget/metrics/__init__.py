"""How good, how honest and how well ranked predictions are; knows no method.

Public names are loaded on first use: importing this package imports nothing, ``pass_at_k`` needs NumPy alone, and
only the ``torchmetrics.Metric`` classes need torchmetrics.
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
        AreaUnderGeneralisedRiskCoverage,
        AreaUnderRiskCoverage,
        BrierMetric,
        CalibrationErrorMetric,
        ExcessAreaUnderRiskCoverage,
        FailureDetectionMetric,
        LogLikelihoodMetric,
    )

__all__ = [
    "AreaUnderGeneralisedRiskCoverage",
    "AreaUnderRiskCoverage",
    "BrierMetric",
    "CalibrationErrorMetric",
    "ExcessAreaUnderRiskCoverage",
    "FailureDetectionMetric",
    "LogLikelihoodMetric",
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
        "AreaUnderGeneralisedRiskCoverage": "torchmetrics",
        "AreaUnderRiskCoverage": "torchmetrics",
        "BrierMetric": "torchmetrics",
        "CalibrationErrorMetric": "torchmetrics",
        "ExcessAreaUnderRiskCoverage": "torchmetrics",
        "FailureDetectionMetric": "torchmetrics",
        "LogLikelihoodMetric": "torchmetrics",
    },
)
