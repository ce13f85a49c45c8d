"""What importing costs, and that the documented examples run."""

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


def test_every_public_name_exists_and_no_two_differ_by_case_or_underscores_only():
    assert all(callable(getattr(metrics, name)) for name in metrics.__all__)
    assert len({name.replace("_", "").lower() for name in metrics.__all__}) == len(metrics.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = metrics.nonsense


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    outcome = doctest.testmod(importlib.import_module(f"retarget.metrics.{module}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0
