"""Runs that fail, are killed or interrupted, and studies that go on afterwards."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs_for_tests import Seen, contents, read, run, status
from tasks_for_tests import plan

from retarget.errors import UserError
from retarget.study.config import Metric


def wrong(what, arm="treated", seed=0, **more):
    return plan(config={"wrong": what, "where": [arm, seed], **more})


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("raise", "RuntimeError: the walk fell"),
        ("exit", "SystemExit: the walk left"),
        ("die", "the worker process died (SIGKILL, as when memory ran out)"),
        ("_exit", "the worker process died (exit code 0)"),
    ],
)
def test_a_failed_run_is_recorded_the_others_go_on_and_a_rerun_tries_again(tmp_path, what, error):
    study = wrong(what, once=str(tmp_path / "once"))
    outcome = run(study, tmp_path / "study")
    assert list(outcome.failed) == ["default/treated/seed-0"]
    assert outcome.failed["default/treated/seed-0"].startswith(error)
    failed = status(tmp_path / "study", "treated/seed-0")
    assert (failed["state"], failed["attempts"]) == ("failed", 1)
    assert failed["error"].startswith(error)
    if what == "raise":
        assert 'raise RuntimeError("the walk fell")' in failed["traceback"]
        assert failed["traceback"].startswith("Traceback (most recent call last)")
    if what == "die":
        assert (tmp_path / "study" / "runs" / "treated" / "seed-0" / "output.log").read_text() == "last words\n"
    treated = outcome.summary["conditions"]["default"]["treated"]["height"]["values"]
    assert treated[0] is None
    assert treated[1] is not None
    assert outcome.summary["claims"][0]["n"] == 1
    again = run(study, tmp_path / "study")
    assert again.failed == {}
    assert status(tmp_path / "study", "treated/seed-0")["attempts"] == 2
    assert status(tmp_path / "study", "control/seed-0")["attempts"] == 1


def test_a_full_disk_fails_the_run_with_a_clear_error(tmp_path):
    outcome = run(wrong("full disk", once=str(tmp_path / "once")), tmp_path / "study", jobs=2)
    assert len(outcome.failed) == 1, "what a failed run leaves in its process reaches no other run"
    error = outcome.failed["default/treated/seed-0"]
    assert "cannot write" in error
    assert "treated/seed-0" in error
    assert "free some space or choose another place, then run the same command again" in error
    assert status(tmp_path / "study", "treated/seed-0")["state"] == "failed"
    assert run(wrong("full disk", once=str(tmp_path / "once")), tmp_path / "study").failed == {}


def test_a_metric_that_is_not_finite_fails_the_run_unless_it_is_optional(tmp_path):
    outcome = run(plan(task="tasks_for_tests:nan", analysis=None, seeds=[0], arms=["control"]), tmp_path / "strict")
    assert outcome.failed == {
        "default/control/seed-0": "MetricsError: the run's final metrics are not finite or above 1e+100: height = nan"
    }
    optional = (Metric(name="height", label="height", optional=True), Metric(name="rank", label="rank"))
    outcome = run(
        plan(task="tasks_for_tests:nan", analysis=None, seeds=[0], arms=["control"], metrics=optional), tmp_path / "lax"
    )
    assert outcome.failed == {}
    assert list(outcome.summary["conditions"]["default"]["control"]) == ["rank"]


def test_a_metric_outside_its_bounds_fails_the_run_since_it_is_in_another_unit(tmp_path):
    share, around = (Metric(name="height", label="height", bounds=bounds) for bounds in ((50.0, 51.0), (-5.0, 5.0)))
    rest = dict(analysis=None, seeds=[0], arms=["control"], claims=())
    outcome = run(plan(metrics=(share,), **rest), tmp_path / "outside")
    (error,) = outcome.failed.values()
    assert error.startswith("MetricsError: the metric height is ")
    assert error.endswith("but the plan's bounds of it are [50, 51]: is it in another unit?")
    assert run(plan(metrics=(around,), **rest), tmp_path / "inside").failed == {}


def test_seeds_on_which_only_one_arm_failed_are_named_beside_the_verdicts(tmp_path):
    run(wrong("raise", seed=1, seeds=[0, 1, 2]), tmp_path)
    (note,) = [one for one in read(tmp_path / "analysis.json")["notes"] if "biased" in one]
    assert note.startswith("treated has no ")
    assert "on seed 1: the verdict is about the other seeds" in note


def test_a_task_that_returns_no_metrics_fails(tmp_path):
    outcome = run(plan(task="tasks_for_tests:text", analysis=None, seeds=[0], arms=["control"]), tmp_path)
    assert "tasks_for_tests:text returned str, not a dictionary of metrics" in str(outcome.failed)


@pytest.mark.parametrize("task", ["no_such_module:run", "tasks_for_tests:no_such_function", "tasks_for_tests"])
def test_a_task_that_cannot_be_imported_ends_the_study_at_once(tmp_path, task):
    seen = Seen()
    with pytest.raises(UserError, match=f"the study's task {task} cannot be imported: "):
        run(plan(task=task, analysis=None), tmp_path, display=seen)
    assert len(seen.all("began")) == 1


PROCESS = Path(__file__).parent / "study_process.py"


def start(directory, *words, **environment):
    """``retarget study toy`` in a process of its own."""
    command = [sys.executable, str(PROCESS), "study", "toy", "--out", str(directory), *words]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, timeout=900, check=False
    )


UNGUARDED = """
import sys
from pathlib import Path

