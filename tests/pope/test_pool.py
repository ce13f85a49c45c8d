"""Many engines behind one queue: the same journal as with one, whatever dies; nothing is lost or counted twice."""

import logging
import os
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Event

import pytest
from engines_for_tests import Guesser
from pope_serving import serve

from retarget.errors import UsageError, UserError
from retarget.pope.commands import pope
from retarget.pope.engines import open_engine
from retarget.pope.engines.fleet import devices
from retarget.pope.engines.pool import EnginePool, Opened
from retarget.pope.engines.processes import ProcessWorker
from retarget.pope.evaluation import evaluate
from retarget.pope.grading import Grader
from retarget.pope.mining import mine
from retarget.pope.problems import Problem, write_problems
from retarget.pope.prompts import Prompts
from retarget.pope.rollouts import Refused, Rollout, Sampling, StreamingEngine
from retarget.pope.sampler import Sampler
from retarget.pope.studies.chain import make_problems

PROMPTS = Prompts("{problem}", "{problem} + {prefix}", chat=False)
OPENER = "engines_for_tests:guesser"


def problems(count):
    return [Problem(id=f"p{at}", prompt=f"q{at}", solution=f"One {at}. So 4.", answer="4") for at in range(count)]


def sampler(engine):
    return Sampler(engine, Grader("exact"), PROMPTS, Sampling(seed=3), chunk=4)


def pool(folder, count=2, batch=1, spec="guesser", **options):
    folder.mkdir(exist_ok=True)
    options = {"folder": str(folder), **options}
    return EnginePool([ProcessWorker(spec, options, opener=OPENER) for _ in range(count)], batch)


