import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tasks_for_tests import STEPS

from retarget.errors import UserError
from retarget.study import slurm
from retarget.study.executor import LocalExecutor
from retarget.study.machines import Command
from retarget.study.record import read_status
from retarget.study.worker import Finished, Job, Progress, Started, load


def job(root, seed, task="tasks_for_tests:walk"):
    config = dict(run_hash="x", settings={"lift": 1.0}, arm="treated", condition="default", seed=seed, threads=1)
    return Job(f"default/treated/seed-{seed}", root / f"seed-{seed}", task, config)


@pytest.fixture
def executor():
    executor = LocalExecutor(jobs=1)
    yield executor
    executor.close()


def test_a_job_tells_its_start_its_progress_and_its_end(executor, tmp_path):
    executor.submit(job(tmp_path, 0))
    first, *between, last = executor.events()
    assert first == Started("default/treated/seed-0")
    assert between[-1] == Progress("default/treated/seed-0", STEPS, STEPS, "step")
    assert last == Finished("default/treated/seed-0")
    assert read_status(tmp_path / "seed-0")["state"] == "complete"
    assert list(executor.events()) == []


def test_jobs_may_be_submitted_while_events_are_read(executor, tmp_path):
    executor.submit(job(tmp_path, 0))
    ended = []
    for event in executor.events():
        if isinstance(event, Finished):
            ended.append(event.key)
            if len(ended) < 3:
                executor.submit(job(tmp_path, len(ended)))
    assert ended == [f"default/treated/seed-{seed}" for seed in range(3)]


@pytest.mark.parametrize(("gpus", "jobs", "seen"), [
    ("3,5", 2, ["3,5", "5,3"]),
    ("0,1,2,3", 2, ["0,1,2,3", "2,3,0,1"]),
    ("1", 2, ["1", "1"]),
    ("", 2, ["", ""]),
])  # fmt: skip
def test_jobs_at_a_time_begin_with_different_gpus(gpus, jobs, seen, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    executor = LocalExecutor(jobs=jobs)
    for seed in range(jobs):
        executor.submit(job(tmp_path, seed, "tasks_for_tests:sees_gpus"))
    assert all(event.error is None for event in executor.events() if isinstance(event, Finished))
    executor.close()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == gpus
    assert [(tmp_path / f"seed-{seed}" / "gpus.txt").read_text() for seed in range(jobs)] == seen


def test_a_worker_that_died_while_idle_is_replaced(executor, tmp_path):
    executor.submit(job(tmp_path, 0))
    assert all(event.error is None for event in executor.events() if isinstance(event, Finished))
    (worker,) = executor._workers
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.process.join()
    executor.submit(job(tmp_path, 1))
    *_, last = executor.events()
    assert last == Finished("default/treated/seed-1")


CLOSE = """
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, {tests!r})
    from retarget.study.executor import LocalExecutor
    from test_executor import job

    executor = LocalExecutor(jobs=1)
    executor.submit(job(Path({root!r}), 0, "tasks_for_tests:hold_a_lock"))
    assert [event.error for event in executor.events() if hasattr(event, "error")] == [None]
    executor.close()
"""


def test_idle_workers_give_back_what_they_hold(tmp_path):
    """Python's resource tracker complains of what a killed process held, when the parent ends."""
    script = tmp_path / "close.py"
    script.write_text(CLOSE.format(tests=str(Path(__file__).parent), root=str(tmp_path)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=900, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_close_stops_what_runs(tmp_path):
    executor = LocalExecutor(jobs=1)
    config = {
        "wrong": "parent:SIGURG",
        "where": ["treated", 0],
        "lift": 0.0,
    }  # a signal that nobody minds; then it waits
    one = job(tmp_path, 0)
    executor.submit(Job(one.key, one.directory, one.task, one.config | {"settings": config}))
    assert next(executor.events()) == Started(one.key)
    (worker,) = executor._workers
    executor.close()
    assert worker.process.exitcode == -signal.SIGKILL
    assert read_status(tmp_path / "seed-0") in (None, {"state": "running", "run_hash": "x", "attempts": 1})


def test_no_jobs_at_all_is_refused():
    with pytest.raises(UserError, match="--jobs must be at least 1, not 0"):
        LocalExecutor(jobs=0)


def test_a_task_is_named_by_module_and_function():
    assert load("os.path:join")("a", "b") == "a/b"
    with pytest.raises(ValueError, match=r"'os\.path\.join' is not of the form module:function"):
        load("os.path.join")


def test_a_run_that_ends_with_its_machine_has_not_failed(tmp_path, monkeypatch):
    """Slurm sends SIGTERM to all processes of a job before it takes the machine back and queues the job again."""

    class Ended(BaseException):
        """What the queue does to a job that waits for it."""

    def wait(seconds):
        raise Ended

    def bypass(number, frame):
        """What submitit does in a job."""

    before = signal.signal(signal.SIGTERM, bypass)
    monkeypatch.setattr(slurm, "time", SimpleNamespace(sleep=wait))
    wrong = {"lift": 1.0, "wrong": "announced", "where": ["treated", 0], "once": str(tmp_path / "once")}
    config = dict(run_hash="x", settings=wrong, arm="treated", condition="default", seed=0, threads=1)
    task = slurm.Task(Command.here(1), Job("key", tmp_path / "run", "tasks_for_tests:walk", config))
    try:
        with pytest.raises(Ended):
            task()
        assert signal.getsignal(signal.SIGTERM) is bypass
        assert task() == Finished("key")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert read_status(tmp_path / "run")["attempts"] == 2
