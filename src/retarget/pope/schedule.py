"""Run units of work: take finished units from the journal; sample, grade and journal the others.

Local engines receive one batch at a time; a batch is graded while the next is sampled. Streaming engines (servers)
always have as many units in flight as they can take, so that slow ones do not block the others.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any

from retarget.errors import UserError
from retarget.pope.graders import Grade
from retarget.pope.journal import Journal
from retarget.pope.problems import Problem
from retarget.pope.rollouts import Failed, Refused, Rollout, StreamingEngine, run_async
from retarget.pope.sampler import Sampler
from retarget.pope.work import Item, Progress, Record, Unit, summarise

_REFUSED_AT_FIRST = 8
"""After this many refusals and no answer, the request is taken to be wrong, not the problems."""

Due = tuple[int, int]
"""(number of finished units of an item, its position among the items); the smallest is sampled first."""


@dataclass
class Work:
    """Items, and how to continue each of them.

    Attributes:
        items: problems with their records.
        next_unit: the next unit of an item, None if the item is finished.
        sampler: samples and grades.
        journal: contains finished units, and receives new ones.
        progress: called whenever units were journalled.
        summarise: makes the record of a unit.
        graded: the version of a rollout that is given to the grader.
        sampled: number of units that this call sampled.
    """

    items: Sequence[Item]
    next_unit: Callable[[Item], Unit | None]
    sampler: Sampler
    journal: Journal
    progress: Progress | None = None
    summarise: Callable[[Problem, Unit, Sequence[Rollout], Sequence[Grade]], Record] = summarise
    graded: Callable[[Rollout], Rollout] = lambda rollout: rollout
    sampled: int = 0

    def run(self) -> None:
        """Run the units of every item, one after another, until all items are finished.

        Raises:
            UserError: the journal has a unit of a problem that has changed since, or more rollouts than are asked for;
                the engine refuses every problem; or the engine fails.
        """
        self._done, self._rollouts, self._refusals, self._answered = 0, 0, 0, 0
        self._units: dict[int, Unit] = {}
        self._known = self._read()
        self._due: list[Due] = []
        for place in range(len(self.items)):
            self._advance(place)
        heapify(self._due)
        self._tell()
        if self._due:
            self.sampler.grader.start()
            with ThreadPoolExecutor(1) as grading:
                if isinstance(self.sampler.engine, StreamingEngine):
                    run_async(self._stream(self.sampler.engine, grading))
                else:
                    self._batches(grading)
        if self._refusals and not self._answered:
            raise self._all_refused()
        self._settle()

    def _read(self) -> dict[tuple[str, int | None, int | None], Record]:
        known: dict[tuple[str, int | None, int | None], Record] = {}
        for number, value in enumerate(self.journal.read(), 2):
            record = Record.read(f"{self.journal.path}: line {number}", value)
            if record.key in known:
                raise UserError(f"{self.journal.path}: line {number} repeats a unit of an earlier line; delete one")
            known[record.key] = record
        return known

    def _advance(self, place: int) -> None:
        """Take an item's units from the journal, then queue the first one that is missing."""
        item = self.items[place]
        while (unit := self.next_unit(item)) is not None:
            record = self._found(item.problem, unit)
            if record is None:
                self._units[place] = unit
                self._due.append((len(item.records), place))
                return
            item.records.append(record)
            self._rollouts += record.n
            self._answered += 1
        self._done += 1

    def _found(self, problem: Problem, unit: Unit) -> Record | None:
        for name in (problem.id, problem.former):
            record = self._known.get((name, unit.end, unit.chunk))
            if record is None:
                continue
            where = f"{self.journal.path}: problem {name!r}, unit {unit.chunk}"
            if record.asks is not None and record.asks != unit.asks(problem):
                raise UserError(
                    f"{where} was sampled for another prompt, answer or meta (fingerprint {record.asks}, now "
                    f"{unit.asks(problem)}). Give another file, or the problems and templates that it was started with"
                )
            if record.n > unit.most:
                raise UserError(
                    f"{where} has {record.n} rollouts, but only {unit.most} more are asked for. Ask for at least "
                    f"{record.n}, or give another file"
                )
            return record
        return None

    def _tell(self) -> None:
        if self.progress:
            self.progress(self._done, len(self.items), self._rollouts)

    def _keep(self, places: Sequence[int], rollouts: Sequence[list[Rollout]], grades: Sequence[list[Grade]]) -> None:
        """Journal finished units, and queue the next ones."""
        for place, some, verdicts in zip(places, rollouts, grades, strict=True):
            item = self.items[place]
            record = self.summarise(item.problem, self._units.pop(place), some, verdicts)
            self.journal.append(record.to_json())
            self.sampled += 1
            item.records.append(record)
            self._rollouts += record.n
            self._answered += 1
            before = len(self._due)
            self._advance(place)
            if len(self._due) > before:
                heappush(self._due, self._due.pop())
        self._tell()

    def _refuse(self, place: int, refusal: Refused) -> None:
        self.items[place].refused, self.items[place].outage = str(refusal), isinstance(refusal, Failed)
        self._units.pop(place)
        self._done += 1
        self._refusals += 1
        if self._refusals >= _REFUSED_AT_FIRST and not self._answered:
            raise self._all_refused()

    def _all_refused(self) -> UserError:
        refused = [item for item in self.items if item.refused]
        first = refused[0]
        how = "failed on" if all(item.outage for item in refused) else "refused"
        return UserError(
            f"the engine {how} all {self._refusals} problems that it was given; the first, {first.problem.id!r}: "
            f"{first.refused}"
        )

    def _grade(self, places: Sequence[int], rollouts: Sequence[list[Rollout]]) -> list[list[Grade]]:
        asked = [(self.items[place].problem, self._units[place].prefix) for place in places]
        given = [[self.graded(one) for one in some] for some in rollouts]
        return self.sampler.grade_all([(*one, some) for one, some in zip(asked, given, strict=True)])

    # Local engines

    def _batches(self, grading: ThreadPoolExecutor) -> None:
        waiting: tuple[list[int], list[list[Rollout]], Future[list[list[Grade]]]] | None = None

        def settle() -> None:
            nonlocal waiting
            if waiting is not None:
                places, rollouts, future = waiting
                waiting = None
                self._keep(places, rollouts, future.result())

        try:
            while self._due or waiting:
                if not self._due:
                    settle()
                    continue
                places, rollouts = self._sample(self._batch())
                settle()
                if places:
                    waiting = places, rollouts, grading.submit(self._grade, places, rollouts)
        finally:
            settle()

    def _batch(self) -> list[int]:
        """Positions of the next batch of items. All units of a batch have the same size and chunk."""
        first = self._units[self._due[0][1]]
        places: list[int] = []
        while self._due and len(places) < self.sampler.batch:
            unit = self._units[self._due[0][1]]
            if (unit.n, unit.chunk) != (first.n, first.chunk):
                break
            places.append(heappop(self._due)[1])
        return places

    def _sample(self, places: list[int]) -> tuple[list[int], list[list[Rollout]]]:
        """The rollouts of a batch. If the engine refuses it, each prompt is tried alone, and refused ones left out."""
        units = [self._units[place] for place in places]
        params = self.sampler.sampling.model_copy(update={"chunk": units[0].chunk or 0})
        try:
            return places, self.sampler.engine.sample([unit.prompt for unit in units], units[0].n, params)
        except Refused as refusal:
            if len(places) == 1:
                self._refuse(places[0], refusal)
                return [], []
        parts = [self._sample([place]) for place in places]
        return [one for some, _ in parts for one in some], [one for _, some in parts for one in some]

    # Streaming engines

    async def _stream(self, engine: StreamingEngine, grading: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        async with engine.session() as ask:
            running: dict[asyncio.Future[list[Rollout]], int] = {}
            waiting: list[tuple[int, list[Rollout]]] = []
            judged: asyncio.Future[list[list[Grade]]] | None = None
            batch: list[tuple[int, list[Rollout]]] = []
            try:
                while self._due or running or waiting or judged:
                    while self._due and len(running) < (window := engine.window(self._units[self._due[0][1]].n)):
                        if len(running) + len(waiting) + len(batch) >= 2 * window:
                            break  # grading lags behind: a kill would lose all units that are not journalled yet
                        _, place = heappop(self._due)
                        unit = self._units[place]
                        params = self.sampler.sampling.model_copy(update={"chunk": unit.chunk or 0})
                        running[asyncio.ensure_future(ask(unit.prompt, unit.n, params))] = place
                    if waiting and judged is None:
                        batch, waiting = waiting, []
                        places, rollouts = [place for place, _ in batch], [some for _, some in batch]
                        judged = loop.run_in_executor(grading, self._grade, places, rollouts)
                    pending: list[asyncio.Future[Any]] = [*running, *([judged] if judged else [])]
                    done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    if judged is not None and judged in done:
                        verdicts, judged = judged.result(), None
                        self._keep([place for place, _ in batch], [some for _, some in batch], verdicts)
                        batch = []
                    for task in [one for one in running if one in done]:
                        place = running.pop(task)
                        try:
                            waiting.append((place, task.result()))
                        except Refused as refusal:
                            self._refuse(place, refusal)
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
                if judged is not None:
                    self._keep([place for place, _ in batch], [some for _, some in batch], await judged)
                if waiting:
                    places, rollouts = [place for place, _ in waiting], [some for _, some in waiting]
                    self._keep(places, rollouts, self._grade(places, rollouts))

    def _settle(self) -> None:
        """Sort the journal by the problems' units, so that the order in which they were finished does not matter."""
        order: dict[tuple[str, int | None, int | None], Due] = {}
        for place, item in enumerate(self.items):
            for turn, record in enumerate(item.records):
                order[record.key] = (turn, place)
        last = (len(self.journal) + 1, 0)
        self.journal.settle(lambda value: order.get((value["problem"], value.get("end"), value.get("chunk")), last))
