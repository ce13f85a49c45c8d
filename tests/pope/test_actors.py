"""Engines in actors of a real Ray cluster of two nodes on this machine."""

import importlib
import re
import shutil
from threading import Event

import pytest
from engines_for_tests import Guesser
from test_pool import OPENER, asked, problems, sampler

from retarget.errors import UserError
from retarget.pope.engines import open_engine
from retarget.pope.engines.actors import ActorWorker, Placed
from retarget.pope.engines.local import TransformersEngine
from retarget.pope.engines.pool import Died, EnginePool
from retarget.pope.mining import mine


def test_a_killed_actor_and_a_lost_node_change_nothing(cluster, tmp_path, caplog):
    """One actor kills itself; then its node, or the other's, is taken away while both work."""
    node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    cluster.wait_for_nodes()
    some = problems(16)
    engines = [
        ActorWorker("guesser", {"folder": str(tmp_path), "dies_once": ["q3"]}, opener=OPENER) for _ in range(2)
    ]  # fmt: skip

    def told(done, total, rollouts):
        if rollouts >= 80 and len(cluster.worker_nodes) == 1:
            cluster.remove_node(node, allow_graceful=False)

    with EnginePool(engines) as pool:
        found = mine(some, sampler(pool), 16, journal=tmp_path / "ray.jsonl", progress=told)
    assert found == mine(some, sampler(Guesser("guesser", tmp_path)), 16, journal=tmp_path / "one.jsonl")
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert not cluster.worker_nodes
    assert "a Ray actor ended (ActorDiedError: The actor is dead because its worker process has died." in caplog.text
    assert len(asked(tmp_path)[1]) >= 3  # two actors, one in the place of a dead one, and this process


def test_an_answer_lost_with_its_machine_is_asked_for_again(monkeypatch):
    """A large answer stays on the machine of the actor that gave it; an actor's tasks are not repeated by Ray."""
    ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    worker = ActorWorker("guesser", {}, opener=OPENER)

    def lost(answer):
        raise ray.exceptions.ObjectReconstructionFailedError("0" * 56, "", "")

    monkeypatch.setattr(ray, "get", lost)
    with pytest.raises(Died, match="ObjectReconstructionFailedError"):
        worker._told("answer")


def test_an_actor_that_cannot_be_made_says_why(cluster, tmp_path, monkeypatch):
    """Its machine lacks a module: a value's class is one of a file that only this process has."""
    (tmp_path / "only_here.py").write_text("class Rate:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    worker = ActorWorker("guesser", {"rate": importlib.import_module("only_here").Rate()}, opener=OPENER)
    with pytest.raises(Died, match=r"a Ray actor ended \(ActorDiedError: ModuleNotFoundError: .*only_here"):
        worker.start(Event())
    worker.end()


def test_a_relative_path_is_that_of_the_command_s_folder(cluster, tiny, tmp_path, monkeypatch):
    """The cluster's processes work in another folder, which may have a model of the same name."""
    here = tmp_path / "here"
    here.mkdir()
    shutil.copytree(tiny.directory, here / "a-model")
    monkeypatch.chdir(here)
    with open_engine("a-model", engines="ray:1", device="cpu") as pool:
        assert (pool.name, pool.identity) == ("a-model", TransformersEngine.load("a-model").identity)
    said = Placed(str(here / "gone"), True, OPENER, "a-model", {}).open()["failed"]
    assert re.fullmatch(r"a-model: on .* there is no .*gone \(No such file.*\): run the command in a folder .*", said)


def test_the_words_for_actors_open_them(cluster, tmp_path, caplog):
    with pytest.raises(UserError, match="contains no model"):
        open_engine(str(tmp_path), engines="ray:9")
    assert "CPUs for 9 engines: some of them will wait" in caplog.text
