"""Missing oracle solutions from a teacher; only those whose final answer the grader accepts are kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from retarget.identity import fingerprint
from retarget.pope.journal import Journal
from retarget.pope.problems import Problem
from retarget.pope.prompts import TEMPLATES, Prompts
from retarget.pope.rollouts import Engine, Sampling
from retarget.pope.sampler import Asking, Sampler

_ASK = (TEMPLATES / "oracle.txt").read_text(encoding="utf-8").removesuffix("\n")
ORACLE = Prompts(unguided=_ASK, guided=f"{_ASK}\n{{prefix}}")
"""How a teacher is asked."""


def ask_oracle(
    problems: Sequence[Problem],
    teacher: Engine | Sampler,
    attempts: int = 4,
    *,
    journal: Path | None = None,
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
        asking: fields of a sampler. By default the teacher is asked by the template ``oracle.txt``, for 8,192 tokens
            at temperature 0.7.

    Returns:
        The problems that have a solution now, and those that still have none, both in their order.
    """
    if not isinstance(teacher, Sampler):
        asking = {"prompts": ORACLE, **asking}
    sampler = Sampler.of(teacher, "oracle", Sampling(max_tokens=8192, temperature=0.7), **asking)
    missing = [problem for problem in problems if not problem.solution.strip()]
    header = sampler.header(
        "oracle", attempts=attempts,
        problems=fingerprint([[p.id, p.answer, sampler.unguided(p), p.meta] for p in missing]),
    )  # fmt: skip
    del header["chunk"]  # all attempts are one unit
    with Journal(journal, header) as book:
        done = len(book.records)
        for start in range(done, len(missing), sampler.batch):
            some = missing[start : start + sampler.batch]
            answers = sampler.engine.sample([sampler.unguided(one) for one in some], attempts, sampler.sampling)
            for problem, rollouts in zip(some, answers, strict=True):
                texts = [one.answer_text.strip() for one in rollouts]
                grades = sampler.grader.grade_problem(problem, texts)
                solution = next((text for text, grade in zip(texts, grades, strict=True) if grade.correct), "")
                book.append({"problem": problem.id, "solution": solution, "tokens": sum(r.tokens for r in rollouts)})
        solutions = {record["problem"]: record["solution"] for record in book.records}
    complete = [
        one.model_copy(update={"solution": solutions[one.id]}) if one.id in solutions else one for one in problems
    ]
    return [one for one in complete if one.solution], [one for one in complete if not one.solution]
