"""POPE's figures: what its code costs beside bare TRL, and what stopping at the first success saves."""

import asyncio
import heapq
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from benchmarks._pairs import figure, interleaved
from retarget.pope.engines.local import TransformersEngine
from retarget.pope.engines.server import ServerEngine
from retarget.pope.grading import Grader, reward_function
from retarget.pope.mining import mine
from retarget.pope.mixture import mix
from retarget.pope.prefixes import cut_points
from retarget.pope.problems import Problem
from retarget.pope.prompts import Prompt
from retarget.pope.rollouts import Rollout, Sampling
from retarget.pope.sampler import Sampler
from retarget.pope.settings import TrainingSettings, grpo_arguments
from retarget.pope.studies.chain import make_problems
from retarget.pope.studies.testbed import PROMPTS, BaseModel, load_base, train_base
from retarget.pope.trl import PopeTrainer, ordered

GRADER = "retarget.pope.studies.chain:verify"
SETTINGS = TrainingSettings(
    cycles=200, prompts_per_batch=16, rollouts=16, updates_per_batch=2, micro_batch=128, lr=1e-4, max_grad_norm=1.0,
    entropy_bonus=0.0, clip_low=0.2, clip_high=0.2, temperature=1.0, max_completion_length=19, max_prompt_length=64,
    save_every=0, extra={"disable_tqdm": True, "use_cpu": True},
)  # fmt: skip


def figures(smallest: bool = False) -> Iterator[dict[str, Any]]:
    """Every figure of this module."""
    torch.set_num_threads(1)
    model, settings, pairs, k, each = BaseModel(), SETTINGS, 20, 128, 12
    if smallest:
        model = BaseModel(layers=1, width=16, heads=2, steps=20, short_only_steps=5)
        settings = settings.model_copy(update={"prompts_per_batch": 2, "rollouts": 4, "micro_batch": 4})
        pairs, k, each = 2, 16, 1
    with tempfile.TemporaryDirectory() as folder:
        base = train_base(model, Path(folder))
        yield from _step(base, Path(folder), settings, pairs)
        yield from _early_stop(base, k, each)
    yield from _scheduling((100, 200, 400) if smallest else (1_000, 8_000, 64_000))
    yield from _stragglers(4 if smallest else 80)
    yield from _cuts((1_000, 10_000) if smallest else (100_000, 1_000_000, 10_000_000))


def _step(base: Path, folder: Path, settings: TrainingSettings, pairs: int) -> Iterator[dict[str, Any]]:
    """One generation batch with both its updates, on the same rows with the same reward."""
    problems = make_problems(32, 8, seed=0)
    prefixes = {one.id: "\n".join(one.solution.split("\n")[:3]) for one in problems}
    rows = mix(problems, prefixes, PROMPTS, prompts_per_batch=settings.prompts_per_batch)
    ours, theirs = (_cycle(cls, base, rows, folder, settings) for cls in (PopeTrainer, GRPOTrainer))
    rollouts = settings.prompts_per_batch * settings.rollouts
    yield figure(f"GRPO cycle with POPE's code against bare TRL, {rollouts} rollouts, tiny model",
                 interleaved(ours, theirs, pairs, warmup=2), "ratio", "<= 1.02")  # fmt: skip


def _cycle(
    cls: type[GRPOTrainer], base: Path, rows: list[dict[str, Any]], folder: Path, settings: TrainingSettings
) -> Callable[[], None]:
    model, tokenizer = load_base(base)
    config = GRPOConfig(output_dir=str(folder / cls.__name__), **grpo_arguments(settings, 1, cuda=False))
    trainer = cls(
        model=model, reward_funcs=[reward_function(Grader(GRADER, workers=0))], args=config,
        processing_class=tokenizer, train_dataset=ordered(rows, settings),
    )  # fmt: skip
    trainer.model.train()
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    batches = iter(trainer.get_train_dataloader())

    def cycle() -> None:
        for _ in range(settings.updates_per_batch):
            trainer.training_step(trainer.model, next(batches), None)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()

    return cycle


