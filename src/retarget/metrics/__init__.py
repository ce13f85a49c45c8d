"""How good, how honest and how well ranked predictions are; knows no method.

Public names are loaded on first use: importing this package imports nothing, ``pass_at_k`` needs NumPy alone, and
only the ``torchmetrics.Metric`` classes need torchmetrics.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
_HOME = {  # calibration is the home of all others
    "pass_at_k": "passk",
    "AreaUnderGeneralisedRiskCoverage": "torchmetrics",
    "AreaUnderRiskCoverage": "torchmetrics",
    "BrierMetric": "torchmetrics",
    "CalibrationErrorMetric": "torchmetrics",
    "ExcessAreaUnderRiskCoverage": "torchmetrics",
    "FailureDetectionMetric": "torchmetrics",
    "LogLikelihoodMetric": "torchmetrics",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_HOME.get(name, 'calibration')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
