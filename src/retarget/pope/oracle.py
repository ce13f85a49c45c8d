"""Ask a teacher for missing oracle solutions; keep those whose final answer the grader accepts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from retarget.pope.graders import Grade
from retarget.pope.problems import Problem, refuse_equal_ids
from retarget.pope.prompts import TEMPLATES, Prompts
from retarget.pope.rollouts import Engine, Rollout, Sampling
from retarget.pope.sampler import Asking, Sampler
from retarget.pope.schedule import Work
from retarget.pope.work import Item, Progress, Record, Unit

_ASK = (TEMPLATES / "oracle.txt").read_text(encoding="utf-8").removesuffix("\n")
ORACLE = Prompts(unguided=_ASK, guided=f"{_ASK}\n{{prefix}}")
"""The prompt for a teacher."""


def ask_oracle(
    problems: Sequence[Problem],
    teacher: Engine | Sampler,
    attempts: int = 4,
    *,
    journal: Path | None = None,
    progress: Progress | None = None,
    **asking: Unpack[Asking],
) -> tuple[list[Problem], list[Problem]]:
    """Ask a teacher for the solutions that are missing.

    A solution is the text after the thinking block. A correct final answer does not prove every step: read some.

    Args:
        problems: problems; those that have a solution are returned unchanged.
        teacher: usually a server engine, or a sampler around one.
        attempts: samples per problem; the first that the grader accepts becomes the solution.
        journal: file for answered problems; a killed run resumes from it.
        progress: see :data:`retarget.pope.work.Progress`.
        asking: fields of a sampler. By default the prompt is the template ``oracle.txt``, and the teacher may generate
            8,192 tokens at temperature 0.7.

    Returns:
        The problems that have a solution now, and those that still have none, each in the given order.
    """
    if not isinstance(teacher, Sampler):
        asking = {"prompts": ORACLE, **asking}
    sampler = Sampler.of(teacher, "oracle", Sampling(max_tokens=8192, temperature=0.7), **asking)
    sampler.check(attempts, "attempts")
    refuse_equal_ids(problems)
    missing = [problem for problem in problems if not problem.solution.strip()]
    items = [Item(problem) for problem in missing]

    def next_unit(item: Item) -> Unit | None:
        left = attempts - item.rollouts
        if left <= 0 or item.refused or any(record.solution for record in item.records):
            return None
        return Unit(sampler.unguided(item.problem), left, left, len(item.records) or None)

    with sampler.journal("oracle", journal, missing) as book:
        Work(items, next_unit, sampler, book, progress, _record, _answer).run()
    solutions = {item.problem.id: record.solution for item in items for record in item.records if record.solution}
    complete = [one.model_copy(update={"solution": solutions.get(one.id) or one.solution}) for one in problems]
    return [one for one in complete if one.solution.strip()], [one for one in complete if not one.solution.strip()]


def _answer(rollout: Rollout) -> Rollout:
    return replace(rollout, text=rollout.answer_text.strip())


def _record(problem: Problem, unit: Unit, rollouts: Sequence[Rollout], grades: Sequence[Grade]) -> Record:
    right = (one.answer_text.strip() for one, grade in zip(rollouts, grades, strict=True) if grade.correct)
    tokens = sum(one.tokens for one in rollouts)
    later: dict[str, Any] = {} if unit.chunk is None else {"chunk": unit.chunk}  # further attempts
    solution = next(right, "")
    return Record(
        problem=problem.id, **later, asks=unit.asks(problem), n=len(rollouts), solution=solution, tokens=tokens
    )
