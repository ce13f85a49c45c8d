"""Missing oracle solutions from a teacher; only those whose final answer the grader accepts are kept."""

from collections.abc import Sequence
from pathlib import Path

from retarget.identity import fingerprint
from retarget.pope.grading import Grader
from retarget.pope.identity import engine_header
from retarget.pope.journal import Journal
from retarget.pope.problems import Problem
from retarget.pope.prompts import TEMPLATES, Prompts
from retarget.pope.rollouts import Engine, Sampling


def ask_oracle(
    problems: Sequence[Problem],
    teacher: Engine,
    attempts: int = 4,
    *,
    grader: Grader | None = None,
    prompts: Prompts | None = None,
    params: Sampling | None = None,
    journal: Path | None = None,
    batch: int = 16,
) -> tuple[list[Problem], list[Problem]]:
    """Ask a teacher for the solutions that are missing.

    Only the part of an answer that follows its thinking block becomes a solution. An accepted final answer does not
    prove that each step is right: read some.

    Args:
        problems: those with a solution are returned as they are.
        teacher: usually a server engine.
        attempts: samples a problem; the first that the grader accepts is taken.
        grader: default math-verify.
        prompts: what the teacher is asked, unguided; default the template ``oracle.txt``.
        params: default 8,192 tokens at temperature 0.7.
        journal: file of answered problems; a killed run goes on from it.
        batch: problems in one call.

    Returns:
        The problems that have a solution now, and those that still have none, both in their order.
    """
    grader = grader or Grader()
    asking = (TEMPLATES / "oracle.txt").read_text(encoding="utf-8").removesuffix("\n")
    prompts = prompts or Prompts(unguided=asking, guided=f"{asking}\n{{prefix}}")
    params = (params or Sampling(max_tokens=8192, temperature=0.7)).of("oracle")
    missing = [problem for problem in problems if not problem.solution.strip()]
    header = {
        "verb": "oracle", **engine_header(teacher), "attempts": attempts, "grader": grader.spec,
        "sampling": params.model_dump(mode="json"),
        "problems": fingerprint([[p.id, p.answer, prompts.without_prefix(p.prompt), p.meta] for p in missing]),
    }  # fmt: skip
    with Journal(journal, header) as book:
        done = len(book.records)
        for start in range(done, len(missing), batch):
            some = missing[start : start + batch]
            answers = teacher.sample([prompts.without_prefix(one.prompt) for one in some], attempts, params)
            for problem, rollouts in zip(some, answers, strict=True):
                texts = [one.answer_text.strip() for one in rollouts]
                grades = grader.grade_problem(problem, texts)
                solution = next((text for text, grade in zip(texts, grades, strict=True) if grade.correct), "")
                book.append({"problem": problem.id, "solution": solution, "tokens": sum(r.tokens for r in rollouts)})
        solutions = {record["problem"]: record["solution"] for record in book.records}
    complete = [
        one.model_copy(update={"solution": solutions[one.id]}) if one.id in solutions else one for one in problems
    ]
    return [one for one in complete if one.solution], [one for one in complete if not one.solution]
