"""Which packages an import loads, and that the documented examples run."""

import doctest
import importlib
import subprocess
import sys

import pytest

from retarget import metrics

MODULES = ["_ranking", "_temperature", "calibration", "passk", "torchmetrics"]


def loaded_by(statement: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_importing_loads_only_what_a_name_needs():
    assert not {"numpy", "torch", "torchmetrics"} & loaded_by("import retarget.metrics")
    heavy = {"torch", "torchmetrics", "scipy"}
    assert not heavy & loaded_by("from retarget.metrics import pass_at_k, aurc, expected_calibration_error")


def test_every_public_name_exists_and_a_class_has_the_name_of_its_function():
    assert all(callable(getattr(metrics, name)) for name in metrics.__all__)
    functions = {name.replace("_", "") for name in metrics.__all__ if name.islower()}
    classes = {name.lower() for name in metrics.__all__ if not name.islower()}
    assert classes - functions == {"reliabilitybins", "riskcoverage"}  # what two functions return
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = metrics.nonsense


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("CalibrationErrorMetric", "ExpectedCalibrationError"),
        ("AreaUnderRiskCoverage", "AURC"),
        ("ExcessAreaUnderRiskCoverage", "ExcessAURC"),
        ("AreaUnderGeneralisedRiskCoverage", "AUGRC"),
        ("FailureDetectionMetric", "FailureAUROC"),
        ("LogLikelihoodMetric", "NegativeLogLikelihood"),
        ("BrierMetric", "BrierScore"),
    ],
)
def test_a_former_name_still_works_and_warns(old, new):
    with pytest.warns(DeprecationWarning, match=f"{old} is now called {new}") as caught:
        assert getattr(metrics, old) is getattr(metrics, new)
    assert caught[0].filename == __file__
    assert old not in metrics.__all__
    assert old not in dir(metrics)


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    outcome = doctest.testmod(importlib.import_module(f"retarget.metrics.{module}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0
