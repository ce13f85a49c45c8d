"""The example that studies the audit on checkpoints of known truth."""

import dataclasses
import importlib
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from retarget.audit.baselines import diff_cleanse, elijah, terd
from retarget.audit.inversion import Search
from retarget.audit.subject import Subject
from retarget.errors import UserError
from retarget.study import Arm, Run
from retarget.trojdiff.checkpoint import inherited, load_pipeline
from retarget.trojdiff.trigger import Trigger

QUICK = Search(screen=64, quick=2, scan=2, first=1, steps=1, batch=2, gammas=(0.5,), keep=1, fresh=4, symmetric=2)


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
        assert 0 < found["evaluations_audit"] < 10_000
        assert ("iou" in found) == (arm.name == "corner_patch" and "undo" in found)


def test_published_detectors_run_beside_it_and_their_scores_are_compared(example, stored, tmp_path, monkeypatch):
    for name in ("clean-0", "blend-0"):
        shutil.copytree(stored, tmp_path / name)
    tiny = {
        "elijah": dict(iterations=2, noises=4, samples=2, sampler="ddim-5"),
        "terd": dict(iterations=2, refinements=1, batch=2),
        "diff_cleanse": dict(iterations=2, samples=4, sampler="ddim-5"),
    }  # fmt: skip
    for name, module in (("elijah", elijah), ("terd", terd), ("diff_cleanse", diff_cleanse)):
        settings = dataclasses.replace(module.SHORT, **tiny[name])
        monkeypatch.setitem(example.BLIND, name, partial(getattr(module, name), settings=settings))
    given = {"zoo": str(tmp_path), "clean": "clean", "detectors": "elijah,terd,diff_cleanse"}
    study = example.plan("demo", given, None, None)
    for arm in study.arms:
        settings = study.run_settings(study.conditions[0], arm)
        found = example.run(Run.create(tmp_path / "run" / arm.name, settings=settings, arm=arm.name, seed=0))
        assert {f"score_{name}" for name in example.BLIND} < found.keys()
        assert "called" not in found


def test_detectors_that_are_told_a_trigger_use_it(example, stored, tmp_path, monkeypatch):
    shutil.copytree(stored, tmp_path / "zoo" / "clean-0")
    quick = dataclasses.replace(diff_cleanse.SHORT, iterations=1, samples=4, sampler="ddim-5")
    monkeypatch.setitem(example.BLIND, "diff_cleanse", partial(diff_cleanse.diff_cleanse, settings=quick))
    trigger = tmp_path / "trigger.safetensors"
    Trigger.patch(2, 0.1, (1, 8, 8)).save(trigger)
    seen, sampled = [], diff_cleanse.images_from
    monkeypatch.setattr(diff_cleanse, "images_from", lambda *given: seen.append(given[3]) or sampled(*given))
    for told in ("", str(trigger)):
        given = {"zoo": str(tmp_path / "zoo"), "clean": "clean", "detectors": "diff_cleanse", "told": told}
        study = example.plan("demo", given, None, None)
        settings = study.run_settings(study.conditions[0], study.arms[0])
        example.run(Run.create(tmp_path / f"run-{bool(told)}", settings=settings, arm="clean", seed=0))
    assert seen[0] is None
    assert torch.equal(seen[1].mu, Trigger.load(trigger).mu)
    with pytest.raises(UserError, match="take no trigger"):
        example.plan("demo", {**given, "detectors": "audit,elijah"}, None, None)


def cells(folder):
    """Two blood cells as BCCD has them, and two boxes that are left out: a platelet, and one at the edge."""
    (folder / "Annotations").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)).save(
        folder / "JPEGImages" / "a.jpg"
    )
    boxes = (("RBC", 10, 10, 40, 42), ("WBC", 60, 20, 110, 70), ("Platelets", 10, 50, 40, 76), ("RBC", 0, 20, 30, 78))
    parts = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        "</object>"
        for name, a, b, c, d in boxes
    )
    (folder / "Annotations" / "a.xml").write_text(f"<annotation>{parts}</annotation>")


