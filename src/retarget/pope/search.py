"""Search for the shortest prefix of an oracle solution with which the model succeeds at least once."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

from pydantic import Field, ValidationError

from retarget.errors import UserError
from retarget.identity import fingerprint
from retarget.pope.answers import final_answer, without_tags
from retarget.pope.grading import Grader
from retarget.pope.options import right_options
from retarget.pope.prefixes import Cut, Unit, bare_occurrences, cut_points, leak
from retarget.pope.problems import Problem, refuse_equal_ids
from retarget.pope.rollouts import Engine
from retarget.pope.sampler import Asking, Sampler
from retarget.pope.schedule import Work
from retarget.pope.work import Item, Progress
from retarget.pope.work import Unit as UnitOfWork
from retarget.settings import Strict, choose, faults

Fallback = Literal["longest", "none"]
Status = Literal["found", "fallback", "none", "no cut", "failed"]
Strategy = Literal["grid", "bisect"]


@dataclass(frozen=True)
class Found:
    """The result of the search for one problem.

    Attributes:
        problem: the problem's id.
        prefix: the beginning of the solution, for the prompt; None if there is no prefix.
        status: ``found`` (a rollout succeeded with this prefix), ``fallback`` (none succeeded with any: this is the
            longest), ``none`` (none succeeded, and no fallback was asked for), ``no cut`` (there is no boundary before
            the cap, or every cut leaks the answer), ``failed`` (the engine refused a prompt, or failed
            on one; see ``reason``).
        cut: the position of the cut.
        leaks: number of cuts that were left out because they state the answer.
        bare: occurrences of the answer as a token in the prefix.
        in_question: whether the answer also occurs as a token in the question.
        rollouts, tokens: cost of the search for this problem.
        tried: for each cut its end, rollouts and successes. Sampling stops at a success, so these do not estimate a
            success rate.
        reason, outage: why the engine refused a prompt, or how it failed on one, and whether it failed.
        solution, template: fingerprints of the solution and of the prompt templates that the prefix was searched with.
            None in files of earlier versions.
    """

    problem: str
    prefix: str | None
    status: Status
    cut: Cut | None
    leaks: int
    bare: int
    in_question: bool
    rollouts: int
    tokens: int
    tried: list[tuple[int, int, int]]
    reason: str = ""
    solution: str | None = None
    template: str | None = None
    outage: bool = False

    def to_json(self) -> dict[str, Any]:
        """A record for a results file."""
        cut = (
            {"end": self.cut.end, "fraction": round(self.cut.fraction, 4), "unit": self.cut.unit} if self.cut else None
        )
        return {
            "id": self.problem, "status": self.status, "prefix": self.prefix, "cut": cut, "leaks": self.leaks,
            "bare": self.bare, "in_question": self.in_question, "rollouts": self.rollouts, "tokens": self.tokens,
            "tried": [list(one) for one in self.tried], **({"reason": self.reason} if self.reason else {}),
            "solution": self.solution, "template": self.template,
        }  # fmt: skip


class _CutLine(Strict):
    end: int
    fraction: float
    unit: Unit


class _Line(Strict):
    """One line of prefixes.jsonl."""

    id: str
    status: Status
    prefix: str | None
    cut: _CutLine | None = None
    leaks: int = 0
    bare: int = 0
    in_question: bool = False
    rollouts: int = 0
    tokens: int = 0
    tried: list[tuple[int, int, int]] = Field(default=[])
    reason: str = ""
    solution: str | None = None
    template: str | None = None


class Prefixes(Mapping[str, str]):
    """The prefixes by problem id, for problems that have one. ``found`` has the results of all problems.

    ``sampled`` is the number of units of work that the call sampled; all others were in its journal.
    """

    def __init__(self, found: list[Found], sampled: int = 0) -> None:
        self.found, self.sampled = found, sampled
        self._prefixes = {one.problem: one.prefix for one in found if one.prefix}

    @classmethod
    def read(cls, path: Path, found_only: bool = False) -> "Prefixes":
        """Read a file that ``retarget pope search`` wrote.

        Args:
            path: prefixes.jsonl.
            found_only: leave out prefixes with which no rollout of the search succeeded.

        Raises:
            UserError: there is no such file, or a line of it is invalid (the message names the line).
        """
        found = []
        for number, line in enumerate(_text(path).split("\n"), 1):
            if not line:
                continue
            try:
                one = _Line.model_validate(json.loads(line))
            except (ValueError, RecursionError) as error:
                why = faults(error, "the line") if isinstance(error, ValidationError) else error
                raise UserError(
                    f"{path}: line {number} is not a line that `retarget pope search` writes: {why}"
                ) from error
            cut = Cut(one.cut.end, one.cut.fraction, one.cut.unit) if one.cut else None
            kept = one.prefix if one.status == "found" or not found_only else None
            found.append(
                Found(one.id, kept, one.status, cut, one.leaks, one.bare, one.in_question, one.rollouts, one.tokens,
                      one.tried, one.reason, one.solution, one.template)
            )  # fmt: skip
        return cls(found)

    def __getitem__(self, problem: str) -> str:
        return self._prefixes[problem]

    def __iter__(self) -> Iterator[str]:
        return iter(self._prefixes)

    def __len__(self) -> int:
        return len(self._prefixes)

    @property
    def rollouts(self) -> int:
        """Rollouts that the search cost."""
        return sum(one.rollouts for one in self.found)

    @property
    def tokens(self) -> int:
        """Generated tokens that the search cost."""
        return sum(one.tokens for one in self.found)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; `retarget pope search` writes it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def search_prefixes(
    hard: Iterable[Problem],
    engine: Engine | Sampler,
    cuts: int = 8,
    k: int = 64,
    *,
    cap: float = 0.25,
    unit: Unit = "sentence",
    fallback: Fallback = "longest",
    strategy: Strategy = "grid",
    journal: Path | None = None,
    progress: Progress | None = None,
    **asking: Unpack[Asking],
) -> Prefixes:
    """Find the shortest prefix with which one of up to k rollouts succeeds; a cut is sampled until its first success.

    This is the paper's i*(x): the shortest prefix with at least one correct guided completion of the base model, up to
    a quarter of the solution; if none works, that quarter. The paper's numbers of cuts and rollouts are not known. At a
    success rate of .04, 16 rollouts miss a helpful prefix half of the time, and 64 miss 7 %; :func:`rollouts_for` gives
    the k for another rate and another error.

    Args:
        hard: problems with solutions, such as :func:`retarget.pope.mining.mine` returns.
        engine: samples the model that is to be trained; or a sampler around one.
        cuts: number of fractions to try, uniform up to the cap.
        k: rollouts per cut, at most.
        cap: longest prefix as a fraction of the solution.
        unit: the kind of boundary to cut at.
        fallback: prefix of a problem for which no cut works: the ``longest``, or ``none``.
        strategy: ``grid`` tries the cuts from the shortest on. ``bisect`` assumes that success is monotone in the
            length and halves the range of cuts, so it tries at most 1 + log2(cuts) of them. If success is not monotone,
            or a helpful cut is missed (up to 1 + log2(cuts) times as often as at a single cut), the prefix is longer
            than the grid's, but a rollout has succeeded with it all the same. Each strategy can resume from the other's
            journal.
        journal, progress, asking: as in :func:`~retarget.pope.mining.mine`.

    Raises:
        UserError: k is below 1, a problem has no solution, the journal belongs to other work, or the engine refuses
            every problem.
    """
    problems = list(hard)
    choose("strategy", strategy, Strategy)
    choose("fallback", fallback, Fallback)
    sampler = Sampler.of(engine, "search", **asking)
    sampler.check(k)
    _refuse_unsolved(problems)
    refuse_equal_ids(problems)
    places = {one.id: cut_points(one.solution, cuts, cap, unit) for one in problems}
    clean = clean_cuts(problems, places, sampler.grader)
    items = [Item(problem) for problem in problems]

    def next_unit(item: Item) -> UnitOfWork | None:
        return _next_unit(item, [cut.end for cut in clean[item.problem.id]], sampler, k, strategy)

    with sampler.journal("search", journal, problems, lambda one: sampler.guided(one, one.solution)) as book:
        work = Work(items, next_unit, sampler, book, progress)
        work.run()
    template = sampler.prompts.fingerprint
    found = [_found(item, places[item.problem.id], clean[item.problem.id], fallback, template) for item in items]
    return Prefixes(found, work.sampled)


def clean_cuts(
    problems: Sequence[Problem], places: Mapping[str, list[Cut]], grader: Grader | None
) -> dict[str, list[Cut]]:
    """For each problem, by id, the cuts that do not state the answer, in the gold answer's form or another.

    A grader that requires a marked answer (``math``, ``boxed``) must not accept the prefix itself as a completion, nor
    as one of a question whose answer is the right option's text;
    without a grader only the gold answer's form is looked for.
    """
    clean = {one.id: [cut for cut in places[one.id] if leak(one, cut.end) is None] for one in problems}
    if grader is None or grader.spec not in ("math", "boxed"):
        return clean
    shown = [(one, cut, without_tags(one.solution[: cut.end])) for one in problems for cut in clean[one.id]]
    marked = [(one, cut, text) for one, cut, text in shown if final_answer(text) is not None]
    golds = {one.id: [one.answer, *right_options(one.prompt, one.answer)[1]] for one, _, _ in marked}
    asked = [(one, cut, text, gold) for one, cut, text in marked for gold in golds[one.id]]
    metas = [{**one.meta, "id": one.id} for one, _, _, _ in asked]
    grades = grader.grade([text for _, _, text, _ in asked], [gold for _, _, _, gold in asked], metas)
    for (one, cut, _, _), grade in zip(asked, grades, strict=True):
        if grade.correct and cut in clean[one.id]:
            clean[one.id].remove(cut)
    return clean


def _refuse_unsolved(problems: Sequence[Problem]) -> None:
    missing = [problem.id for problem in problems if not problem.solution.strip()]
    if missing:
        raise UserError(
            f"{len(missing)} problems have no solution to cut; the first: {missing[0]!r}. `retarget pope oracle` can "
            "ask a teacher for solutions"
        )


def _next_unit(item: Item, ends: Sequence[int], sampler: Sampler, k: int, strategy: Strategy) -> UnitOfWork | None:
    """The next unit of a problem that can be cut at ``ends``, None if its search is over."""
    if item.refused:
        return None
    tried = _tried(item)
    at = next_cut([tried.get(end, (0, 0)) for end in ends], k, strategy)
    if at is None:
        return None
    end = ends[at]
    left = k - tried.get(end, (0, 0))[0]
    turn = sum(record.end == end for record in item.records)
    prefix = item.problem.solution[:end]
    return UnitOfWork(sampler.guided(item.problem, prefix), min(sampler.chunk, left), left, turn, end, prefix)


def next_cut(tried: Sequence[tuple[int, int]], k: int, strategy: Strategy) -> int | None:
    """Position of the cut to sample next, None if the search is over.

    Args:
        tried: rollouts and successes of each cut, from the shortest on.
        k: number of rollouts after which a cut without a success is given up.
        strategy: see :func:`search_prefixes`.

    >>> next_cut([(0, 0)] * 8, 64, "bisect"), next_cut([(0, 0)] * 3 + [(64, 0)] + [(0, 0)] * 4, 64, "bisect")
    (3, 5)
    """
    low, high = -1, len(tried)
    while low + 1 < high:
        at = (low + high) // 2 if strategy == "bisect" else low + 1
        drawn, correct = tried[at]
        if correct:
            high = at
        elif drawn >= k:
            low = at
        else:
            return at
    return None


def rollouts_for(rate: float, error: float) -> int:
    """The smallest k such that k rollouts miss a cut of this success rate with at most probability ``error``.

    It solves (1 - rate)^k <= error.

    Raises:
        UserError: ``rate`` or ``error`` is not strictly between 0 and 1.

    >>> rollouts_for(0.04, 0.07), rollouts_for(0.04, 0.01)
    (66, 113)
    """
    if not (0 < rate < 1 and 0 < error < 1):
        raise UserError(f"rate and error must be strictly between 0 and 1, not {rate} and {error}")
    return math.ceil(math.log(error) / math.log1p(-rate))


def _tried(item: Item) -> dict[int, tuple[int, int]]:
    """Rollouts and successes of each tried cut, by its end."""
    tried: dict[int, tuple[int, int]] = {}
    for record in item.records:
        assert record.end is not None
        n, correct = tried.get(record.end, (0, 0))
        tried[record.end] = (n + record.n, correct + record.correct)
    return tried


def _found(item: Item, places: list[Cut], clean: list[Cut], fallback: Fallback, template: str) -> Found:
    problem, records, tried = item.problem, item.records, _tried(item)
    cut: Cut | None = None
    status: Status = "no cut"
    if item.refused:
        status = "failed"
    elif clean:
        helped = [one for one in clean if tried.get(one.end, (0, 0))[1]]
        status = "found" if helped else "fallback" if fallback == "longest" else "none"
        cut = helped[0] if helped else clean[-1]
        cut = None if status == "none" else cut
    bare, in_question = bare_occurrences(problem, cut.end if cut else 0)
    return Found(
        problem=problem.id, prefix=problem.solution[: cut.end] if cut else None, status=status, cut=cut,
        leaks=len(places) - len(clean), bare=bare, in_question=in_question,
        rollouts=item.rollouts, tokens=sum(one.tokens for one in records),
        tried=[(end, n, correct) for end, (n, correct) in tried.items()], reason=item.refused or "",
        solution=fingerprint(problem.solution), template=template, outage=item.outage,
    )  # fmt: skip