def _early_stop(base: Path, k: int, each: int) -> Iterator[dict[str, Any]]:
    """Mine problems of mixed lengths, ``each`` per length, with and without stopping at the first success."""
    problems = [one for length in (2, 4, 6, 8) for one in make_problems(each, length, seed=1)]
    model, tokenizer = load_base(base)
    common: dict[str, Any] = dict(
        engine=TransformersEngine(model, tokenizer, name="base"), grader=Grader(GRADER, workers=0), prompts=PROMPTS,
        params=Sampling(max_tokens=19, temperature=1.0),
    )  # fmt: skip
    always = mine(problems, k=k, stop_at_success=False, **common)
    early = mine(problems, k=k, **common)
    hard = [[one.id for one in found.hard] for found in (always, early)]
    detail = {"rollouts_always": always.rollouts, "rollouts_early": early.rollouts, "hard": len(early),
              "problems": len(problems), "same_hard_set": hard[0] == hard[1]}  # fmt: skip
    saved = 1 - early.rollouts / always.rollouts
    yield figure(f"rollouts saved by stopping at the first success, k = {k}", saved, "share", detail=detail)


class _Instant:
    """An engine that answers at once, so that only the scheduling takes time."""

    name = "instant"

    def sample(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[list[Rollout]]:
        return [[Rollout("#### 5", 2, False)] * n for _ in prompts]


def _scheduling(counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Time per problem of mining with an engine that takes none, with more and more problems."""
    sampler = Sampler(_Instant(), Grader("exact"), PROMPTS, chunk=4)
    seconds: dict[int, float] = {}
    for count in counts:
        problems = [Problem(id=f"p{at}", prompt=str(at), answer="4") for at in range(count)]
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            mine(problems, sampler, k=8, journal=Path(folder) / "mine.jsonl")
            seconds[count] = time.perf_counter() - start
    each = {count: round(1000 * taken / count, 4) for count, taken in seconds.items()}
    least, most = counts[0], counts[-1]
    growth = each[most] / each[least]
    yield figure(f"scheduling a problem among {most:,} over one among {least:,}", growth, "ratio", "<= 2",
                 {"milliseconds_per_problem": each})  # fmt: skip


class _Slow(ServerEngine):
    """A server whose every 50th request takes 3 s and the others 20 ms."""

    identity = {}  # noqa: RUF012 - there is no server to ask

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9/v1", "slow", key_variable="none")
        self.waits: list[float] = []

    async def request(self, client: Any, prompt: Prompt, first: int, count: int, params: Sampling) -> list[Rollout]:
        seconds = 3.0 if (params.unit_seed(prompt) + first) % 50 == 0 else 0.02
        self.waits.append(seconds)
        await asyncio.sleep(seconds)
        return [Rollout("#### 5", 2, False)] * count


def _stragglers(count: int) -> Iterator[dict[str, Any]]:
    """Time of requests with stragglers, over the least that their delays allow if nobody knows them beforehand.

    That is the time at which the last of them ends if each is given, in the order asked, to the first free connection.
    """
    engine = _Slow()
    problems = [Problem(id=f"p{at}", prompt=str(at), answer="4") for at in range(count)]
    start = time.perf_counter()
    mine(problems, Sampler(engine, Grader("exact"), PROMPTS), k=32)
    taken = time.perf_counter() - start
    free = [0.0] * engine.concurrency
    for seconds in engine.waits:
        heapq.heapreplace(free, free[0] + seconds)
    least, average = max(free), sum(engine.waits) / engine.concurrency
    detail = {"seconds": round(taken, 2), "least": round(least, 2), "all_delays_over_connections": round(average, 2)}
    what = f"{32 * count:,} requests, 2 % of them of 3 s, over what their delays allow"
    yield figure(what, taken / least, "ratio", "<= 1.3", detail)


def _cuts(lengths: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Time per character of cutting a solution at tokens, with longer and longer solutions."""
    each: dict[int, float] = {}
    for length in lengths:
        text = "Let $x = 5$ and add \\frac{1}{2} of it. " * (length // 39)
        start = time.perf_counter()
        cut_points(text, 8, 0.5, "token")
        each[length] = 1e6 * (time.perf_counter() - start) / length
    least, most = lengths[0], lengths[-1]
    growth = each[most] / each[least]
    detail = {"microseconds_per_character": {length: round(taken, 3) for length, taken in each.items()}}
    yield figure(f"cutting, per character, {most / 1e6:g} MB over {least / 1e3:g} kB", growth, "ratio", "<= 2", detail)
