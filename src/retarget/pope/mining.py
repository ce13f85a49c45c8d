"""Which problems are hard: 0 of k rollouts correct, and for no other reason than that they are hard."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Unpack, get_args

from retarget.errors import UserError
from retarget.pope.grading import LabelCheck, rejected_solutions
from retarget.pope.problems import Problem
from retarget.pope.rollouts import Engine
from retarget.pope.sampler import Asking, Sampler
from retarget.pope.schedule import Work
from retarget.pope.work import Item, Progress, Unit, total_or_none
from retarget.study.statistics import wilson_interval

Kind = Literal["solved", "hard", "truncated", "unparsed", "suspect", "broken", "failed"]
KINDS: tuple[Kind, ...] = get_args(Kind)
COUNTS = ("n", "correct", "truncated", "unparsed", "failed", "tokens")


@dataclass(frozen=True)
class Outcome:
    """What mining found out about one problem.

    Attributes:
        kind: ``solved`` at least once; ``hard``; or 0 of k for another reason: most rollouts ``truncated`` or
            ``unparsed`` (no final answer found), or ``suspect`` (most extracted answers agree with each other and not
            with the gold one: perhaps the label is wrong); or ``broken`` (the grader does not accept the problem's
            label; never sampled); or ``failed`` (the engine refused its prompt, for the ``reason``).
        n, correct, tokens: rollouts, successes, generated tokens; ``thinking``: tokens before the answers began (None
            where a server does not say).
        answers: the most frequent final answers.
        example: one rollout, or the solution of a broken problem.
        sequential: sampling stopped at a success. ``correct / n`` then overstates the success rate, and only whether a
            problem was solved, and with how many rollouts, means anything.
    """

    problem: Problem
    kind: Kind
    n: int = 0
    correct: int = 0
    truncated: int = 0
    unparsed: int = 0
    failed: int = 0
    tokens: int = 0
    thinking: int | None = 0
    answers: dict[str, int] = field(default_factory=dict)
    example: str = ""
    sequential: bool = False
    reason: str = ""

    @property
    def rate(self) -> float | None:
        """Successes over rollouts, the unbiased pass@1: None where sampling could stop at a success, or never began."""
        return None if self.sequential or not self.n else self.correct / self.n

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Wilson's interval for the pass rate; None for a problem that was solved while sampling could stop there.

        0 of k happens equally often with and without such a stop, so the interval of a problem without a success
        stands.
        """
        if not self.n or (self.sequential and self.correct):
            return None
        return wilson_interval(self.correct, self.n, level)

    def to_json(self) -> dict[str, Any]:
        """A record for a results file: with a rate where all k rollouts were drawn whatever they gave."""
        interval, rate = self.interval(), self.rate
        return {
            "id": self.problem.id, "kind": self.kind, "solved": self.correct > 0, "n": self.n,
            **({} if rate is None else {"correct": self.correct, "rate": round(rate, 6)}),
            **({} if interval is None else {"wilson": [round(bound, 6) for bound in interval]}),
            "truncated": self.truncated, "unparsed": self.unparsed, "failed": self.failed, "tokens": self.tokens,
            "thinking": self.thinking, "answers": self.answers, "example": self.example,
            **({"reason": self.reason} if self.reason else {}),
        }  # fmt: skip


@dataclass(frozen=True)
class Mined:
    """The outcomes of all problems, in their order. Iterating gives the hard problems.

    Attributes:
        accepted: kinds that count as hard.
        sampled: units of work that this call sampled; all others were in the journal.
    """

    outcomes: list[Outcome]
    accepted: tuple[Kind, ...] = ("hard",)
    sampled: int = field(default=0, compare=False)

    @property
    def hard(self) -> list[Problem]:
        """Problems of the accepted kinds: what the prefix search goes on with."""
        return [one.problem for one in self.outcomes if one.kind in self.accepted]

    @property
    def counts(self) -> dict[str, int]:
        """Number of problems of each kind."""
        counted = Counter(one.kind for one in self.outcomes)
        return {kind: counted[kind] for kind in KINDS}

    @property
    def rollouts(self) -> int:
        """Rollouts in all."""
        return sum(one.n for one in self.outcomes)

    @property
    def tokens(self) -> int:
        """Generated tokens in all."""
        return sum(one.tokens for one in self.outcomes)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.hard)

    def __len__(self) -> int:
        return len(self.hard)


