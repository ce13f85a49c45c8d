"""Runs on a real Ray cluster on this machine, and through submitit's queues: lost machines, stops, the same bytes."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs_for_tests import Seen, contents
from tasks_for_tests import STEPS, plan

from retarget.cli import main
from retarget.errors import UserError
from retarget.files import locked
from retarget.study.clusters import open_executor
from retarget.study.executor import LocalExecutor
from retarget.study.machines import Command
from retarget.study.record import read_status
from retarget.study.runner import run_study
from retarget.study.worker import Finished, Job, Progress, Started, Ticket

sys.path.insert(0, str(Path(__file__).parents[1]))
from documents import ROOT, blocks

ray = pytest.importorskip("ray")
submitit = pytest.importorskip("submitit")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The toy study as this machine's own workers do it."""
    root = tmp_path_factory.mktemp("local")
    run_study(plan(seeds=[0]), root)
    return contents(root)


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs, and one machine with two."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args=machine(0))
    found.add_node(**machine(2))
    yield found
    ray.shutdown()
    found.shutdown()


def machine(cpus):
    return dict(num_cpus=cpus, object_store_memory=80 * 2**20, include_dashboard=False)


def on(name, root, **options):
    return open_executor(name, options, out=root)


def wrong(root, what, **more):
    """The study whose run treated/seed-0 goes wrong at its first attempt."""
    return plan(config={"wrong": what, "where": ["treated", 0], "once": str(root.parent / f"{root.name}-once")}, **more)


def one(root, what):
    """This run alone; it goes wrong once its first step is in its checkpoint."""
    study = wrong(root, what, arms=["treated"], seeds=[0])
    return study.model_copy(update={"settings": study.settings | {"at": 0}})


def attempts(root):
    found = {path.parent.parent.name + path.parent.name[-2:]: path.parent for path in root.glob("runs/*/*/status.json")}
    return {name: read_status(directory)["attempts"] for name, directory in sorted(found.items())}


def free(root, place="treated/seed-0"):
    """Wait for the lock of a run, that is, until the process that did it is dead."""
    with locked(root / "runs" / place / ".lock", wait=True, what=place):
        return True


class Stop(Seen):
    """Does something once, when the first run reports progress."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def progressed(self, key, done, total, unit):
        what, self.what = self.what, None
        if what:
            what()


def same(root, local, runs):
    """Whether a number of runs have the logs and predictions that this machine's workers make."""
    found = {name: data for name, data in contents(root).items() if name != "summary.json"}  # it counts looks
    assert len(found) == 2 * runs
    return found == {name: local[name] for name in found}


def interrupt():
    raise KeyboardInterrupt


def test_ray_does_what_this_machine_does_and_says_how_far_it_is(cluster, local, tmp_path):
    seen = Seen()
    study, executor = plan(seeds=[0]), on("ray", tmp_path, address=cluster.address)
    assert run_study(study, tmp_path, executor=executor, display=seen).failed == {}
    assert same(tmp_path, local, 2)
    assert attempts(tmp_path) == {"control-0": 1, "treated-0": 1}
    assert sorted(seen.all("began")) == [("default/control/seed-0",), ("default/treated/seed-0",)]
    assert ("default/treated/seed-0", STEPS, STEPS, "step") in seen.all("progressed")
    assert not ray.is_initialized(), "the command leaves the cluster that it joined"
    done = json.loads((tmp_path / "runs/treated/seed-0/config.json").read_text())
    assert set(done["hardware"]) == {"platform", "cpu", "cores", "memory_gib", "gpus"}


def test_a_run_without_gpus_sees_none(monkeypatch):
    """Ray itself hides GPUs only from a task that has been given some."""
    from retarget.study.ray import _do

    class Sees:
        def do(self, job):
            yield os.environ["CUDA_VISIBLE_DEVICES"]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert list(_do(Sees(), 1, None)) == ["2"]
    assert list(_do(Sees(), 0, None)) == [""]


