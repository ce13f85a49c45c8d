"""A tracker receives what runs log and changes no result; a missing one is reported before anything starts."""

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tasks_for_tests import CONDITIONS, STEPS, plan

from retarget import cli
from retarget.extras import MissingExtraError
from retarget.study import tracking
from retarget.study.record import Run
from retarget.study.runner import run_study

MISSING = [name for name in ("tensorboard", "trackio", "wandb", "mlflow") if importlib.util.find_spec(name) is None]


def tracker(name):
    """The tracker's package; where it is not installed, the test is left to an environment that has it."""
    return pytest.importorskip(name, reason=f"{name} is in no extra: make trackers runs this")


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_is_told_every_run_and_the_results_stay_as_they_are(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(cli.METHODS, "toy", "tasks_for_tests")
    for name, more in (("tracked", ["--track", "tensorboard"]), ("plain", [])):
        words = ["study", "toy", "--seeds", "0", "--out", str(tmp_path / name), "--no-progress", *more]
        assert cli.main(words) == 0
    capsys.readouterr()
    for arm in ("control", "treated"):
        place = Path("runs") / arm / "seed-0"
        for file in ("metrics.jsonl", "predictions.safetensors", "config.json"):
            assert (tmp_path / "tracked" / place / file).read_bytes() == (
                tmp_path / "plain" / place / file
            ).read_bytes()
        found = scalars(tmp_path / "tracked" / "tracking" / arm / "seed-0")
        lines = [json.loads(line) for line in (tmp_path / "plain" / place / "metrics.jsonl").read_text().splitlines()]
        assert [step for step, _ in found["height"]] == list(range(STEPS))
        np.testing.assert_allclose([value for _, value in found["height"]], [one["height"] for one in lines], rtol=1e-6)
        assert found["final/height"][0][1] == pytest.approx(lines[-1]["height"])
    assert not (tmp_path / "plain" / "tracking").exists()
    assert cli.main(["study", "toy", "--seeds", "0", "--out", str(tmp_path / "tracked"), "--dry-run"]) == 0


def told(name, folder):
    """A run that logs to a tracker of this name: two lines, one value not finite."""
    track = tracking.Track(name, "walks", "windy/treated", 3, folder / "tracking")
    run = Run.create(folder / "run", settings={"lr": 0.1, "deep": {"a": None}}, seed=3, track=track)
    run.log(0, height=1.5, width=float("nan"))
    run.log(1, height=2.5)
    run.close({"height": 2.5})


def test_trackio_keeps_the_lines_in_its_table(tmp_path):
    tracker("trackio")
    told("trackio", tmp_path)
    path = Path(os.environ["HF_HOME"]) / "trackio" / "walks.db"
    with sqlite3.connect(path) as table:
        rows = table.execute("select run_name, step, metrics from metrics order by step, id").fetchall()
    assert [(name, step) for name, step, _ in rows] == [("windy/treated/seed-3", step) for step in (0, 1, 1)]
    assert [json.loads(line) for *_, line in rows] == [{"height": 1.5}, {"height": 2.5}, {"final/height": 2.5}]


def test_wandb_is_told_offline(tmp_path):
    tracker("wandb")
    code = f"import pathlib, test_tracking; test_tracking.told('wandb', pathlib.Path({str(tmp_path)!r}))"
    where = {
        **os.environ,
        "WANDB_MODE": "offline",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    subprocess.run([sys.executable, "-c", code], env=where, check=True, capture_output=True)  # its end writes the file
    (path,) = (tmp_path / "tracking" / "wandb").glob("offline-run-*/*.wandb")
    assert b"windy/treated" in path.read_bytes()


def test_mlflow_is_told(tmp_path, monkeypatch):
    mlflow = tracker("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path / 'mlruns'}")
    told("mlflow", tmp_path)
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("walks").experiment_id])
    assert [one.value for one in client.get_metric_history(found.info.run_id, "height")] == [1.5, 2.5]
    assert found.data.tags["group"] == "windy/treated"


def test_a_tracker_draws_no_random_number(tmp_path):
    pytest.importorskip("tensorboard")
    import random

    drawn = []
    for name in (None, "tensorboard"):
        track = tracking.Track(name, "walks", "a", 0, tmp_path / "tracking") if name else None
        random.seed(0)
        run = Run.create(tmp_path / str(name), settings={}, track=track)
        run.log(0, height=1.0)
        run.close()
        drawn.append(random.random())
    assert drawn[0] == drawn[1]


@pytest.mark.skipif(not MISSING, reason="every tracker is installed")
@pytest.mark.parametrize(
    "words",
    [
        ["study", "toy", "--out", "out"],
        ["pope", "train", "rows.parquet", "--model", "m", "--out", "out"],
        ["trojdiff", "train", "--data", "digits", "--out", "out"],
    ],
    ids=lambda words: words[0],
)
def test_a_missing_tracker_is_said_before_anything_starts(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / MISSING[0]).mkdir()  # as wandb leaves one in the working directory: it is no package
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(cli.METHODS, "toy", "tasks_for_tests")
    assert cli.main([*words, "--track", MISSING[0]]) == 1
    assert capsys.readouterr().err == (
        f"retarget: --track {MISSING[0]}: {MISSING[0]} is not installed: pip install accelerate {MISSING[0]}\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == [MISSING[0]]
    with pytest.raises(MissingExtraError):
        run_study(plan(conditions=CONDITIONS), "out", track=MISSING[0])
    assert [path.name for path in tmp_path.iterdir()] == [MISSING[0]]


def test_tracking_is_planned_without_loading_a_tracker():
    imports = "import retarget.study.tracking, retarget.study.record, sys"
    code = f"{imports}; assert not {{'accelerate', 'torch'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
