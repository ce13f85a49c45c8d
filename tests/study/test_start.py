"""Every run of a worker starts alike, whatever the runs before it did to the process."""

import subprocess
import sys

import pytest
from runs_for_tests import run
from tasks_for_tests import plan

from retarget.study.config import Arm, Metric

ARMS = (Arm(name="a", label="a"), Arm(name="b", label="b"))
SEEDS = (3, 4)


def values(tmp_path, task, *metrics, jobs=1):
    """Each metric's values by arm and seed, from a study in one worker."""
    named = tuple(Metric(name=name, label=name) for name in metrics)
    study = plan(task=f"tasks_for_tests:{task}", analysis=None, claims=(), metrics=named, seeds=SEEDS, arms=())
    outcome = run(study.model_copy(update={"arms": ARMS}), tmp_path / str(jobs), jobs=jobs)
    assert outcome.failed == {}
    found = outcome.summary["conditions"]["default"]
    return {name: [found[arm.name][name]["values"] for arm in ARMS] for name in metrics}


def test_a_run_that_is_the_first_to_import_torch_is_seeded_like_the_others(tmp_path):
    (a, b) = values(tmp_path, "imports_torch_late", "drawn")["drawn"]
    assert a == b
    assert a[0] != a[1]


def test_what_a_run_changes_in_its_process_does_not_reach_the_next(tmp_path):
    found = values(tmp_path, "leaves_traces", "bits", "gradients", "deterministic", "benchmark", "folder", "variable",
                   "divide", "path", "device")  # fmt: skip
    for name, (a, b) in found.items():
        assert a == b, name
        assert a[0] == a[1], name


ASKED = """
import importlib.util, sys
from retarget.study.start import Start

start = Start()
start.take(5, 1)
assert importlib.util.find_spec("torch") is not None, "it is only asked for"
assert "torch" not in sys.modules
import torch.nn
first = float(torch.rand(1))
start.take(5, 1)
assert first == float(torch.rand(1))
assert type(torch.__spec__.loader).__name__ == "SourceFileLoader"
"""


@pytest.mark.parametrize("more", ["", "torch.set_default_device('meta'); start.take(5, 1); torch.rand(1).item()"])
def test_torch_is_seeded_when_it_is_imported_and_not_when_it_is_looked_for(more):
    done = subprocess.run([sys.executable, "-c", ASKED + more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