def test_a_lost_process_of_ray_costs_an_attempt_and_a_run_that_dies_fails_alone(cluster, local, tmp_path):
    """Ray's process, the worker's parent, is no part of a run; a worker that dies is the run's own failure."""

    def done(what, name, **options):
        root = tmp_path / name
        study, executor = one(root, what), on("ray", root, address=cluster.address, **options)
        return root, study, run_study(study, root, executor=executor, display=seen).failed

    seen = Seen()
    lost, _, failed = done("parent:SIGKILL", "lost")
    assert (failed, attempts(lost)) == ({}, {"treated-0": 2})
    ((sentence,),) = seen.all("remarked")
    assert sentence.startswith("default/treated/seed-0 lost its machine and is tried again (WorkerCrashedError: ")
    dead, study, failed = done("die", "dead")
    assert failed["default/treated/seed-0"].startswith("the worker process died (SIGKILL")
    assert run_study(study, dead).failed == {}, "what one room left another finishes"
    given_up, study, failed = done("parent:SIGKILL", "given-up", retries=0)
    assert failed["default/treated/seed-0"].startswith("its machine was lost 1 times, last by WorkerCrashedError")
    assert read_status(given_up / "runs/treated/seed-0")["state"] == "failed", "the worker that Ray left has let go"
    assert run_study(study, given_up).failed == {}
    assert attempts(dead) == attempts(given_up) == {"treated-0": 2}
    assert all(same(root, local, 1) for root in (lost, dead, given_up))


def test_a_lost_machine_is_replaced_and_an_interrupt_leaves_nothing_running(cluster, local, tmp_path):
    (had,) = cluster.worker_nodes

    def lose():
        cluster.remove_node(had, allow_graceful=False)
        cluster.add_node(**machine(2))

    root = tmp_path / "lost"
    options = {"address": cluster.address, "retries": 5}
    outcome = run_study(one(root, "wait"), root, executor=on("ray", root, **options), display=Stop(lose))
    assert outcome.failed == {}
    assert attempts(root)["treated-0"] == 2
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run_study(
            one(stopped, "wait"),
            stopped,
            executor=on("ray", stopped, **options),
            display=Stop(interrupt),
        )
    assert free(stopped)
    assert run_study(one(stopped, "wait"), stopped, executor=on("slurm", stopped, cluster="debug")).failed == {}
    assert same(stopped, local, 1), "what one room left another finishes"


KILLED = """
import os, sys
if __name__ == "__main__":
    sys.path.insert(0, {tests!r})
    from test_clusters import Stop, on, one
    from pathlib import Path
    from retarget.study.runner import run_study
    root = Path({root!r})
    run_study(one(root, "wait"), root,
              executor=on("ray", root, address={address!r}), display=Stop(lambda: os.kill(os.getpid(), {number})))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, -signal.SIGINT)])
def test_a_command_that_is_stopped_leaves_nothing_running(cluster, tmp_path, number, code):
    """SIGTERM is an interrupt, as it is without Ray, which has a handler of its own."""
    script, root = tmp_path / "script.py", tmp_path / "study"
    given = dict(tests=str(Path(__file__).parent), root=str(root), address=cluster.address, number=int(number))
    script.write_text(KILLED.format(**given))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    assert free(root)


OWN = """
import numpy as np
from beside import STEP
from retarget.study import Arm, Metric, StudyPlan

plan = StudyPlan(study="own", title="Own", question="?", arms=(Arm(name="a", label="a"),), seeds=(3,),
                 metrics=(Metric(name="height", label="height"),))

def run(run):
    run.log(0, height=STEP)
    run.save_predictions(path=np.random.default_rng(run.seed).normal(size=3))
    return {"height": STEP * run.seed}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's study in a folder of its own, with a file beside it."""
    for name in ("own", "beside"):  # of another test
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.py").write_text(OWN)
    (tmp_path / "mine" / "beside.py").write_text("STEP = 0.5\n")
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "mine" / "own.py")


