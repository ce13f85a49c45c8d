"""Twenty kills each of workers, drivers and nodes in the middle of mining: the journal is as without them."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from threading import Timer

import pytest
from engines_for_tests import Guesser
from test_pool import DRIVER, OPENER, asked, problems, sampler

from retarget.pope.engines.actors import ActorWorker
from retarget.pope.engines.pool import EnginePool
from retarget.pope.engines.processes import ProcessWorker
from retarget.pope.mining import mine

pytestmark = pytest.mark.slow
KILLS, ROUNDS = 20, 20_000
"""A unit of four rollouts takes about 50 ms."""


def whole(folder, count):
    """What one engine leaves that nobody kills."""
    (folder / "whole").mkdir()
    found = mine(problems(count), sampler(Guesser("guesser", folder / "whole")), 16, journal=folder / "whole.jsonl")
    return found, (folder / "whole.jsonl").read_bytes(), asked(folder / "whole")[0]


def test_workers(tmp_path):
    """At random moments, while they sample, wait or start."""
    expected = whole(tmp_path, 250)
    rng, done = random.Random(0), []
    options = {"folder": str(tmp_path), "rounds": ROUNDS}
    workers = [ProcessWorker("guesser", options, opener=OPENER) for _ in range(2)]
    timers = []

    def kill():
        pid = rng.choice(workers).pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            done.append(pid)

    def told(finished, total, rollouts):
        if len(timers) < 3 * KILLS and len(done) < KILLS and not any(one.is_alive() for one in timers[-1:]):
            timers.append(Timer(rng.uniform(0, 1.0), kill))
            timers[-1].start()

    with EnginePool(workers) as engines:
        found = mine(problems(250), sampler(engines), 16, journal=tmp_path / "mine.jsonl", progress=told)
        timers[-1].join()
    assert len(done) >= KILLS
    assert (found, (tmp_path / "mine.jsonl").read_bytes()) == expected[:2]
    repeated = asked(tmp_path)[0] - expected[2]
    assert repeated.total() <= len(done)  # at most the one that it had in hand
    assert not expected[2] - asked(tmp_path)[0]


def test_drivers(tmp_path):
    expected = whole(tmp_path, 16)  # the driver's own problems
    rng, kills, seconds = random.Random(0), 0, 4.0
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    script = DRIVER.replace('folder / "a"', f'folder / "a", rounds={10 * ROUNDS}')
    while kills < KILLS:
        words = [sys.executable, "-c", script, str(tmp_path), str(10**9)]
        with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE) as process:
            try:
                process.communicate(timeout=rng.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()  # until no worker holds its stream
                kills += 1
            else:
                (tmp_path / "mine.jsonl").unlink()  # it ended before: once more from the beginning
                (tmp_path / "a" / "asked.txt").unlink()
    subprocess.run([*words], env={**os.environ, "PYTHONPATH": path}, check=True)
    assert (tmp_path / "mine.jsonl").read_bytes() == expected[1]
    repeated = asked(tmp_path / "a")[0] - expected[2]
    assert repeated.total() <= kills * 8  # the window of two engines, and as much that waits to be graded


def test_nodes(cluster, tmp_path):
    expected = whole(tmp_path, 150)
    node = [cluster.add_node(num_cpus=1, object_store_memory=80 << 20)]
    cluster.wait_for_nodes()
    kills = 0
    workers = [ActorWorker("guesser", {"folder": str(tmp_path), "rounds": ROUNDS}, opener=OPENER) for _ in range(2)]

    def told(done, total, rollouts):
        nonlocal kills
        if kills < KILLS and rollouts >= 40 * (kills + 1):
            cluster.remove_node(node.pop(), allow_graceful=False)
            node.append(cluster.add_node(num_cpus=1, object_store_memory=80 << 20))
            kills += 1

    with EnginePool(workers) as engines:
        found = mine(problems(150), sampler(engines), 16, journal=tmp_path / "mine.jsonl", progress=told)
    assert kills == KILLS
    assert (found, (tmp_path / "mine.jsonl").read_bytes()) == expected[:2]
    repeated = asked(tmp_path)[0] - expected[2]
    assert repeated.total() <= kills
