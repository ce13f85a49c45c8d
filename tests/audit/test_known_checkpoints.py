"""The example that studies the audit on checkpoints of known truth."""

import importlib
import shutil
from pathlib import Path

import pytest
import torch

from retarget.audit.inversion import Search
from retarget.errors import UserError
from retarget.study import Run
from retarget.trojdiff.trigger import Trigger

QUICK = Search(screen=64, quick=2, scan=2, first=1, steps=1, batch=2, gammas=(0.5,), keep=1, fresh=4)


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent.parent / "examples")
    return importlib.import_module("own_study_audit")


def test_checkpoints_of_ones_own_are_audited(example, stored, tmp_path, monkeypatch):
    monkeypatch.setattr("retarget.audit.run.Search", lambda: QUICK)
    shutil.copytree(stored, tmp_path / "clean-3")
    shutil.copytree(stored, tmp_path / "corner_patch-3" / "pipeline")
    Trigger.patch(2, 0.1, (1, 8, 8)).save(tmp_path / "corner_patch-3" / "pipeline" / "trigger.safetensors")
    (tmp_path / "notes-old").mkdir()
    study = example.plan("demo", {"zoo": str(tmp_path), "clean": "clean"}, None, None)
    assert ([arm.name for arm in study.arms], study.seeds) == (["clean", "corner_patch"], (3,))
    for arm in study.arms:
        settings = study.run_settings(study.conditions[0], arm)
        found = example.run(Run.create(tmp_path / "run" / arm.name, settings=settings, arm=arm.name, seed=3))
        assert (found["called"], found["undecided"]) == (0, 100), "a quick search has no null"
        assert "p_value" not in found
        assert 0 < found["evaluations"] < 10_000
        assert ("iou" in found) == (arm.name == "corner_patch" and "undo" in found)


def test_a_recovered_trigger_is_compared_with_the_true_one(example):
    true, half = Trigger.patch(2, 0.1, (1, 8, 8)), Trigger.patch((2, 1), 0.1, (1, 8, 8), (6, 6))
    assert example.likeness(true, (6, 6, 8, 8), true) == pytest.approx({"cosine": 1, "iou": 1})
    assert example.likeness(half, (6, 6, 8, 7), true) == pytest.approx({"cosine": 2**-0.5, "iou": 0.5})
    assert example.likeness(true, None, true) == pytest.approx({"cosine": 1, "iou": 4 / 64})
    blend = Trigger.blend(torch.ones(1, 8, 8), 0.6)
    assert example.likeness(true, None, blend) == pytest.approx({"cosine": 0.25})


@pytest.mark.parametrize(
    ("settings", "seeds", "message"),
    [
        ({}, None, "give --set zoo=DIR"),
        ({"zoo": "here", "clean": "tuned"}, None, "clean names tuned, but .*here has d2i"),
        ({"zoo": "here"}, [1, 2], "here has no d2i-2: give --arms or --seeds"),
        ({"zoo": "here", "model": "x"}, None, "no setting model: choose zoo and clean"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(example, settings, seeds, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "d2i-1").mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        example.plan("demo", settings, seeds, None)
