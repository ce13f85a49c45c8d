"""Problems that this package generates: chains of operations modulo 23, and a verifier for every step of them.

A problem is a start number and some one-token operations; a solution writes operations and results. In the family
``arms`` a problem lists several labelled chains and names the one to take, so that an early *choice* is hard rather
than length. Free of torch.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from retarget.errors import UserError
from retarget.pope.graders import Grade
from retarget.pope.problems import Problem
from retarget.settings import Strict

MODULUS = 23
OPERATIONS = tuple([f"{sign}{k}" for sign in "+-" for k in (2, 3, 5, 7, 9)] + [f"*{k}" for k in (2, 3, 5, 7)])
LABELS = ("A", "B", "C")
HINT, START, TAKE = "hint", "=", "take"
WORDS = (*map(str, range(MODULUS)), *OPERATIONS, *LABELS, HINT, START, TAKE)

Family = Literal["chain", "arms"]
Style = Literal["terse", "own"]


class Corpus(Strict):
    """What a base model has seen: solved problems, many short ones and, with errors, longer ones.

    Attributes:
        family: which problems.
        style: how the *oracle* writes; traces are always in the model's own style, one result an operation.
        short: lengths of the problems that are solved cleanly.
        long: lengths of the problems whose traces are sloppy.
        step_accuracy: share of right results in a sloppy trace; an error is passed on to the next steps.
        off_by_one: share of errors that are too large by one; the others are uniform, so that sampling does not just
            repeat one systematic error.
        hinted: share of rows whose prompt holds the beginning of an oracle solution, which the trace continues.
        first_label: arms: share of sloppy traces that take the first chain by habit, whatever the problem says. Clean
            ones take the right one.
        labelled: arms: share of the rows without a hint whose prompt ends behind the right label, as if the base had
            just written it. They teach to follow a label, not to write it; without them a base with the habit ignores
            a label of its own, and no prefix with a label can teach it anything about unguided prompts.
    """

    family: Family = "chain"
    style: Style = "terse"
    short: tuple[int, int] = (1, 4)
    long: tuple[int, int] = (5, 8)
    step_accuracy: float = Field(default=0.25, gt=0, le=1)
    off_by_one: float = Field(default=0.5, ge=0, le=1)
    hinted: float = Field(default=0.5, ge=0, le=1)
    first_label: float = Field(default=0.95, ge=0, le=1)
    labelled: float = Field(default=0.5, ge=0, le=1)


def apply(value: int, operation: str) -> int:
    """One operation modulo 23.

    >>> apply(20, "+5"), apply(1, "-3"), apply(6, "*7")
    (2, 21, 19)
    """
    number = int(operation[1:])
    return {"+": value + number, "-": value - number, "*": value * number}[operation[0]] % MODULUS


def make_problem(random: np.random.Generator, length: int, family: Family = "chain", style: Style = "terse") -> Problem:
    """One problem with an oracle solution of one result a line; operations within a chain are distinct."""
    start = int(random.integers(MODULUS))
    chains = [
        [OPERATIONS[i] for i in random.permutation(len(OPERATIONS))[:length]]
        for _ in range(len(LABELS) if family == "arms" else 1)
    ]
    if family == "arms":
        # A hard choice where the problem is long: never the chain that the base takes by habit.
        index = int(random.integers(1, len(LABELS)))
        label, operations = LABELS[index], chains[index]
        listed = " ".join(f"{name} {' '.join(chain)}" for name, chain in zip(LABELS, chains, strict=True))
        prompt = f"{start} {listed} {TAKE} {label}"
    else:
        label, operations = "", chains[0]
        prompt = f"{start} {' '.join(operations)}"
    lines = solution_lines(start, operations, style)
    if label:
        lines[0] = f"{label} {lines[0]}"
    meta = {"start": start, "operations": operations, "label": label}
    return Problem(id=prompt.replace(" ", "_"), prompt=prompt, solution="\n".join(lines),
                   answer=lines[-1].split()[-1], meta=meta)  # fmt: skip


def solution_lines(start: int, operations: Sequence[str], style: Style) -> list[str]:
    """A correct solution: ``own`` writes a result for every operation, ``terse`` for every second one.

    >>> solution_lines(7, ["+3", "*5", "-2"], "terse")
    ['+3 *5 4', '-2 2']
    """
    step = 2 if style == "terse" else 1
    lines, value = [], start
    for at in range(0, len(operations), step):
        part = operations[at : at + step]
        for operation in part:
            value = apply(value, operation)
        lines.append(f"{' '.join(part)} {value}")
    return lines


def make_problems(
    count: int, length: int, seed: int, family: Family = "chain", style: Style = "terse", skip: Sequence[str] = ()
) -> list[Problem]:
    """Distinct problems of one length, none with an id in ``skip``."""
    random, seen, found = np.random.default_rng([seed, length]), set(skip), []
    while len(found) < count:
        problem = make_problem(random, length, family, style)
        if problem.id not in seen:
            seen.add(problem.id)
            found.append(problem)
    return found


def verify(completion: str, answer: str, meta: dict[str, Any]) -> Grade:
    """Every written result must be right: at most two operations a result, all operations, in order, and the end.

    Not the final answer alone, which a guess hits one time in 23. A guided completion may go on from its prefix
    (``meta["prefix"]``) or write the whole solution; either oracle style is accepted.

    >>> problem = make_problem(np.random.default_rng(0), 4)
    >>> verify(problem.solution, problem.answer, problem.meta).correct
    True
    """
    words = completion.split()
    extracted = words[-1] if words and words[-1].isdigit() else None
    right = _is_solution(words, meta)
    if not right and meta.get("prefix"):
        right = _is_solution([*meta["prefix"].split(), *words], meta)
    return Grade(float(right), extracted)


def _is_solution(words: Sequence[str], meta: dict[str, Any]) -> bool:
    if meta["label"]:
        if not words or words[0] != meta["label"]:
            return False
        words = words[1:]
    value, pending, expected = meta["start"], 0, iter(meta["operations"])
    for word in words:
        if word in OPERATIONS:
            pending += 1
            if pending > 2 or word != next(expected, None):
                return False
            value = apply(value, word)
        elif pending and word == str(value):
            pending = 0
        else:
            return False
    return pending == 0 and bool(words) and next(expected, None) is None


def traces(corpus: Corpus, seed: int, short_only: bool) -> Iterator[tuple[str, str]]:
    """Endless (prompt, completion) rows of a base corpus.

    Raises:
        UserError: lengths that no chain of distinct operations has.
    """
    if max(*corpus.short, *corpus.long) > len(OPERATIONS):
        raise UserError(f"a chain has at most {len(OPERATIONS)} distinct operations")
    random = np.random.default_rng(seed)
    while True:
        sloppy = not short_only and random.random() < 0.5
        low, high = corpus.long if sloppy else corpus.short
        problem = make_problem(random, int(random.integers(low, high + 1)), corpus.family, corpus.style)
        yield _trace(random, problem, corpus, sloppy)


def _trace(random: np.random.Generator, problem: Problem, corpus: Corpus, sloppy: bool) -> tuple[str, str]:
    lines = problem.solution.split("\n")
    operations, label, value = list(problem.meta["operations"]), problem.meta["label"], int(problem.meta["start"])
    prompt = f"{problem.prompt} {START}"
    written: list[str] = []
    if len(lines) > 1 and random.random() < corpus.hinted:
        given = int(random.integers(1, len(lines)))
        prefix = " ".join(lines[:given])
        prompt = f"{problem.prompt} {HINT} {prefix} {START}"
        value = int(prefix.split()[-1])
        operations = operations[sum(word in OPERATIONS for word in prefix.split()) :]
    elif label and random.random() < corpus.labelled:
        prompt += f" {label}"
    elif label:
        if sloppy and random.random() < corpus.first_label:
            label, operations = LABELS[0], problem.prompt.split()[2 : 2 + len(operations)]
        written.append(label)
    for operation in operations:
        value = apply(value, operation)
        if sloppy and random.random() >= corpus.step_accuracy:
            off = 1 if random.random() < corpus.off_by_one else int(random.integers(1, MODULUS))
            value = (value + off) % MODULUS
        written += [operation, str(value)]
    return prompt, " ".join(written)
