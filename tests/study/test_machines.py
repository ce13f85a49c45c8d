"""What a command takes along to other machines."""

import os
import pickle
import subprocess
import sys

import pytest
from tasks_for_tests import plan

from retarget.study.clusters import open_executor
from retarget.study.machines import Command, carried
from retarget.study.record import Results, read_status
from retarget.study.runner import run_study
from retarget.study.worker import Job

HERE = "import pickle, sys; command, job = pickle.load(sys.stdin.buffer); print(list(command.do(job))[-1].error)"
"""Does a run on another machine: a process with an environment of its own."""


def test_variables_of_machines_and_secrets_stay_where_they_are():
    taken = {"MY_SCALE": "2", "PYTHONHASHSEED": "7", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "LANG": "C", "DATA": "/data"}
    left = [
        "PATH", "HOME", "HF_HOME", "LD_LIBRARY_PATH", "PYTHONPATH", "CONDA_PREFIX", "https_proxy", "TMPDIR", "HOSTNAME",
        "CUDA_VISIBLE_DEVICES", "RAY_ADDRESS", "SLURM_JOB_ID", "HF_TOKEN", "WANDB_API_KEY", "PGPASSWORD", "GITHUB_PAT",
        "my_secret",
    ]  # fmt: skip
    assert carried(taken | dict.fromkeys(left, "x") | {"DATABASE": "postgres://me:word@host/db"}) == taken


def test_a_command_on_disk_holds_no_variable_but_the_seed_of_hashes(monkeypatch):
    """As Slurm's jobs are written; the queue passes the environment on by itself."""
    monkeypatch.setenv("MY_SCALE", "2")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert Command.here(1).variables == (("PYTHONHASHSEED", "7"),)
    assert b"MY_SCALE" not in pickle.dumps(Command.here(1))
    assert "MY_SCALE" not in repr(Command.here(1, environment=True))


def test_a_run_on_another_machine_has_the_variables_and_hashes_of_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SCALE", "2")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    config = dict(run_hash="x", settings={}, arm="a", condition="default", seed=0, threads=1)
    found = []
    for name, environment in (("other", {"MY_SCALE": "3", "PYTHONHASHSEED": "1"}), ("bare", {})):
        job = Job("key", tmp_path / name, "tasks_for_tests:told", config)
        there = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **environment}
        given = pickle.dumps((Command.here(1, environment=True), job))
        done = subprocess.run([sys.executable, "-c", HERE], input=given, capture_output=True, env=there, check=True)
        assert done.stdout == b"None\n"
        found.append(read_status(tmp_path / name)["metrics"])
    assert found[0] == found[1]
    assert found[0]["height"] == 2.0


def test_a_joined_ray_cluster_gives_runs_the_command_s_variables(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    machine = dict(num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False)
    cluster = Cluster(initialize_head=True, head_node_args=machine)
    try:
        monkeypatch.setenv("MY_SCALE", "2")
        monkeypatch.setenv("PYTHONHASHSEED", "7")
        study = plan(task="tasks_for_tests:told", seeds=[0], arms=["control"], claims=(), analysis=None)
        values = []
        for name, options in (("local", {}), ("ray", {"address": cluster.address})):
            root = tmp_path / name
            assert run_study(study, root, executor=open_executor(name, options, out=root)).failed == {}
            values.append(Results.load(root).run("default", "control", 0).metrics)
        assert values[0] == values[1]
        assert values[0]["height"] == 2.0
    finally:
        ray.shutdown()
        cluster.shutdown()
