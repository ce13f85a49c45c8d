"""The verbs that write: a smallest input for each, and which of its files must not depend on interruptions."""

import hashlib
import json
import re
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from faults import targets


@dataclass(frozen=True)
class Verb:
    """A command that writes.

    Attributes:
        words: its command line; ``{here}`` is the folder of its inputs, ``{out}`` where it writes, ``{server}`` the
            address of a model.
        prepare: makes its inputs in an empty folder.
        same: patterns of files below ``out`` whose bytes must not depend on kills; ``out`` itself if it is a file.
        modules: imported before the clock starts, so that kills hit the work and not the imports.
        heavy: whether it takes seconds; then it is killed less often.
        locks: whether a second process on the same directory is refused; if not, both write the same complete files.
    """

    name: str
    words: str
    prepare: Callable[[Path], object]
    same: tuple[str, ...]
    modules: tuple[str, ...] = ()
    heavy: bool = False
    locks: bool = True


# -- a model that solves some sums; whether it does depends only on the request


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._say({"data": [{"id": "m", "object": "model"}]})

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if len(data) < int(self.headers["Content-Length"]):  # the client was killed
            return
        body = json.loads(data)
        said = json.dumps(body.get("messages") or body.get("prompt"))
        chance = hashlib.sha256(f"{said}{body.get('seed')}".encode()).digest()[0] / 256
        number = int((re.findall(r"What is (\d+) \+ 2", said) or ["0"])[0])
        right = chance < (0.5 if number % 2 == 0 or "We begin" in said else 0.0)
        text = f"We add {chance}.\n#### {number + 2 if right else 1}"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        self._say({"choices": [choice], "usage": {"completion_tokens": 9}})

    def _say(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def _serve(port: Any) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    port.send(server.server_port)
    threading.Thread(target=server.serve_forever).start()


@contextmanager
def model_server() -> Any:
    """Start a process that answers as an OpenAI-compatible server does; yields its address."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/v1"
    finally:
        process.kill()
        process.join()


# -- inputs


def _problems(folder: Path) -> None:
    lines = [
        {"id": f"p{n}", "prompt": f"What is {n} + 2?", "answer": str(n + 2),
         "solution": f"We begin with {n}.\nThen comes one more.\nAnd another one.\nIt is {n}+2.\nSo #### {n + 2}"}
        for n in range(24)
    ]  # fmt: skip
    (folder / "problems.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = [{"id": line["id"], "status": "found", "prefix": f"We begin with {n}."} for n, line in enumerate(lines)]
    (folder / "prefixes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))


def _rows(folder: Path) -> None:
    from retarget.pope.mixture import mix, write_rows
    from retarget.pope.problems import read_problems
    from retarget.pope.search import Prefixes

    _problems(folder)
    problems = read_problems(folder / "problems.jsonl")
    write_rows(folder / "rows.parquet", mix(problems, Prefixes.read(folder / "prefixes.jsonl")), {})


def _base(folder: Path) -> None:
    """Rows of generated problems, and a model that has hardly been trained on such problems."""
    from retarget.pope.mixture import mix, write_rows
    from retarget.pope.studies.chain import Corpus, make_problems
    from retarget.pope.studies.testbed import PROMPTS, BaseModel, train_base

    problems = make_problems(4, 2, seed=3)
    prefixes = {problem.id: problem.solution.split("\n")[0] for problem in problems}
    write_rows(folder / "rows.parquet", mix(problems, prefixes, PROMPTS, seed=0), {})
    corpus = Corpus(short=(1, 1), long=(2, 2), step_accuracy=1.0)
    base = BaseModel(corpus=corpus, layers=1, width=16, heads=2, steps=4, short_only_steps=0, batch_size=8, lr=1e-3)
    train_base(base, folder).rename(folder / "base")


def _journals(folder: Path) -> None:
    from retarget.pope.journal import Journal

    for name, first in (("a", 0), ("b", 8)):  # the two journals share eight units
        with Journal(folder / f"{name}.jsonl", {"verb": "mine", "model": "m", "sampling": {"seed": 0}}) as journal:
            for at in range(first, first + 16):
                journal.append({"problem": f"p{at}", "chunk": 0, "n": 4, "tokens": 9, "example": "x" * 2000})


def _pipeline(folder: Path) -> None:
    targets.write_pipeline(folder)


def _runs(folder: Path) -> None:
    lines = [f"{arm},{seed},top1,{70 + (arm == 'new') + seed / 9}" for arm in ("new", "old") for seed in range(5)]
    (folder / "runs.csv").write_text("\n".join(["arm,seed,metric,value", *lines]) + "\n")
    (folder / "claims.toml").write_text(
        '[[claims]]\nid = "a"\nsentence = "New is better."\nmetric = "top1"\ndirection = "higher"\n'
        'arms = ["new", "old"]\nsmallest_effect = 0.5\n'
    )


_NETWORK = "--channels 8 --layers 1 --groups 4 --attention-side None"
_TRAINING = "--steps 12 --batch-size 8 --save-every 3"
_ASKING = "--model {server} --served m --grader exact --concurrency 4 --max-tokens 64"

VERBS = [
    Verb("study", "study toy --out {out} --no-progress", lambda _: None,
         ("summary.json", "runs/**/predictions.safetensors", "runs/**/metrics.jsonl"), ("faults.toy",)),
    Verb("study pskd", "study pskd --preset demo --arms cross_entropy pskd --seeds 0 --out {out} --no-progress "
         "--set epochs=2 train_images=120 validation_images=30 test_images=60", lambda _: None,
         ("runs/**/predictions.safetensors",), heavy=True),
    Verb("judge", "judge {here}/runs.csv --claims {here}/claims.toml --out {out}", _runs,
         ("summary.json", "analysis.json", "report.md"), ("retarget.report",)),
    Verb("report", "report {here}/study --out {out}/report.html", targets.write_study, ("*.html", "*.md", "*_files/*"),
         ("retarget.report",), locks=False),
    Verb("pope mine", f"pope mine {{here}}/problems.jsonl --k 16 --chunk 4 {_ASKING} --out {{out}}", _problems,
         ("hard.jsonl", "outcomes.jsonl", "mine.jsonl"), ("retarget.pope.mining", "httpx")),
    Verb("pope search", "pope search {here}/problems.jsonl --cuts 2 --cap .5 --k 8 --chunk 4 "
         f"{_ASKING} --out {{out}}", _problems, ("prefixes.jsonl", "search.jsonl"), ("retarget.pope.search", "httpx")),
    Verb("pope oracle", f"pope oracle {{here}}/problems.jsonl {_ASKING} --out {{out}}/solved.jsonl", _problems,
         ("*.jsonl",), ("retarget.pope.oracle", "httpx")),
    Verb("pope evaluate", f"pope evaluate {{here}}/problems.jsonl --samples 8 --k 1 4 {_ASKING} --out {{out}}",
         _problems, ("evaluation.json", "evaluate.jsonl"), ("retarget.pope.evaluation", "httpx")),
    Verb("pope merge", "pope merge {here}/a.jsonl {here}/b.jsonl --out {out}", _journals, ("mine.jsonl",),
         ("retarget.pope.merge",), locks=False),
    Verb("pope mix", "pope mix {here}/problems.jsonl {here}/prefixes.jsonl --out {out}/rows.parquet", _problems,
         ("rows.parquet", "rows.parquet.md"), ("retarget.pope.mixture", "pyarrow.parquet"), locks=False),
    Verb("pope export", "pope export {here}/rows.parquet --to verl --out {out}/rows.parquet", _rows,
         ("rows.*",), ("retarget.pope.export", "pyarrow.parquet"), locks=False),
    Verb("pope train", "pope train {here}/rows.parquet --model {here}/base --out {out} --cycles 3 --grader "
         "retarget.pope.studies.chain:verify --set prompts_per_batch=2 rollouts=4 updates_per_batch=1 micro_batch=8 "
         "max_completion_length=6 max_prompt_length=64 save_every=1", _base,
         ("model.safetensors",), ("retarget.pope.trl", "retarget.pope.grading"), heavy=True),
    Verb("trojdiff train", "trojdiff train --data digits --target d2i --trigger patch --gamma .1 --out {out} "
         f"{_NETWORK} {_TRAINING}", lambda _: None, ("pipeline/**/*.safetensors", "pipeline/*.md"),
         ("retarget.trojdiff.train", "retarget.trojdiff.build")),
    Verb("trojdiff sample", "trojdiff sample {here}/pipeline --count 24 --batch-size 4 --sampler ddim-5 --out {out}",
         _pipeline, ("**/*.png", "**/*.safetensors"), ("retarget.trojdiff.sample", "retarget.trojdiff.checkpoint")),
    Verb("trojdiff evaluate", "trojdiff evaluate {here}/pipeline --data digits --sampler ddim-2 --count 50 "
         "--classifier-epochs 1 --out {out}", _pipeline, ("evaluation.json", "*.png"),
         ("retarget.trojdiff.evaluate", "torch_fidelity"), heavy=True),
]  # fmt: skip
