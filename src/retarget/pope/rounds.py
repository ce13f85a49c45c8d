"""Sampling in rounds: what mining and the prefix search share. Each finished unit of work is journalled."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from retarget.errors import UserError
from retarget.pope.journal import Journal
from retarget.pope.problems import Problem
from retarget.pope.prompts import Prompt
from retarget.pope.rollouts import Rollout
from retarget.pope.sampler import Sampler

EXAMPLE_CHARACTERS = 2000
_ANSWERS_KEPT = 8

Progress = Callable[[int, int, int], None]
"""Told (problems finished, problems in all, rollouts so far) after every round."""


@dataclass(frozen=True)
class Unit:
    """One unit of work: n rollouts of one prompt. ``key`` says which, in the journal."""

    prompt: Prompt
    n: int
    chunk: int
    key: dict[str, Any]
    prefix: str | None = None


@dataclass
class Item:
    """A problem, and what the journal knows about it."""

    problem: Problem
    records: list[dict[str, Any]] = field(default_factory=list)


def run_rounds(
    items: Sequence[Item],
    next_unit: Callable[[Item], Unit | None],
    sampler: Sampler,
    journal: Journal,
    progress: Progress | None = None,
) -> None:
    """Give every item its units, one after another, until ``next_unit`` returns None for each.

    All open items advance together, a batch of them in one call of the engine: servers and GPUs are kept busy. An
    interrupted round is finished first after a resume, so the journal's order does not depend on interruptions.

    Raises:
        UserError: the journal holds units that this work does not ask for.
    """
    by_id = {item.problem.id: item for item in items}
    for record in journal.records:
        item = by_id.get(record["problem"])
        unit = next_unit(item) if item else None
        if item is None or unit is None or any(record.get(key) != value for key, value in unit.key.items()):
            raise UserError(f"{journal.path}: the journal holds a unit that this work does not ask for: {record}")
        item.records.append(record)
    while True:
        units = [(item, unit) for item in items if (unit := next_unit(item)) is not None]
        if progress:
            progress(len(items) - len(units), len(items), sum(r["n"] for i in items for r in i.records))
        if not units:
            return
        turn = min(len(item.records) for item, _ in units)
        due = [(item, unit) for item, unit in units if len(item.records) == turn]
        # Only units of one size and chunk go into one call.
        first = due[0][1]
        together = [pair for pair in due if (pair[1].n, pair[1].chunk) == (first.n, first.chunk)][: sampler.batch]
        params = sampler.sampling.model_copy(update={"chunk": first.chunk})
        rollouts = sampler.engine.sample([unit.prompt for _, unit in together], first.n, params)
        for (item, unit), some in zip(together, rollouts, strict=True):
            record = {"problem": item.problem.id, **unit.key, **summarise(item.problem, unit, some, sampler)}
            journal.append(record)
            item.records.append(record)


def total_or_none(values: Iterable[int | None]) -> int | None:
    """The sum; None where one is not known.

    >>> total_or_none([1, 2]), total_or_none([1, None])
    (3, None)
    """
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def summarise(problem: Problem, unit: Unit, rollouts: Sequence[Rollout], sampler: Sampler) -> dict[str, Any]:
    """What the journal keeps of a unit: counts, the answers seen most often, and one example."""
    grades = sampler.grade(problem, rollouts, unit.prefix)
    answers = Counter(grade.extracted for grade in grades if grade.extracted)
    shown = next((at for at, grade in enumerate(grades) if grade.correct), 0)
    return {
        "n": len(rollouts),
        "correct": sum(grade.correct for grade in grades),
        "truncated": sum(one.truncated for one in rollouts),
        "unparsed": sum(
            grade.extracted is None and not one.truncated for grade, one in zip(grades, rollouts, strict=True)
        ),
        "failed": sum(grade.status != "ok" for grade in grades),
        "tokens": sum(one.tokens for one in rollouts),
        "thinking": total_or_none(one.thinking for one in rollouts),
        "answers": dict(answers.most_common(_ANSWERS_KEPT)),
        "example": rollouts[shown].text[:EXAMPLE_CHARACTERS],
    }
