"""Grade model output, which is untrusted, in worker processes with a time and a memory limit per item."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal

from retarget.errors import UserError
from retarget.extras import refuse_missing
from retarget.pope.answers import THINKING_BEGINS
from retarget.pope.graders import BUILT_IN, Grade, as_grade, here_last, load
from retarget.pope.options import right_options
from retarget.pope.problems import Problem
from retarget.settings import choose

_START_SECONDS = 60.0

LabelCheck = Literal["solution", "answer", "none"]


class Grader:
    """Run a grading function under limits.

    A completion that hangs or crashes the grader affects only its own item: its reward is 0, its status says why, and
    the worker is replaced. This class never evaluates a completion as code. Workers limit their own processor time and,
    on Linux, end when the process that started them ends, for whatever reason. Calls from several threads wait for each
    other.

    Args:
        spec: ``math``, ``boxed``, ``exact``, ``numeric``, or ``module:function`` (see
            :func:`retarget.pope.graders.load`).
        seconds: time limit per item, in seconds.
        memory_mb: limit of a worker's address space, in MiB, at least 64.
        workers: number of worker processes. 0 grades in this process, without limits: only for trusted functions that
            compare texts. The default None is 0 for ``exact`` and ``numeric``, otherwise 1.

    >>> with Grader("numeric") as grader:
    ...     [grade.reward for grade in grader.grade(["#### 4", "#### 5"], ["4", "4"])]
    [1.0, 0.0]
    """

    def __init__(
        self, spec: str = "math", *, seconds: float = 5.0, memory_mb: int = 2048, workers: int | None = None
    ) -> None:
        self._pool: list[_Worker] = []
        self._lock = threading.Lock()
        if seconds <= 0 or memory_mb < 64:
            raise UserError(
                f"limits of a grader: seconds must be above 0 and memory_mb at least 64, not {seconds} and {memory_mb}"
            )
        if workers is not None and workers < 0:
            raise UserError(f"a grader has at least 0 workers, not {workers}: 0 grades in this process")
        if spec in ("math", "boxed"):
            refuse_missing([("math_verify", "rl")])
        self.spec, self.seconds, self.memory_mb = spec, seconds, memory_mb
        self.workers = (0 if spec in ("exact", "numeric") else 1) if workers is None else workers
        self.counts: Counter[str] = Counter()
        self.first_error = ""
        self._function = load(spec) if self.workers == 0 or spec not in BUILT_IN else None

    def grade(
        self, completions: Sequence[str], answers: Sequence[str], metas: Sequence[dict[str, Any]] | None = None
    ) -> list[Grade]:
        """Grades in the order of the completions; ``counts`` sums up their statuses.

        Raises:
            UserError: the arguments differ in length, the worker cannot load the grading function, or (with
                ``workers=0``) the function raises it.
        """
        metas = metas if metas is not None else [{}] * len(completions)
        if not len(completions) == len(answers) == len(metas):
            raise UserError(
                f"completions, answers and metas must have the same length, not {len(completions)}, {len(answers)} "
                f"and {len(metas)}"
            )
        items = list(zip(completions, answers, metas, strict=True))
        with self._lock:
            grades = self._graded(items)
            self.counts.update(one.status for one in grades)
        return grades

    def compare(self, said: str, gold: str) -> Grade:
        """The verdict on a final answer if another one were the gold one; ``counts`` leaves it out.

        >>> with Grader("numeric") as grader:
        ...     grader.compare("0.50", "1/2").correct, grader.compare("5", "five").status
        (True, 'error')
        """
        with self._lock:
            error = self.first_error
            try:
                return self._graded([(f"\\boxed{{{said}}}", gold, {})])[0]
            except UserError:  # it cannot read the gold one, and grades in this process
                return Grade(0.0, None, "error")
            finally:
                self.first_error = error

    @property
    def failures(self) -> str:
        """How many verdicts failed and the first error, in a sentence; empty if none did."""
        failed = {status: count for status, count in sorted(self.counts.items()) if status != "ok"}
        if not failed:
            return ""
        counts = ", ".join(f"{status} {count}" for status, count in failed.items())
        error = f"; the first error: {self.first_error}" if self.first_error else ""
        return (
            f"{sum(failed.values())} of {self.counts.total()} verdicts of grader {self.spec!r} failed ({counts}), "
            f"and count as wrong{error}"
        )

    def grade_problem(self, problem: Problem, completions: Sequence[str]) -> list[Grade]:
        """Grade several completions of one problem."""
        n = len(completions)
        return self.grade(completions, [problem.answer] * n, [{**problem.meta, "id": problem.id}] * n)

    def start(self) -> None:
        """Start the worker processes now. They end when the thread that started them ends."""
        while len(self._pool) < self.workers:
            self._pool.append(_Worker(self.spec, self.memory_mb))

    def close(self) -> None:
        """End the worker processes."""
        for worker in self._pool:
            worker.end()
        self._pool = []

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> Any:
        """A copy has workers of its own."""
        limits = dict(seconds=self.seconds, memory_mb=self.memory_mb, workers=self.workers)
        return partial(Grader, self.spec, **limits), ()

    def __del__(self) -> None:
        self.close()

    def _graded(self, items: list[tuple[str, str, dict[str, Any]]]) -> list[Grade]:
        if self.workers == 0:
            function = self._function or load(self.spec)
            return [as_grade(function(*item)) for item in items]
        try:
            return self._in_workers(items)
        except BaseException:
            self.close()  # so that no reply to an item of this call is mistaken for one to the next call
            raise

    def _in_workers(self, items: list[tuple[str, str, dict[str, Any]]]) -> list[Grade]:
        while len(self._pool) < min(self.workers, max(1, len(items))):
            self._pool.append(_Worker(self.spec, self.memory_mb))
        grades: list[Grade | None] = [None] * len(items)
        waiting = list(range(len(items)))[::-1]
        with selectors.DefaultSelector() as selector:
            for worker in self._pool:
                if waiting:
                    worker.send(waiting.pop(), items, self.seconds)
                    selector.register(worker.reader, selectors.EVENT_READ, worker)
            while any(worker.item is not None for worker in self._pool):
                deadline = min(worker.deadline for worker in self._pool if worker.item is not None)
                selector.select(timeout=max(0.0, deadline - time.monotonic()))
                for worker in self._pool:
                    if worker.item is None:
                        continue
                    grade = worker.answer()
                    if grade is None:
                        continue
                    self.first_error = self.first_error or worker.error
                    grades[worker.item] = grade
                    worker.item = None
                    selector.unregister(worker.reader)
                    if grade.status in ("timeout", "crash"):
                        worker.restart()
                    if waiting:
                        worker.send(waiting.pop(), items, self.seconds)
                        selector.register(worker.reader, selectors.EVENT_READ, worker)
        return [grade for grade in grades if grade is not None]


class _Worker:
    """A process that grades one item at a time: it reads texts and writes verdicts as JSON lines."""

    def __init__(self, spec: str, memory_mb: int) -> None:
        self.spec, self.memory_mb = spec, memory_mb
        self.item: int | None = None
        self.deadline = 0.0
        self.error = ""
        self.start()

    def start(self) -> None:
        # -P and the working directory at the end of the path: no file in a data folder can shadow a package.
        command = [
            sys.executable, "-P", "-m", "retarget.pope.grading_worker", self.spec, str(self.memory_mb), str(os.getpid())
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(here_last(sys.path))}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
            start_new_session=True,  # so that `end` also reaches processes that the grader started
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdin is not None
        self.reader, self.writer = self.process.stdout.fileno(), self.process.stdin
        os.set_blocking(self.reader, False)
        self.buffer = b""
        ready = self._wait_for_line(_START_SECONDS)
        if ready is None or "ready" not in ready:
            self.end()
            reason = ready["failed"] if ready else f"its worker did not start with {self.memory_mb} MB of memory"
            raise UserError(f"grader {self.spec!r}: {reason}")

    def restart(self) -> None:
        self.end()
        self.start()

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):  # closing flushes the rest of an item
            self.writer.close()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def send(self, item: int, items: Sequence[tuple[str, str, dict[str, Any]]], seconds: float) -> None:
        if self.process.poll() is not None:
            self.restart()  # it died while idle: this item is not to blame
        self.item, self.deadline = item, time.monotonic() + seconds
        try:
            self.writer.write(json.dumps([*items[item], seconds]).encode() + b"\n")
            self.writer.flush()
        except BrokenPipeError:
            self.deadline = time.monotonic()  # the worker is dying: `answer` reports the crash

    def answer(self) -> Grade | None:
        """The verdict, or None while the item still has time left."""
        reply = self._line()
        if reply is not None:
            self.error = reply.pop("error", "")
            return Grade(**reply)
        if self.process.poll() is not None:
            return Grade(0.0, None, "crash")
        return Grade(0.0, None, "timeout") if time.monotonic() >= self.deadline else None

    def _line(self) -> dict[str, Any] | None:
        try:
            self.buffer += os.read(self.reader, 1 << 20)
        except BlockingIOError:
            return None
        head, newline, rest = self.buffer.partition(b"\n")
        if not newline:
            return None
        self.buffer = rest
        return json.loads(head)

    def _wait_for_line(self, seconds: float) -> dict[str, Any] | None:
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.reader, selectors.EVENT_READ)
            while time.monotonic() < deadline:
                selector.select(timeout=deadline - time.monotonic())
                reply = self._line()
                if reply is not None or self.process.poll() is not None:
                    return reply
        return None


@dataclass
class Reward:
    """A grader as a reward function for TRL. It reads the columns ``answer`` and ``meta`` (optional, JSON text).

    Attributes:
        grader: judges the completions.
        ends: ids of the tokens that end a completion. A completion that ends with none of them is graded with
            ``truncated`` in its meta. The trainer sets the ids; without any, no completion counts as truncated.
        opens_thinking: whether the prompt template opens a thinking block for the completion.
        decode: decodes a completion's ids, where the trainer's own decoding would leave out thinking tags.
    """

    grader: Grader
    ends: frozenset[int] = frozenset()
    opens_thinking: bool = False
    decode: Callable[[Sequence[int]], str] | None = None
    __name__ = "correct"

    def __call__(
        self,
        completions: list[Any],
        answer: list[str],
        meta: list[str] | None = None,
        completion_ids: list[list[int]] | None = None,
        **_: Any,
    ) -> list[float]:
        """One reward per completion."""
        if wrong := [one for one in answer if not isinstance(one, str)]:
            raise UserError(
                f"the gold answer {wrong[0]!r} is no text but of type {type(wrong[0]).__name__}: make the column "
                "`answer` one of texts, with str"
            )
        texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
        if self.decode and completion_ids is not None:
            texts = [self.decode(ids) for ids in completion_ids]
        if self.opens_thinking:
            texts = [f"{THINKING_BEGINS}{one}" for one in texts]
        metas = [json.loads(one) for one in meta] if meta is not None else [{} for _ in texts]
        if self.ends and completion_ids is not None:
            for one, ids in zip(metas, completion_ids, strict=True):
                if not ids or int(ids[-1]) not in self.ends:
                    one["truncated"] = True
        return [grade.reward for grade in self.grader.grade(texts, answer, metas)]


def reward_function(grader: Grader) -> Reward:
    """The grader as a reward function for TRL.

    >>> reward_function(Grader("exact"))(prompts=["?"], completions=["#### a"], answer=["a"])
    [1.0]
    """
    return Reward(grader)


def rejected_solutions(
    problems: Sequence[Problem], grader: Grader, check: LabelCheck = "solution"
) -> list[tuple[Problem, Grade]]:
    """Find problems whose label is wrong, or of no use to the grader.

    A built-in grader must accept the gold answer in a box. If the solution marks an answer, it must accept that too, as
    the gold answer or as the text of the option that the gold answer names; a solution that marks none, as is common,
    proves nothing about the label. A problem whose label the grader refuses (a text for ``numeric``) is rejected with
    status ``error``. A timeout or crash does not reject a problem, so that the result does not depend on the speed of
    the machine. A grader of your own is only given the solutions.

    Args:
        problems: problems with labels.
        grader: the grader that will judge their rollouts.
        check: ``solution`` as above, ``answer`` to check the labels only, ``none`` to check nothing.

    Returns:
        The rejected problems in order, each with the grade that rejected it.
    """
    choose("check", check, LabelCheck)
    if check == "none":
        return []
    built_in = grader.spec in BUILT_IN
    asked: list[tuple[Problem, str]] = [(one, f"\\boxed{{{one.answer}}}") for one in problems if built_in]
    labels = len(asked)
    asked += [(one, one.solution) for one in problems if one.solution and check == "solution"]
    rejected: dict[int, Grade] = {}
    grades = _own_grades(asked, grader)
    if built_in:
        _accept_options(asked, grades, labels, grader)
    for at, ((problem, _), grade) in enumerate(zip(asked, grades, strict=True)):
        marked = grade.status == "ok" and (grade.extracted is not None or at < labels)  # "\\frac{1" cannot be boxed
        if grade.status == "error" or (marked and not grade.correct):
            rejected[id(problem)] = grade
    return [(problem, rejected[id(problem)]) for problem in problems if id(problem) in rejected]


def _accept_options(asked: Sequence[tuple[Problem, str]], grades: list[Grade], labels: int, grader: Grader) -> None:
    """Replace the grades of solutions, those from ``labels`` on, that end with the right option's text."""
    again: list[tuple[int, Problem, str]] = []
    for at, ((one, solution), grade) in enumerate(zip(asked, grades, strict=True)):
        if at >= labels and grade.extracted is not None and not grade.correct:
            texts = right_options(one.prompt, one.answer)[1]
            again += [(at, one.model_copy(update={"answer": text}), solution) for text in texts]
    for (at, _, _), grade in zip(again, _own_grades([(one, text) for _, one, text in again], grader), strict=True):
        if grade.correct:
            grades[at] = grade


def _own_grades(asked: Sequence[tuple[Problem, str]], grader: Grader) -> list[Grade]:
    if grader.workers:
        metas = [{**one.meta, "id": one.id} for one, _ in asked]
        return grader.grade([text for _, text in asked], [one.answer for one, _ in asked], metas)
    grades: list[Grade] = []
    for one, text in asked:  # in this process a refusal is an exception: it must reject its own problem only
        try:
            grades += grader.grade_problem(one, [text])
        except UserError:
            grades.append(Grade(0.0, None, "error"))
    return grades
