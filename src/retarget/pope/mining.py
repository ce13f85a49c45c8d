"""Find the hard problems: those with 0 of k rollouts correct, and no other explanation for it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Unpack, get_args

from retarget.pope.grading import Grader, LabelCheck, rejected_solutions
from retarget.pope.problems import Problem, refuse_equal_ids
from retarget.pope.rollouts import Engine
from retarget.pope.sampler import Asking, Sampler
from retarget.pope.schedule import Work
from retarget.pope.work import Item, Progress, Unit, total_or_none
from retarget.settings import choose
from retarget.study.statistics import wilson_interval

Kind = Literal["solved", "hard", "truncated", "unparsed", "suspect", "broken", "failed"]
KINDS: tuple[Kind, ...] = get_args(Kind)
COUNTS = ("n", "correct", "truncated", "unparsed", "failed", "tokens")
_COMPARED = 12
"""The most different answers to one problem that are compared with each other."""


@dataclass(frozen=True)
class Outcome:
    """The result of mining for one problem.

    Attributes:
        problem: the problem.
        kind: ``solved`` (at least once); ``hard``; 0 of k with another likely cause: most rollouts ``truncated``, most
            ``unparsed`` (truncated or without a final answer), or ``suspect`` (most of the extracted answers, and at
            least two, agree with each other but not with the label, which may be wrong); ``broken`` (the grader does
            not accept the problem's own label, so it was never sampled); or ``failed`` (the engine refused its prompt,
            or failed on it; see ``reason``).
        n, correct, tokens: rollouts, successes, generated tokens.
        truncated, unparsed, failed: rollouts that the token budget cut off, that have no final answer, and on which the
            grader failed.
        thinking: tokens before the answers began; None if a server does not report them.
        answers: the most frequent final answers as they are written, with counts.
        example: one rollout; for a broken problem its solution.
        sequential: sampling stopped at the first success. ``correct / n`` then overestimates the success rate: use only
            whether the problem was solved, and after how many rollouts.
        reason: why the engine refused the prompt, or how it failed on it.
        outage: whether it failed on it in all attempts, which need not be the prompt's fault.
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
    outage: bool = False

    @property
    def rate(self) -> float | None:
        """Successes / rollouts, the unbiased pass@1; None if sampling could stop at a success, or did not begin."""
        return None if self.sequential or not self.n else self.correct / self.n

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Wilson's interval for the success rate; None for a solved problem if sampling could stop at a success.

        0 of k is equally probable with and without such a stop, so the interval is valid for an unsolved problem.
        """
        if not self.n or (self.sequential and self.correct):
            return None
        return wilson_interval(self.correct, self.n, level)

    def to_json(self) -> dict[str, Any]:
        """A record for a results file; with a rate if all k rollouts were drawn regardless of successes."""
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
    """The outcomes of all problems, in their order. Iteration yields the hard problems.

    Attributes:
        outcomes: one per problem.
        accepted: kinds that count as hard.
        sampled: units of work that this call sampled; all others were in the journal.
    """

    outcomes: list[Outcome]
    accepted: tuple[Kind, ...] = ("hard",)
    sampled: int = field(default=0, compare=False)

    @property
    def hard(self) -> list[Problem]:
        """Problems of the accepted kinds: the input of the prefix search."""
        return [one.problem for one in self.outcomes if one.kind in self.accepted]

    @property
    def counts(self) -> dict[str, int]:
        """Number of problems of each kind."""
        counted = Counter(one.kind for one in self.outcomes)
        return {kind: counted[kind] for kind in KINDS}

    @property
    def rollouts(self) -> int:
        """Total number of rollouts."""
        return sum(one.n for one in self.outcomes)

    @property
    def tokens(self) -> int:
        """Total number of generated tokens."""
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
    """Sample every problem up to k times without guidance, and find those that are never solved.

    Args:
        problems: problems with labels; a problem whose label the grader does not accept is not sampled.
        engine: samples the model that is to be trained; or a :class:`~retarget.pope.sampler.Sampler` around one.
        k: rollouts per problem; 128 in the authors' configuration. After 0 of 128 the true rate can be up to 2.3 %
            (95 %, exact).
        stop_at_success: decide only whether a problem is hard: sample no further chunk after a success. The outcomes
            then have no pass rates; set it to False to get them.
        journal: file for finished units. A killed run resumes from it, and so does a run with more problems or a
            larger k: finished units are kept, missing ones are sampled. None keeps nothing.
        accepted: kinds of problems that go on to the prefix search.
        check: how labels are checked before sampling (see :func:`retarget.pope.grading.rejected_solutions`).
        progress: see :data:`retarget.pope.work.Progress`.
        asking: fields of a sampler: ``grader``, ``prompts``, ``params``, ``chunk``, ``batch``. By default ``params``
            allows completions of 16,384 tokens; the command line mines with 32,768.

    Raises:
        UserError: k is below 1, an id occurs twice, the journal belongs to other work, or the engine refuses every
            problem.
    """
    sampler = Sampler.of(engine, "mine", **asking)
    sampler.check(k)
    for kind in accepted:
        choose("accepted", kind, Kind)
    problems = list(problems)
    refuse_equal_ids(problems)
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
    found = {item.problem.id: _outcome(item, stop_at_success, sampler.grader) for item in items}
    outcomes = [found.get(p.id) or Outcome(p, "broken", example=p.solution) for p in problems]
    return Mined(outcomes, accepted, work.sampled)


def graduates(before: Mined, now: Mined) -> list[Problem]:
    """Problems that were hard and that a later model solves. They can leave the hard set."""
    solved = {one.problem.id for one in now.outcomes if one.kind == "solved"}
    return [problem for problem in before.hard if problem.id in solved]


def _outcome(item: Item, sequential: bool, grader: Grader) -> Outcome:
    records = item.records
    answers: Counter[str] = Counter()
    for record in records:
        answers.update(record.answers)
    example = next((one.example for one in records if one.correct), records[0].example if records else "")
    counts: dict[str, Any] = {name: sum(getattr(one, name) for one in records) for name in COUNTS}
    counted = counts["n"], counts["correct"], counts["truncated"], counts["unparsed"]
    kind = kind_of(*counted, answers)
    # Only if all that is compared were one answer could most answers agree.
    if kind == "hard" and kind_of(*counted, Counter(all=sum(_compared(answers).values()))) == "suspect":
        kind = kind_of(*counted, grouped(answers, grader))
    return Outcome(
        item.problem,
        "failed" if item.refused and kind != "solved" else kind,
        reason=item.refused or "",
        outage=item.outage,
        answers=dict(answers.most_common(5)),
        example=example,
        sequential=sequential,
        thinking=total_or_none(record.thinking for record in records),
        **counts,
    )


def kind_of(n: int, correct: int, truncated: int, unparsed: int, answers: Counter[str]) -> Kind:
    """The kind of a problem from its counts and answers; see :class:`Outcome`.

    >>> kind_of(8, 0, 0, 0, Counter({"12": 6, "7": 2})), kind_of(8, 0, 5, 1, Counter())
    ('suspect', 'truncated')
    >>> kind_of(1, 0, 0, 0, Counter({"7": 1}))
    'hard'
    """
    if correct:
        return "solved"
    if truncated > n / 2:
        return "truncated"
    if truncated + unparsed > n / 2:
        return "unparsed"
    commonest = max(answers.values(), default=0)
    return "suspect" if commonest > max(1, (n - truncated - unparsed) / 2) else "hard"


def grouped(answers: Counter[str], grader: Grader) -> Counter[str]:
    r"""The most frequent answers; those that ``math``, ``boxed`` or ``numeric`` find equal are one, as most write it.

    An answer is compared no further once the grader fails on it. Those of other graders stay as they are.

    >>> grouped(Counter({"1/2": 3, r"\frac12": 2, "7": 1}), Grader("numeric"))
    Counter({'1/2': 5, '7': 1})
    """
    if grader.spec not in ("math", "boxed", "numeric"):
        return answers
    found: Counter[str] = Counter()
    for one, count in _compared(answers).items():
        equal = one
        for other in list(found):
            grade = grader.compare(one, other)
            if grade.status in ("timeout", "crash"):
                break
            if grade.correct:
                equal = other
                break
        found[equal] += count
    return found


def _compared(answers: Counter[str]) -> dict[str, int]:
    return dict(answers.most_common(_COMPARED))