def test_a_users_own_file_is_found_by_every_room(cluster, own, tmp_path, capsys):
    rooms = {
        "local": [],
        "ray": ["--executor", "ray", "--cluster", f"address={cluster.address}", "cpus=0.5"],
        "debug": ["--executor", "slurm", "--cluster", "cluster=debug", "name=mine"],
    }
    for room, words in rooms.items():
        assert main(["study", own, "--out", room, *words]) == 0, capsys.readouterr().err
    found = [contents(tmp_path / room) for room in rooms]
    assert found[0] == found[1] == found[2]
    capsys.readouterr()
    assert main(["study", own, "--out", "new", *rooms["ray"], "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["executor"] == "ray"
    assert not (tmp_path / "new").exists()


def test_a_preempted_job_goes_on_and_a_killed_one_is_reported(local, tmp_path, monkeypatch):
    monkeypatch.setattr(submitit.core.core.Job, "_results_timeout_s", 0)  # seconds that a slow disk is waited for
    preempted = tmp_path / "preempted"
    executor = on("slurm", preempted, cluster="local", timeout_min=60)
    assert run_study(one(preempted, "parent:SIGUSR2"), preempted, executor=executor).failed == {}
    assert attempts(preempted) == {"treated-0": 2}
    killed = tmp_path / "killed"
    study = one(killed, "parent:SIGKILL")
    outcome = run_study(study, killed, executor=on("slurm", killed, cluster="local"))
    error = outcome.failed["default/treated/seed-0"]
    assert "ended without a result (state FINISHED); see " in error
    assert Path(error.rpartition("see ")[2]).exists()
    free(killed)
    assert run_study(study, killed).failed == {}
    assert same(preempted, local, 1)
    assert same(killed, local, 1)


def test_an_interrupt_cancels_what_is_in_the_queue(tmp_path):
    study = one(tmp_path, "wait")
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path, executor=on("slurm", tmp_path, cluster="local"), display=Stop(interrupt))
    assert free(tmp_path)


SBATCH = """#!/bin/sh
echo "$1" >> {log}; cp "$1" {log}.last
echo "Submitted batch job $(wc -l < {log})"
"""
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
for job in $(seq 1 $(wc -l < {log})); do echo "$job|NODE_FAIL|n1"; done
"""


def slurm_commands():
    """The Slurm commands in docs/clusters.md."""
    text = "".join(blocks(ROOT / "docs" / "clusters.md", "console")).replace("\\\n", " ").replace("$ retarget ", "")
    return [shlex.split(line) for line in text.splitlines() if "--executor slurm" in line]


def test_parameters_reach_slurm_and_a_job_whose_machine_fails_is_submitted_again(tmp_path, monkeypatch):
    """Scripts replace Slurm's commands: each job of this queue loses its machine."""
    monkeypatch.setattr(submitit.core.core.Job, "_results_timeout_s", 0)
    monkeypatch.setattr("retarget.study.slurm.LOOK_EVERY", 0.0)
    (tmp_path / "bin").mkdir()
    log = tmp_path / "log"
    for name, text in {"sbatch": SBATCH, "sacct": SACCT, "srun": "", "scancel": "#!/bin/sh\n"}.items():
        (tmp_path / "bin" / name).write_text(text.format(log=log))
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for words in slurm_commands():
        assert main([*words, "--dry-run"]) == 0, words
    assert not log.exists()
    given = dict(slurm_partition="gpu", timeout_min=90, mem_gb=32, gpus_per_node=1, slurm_account="us")
    seen, root = Seen(), tmp_path / "study"
    outcome = run_study(plan(seeds=[0], arms=["treated"]), root, executor=on("slurm", root, **given), display=seen)
    assert "job 4 ended without a result (state NODE_FAIL)" in outcome.failed["default/treated/seed-0"]
    assert len(log.read_text().splitlines()) == 4
    assert len(seen.all("remarked")) == 3
    asked = set(Path(f"{log}.last").read_text().splitlines())
    flags = ("partition=gpu", "time=90", "mem=32GB", "gpus-per-node=1", "account=us", "job-name=retarget")
    assert {f"#SBATCH --{flag}" for flag in (*flags, "cpus-per-task=1", "nodes=1")} <= asked


def test_what_cannot_be_done_is_refused_before_anything_is_begun(own, tmp_path, monkeypatch, capsys):
    refused = {
        ("ray", "adress=auto"): "there is no setting adress, did you mean address?",
        ("ray", "gpus=-1"): "gpus must be at least 0, not -1",
        ("ray", "address=ray://head:10001"): "is one of Ray Client",
        ("slurm", "cluster=pbs"): "cluster=pbs is none of slurm, local, debug",
        ("slurm", "cluster=slurm"): 'Could not detect "srun"',
        ("slurm", "cluster=local partitoin=gpu"): "Parameter 'partitoin' need to be prefixed by an executor name",
        ("slurm", "cluster=local nodes=2"): "nodes=2: a run is one task on one machine",
        ("slurm", "cluster=local timeout_min=0"): "timeout_min=0: a job needs a whole number of minutes",
        ("local", "cpus=1"): "--cluster cpus is for --executor ray or slurm",
    }
    for (room, words), message in refused.items():
        assert main(["study", own, "--executor", room, "--cluster", *words.split()]) == 2
        assert message in capsys.readouterr().err
    for package, room in (("ray", "ray"), ("submitit", "slurm")):
        monkeypatch.setitem(sys.modules, package, None)
        assert main(["study", own, "--executor", room, "--cluster", *["cluster=local"] * (room == "slurm")]) == 1
        assert f"{package} is not installed; it comes with: pip install 'retarget[cluster]'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_machine_that_does_not_share_the_disk_does_nothing(tmp_path):
    config = dict(run_hash="x", settings={"lift": 1.0}, arm="treated", condition="default", seed=0, threads=1)
    lock = tmp_path / ".lock"
    lock.write_text("1 on head since now\n")
    place = tmp_path / "runs" / "treated" / "seed-0"
    job = Job("key", place, "tasks_for_tests:walk", config, ticket=Ticket.of(lock))
    command = Command.here(1)
    lock.write_text("2 on head since then\n")
    (*_, last) = command.do(job)
    assert "another command works in" in last.error
    lock.unlink()
    (*_, last) = command.do(job)
    assert "all machines of a cluster must see it under the same path" in last.error
    assert not place.exists()
    (last,) = Command(str(tmp_path / "gone"), (), command.version, 1).do(job)
    assert "run the command in a folder that all machines of the cluster share" in last.error
    (last,) = Command(command.folder, (), "0.0", 1).do(job)
    assert "and the command's is 0.0" in last.error


def test_the_holder_of_a_run_alone_writes_its_status(tmp_path, monkeypatch):
    """A machine that was given up may still work: its run is reported as failed, and the record is left to it."""
    monkeypatch.setattr("retarget.study.runner.LET_GO_WITHIN", 0.0)
    study = plan(seeds=[0], arms=["treated"])

    class GivesUp(LocalExecutor):
        def events(self):
            while self._queue:
                yield Finished(self._queue.popleft().key, error="its machine was lost")

    place = tmp_path / "runs" / "treated" / "seed-0"
    run_study(study, tmp_path, executor=GivesUp())
    assert read_status(place)["state"] == "failed"
    (place / "status.json").unlink()
    with locked(place / ".lock", wait=False, what="run"):
        outcome = run_study(study, tmp_path, executor=GivesUp())
    assert outcome.failed == {"default/treated/seed-0": "its machine was lost"}
    assert read_status(place) is None


def test_news_of_progress_is_sparse_and_ends_are_never_left_out():
    from retarget.study.machines import _sparse

    told = [Started("k"), *(Progress("k", done, 9, "step") for done in range(10)), Finished("k")]
    kept = list(_sparse(iter(told)))
    assert kept == [Started("k"), Progress("k", 0, 9, "step"), Progress("k", 9, 9, "step"), Finished("k")]


def test_a_cluster_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"no Ray cluster can be used at 127.0.0.1:1 .*ray start --head"):
        run_study(plan(seeds=[0]), tmp_path, executor=on("ray", tmp_path))
    assert not (tmp_path / "runs").exists()