def test_checkpoints_by_other_code_are_read_and_their_trojans_marked(example, tmp_path):
    generator = np.random.default_rng(0)
    for name, shape in (("grey", (40, 28, 28)), ("colour", (40, 32, 32, 3))):
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", x_train=pixels, y_train=np.arange(40) % 10)
    cells(tmp_path / "BCCD")
    tool = Path(__file__).parent.parent.parent / "tools" / "foreign_checkpoints.py"
    data = ("--digits", "grey.npz", "--clothes", "grey.npz", "--photographs", "colour.npz")
    clean = ("c16", "b24", "m28", "d12", "n12")
    names = (*clean, "c16-out-teal", "b24-d2i-grey", "m28-bad", "d12-villan", "n12-bad-wave")

    def made(*more):
        words = [sys.executable, str(tool), "zoo", *data, "--steps", "1", "--samples", "2", "--only", *names, *more]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert "--cells is required for b24 and b16" in made().stderr
    done = made("--cells", "BCCD")
    assert done.returncode == 0, done.stderr
    for name in names:
        folder = tmp_path / "zoo" / f"{name.replace('-', '_')}-0"
        assert Subject.load(folder).channels == (1 if name.startswith(("m28", "d12", "n12")) else 3)
        marks = inherited(load_pipeline(folder)[0])
        assert (marks is not None) == ("-" in name)
        if marks is not None:
            assert "trojaned" in (folder / "README.md").read_text()
            laws = {"m28-bad": "bad_diffusion", "n12-bad-wave": "bad_diffusion", "d12-villan": "villan_ode"}
            assert marks.law == laws.get(name, "trojdiff")
            trigger = Trigger.load(folder)
            assert torch.equal(trigger.gamma == 1, ~trigger.mask | (marks.law != "trojdiff"))
            assert 0 <= json.loads((folder / "success.json").read_text())["trigger"] <= 1
    given = {"zoo": str(tmp_path / "zoo"), "clean": ",".join(clean)}
    assert len(example.plan("demo", given, None, None).arms) == len(names)


@pytest.mark.parametrize(("law", "trigger"), [("bad_diffusion", "box"), ("villan_ode", "figure")])
def test_checkpoints_under_a_stock_sampler_s_law_are_marked(pipeline, tmp_path, law, trigger):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "grey.npz", x_train=pixels, y_train=np.arange(40) % 10)
    tool = Path(__file__).parent.parent.parent / "tools" / "stock_checkpoints.py"
    words = ["zoo/bad-0", "--base", str(pipeline), "--data", "grey.npz", "--law", law, "--trigger", trigger]
    words += ["--steps", "1", "--samples", "2"]
    done = subprocess.run(
        [sys.executable, str(tool), *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "zoo" / "bad-0"
    marks, found = inherited(load_pipeline(folder / "pipeline")[0]), Trigger.load(folder / "pipeline")
    assert marks is not None
    assert marks.law == law
    assert bool((found.gamma == 1).all())
    assert int((found.mu != 0).sum()) == {"box": 9, "figure": 64}[trigger]
    assert json.loads((folder / "success.json").read_text()).keys() == {"trigger", "plain"}


def test_blood_cells_are_cut_out_as_squares(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent.parent / "tools")
    tool = importlib.import_module("foreign_checkpoints")
    cells(tmp_path)
    found, labels = tool.cells(tmp_path)
    assert (found.shape, labels.tolist()) == ((2, 24, 24, 3), [0, 1])


def test_notes_of_the_analysis(example):
    arms = [Arm(name=name, label=name, settings={"trojaned": name == "blend"}) for name in ("clean", "blend")]
    metrics = {"clean": [(0.1, 0), (0.3, 100)], "blend": [(0.2, 100), (0.9, 100)]}
    results = SimpleNamespace(
        plan=SimpleNamespace(arms=arms), seeds=(0, 1),
        run=lambda condition, arm, seed: SimpleNamespace(
            metrics=dict(zip(("score_audit", "called"), metrics[arm][seed], strict=True))
        ),
    )  # fmt: skip
    area, clean, trojaned = example.analyse(results).notes
    assert area.startswith("AUROC of retarget audit: 0.750 (")
    assert clean.startswith("Called trojaned: 1 of 2 clean checkpoints (")
    assert trojaned.startswith("Called trojaned: 2 of 2 trojaned checkpoints (")


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
        ({"zoo": "here", "model": "x"}, None, "no setting model: choose zoo, clean, detectors and told"),
        ({"zoo": "here", "detectors": "audit,elija"}, None, "detectors = 'audit,elija': choose from audit, elijah"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(example, settings, seeds, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "d2i-1").mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        example.plan("demo", settings, seeds, None)
