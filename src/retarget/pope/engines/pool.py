"""Several engines that share one queue: a free engine takes the next prompts; those of a dead one go to another."""

import asyncio
import logging
import weakref
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from threading import Event
from types import TracebackType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from retarget.errors import UserError
from retarget.identity import refuse_unlike
from retarget.pope.prompts import Prompt
from retarget.pope.rollouts import Ask, Failed, Refused, Rollout, Sampling, sample_through

OPENER = "retarget.pope.engines:open_engine"
_LIVES = 5
"""Number of workers that may die on a prompt before it is refused."""
_STARTS = 5
"""Number of consecutive failed starts after which an engine is left out."""
LOOK_EVERY = 0.2
"""Seconds between two checks, while an engine opens, whether it is still needed."""
_LOG = logging.getLogger(__name__)

Answer = list[Rollout] | Refused


class Opened(NamedTuple):
    """An engine's name, and the JSON values that decide its rollouts."""

    name: str
    identity: dict[str, Any]


class Died(Exception):
    """A worker ended before it answered."""


class _NeverOpened(UserError):
    """All starts of an engine failed."""


@runtime_checkable
class Worker(Protocol):
    """An engine outside this process. All methods except ``kill`` are called from one thread at a time."""

    def start(self, over: Event) -> Opened | None:
        """Start the worker, replacing an earlier one, and wait until its engine is open.

        Args:
            over: set when the engine is no longer needed.

        Returns:
            The opened engine; None if ``over`` was set first. The engine then continues to open, and the next call
            waits for it.

        Raises:
            Died: the worker ended before the engine was open.
            UserError: the engine cannot be opened.
        """
        ...

    def ask(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[Answer]:
        """For each prompt its n rollouts, or its refusal.

        Raises:
            Died: the worker ended before it answered.
            UserError: the engine failed.
        """
        ...

    def kill(self) -> None:
        """End the worker while another thread may be waiting for its answer."""
        ...

    def end(self) -> None:
        """End the worker while no thread waits for its answer."""
        ...


@dataclass(eq=False)
class _Asked:
    prompt: Prompt
    n: int
    params: Sampling
    answer: "asyncio.Future[list[Rollout]]"
    deaths: int = 0


class EnginePool:
    """Several engines of the same model as one; see :class:`retarget.pope.rollouts.StreamingEngine`.

    Seeds depend on prompts and chunks, so neither the number of engines nor the choice of the one that answers changes
    a rollout. Name and identity are those of one engine, so a journal can be continued with another number of them.
    Workers keep running between calls, until ``close`` or the end of this process.

    Args:
        workers: the engines; the first is started at once, the others when there is work.
        batch: prompts that one engine receives at a time; fewer if there are not enough for all engines.

    Raises:
        UserError: there are no workers, ``batch`` is below 1, or the first engine cannot be opened.
    """

    def __init__(self, workers: Sequence[Worker], batch: int = 1) -> None:
        if not workers or batch < 1:
            raise UserError(
                f"a pool needs at least one engine and a batch of at least 1, not {len(workers)} engines and {batch}"
            )
        self.workers, self.batch = list(workers), batch
        self._running: set[int] = set()
        self._finish = weakref.finalize(self, _end, self.workers)
        try:
            opened = self._start(0, Event())
            assert opened is not None
            self.name, self.identity = self._opened = opened
        except BaseException:
            self.close()
            raise

    def window(self, n: int) -> int:
        """Number of prompts to have in flight: a batch in every engine, and as many again that wait."""
        return 2 * self.batch * len(self.workers)

    def sample(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[list[Rollout]]:
        """n rollouts of each prompt; see :class:`retarget.pope.rollouts.Engine`."""
        return sample_through(self, prompts, n, params)

    def close(self) -> None:
        """End the workers; they are started again when there is work."""
        _end(self.workers)
        self._running.clear()

    def __enter__(self) -> "EnginePool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Ask]:
        """Open the engines as they are needed. Workers that are still sampling when the session ends are killed."""
        queue = _Queue(self.batch, len(self.workers))
        busy: set[int] = set()
        over = Event()
        with ThreadPoolExecutor(len(self.workers)) as threads:
            serving = [
                asyncio.ensure_future(self._serve(at, queue, busy, threads, over)) for at in range(len(self.workers))
            ]
            try:
                yield queue.ask
            finally:
                over.set()
                for task in serving:
                    task.cancel()
                for at in busy:  # a thread waits for its answer
                    self.workers[at].kill()
                    self._running.discard(at)
                await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, at: int, queue: "_Queue", busy: set[int], threads: ThreadPoolExecutor, over: Event) -> None:
        loop, worker = asyncio.get_running_loop(), self.workers[at]
        batch: list[_Asked] = []
        try:
            while True:
                if at not in self._running:
                    opened = await loop.run_in_executor(threads, self._start, at, over)
                    if opened is None:
                        return
                    refuse_unlike(
                        "the first engine", self._opened._asdict(), f"engine {at + 1}", opened._asdict(),
                        "The engines of a pool must be the same: did the model's files change?",
                    )  # fmt: skip
                batch = await queue.take()
                busy.add(at)
                prompts = [one.prompt for one in batch]
                try:
                    answers = await loop.run_in_executor(threads, worker.ask, prompts, batch[0].n, batch[0].params)
                except Died as death:
                    self._running.discard(at)
                    await queue.put_back(batch, death)
                else:
                    queue.answer(batch, answers)
                busy.discard(at)
                batch = []
        except _NeverOpened as error:
            queue.leave_out(error)
        except Exception as error:  # noqa: BLE001 - raised again where its answers are awaited
            queue.fail(error, batch)

    def _start(self, at: int, over: Event) -> Opened | None:
        for left in reversed(range(_STARTS)):
            try:
                opened = self.workers[at].start(over)
            except Died as death:
                if not left:
                    said = f"engine {at + 1} was started {_STARTS} times, but did not open: {death}"
                    raise _NeverOpened(said) from None
                _LOG.warning("engine %d: %s; starting it again", at + 1, death)
            else:
                if opened is not None:
                    self._running.add(at)
                return opened
        raise AssertionError("unreachable: the loop returns or raises")


class _Queue:
    """The prompts that wait for an engine; those that a dead engine did not answer come first."""

    def __init__(self, batch: int, workers: int) -> None:
        self._batch, self._workers = batch, workers
        self._waiting: deque[_Asked] = deque()
        self._turn = asyncio.Condition()
        self._failure: Exception | None = None

    async def ask(self, prompt: Prompt, n: int, params: Sampling) -> list[Rollout]:
        """Queue a prompt and wait for its rollouts; see :data:`~retarget.pope.rollouts.Ask`."""
        if self._failure is not None:
            raise self._failure
        asked = _Asked(prompt, n, params, asyncio.get_running_loop().create_future())
        await self._put([asked])
        return await asked.answer

    async def take(self) -> list[_Asked]:
        """The next batch for an engine: prompts with equal n and settings, at most its share of those that wait."""
        async with self._turn:
            while True:
                await self._turn.wait_for(lambda: self._waiting)
                batch = self._next()
                if batch:
                    return batch

    def _next(self) -> list[_Asked]:
        most = min(self._batch, -(-len(self._waiting) // self._workers))
        batch: list[_Asked] = []
        while self._waiting and len(batch) < most:
            one = self._waiting[0]
            if one.answer.done():  # cancelled
                self._waiting.popleft()
                continue
            # A prompt on which a worker died is sent alone, so that no other prompt is blamed for another death.
            if batch and (one.deaths or (one.n, one.params) != (batch[0].n, batch[0].params)):
                break
            batch.append(self._waiting.popleft())
            if one.deaths:
                break
        return batch

    async def _put(self, some: Sequence[_Asked], *, first: bool = False) -> None:
        async with self._turn:
            if first:
                self._waiting.extendleft(reversed(some))
            else:
                self._waiting.extend(some)
            self._turn.notify(len(some))

    async def put_back(self, batch: Sequence[_Asked], death: Died) -> None:
        """Queue the prompts of a dead worker again; refuse those on which too many workers died."""
        _LOG.warning("%s; its prompts (%d) go to another engine", death, len(batch))
        for one in batch:
            one.deaths += 1
            if one.deaths >= _LIVES and not one.answer.done():
                one.answer.set_exception(Failed(f"{_LIVES} engines died while sampling this prompt; the last: {death}"))
        await self._put([one for one in batch if not one.answer.done()], first=True)

    def answer(self, batch: Sequence[_Asked], answers: Sequence[Answer]) -> None:
        """Set the results of the prompts of a batch."""
        for one, answer in zip(batch, answers, strict=True):
            if one.answer.done():
                continue
            if isinstance(answer, Refused):
                one.answer.set_exception(answer)
            else:
                one.answer.set_result(answer)

    def leave_out(self, error: _NeverOpened) -> None:
        """Continue without one of the engines; fail if it was the last."""
        self._workers -= 1
        if self._workers:
            _LOG.warning("%s; it is left out from now on", error)
        else:
            self.fail(error, ())

    def fail(self, error: Exception, batch: Sequence[_Asked]) -> None:
        """Raise an error wherever an answer is awaited now, or asked for later."""
        self._failure = error
        for one in (*batch, *self._waiting):
            if not one.answer.done():
                one.answer.set_exception(error)
        self._waiting.clear()


def _end(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.end()
