"""Many engines behind one queue: a free one takes what comes next, and what a dead one had in hand goes to another."""

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
from retarget.pope.rollouts import Ask, Refused, Rollout, Sampling, sample_through

OPENER = "retarget.pope.engines:open_engine"
_LIVES = 5
"""Workers that one prompt may cost before it is refused."""
_STARTS = 5
"""Starts in a row that may end before the engine is open; then it is left out."""
LOOK_EVERY = 0.2
"""Seconds after which who waits for an engine to open looks whether it is needed still."""
_LOG = logging.getLogger(__name__)

Answer = list[Rollout] | Refused


class Opened(NamedTuple):
    """An engine's name, and the JSON values that decide its rollouts."""

    name: str
    identity: dict[str, Any]


class Died(Exception):
    """A worker ended before it answered."""


class _NeverOpened(UserError):
    """Every start of an engine ended before it was open."""


@runtime_checkable
class Worker(Protocol):
    """One engine somewhere else. All calls but ``kill`` come from one thread at a time."""

    def start(self, over: Event) -> Opened | None:
        """Start it, in the place of an earlier one, and wait until its engine is open.

        Returns:
            What it opened; None where nobody needs it any more (``over``) before it has: it goes on, and the next call
            goes on waiting.

        Raises:
            Died: it ended before.
            UserError: the engine cannot be opened.
        """
        ...

    def ask(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[Answer]:
        """For each prompt its n rollouts, or its refusal.

        Raises:
            Died: it ended before it answered.
            UserError: the engine fails.
        """
        ...

    def kill(self) -> None:
        """End it while another thread may wait for its answer."""
        ...

    def end(self) -> None:
        """End it while nobody waits for its answer."""
        ...


@dataclass(eq=False)
class _Asked:
    prompt: Prompt
    n: int
    params: Sampling
    answer: "asyncio.Future[list[Rollout]]"
    deaths: int = 0


class EnginePool:
    """Engines of the same model, asked as one: see :class:`retarget.pope.rollouts.StreamingEngine`.

    Seeds belong to prompts and chunks, so how many engines there are, and which of them answers, changes no rollout.
    Name and identity are those of one engine: a journal goes on with another number of them. Workers stay between
    calls; ``close`` ends them, and they end with this process.

    Args:
        workers: the engines; the first is started now, the others when there is work.
        batch: prompts that one of them is given at a time; fewer where there are not enough for all.

    Raises:
        UserError: no workers, a batch below 1, or the first engine cannot be opened.
    """

    def __init__(self, workers: Sequence[Worker], batch: int = 1) -> None:
        if not workers or batch < 1:
            raise UserError(f"a pool has at least one engine and a batch of at least 1, not {len(workers)} and {batch}")
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
        """As many prompts as all engines hold, and as many to go on with."""
        return 2 * self.batch * len(self.workers)

    def sample(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[list[Rollout]]:
        """n rollouts of each prompt; see :class:`retarget.pope.rollouts.Engine`."""
        return sample_through(self, prompts, n, params)

    def close(self) -> None:
        """End the workers; they are started again where they are needed again."""
        _end(self.workers)
        self._running.clear()

    def __enter__(self) -> "EnginePool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Ask]:
        """Give every worker what it takes; those that still sample when the session ends are killed."""
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
                for at in busy:  # its thread waits for it
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
                        "The engines of a pool are the same; did the model's files change?",
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
        except Exception as error:  # noqa: BLE001 - whatever ends a server is raised where its answers are awaited
            queue.fail(error, batch)

    def _start(self, at: int, over: Event) -> Opened | None:
        for left in reversed(range(_STARTS)):
            try:
                opened = self.workers[at].start(over)
            except Died as death:
                if not left:
                    said = f"engine {at + 1} was started {_STARTS} times and never opened: {death}"
                    raise _NeverOpened(said) from None
                _LOG.warning("engine %d: %s; it is started again", at + 1, death)
            else:
                if opened is not None:
                    self._running.add(at)
                return opened
        raise AssertionError("every start ended in one way or the other")


class _Queue:
    """What waits for an engine; prompts that a dead one had in hand come first."""

    def __init__(self, batch: int, workers: int) -> None:
        self._batch, self._workers = batch, workers
        self._waiting: deque[_Asked] = deque()
        self._turn = asyncio.Condition()
        self._failure: Exception | None = None

    async def ask(self, prompt: Prompt, n: int, params: Sampling) -> list[Rollout]:
        """An :data:`~retarget.pope.rollouts.Ask`."""
        if self._failure is not None:
            raise self._failure
        asked = _Asked(prompt, n, params, asyncio.get_running_loop().create_future())
        await self._put([asked])
        return await asked.answer

    async def take(self) -> list[_Asked]:
        """What one engine is given next: of one size and chunk, and no more than its share of what waits."""
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
            if one.answer.done():  # given up
                self._waiting.popleft()
                continue
            # A prompt that a worker died of is asked alone, so that it costs no other its lives.
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
        """Ask again what a worker did not answer; refuse what has cost too many of them."""
        _LOG.warning("%s; the %d prompts that it had in hand go to another", death, len(batch))
        for one in batch:
            one.deaths += 1
            if one.deaths >= _LIVES and not one.answer.done():
                one.answer.set_exception(Refused(f"{_LIVES} engines ended with this prompt in hand; the last: {death}"))
        await self._put([one for one in batch if not one.answer.done()], first=True)

    def answer(self, batch: Sequence[_Asked], answers: Sequence[Answer]) -> None:
        """Hand answers to those who asked."""
        for one, answer in zip(batch, answers, strict=True):
            if one.answer.done():
                continue
            if isinstance(answer, Refused):
                one.answer.set_exception(answer)
            else:
                one.answer.set_result(answer)

    def leave_out(self, error: _NeverOpened) -> None:
        """Go on without one of the engines; without the last of them nothing can be answered."""
        self._workers -= 1
        if self._workers:
            _LOG.warning("%s; it is left out from now on", error)
        else:
            self.fail(error, ())

    def fail(self, error: Exception, batch: Sequence[_Asked]) -> None:
        """Raise an error wherever an answer is awaited, and where one is asked for later."""
        self._failure = error
        for one in (*batch, *self._waiting):
            if not one.answer.done():
                one.answer.set_exception(error)
        self._waiting.clear()


def _end(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.end()
