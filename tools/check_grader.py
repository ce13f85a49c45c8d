"""Check `--grader math` on real problem files: which texts without an answer, and which solutions, are rewarded?

    python tools/check_grader.py gsm8k/train.jsonl math/train.jsonl.gz --count 2500

For each file, prints one JSON line: for each kind of text that gives no answer (statements, prefixes of solutions,
solutions cut before their answer, hedged answers, solutions cut off by the budget, thinking that never ends), how many
were rewarded; and how many reference solutions the grader accepts, and math-verify alone. Exits with 1 if a text
without an answer was rewarded.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retarget.pope.grading import Grader
from retarget.pope.prefixes import boundaries, statements
from retarget.pope.problems import Problem, read_problems

HALF_SAID = (
    "So the answer is at least {}", "The answer is at most {}.", "Thus the answer is more than {}, as we shall see.",
    "The answer is between 0 and {}", "If the answer is {}, then we are done.", "The answer is not {}.",
    "So the answer is {} or its double.", "The answer is {} times something", "Hence the answer is at least",
    "Let us check whether the answer is {}.", "The answer is either {} or nothing.", "So, is the answer {}?",
    "The answer is {} plus", "The answer is", "Step {} gives the answer",
)  # fmt: skip


def main() -> int:
    """Check every file; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="problem files")
    parser.add_argument("--count", type=int, default=2500, help="texts of each kind")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--show", type=int, default=5, help="rewarded texts to print")
    given = parser.parse_args()
    wrong = 0
    for file in given.files:
        problems = read_problems(file, answer_in_solution=False, skip_invalid=True, write_rejects=False)
        some = problems[: given.count]
        found: dict[str, Any] = {"file": file.name, "problems": len(problems)}
        with Grader("math", workers=given.workers) as grader:
            for kind, make in KINDS.items():
                random = np.random.default_rng(0)
                texts = [make(one, random) for one in some]
                metas = [{"truncated": kind == "truncated"}] * len(texts)
                grades = grader.grade(texts, [one.answer for one in some], metas)
                hits = [index for index, grade in enumerate(grades) if grade.correct]
                found[kind] = f"{len(hits)} of {len(texts)}"
                wrong += len(hits)
                for index in hits[: given.show]:
                    print(f"{file.name} {kind}: {some[index].answer!r} in ...{texts[index][-300:]!r}", file=sys.stderr)
            accepted = grader.grade([one.solution for one in problems], [one.answer for one in problems])
            found["accepted"] = sum(one.correct for one in accepted)
            found["statuses"] = dict(grader.counts)
        alone = by_math_verify(problems)
        found["accepted by math-verify alone"] = sum(alone)
        found["by math-verify and not by the grader"] = sum(
            theirs and not ours.correct for theirs, ours in zip(alone, accepted, strict=True)
        )
        print(json.dumps(found), flush=True)
    return int(wrong > 0)


def _unanswered(problem: Problem) -> str:
    """The part of the solution before it first states or boxes an answer."""
    boxes = [place for place in map(problem.solution.find, ("\\boxed", "\\fbox", "####")) if place >= 0]
    starts = [start for start, _ in statements(problem)]
    return problem.solution[: min([*starts, *boxes], default=len(problem.solution))].rstrip()


def _prefix(problem: Problem, random: np.random.Generator) -> str:
    text = _unanswered(problem)
    ends = [*boundaries(text, "token"), len(text)]
    return text[: ends[int(random.integers(len(ends)))]]


def _half(problem: Problem, random: np.random.Generator) -> str:
    said = HALF_SAID[int(random.integers(len(HALF_SAID)))]
    return f"{_unanswered(problem)} {said.replace('{}', _written(problem.answer, random))}"


def _written(answer: str, random: np.random.Generator) -> str:
    return f"${answer}$" if random.random() < 0.5 else answer


KINDS: dict[str, Callable[[Problem, np.random.Generator], str]] = {
    "statement": lambda problem, _: problem.prompt,
    "prefix": _prefix,
    "cut before the answer": lambda problem, _: _unanswered(problem),
    "half-said": _half,
    "truncated": lambda problem, _: problem.solution,
    "still thinking": lambda problem, _: f"<think>{problem.solution}",
}


def by_math_verify(problems: Sequence[Problem]) -> list[bool]:
    """Whether math-verify accepts each whole solution."""
    from math_verify import parse, verify

    found = []
    for one in problems:
        gold, said = (parse(text, parsing_timeout=None) for text in (f"\\boxed{{{one.answer}}}", one.solution))  # type: ignore[arg-type]
        found.append(bool(verify(gold, said, timeout_seconds=None)))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