sys.path.insert(0, {tests!r})
from runs_for_tests import run
from tasks_for_tests import plan

print(run(plan(seeds=[0], arms=["control"]), Path({root!r})).failed)
"""


def test_a_script_without_a_guard_is_told_to_add_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED.format(tests=str(PROCESS.parent), root=str(tmp_path / "study")))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=900, check=False)
    assert 'put the call, and all that should happen once, under `if __name__ == "__main__":`' in done.stderr
    assert "in use by process" not in done.stderr
    assert "died (exit code 1) before the run began; its error is on stderr" in done.stdout


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    root = tmp_path_factory.mktemp("uninterrupted")
    run(plan(), root)
    return contents(root)


@pytest.mark.parametrize(("who", "at"), [("PARENT", 1), ("PARENT", 3), *(("WORKER", at) for at in (1, 4, 9, 13))])
def test_killed_at_any_moment_and_resumed_equals_uninterrupted(tmp_path, uninterrupted, who, at):
    """The parent renames study.json, analysis.json, summary.json; a worker opens and renames its run's files: log and
    checkpoint in turn, predictions, status."""
    done = start(tmp_path, **{f"RETARGET_TEST_KILL_{who}_AT": str(at)})
    assert done.returncode == -signal.SIGKILL, done.stderr
    finished = {path.parent for path in tmp_path.glob("runs/**/status.json") if read(path)["state"] == "complete"}
    run(plan(), tmp_path, jobs=2)
    assert contents(tmp_path) == uninterrupted
    for directory in finished:
        assert read(directory / "status.json")["attempts"] == 1, "a finished run was repeated"
    assert not list(tmp_path.glob("**/.*.tmp"))


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_an_interrupt_stops_the_workers_and_says_how_to_go_on(tmp_path, number):
    settings = [f'wrong="parent:{number}"', 'where=["treated", 0]', f'once="{tmp_path / "once"}"']
    words = ["--set", *settings, "--jobs", "2"]
    done = start(tmp_path / "study", *words)
    assert done.returncode == 130, done.stderr
    assert "Interrupted; finished runs are kept. To resume: retarget study toy --out" in done.stderr
    assert done.stderr.rstrip().endswith("--jobs 2")
    assert "Traceback" not in done.stderr
    kept = [path for path in (tmp_path / "study").glob("runs/**/status.json") if read(path)["state"] == "complete"]
    study = plan(config={"wrong": f"parent:{number}", "where": ["treated", 0], "once": str(tmp_path / "once")})
    outcome = run(study, tmp_path / "study")  # no worker was left to hold a lock
    assert outcome.failed == {}
    assert all(read(path)["attempts"] == 1 for path in kept)
