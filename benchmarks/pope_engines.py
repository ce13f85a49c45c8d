"""POPE on many engines: what a second one gains, what a pool of 64 costs, and what mining adds to `generate`."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import ray
import torch
from transformers import GenerationConfig

from benchmarks._engines import Waiting
from benchmarks._pairs import figure, interleaved
from retarget.pope.engines.actors import ActorWorker
from retarget.pope.engines.local import TransformersEngine
from retarget.pope.engines.pool import Answer, EnginePool, Opened
from retarget.pope.engines.processes import ProcessWorker
from retarget.pope.grading import Grader
from retarget.pope.mining import Mined, mine
from retarget.pope.problems import Problem
from retarget.pope.prompts import Prompt, Prompts
from retarget.pope.rollouts import Engine, Sampling
from retarget.pope.sampler import Sampler
from retarget.pope.studies.chain import make_problems
from retarget.pope.studies.testbed import PROMPTS, BaseModel, make_model, make_tokenizer

_PLAIN = Prompts("{problem}", "{problem} {prefix}", chat=False)


def figures(smallest: bool = False) -> Iterator[dict[str, Any]]:
    """Every figure of this module."""
    torch.set_num_threads(1)
    rounds, seconds, count, pairs = (100, 0.001, 4, 1) if smallest else (12_000, 0.02, 160, 5)
    yield from _two_over_one("computing", "busy", {"rounds": rounds}, count, pairs)
    yield from _two_over_one("waiting", "waiting", {"seconds": seconds}, count, pairs)
    with _local_cluster():
        yield from _two_over_one("computing", "busy", {"rounds": rounds}, count, pairs, "Ray actors", ActorWorker)
    yield from _many(*((4, 0.001, 8) if smallest else (64, 0.05, 1280)))
    yield from _over_generate(2 if smallest else 16, 8 if smallest else 64, 1 if smallest else 15)


def _mine(engine: Engine, problems: Sequence[Problem]) -> Callable[[], None]:
    """A function that mines these problems from the start, with a journal."""
    sampler = Sampler(engine, Grader("exact"), _PLAIN, chunk=4)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            mine(problems, sampler, k=4, check="none", journal=Path(folder) / "mine.jsonl")

    return run


def _problems(count: int) -> list[Problem]:
    return [Problem(id=f"p{at}", prompt=str(at), answer="4") for at in range(count)]


@contextmanager
def _local_cluster() -> Iterator[None]:
    """A Ray cluster of this machine: a CPU for each of the three actors, which never work all at once."""
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def _two_over_one(
    what: str, spec: str, options: dict[str, Any], count: int, pairs: int, where: str = "processes",
    worker: type[ProcessWorker] | type[ActorWorker] = ProcessWorker,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Time of one engine over that of two; all are open before the clock starts."""

    def pool(size: int) -> EnginePool:
        return EnginePool([worker(spec, options, opener="benchmarks._engines:engine") for _ in range(size)])

    with pool(1) as one, pool(2) as two:
        measured = interleaved(_mine(one, _problems(count)), _mine(two, _problems(count)), pairs, warmup=1)
    yield figure(f"two {what} engines ({where}) over one, {4 * count} rollouts", measured, "ratio", ">= 1.8")


class _Thread:
    """A worker without a process, so that only the work of the pool itself is measured."""

    def __init__(self, seconds: float) -> None:
        self.engine = Waiting(seconds)

    def start(self, over: Event) -> Opened:
        """Nothing to start."""
        return Opened("waiting", {})

    def ask(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[Answer]:
        """Wait, then answer."""
        return [*self.engine.sample(prompts, n, params)]

    def kill(self) -> None:
        """Nothing to end."""

    def end(self) -> None:
        """Nothing to end."""


def _many(engines: int, seconds: float, count: int) -> Iterator[dict[str, Any]]:
    """Time of mining on many engines that only wait, over the time that their waits need."""
    with EnginePool([_Thread(seconds) for _ in range(engines)]) as pool:
        measured = interleaved(_mine(pool, _problems(count)), lambda: None, 1, warmup=0)
    least = seconds * count / engines
    yield figure(
        f"mining on {engines} engines of {1000 * seconds:g} ms per request over what their waits take",
        measured.a[0] / least, "ratio", "<= 1.3", {"seconds": measured.a[0], "least": least},
    )  # fmt: skip


def _over_generate(count: int, length: int, pairs: int) -> Iterator[dict[str, Any]]:
    """Mining over `generate`, seconds per token: same prompts, seeds and batch sizes, a tiny random model."""
    rows, model, tokenizer = 16, make_model(BaseModel()), make_tokenizer()
    model.eval()
    problems = make_problems(count, 6, seed=0)
    params = Sampling(max_tokens=length, temperature=1.0, purpose="mine")
    config = GenerationConfig(
        max_new_tokens=length, do_sample=True, temperature=1.0, top_k=0, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip

    @torch.no_grad()
    def bare() -> None:
        for one in problems:
            prompt = PROMPTS.without_prefix(one.prompt)
            torch.manual_seed(params.unit_seed(prompt))
            batch = torch.tensor([tokenizer(prompt)["input_ids"]]).expand(rows, -1)
            model.generate(input_ids=batch, attention_mask=torch.ones_like(batch), generation_config=config)

    def mined(engine: Engine) -> Mined:
        sampler = Sampler(engine, Grader("exact"), PROMPTS, params, chunk=rows)
        with tempfile.TemporaryDirectory() as folder:
            return mine(
                problems, sampler, rows, stop_at_success=False, check="none", journal=Path(folder) / "mine.jsonl"
            )

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with EnginePool([ProcessWorker(folder, {})]) as process:
            here = TransformersEngine(model, tokenizer, name=folder)
            for where, engine in (("in this process", here), ("in a process of its own", process)):
                tokens = mined(engine).tokens
                measured = interleaved(lambda one=engine: mined(one), bare, pairs, warmup=1)
                rate = {"tokens": tokens, "tokens_per_second_bare": tokens / float(np.median(measured.b))}
                what = f"mining {where} over bare generate, seconds per token, tiny model"
                yield figure(what, measured, "ratio", "<= 1.05", rate)