def mine(
    problems: Sequence[Problem],
    engine: Engine | Sampler,
    k: int = 128,
    *,
    stop_at_success: bool = True,
    journal: Path | None = None,
    accepted: tuple[Kind, ...] = ("hard",),
    check: LabelCheck = "solution",
    progress: Progress | None = None,
    **asking: Unpack[Asking],
) -> Mined:
    """Sample every problem k times, unguided, and tell which are never solved.

    Args:
        problems: with their labels, which the grader must accept first.
        engine: samples the model that is to be trained, or a :class:`~retarget.pope.sampler.Sampler` around it.
        k: rollouts per problem: 128 in the paper. 0 of 128 leaves a true rate of up to 2.3 % (95 %, exact).
        stop_at_success: ask only "hard or not": no further chunk after a success. The outcomes have no pass rates
            then; take it off for those.
        journal: file of finished units. A killed run goes on from it, and so does one with more problems or a larger
            k: what is there is kept, what is missing is sampled. None keeps nothing.
        accepted: kinds that go on to the prefix search.
        check: how labels are checked first (see :func:`retarget.pope.grading.rejected_solutions`).
        progress: see :data:`retarget.pope.work.Progress`.
        asking: ``grader``, ``prompts``, ``params``, ``chunk``, ``batch``: fields of a sampler.

    Raises:
        UserError: k is below 1, ids occur twice, the journal belongs to other work, or every problem is refused.
    """
    sampler = Sampler.of(engine, "mine", **asking)
    sampler.check(k)
    if len({problem.id for problem in problems}) < len(problems):
        raise UserError("problems with the same id cannot be mined together")
    broken = {problem.id for problem, _ in rejected_solutions(problems, sampler.grader, check)}
    items = [Item(problem) for problem in problems if problem.id not in broken]

    def next_unit(item: Item) -> Unit | None:
        left = k - item.rollouts
        if left <= 0 or item.refused or (stop_at_success and any(record.correct for record in item.records)):
            return None
        return Unit(sampler.unguided(item.problem), min(sampler.chunk, left), left, len(item.records))

    with sampler.journal("mine", journal, problems) as book:
        work = Work(items, next_unit, sampler, book, progress)
        work.run()
    found = {item.problem.id: _outcome(item, stop_at_success) for item in items}
    outcomes = [found.get(p.id) or Outcome(p, "broken", example=p.solution) for p in problems]
    return Mined(outcomes, accepted, work.sampled)


def graduates(before: Mined, now: Mined) -> list[Problem]:
    """Problems that were hard and that a later model solves: they may leave the hard set."""
    solved = {one.problem.id for one in now.outcomes if one.kind == "solved"}
    return [problem for problem in before.hard if problem.id in solved]


def _outcome(item: Item, sequential: bool) -> Outcome:
    records = item.records
    if item.refused:
        return Outcome(item.problem, "failed", n=item.rollouts, reason=item.refused, sequential=sequential)
    answers: Counter[str] = Counter()
    for record in records:
        answers.update(record.answers)
    example = next((one.example for one in records if one.correct), records[0].example if records else "")
    counts: dict[str, Any] = {name: sum(getattr(one, name) for one in records) for name in COUNTS}
    return Outcome(
        item.problem,
        kind_of(counts["n"], counts["correct"], counts["truncated"], counts["unparsed"], answers),
        answers=dict(answers.most_common(5)),
        example=example,
        sequential=sequential,
        thinking=total_or_none(record.thinking for record in records),
        **counts,
    )


def kind_of(n: int, correct: int, truncated: int, unparsed: int, answers: Counter[str]) -> Kind:
    """Why a problem was (not) solved; see :class:`Outcome`.

    >>> kind_of(8, 0, 0, 0, Counter({"12": 6, "7": 2})), kind_of(8, 0, 5, 1, Counter())
    ('suspect', 'truncated')
    """
    if correct:
        return "solved"
    if truncated > n / 2:
        return "truncated"
    if truncated + unparsed > n / 2:
        return "unparsed"
    commonest = max(answers.values(), default=0)
    return "suspect" if commonest > (n - truncated - unparsed) / 2 else "hard"