def asked(folder):
    """The units that were started, and the number of processes that started them."""
    lines = [line.split() for line in (folder / "asked.txt").read_text().splitlines()]
    return Counter((prompt, chunk) for _, prompt, chunk in lines), {pid for pid, _, _ in lines}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The journal that one engine in this process leaves."""
    folder = tmp_path_factory.mktemp("whole")
    found = mine(problems(16), sampler(Guesser("guesser", folder)), 16, journal=folder / "mine.jsonl")
    return found, (folder / "mine.jsonl").read_bytes(), asked(folder)[0]


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (3, 1), (2, 5)])
def test_any_number_of_engines_leaves_the_journal_of_one(tmp_path, whole, count, batch):
    with pool(tmp_path / "a", count, batch) as engines:
        assert isinstance(engines, StreamingEngine)
        found = mine(problems(16), sampler(engines), 16, journal=tmp_path / "mine.jsonl")
        assert (found, (tmp_path / "mine.jsonl").read_bytes()) == whole[:2]
        units, processes = asked(tmp_path / "a")
        assert units == whole[2]
        assert len(processes) <= count
        more = mine(problems(20), sampler(engines), 24, journal=tmp_path / "mine.jsonl")  # the workers are there still
        assert asked(tmp_path / "a")[1] >= processes
    assert more == mine(problems(20), sampler(Guesser("guesser", tmp_path)), 24, journal=tmp_path / "mine.jsonl")


def test_a_killed_worker_loses_no_rollout_and_none_counts_twice(tmp_path, whole, caplog):
    with pool(tmp_path / "a", dies_once=["q3", "q9"]) as engines:
        found = mine(problems(16), sampler(engines), 16, journal=tmp_path / "mine.jsonl")
    assert (found, (tmp_path / "mine.jsonl").read_bytes()) == whole[:2]
    repeated = asked(tmp_path / "a")[0] - whole[2]
    assert repeated == {("q3", "0"): 1, ("q9", "0"): 1}  # what was in hand, and nothing else
    assert caplog.text.count("ended while it sampled, with exit code -9") == 2


def test_a_prompt_that_every_worker_dies_of_is_refused_and_costs_no_other(tmp_path):
    with pool(tmp_path / "a", batch=4, rate=0.0, dies=["q5"], refuses=["q6"]) as engines:
        found = mine(problems(12), sampler(engines), 4)
    assert [one.problem.id for one in found.outcomes if one.kind == "failed"] == ["p5", "p6"]
    reason = found.outcomes[5].reason
    assert reason.startswith("5 engines died while sampling this prompt; the last: process ")
    assert reason.endswith("with exit code -9")
    assert found.outcomes[6].reason == "q6 is too long"
    assert [one.n for one in found.outcomes] == [4] * 5 + [0, 0] + [4] * 5


def test_what_an_engine_says_of_itself_stops_the_work(tmp_path, capfd):
    with pool(tmp_path / "a", fails=["q7"]) as engines, pytest.raises(UserError, match="q7 cannot be sampled"):
        evaluate(problems(9), sampler(engines), 4, journal=tmp_path / "e.jsonl")
    with pool(tmp_path / "a") as engines:
        rest = evaluate(problems(9), sampler(engines), 4, journal=tmp_path / "e.jsonl")
    assert rest.to_json((1,)) == evaluate(problems(9), sampler(Guesser("guesser", tmp_path)), 4).to_json((1,))
    assert 2 <= rest.sampled <= 9
    failed = r"failed with RuntimeError: a bug \(its process printed the traceback\)"
    with pool(tmp_path / "a", raises=["q1"]) as engines, pytest.raises(UserError, match=failed):
        mine(problems(4), sampler(engines), 4)
    assert asked(tmp_path / "a")[0]["q1", "0"] == 2  # once, and once above
    assert 'raise RuntimeError("a bug")' in capfd.readouterr().err
    with pytest.raises(UserError, match="none: no model there"):
        pool(tmp_path / "a", spec="none")


def test_an_engine_that_opens_after_the_work_is_there_for_the_next(tmp_path):
    """The second opens when it reads a line, which is written between two calls."""
    os.mkfifo(tmp_path / "line")
    late = ProcessWorker("guesser", {"folder": str(tmp_path), "late": str(tmp_path / "line")}, opener=OPENER)
    with EnginePool([ProcessWorker("guesser", {"folder": str(tmp_path)}, opener=OPENER), late]) as engines:
        mine(problems(4), sampler(engines), 4)
        process = late.pid
        (tmp_path / "line").write_text("now")
        assert late.start(Event()) == engines._opened
        assert late.pid == process is not None


def test_an_engine_that_never_opens_is_given_up(tmp_path, caplog):
    never = "was started 5 times, but did not open: .* opened the engine, with exit code 7"
    with pytest.raises(UserError, match=f"engine 1 {never}"):
        pool(tmp_path / "a", spec="ends")
    assert caplog.text.count("starting it again") == 4


class Patient(logging.Handler):
    """A worker that answers once the log says that another one is left out."""

    def __init__(self, folder):
        super().__init__()
        self.engine, self.said = Guesser("guesser", folder), Event()

    def emit(self, record):
        if "left out" in record.getMessage():
            self.said.set()

    def start(self, over):
        return Opened("guesser", self.engine.identity)

    def ask(self, prompts, n, params):
        self.said.wait()
        return self.engine.sample(prompts, n, params)

    def kill(self):
        self.said.set()

    end = kill


def test_an_engine_that_cannot_be_opened_is_left_out_while_others_work(tmp_path, caplog):
    patient = Patient(tmp_path)
    log = logging.getLogger("retarget.pope.engines.pool")
    log.addHandler(patient)
    try:
        with EnginePool([patient, ProcessWorker("ends", {}, opener=OPENER)]) as engines:
            found = mine(problems(4), sampler(engines), 8)
    finally:
        log.removeHandler(patient)
    assert "with exit code 7; it is left out from now on" in caplog.text
    assert found == mine(problems(4), sampler(Guesser("guesser", tmp_path)), 8)


def test_engines_of_different_models_are_no_pool(tmp_path):
    """The first hangs, so that the second is waited for; it is killed when the work stops."""
    of_both = {"folder": str(tmp_path), "hangs": ["q0"]}
    some = [ProcessWorker("guesser", {**of_both, "rate": rate}, opener=OPENER) for rate in (0.1, 0.2)]
    with EnginePool(some) as engines, pytest.raises(UserError, match=r'identity = {"rate": 0.2}, not {"rate": 0.1}'):
        mine(problems(4), sampler(engines), 16)
    assert some[0].pid is None
    with pytest.raises(UserError, match="at least one engine and a batch of at least 1"):
        EnginePool([])


def test_a_pool_answers_as_an_engine_does(tmp_path):
    params = Sampling(seed=1)
    alone = Guesser("guesser", tmp_path).sample(["q1", "q2"], 8, params)
    with pool(tmp_path / "a", refuses=["q3"]) as engines:
        assert engines.sample(["q1", "q2"], 8, params) == alone
        assert engines.name == "guesser"
        with pytest.raises(Refused, match="q3 is too long"):
            engines.sample(["q1", "q3"], 8, params)
        assert engines.sample(["q1", "q2"], 8, params) == alone


DRIVER = """
import os, signal, sys
from pathlib import Path
import test_pool as t
folder, stop = Path(sys.argv[1]), int(sys.argv[2])

