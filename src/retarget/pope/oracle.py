"""Missing oracle solutions from a teacher; only those whose final answer the grader accepts are kept."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from retarget.pope.graders import Grade
from retarget.pope.problems import Problem
from retarget.pope.prompts import TEMPLATES, Prompts
from retarget.pope.rollouts import Engine, Rollout, Sampling
from retarget.pope.sampler import Asking, Sampler
from retarget.pope.schedule import Work
from retarget.pope.work import Item, Progress, Record, Unit

_ASK = (TEMPLATES / "oracle.txt").read_text(encoding="utf-8").removesuffix("\n")
ORACLE = Prompts(unguided=_ASK, guided=f"{_ASK}\n{{prefix}}")
"""How a teacher is asked."""


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

    Only the part of an answer that follows its thinking block becomes a solution. An accepted final answer does not
    prove that each step is right: read some.

    Args:
        problems: those with a solution are returned as they are.
        teacher: usually a server engine, or a sampler around one.
        attempts: samples a problem; the first that the grader accepts is taken.
        journal: file of answered problems; a killed run goes on from it.
        progress: see :data:`retarget.pope.work.Progress`.
        asking: fields of a sampler. By default the teacher is asked by the template ``oracle.txt``, for 8,192 tokens
            at temperature 0.7.

    Returns:
        The problems that have a solution now, and those that still have none, both in their order.
    """
    if not isinstance(teacher, Sampler):
        asking = {"prompts": ORACLE, **asking}
    sampler = Sampler.of(teacher, "oracle", Sampling(max_tokens=8192, temperature=0.7), **asking)
    missing = [problem for problem in problems if not problem.solution.strip()]
    items = [Item(problem) for problem in missing]

    def next_unit(item: Item) -> Unit | None:
        if item.records or item.refused:
            return None
        return Unit(sampler.unguided(item.problem), attempts, attempts, None)

    with sampler.journal("oracle", journal, missing) as book:
        Work(items, next_unit, sampler, book, progress, _record, _answer).run()
    solutions = {item.problem.id: item.records[0].solution for item in items if item.records}
    complete = [one.model_copy(update={"solution": solutions.get(one.id) or one.solution}) for one in problems]
    return [one for one in complete if one.solution], [one for one in complete if not one.solution]


def _answer(rollout: Rollout) -> Rollout:
    return replace(rollout, text=rollout.answer_text.strip())


def _record(problem: Problem, unit: Unit, rollouts: Sequence[Rollout], grades: Sequence[Grade]) -> Record:
    right = (one.answer_text.strip() for one, grade in zip(rollouts, grades, strict=True) if grade.correct)
    tokens = sum(one.tokens for one in rollouts)
    return Record(problem=problem.id, asks=unit.asks(problem), n=len(rollouts), solution=next(right, ""), tokens=tokens)