def told(done, total, rollouts):
    if rollouts >= stop:
        os.kill(os.getpid(), signal.SIGKILL)

engines = t.pool(folder / "a")
t.mine(t.problems(16), t.sampler(engines), 16, journal=folder / "mine.jsonl", progress=told)
"""


def drive(folder, stop):
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    words = [sys.executable, "-c", DRIVER, str(folder), str(stop)]
    return subprocess.run(words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=False)


def test_a_killed_driver_takes_its_workers_along_and_its_journal_goes_on(tmp_path, whole):
    assert drive(tmp_path, 24).returncode == -9  # returns when nobody holds its streams: no worker is left
    kept = len((tmp_path / "mine.jsonl").read_bytes().splitlines())
    assert 1 < kept < len(whole[1].splitlines())
    assert drive(tmp_path, 10**9).returncode == 0
    assert (tmp_path / "mine.jsonl").read_bytes() == whole[1]
    repeated = asked(tmp_path / "a")[0] - whole[2]
    assert repeated.total() <= 2 * 4  # the window of two engines, sampled, and as much that waits to be graded


def test_what_waits_to_be_graded_is_bounded(tmp_path):
    """With a grader slower than the engine, a kill loses little."""
    unkept = []

    class Streaming(Guesser):
        def window(self, n):
            return 4

        @asynccontextmanager
        async def session(self):
            yield self.ask

        async def ask(self, prompt, n, params):
            return self.one(prompt, n, params)

    def told(done, total, rollouts):
        begun = (tmp_path / "asked.txt").read_bytes() if rollouts else b""
        unkept.append(len(begun.splitlines()) - rollouts // 4)

    asking = Sampler(
        Streaming("guesser", tmp_path), Grader("graders_for_tests:slow"), PROMPTS, Sampling(seed=3), chunk=4
    )
    mine(problems(30), asking, 8, progress=told)
    assert unkept[-1] == 0 < max(unkept) <= 2 * 4


def test_servers_of_one_model_share_a_queue_and_one_that_ends_is_left_out(tmp_path, whole, caplog):
    """The second dies in the middle of an answer, after three of them."""
    with serve(Stub(), models="w") as (one, seen), serving(3) as (two, process):
        engine = open_engine(f"{one},{two}", model="tiny", concurrency=2, retries=0, fingerprint="w")
        assert isinstance(engine, StreamingEngine)
        found = mine(problems(12), sampler(engine), 4, stop_at_success=False, journal=tmp_path / "mine.jsonl")
        process.wait()
    with serve(Stub(), models="w") as (url, alone):
        engine = open_engine(url, model="tiny", fingerprint="w")
        assert found == mine(problems(12), sampler(engine), 4, stop_at_success=False, journal=tmp_path / "one.jsonl")
    assert (tmp_path / "mine.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert len(alone["bodies"]) == 48
    assert len(seen["bodies"]) in (48 - 3, 48 - 2), "the other request in flight may be answered before it dies, or not"
    assert f"{two} is left out from now on" in caplog.text
    with pytest.raises(UserError, match="failed"):
        open_engine(f"{two},{two}0", model="tiny", retries=0, fingerprint="w").sample(["q1"], 2, Sampling())


def test_servers_of_other_models_are_refused_with_what_differs():
    with serve(Stub(), models="old") as (one, _), serve(Stub(), models="new") as (two, _):
        with pytest.raises(
            UserError, match=r'other work than .*: served = .*"new".*, not .*"old".*; set --fingerprint'
        ) as told:
            open_engine(f"{one},{two.replace('://', '://me:secret@')}", model="tiny").sample(["q"], 1, Sampling())
        assert "secret" not in str(told.value)
        with pytest.raises(UserError, match="an address of its own"):
            open_engine(f"{one},{one}", model="tiny")
    with pytest.raises(UserError, match="'some-model' is not the address of a server"):
        open_engine("http://127.0.0.1:9/v1,some-model", model="tiny")


class Stub:
    """An engine whose answers depend only on the seed."""

    def sample(self, prompts, n, params):
        return [[Rollout(f"#### {params.seed % 5}", 2, False)] * n for _ in prompts]


@contextmanager
def serving(answers):
    """A server in its own process, which dies after a number of answers."""
    code = (
        "import sys, pope_serving, test_pool\n"
        f"with pope_serving.serve(test_pool.Stub(), [*[None] * {answers}, 'die'], models='w') as (url, _):\n"
        "    print(url, flush=True)\n"
        "    sys.stdin.read()"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


def test_the_command_line_mines_on_two_engines_to_the_bytes_of_one(tiny, tmp_path, capsys):
    """Real engines, of transformers; search, evaluation and the oracle use them in the same way."""
    write_problems(tmp_path / "problems.jsonl", make_problems(6, 3, seed=3))
    for name, text in (("system", ""), ("unguided", "{problem} ="), ("guided", "{problem} hint {prefix} =")):
        (tmp_path / f"{name}.txt").write_text(text)
    words = ["mine", str(tmp_path / "problems.jsonl"), "--templates", str(tmp_path), "--model", str(tiny.directory)]
    words += ["--k", "16", "--chunk", "4", "--grader", "retarget.pope.studies.chain:verify", "--workers", "0"]
    words += ["--no-chat", "--max-tokens", "8", "--temperature", "1.0", "--answer-anywhere"]
    assert pope([*words, "--out", str(tmp_path / "two"), "--engines", "2"]) == 0
    assert pope([*words, "--out", str(tmp_path / "one")]) == 0
    for name in ("mine.jsonl", "outcomes.jsonl", "hard.jsonl"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    with pytest.raises(UserError, match="contains no model"):
        pope([*words, "--out", str(tmp_path / "x"), "--engines", "2", "--model", str(tmp_path)])
    with pytest.raises(UsageError, match="--engines does not apply to a server"):
        pope([*words, "--out", str(tmp_path / "x"), "--engines", "2", "--model", "http://127.0.0.1:9/v1"])


def test_engines_have_gpus_of_their_own():
    assert devices(3, 1, ["4", "GPU-7", "5", "6"]) == [["4"], ["GPU-7"], ["5"]]
    with pytest.raises(UserError, match="4 engines with 2 GPUs each need 8 GPUs, but 4 are visible: lower --engines"):
        devices(4, 2, list("0123"))


def test_words_for_engines_that_make_no_sense_are_refused():
    for wrong in ("0", "-1", "two", "slurm:2", "ray:", 0):
        with pytest.raises(UserError, match="engines must be a number of at least 1, or ray:NUMBER, not"):
            open_engine("some-model", engines=wrong)
    with pytest.raises(UserError, match="give the addresses of several servers"):
        open_engine("http://127.0.0.1:9/v1", engines=2, model="m")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", r"no Ray cluster can be used at 127.0.0.1:1 .*or unset RAY_ADDRESS"),
        ("ray://a:1", "^RAY_ADDRESS = ray://a:1 is one of Ray Client: .*, with RAY_ADDRESS=auto$"),
    ],
)
def test_a_ray_cluster_that_cannot_be_used_is_named_at_once(tmp_path, monkeypatch, address, message):
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=message):
        open_engine(str(tmp_path), engines="ray:2")
