"""Generated problems: chains of operations modulo 23, with a verifier that checks every step.

A problem is a start number and some one-token operations; a solution writes operations and results. In the family
``arms`` a problem lists several labelled chains and names the one to take, so that an early *choice* is hard, not the
length. Free of torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
    """The training corpus of a base model: short problems with correct solutions, and longer ones with errors.

    Attributes:
        family: kind of problems.
        style: style of the *oracle*; traces are always in the model's own style, with one result per operation.
        short: shortest and longest length of problems with correct traces.
        long: shortest and longest length of problems with sloppy traces.
        step_accuracy: share of correct results in a sloppy trace; an error is carried on to the next steps.
        off_by_one: share of errors that are too large by one. The others are uniform, so that sampling does not just
            repeat one systematic error.
        hinted: share of rows whose prompt contains the beginning of an oracle solution, which the trace continues.
        first_label: for ``arms``, the share of sloppy traces that take the first chain by habit, whatever the problem
            says. Correct traces take the right chain.
        labelled: for ``arms``, the share of rows without a hint whose prompt ends after the right label, as if the
            model had just written it. They teach it to follow a label, not to write one. Without them, a model with
            the habit ignores the labels that it writes, and a prefix with a label cannot teach it anything about
            unguided prompts.
        restated: share of the hinted rows whose trace first repeats the given part, in the model's own style.
        long_ends_only: long problems occur only with so much of an oracle solution in the prompt that no more
            operations are left than in a short problem, and without errors. The model then knows how long problems
            end, but not how they begin.
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
    restated: float = Field(default=0.0, ge=0, le=1)
    long_ends_only: bool = False


def apply(value: int, operation: str) -> int:
    """One operation modulo 23.

    >>> apply(20, "+5"), apply(1, "-3"), apply(6, "*7")
    (2, 21, 19)
    """
    number = int(operation[1:])
    return {"+": value + number, "-": value - number, "*": value * number}[operation[0]] % MODULUS


def make_problem(random: np.random.Generator, length: int, family: Family = "chain", style: Style = "terse") -> Problem:
    """A problem with an oracle solution that has one result per line. The operations of a chain are distinct."""
    start = int(random.integers(MODULUS))
    chains = [
        [OPERATIONS[i] for i in random.permutation(len(OPERATIONS))[:length]]
        for _ in range(len(LABELS) if family == "arms" else 1)
    ]
    if family == "arms":
        # Long problems are a hard choice: the right chain is never the one that the base model takes by habit.
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
    """A correct solution: ``own`` writes a result after every operation, ``terse`` after every second one.

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
    """Check every written result, not only the final answer, which a guess hits one time in 23.

    A solution has all operations in order, at most two per result, and ends with a result. A guided completion may
    continue its prefix (``meta["prefix"]``) or write the whole solution. Both oracle styles are accepted.

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


def right_steps(completion: str, meta: dict[str, Any]) -> int:
    """Number of operations written with correct results before the first mistake, without those of the prefix.

    >>> problem = make_problem(np.random.default_rng(0), 4)
    >>> right_steps(problem.solution, problem.meta), right_steps("5", problem.meta)
    (4, 0)
    """
    given = _given(completion, meta)
    return max((state.done for state in visited(completion, meta) if state.right), default=given) - given


@dataclass(frozen=True)
class State:
    """The state of a rollout: the number of finished operations, and the value written. Overlaps are thus exact."""

    done: int
    value: int
    right: bool = field(compare=False)


def visited(completion: str, meta: dict[str, Any]) -> list[State]:
    """The states that a completion writes, in order, until it deviates from the problem's operations.

    A guided completion that continues ``meta["prefix"]`` starts after the operations of the prefix.
    """
    words = completion.split()
    if meta["label"] and words[:1] == [meta["label"]]:
        words = words[1:]
    operations = meta["operations"]
    done = _given(completion, meta)
    values = [meta["start"]]
    for operation in operations:
        values.append(apply(values[-1], operation))
    states, pending, right = [], 0, True
    for word in words:
        if word in OPERATIONS and done + pending < len(operations) and word == operations[done + pending]:
            pending += 1
        elif pending and word.isdigit():
            done, pending = done + pending, 0
            right = right and int(word) == values[done]
            states.append(State(done, int(word), right))
        else:
            break
    return states


def _given(completion: str, meta: dict[str, Any]) -> int:
    """Number of operations in the prefix that a guided completion continues; 0 if it starts from the beginning."""
    given = _operations(meta.get("prefix", ""))
    first = next((word for word in completion.split() if word in OPERATIONS), None)
    goes_on = 0 < given < len(meta["operations"]) and first == meta["operations"][given]
    return given if goes_on and first != meta["operations"][0] else 0


def verify_with_reference(completion: str, answer: str, meta: dict[str, Any]) -> Grade:
    """As :func:`verify`, but a wrong completion gets up to half a reward for its correct steps.

    The reference is used in the reward only, as in ExpRL (2026); no prompt shows it.
    """
    grade = verify(completion, answer, meta)
    if grade.correct:
        return grade
    return Grade(0.5 * right_steps(completion, meta) / len(meta["operations"]), grade.extracted)


def verify_continued(completion: str, answer: str, meta: dict[str, Any]) -> Grade:
    """As :func:`verify`, but a guided completion must not repeat its prefix."""
    grade = verify(completion, answer, meta)
    again = bool(meta.get("prefix")) and _given(completion, meta) == 0
    return Grade(0.0, grade.extracted) if again else grade


def verify_restated(completion: str, answer: str, meta: dict[str, Any]) -> Grade:
    """As :func:`verify`, but a guided completion must write the whole solution."""
    return verify(completion, answer, {**meta, "prefix": ""})


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
    """An endless stream of (prompt, completion) rows of a corpus.

    Raises:
        UserError: a length exceeds the number of distinct operations.
    """
    if max(*corpus.short, *corpus.long) > len(OPERATIONS):
        raise UserError(
            f"corpus: problems can have at most {len(OPERATIONS)} operations, since those of a chain are distinct; "
            f"short={corpus.short}, long={corpus.long}"
        )
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
    end = sloppy and corpus.long_ends_only
    if end or (len(lines) > 1 and random.random() < corpus.hinted):
        given = int(random.integers(_lines_before(lines, corpus.short[1]) if end else 1, len(lines)))
        prefix = " ".join(lines[:given])
        prompt = f"{problem.prompt} {HINT} {prefix} {START}"
        if corpus.restated and random.random() < corpus.restated:
            written += [*([label] if label else []), *_in_full(value, operations[: _operations(prefix)])]
        value = int(prefix.split()[-1])
        operations = operations[_operations(prefix) :]
    elif label and random.random() < corpus.labelled:
        prompt += f" {label}"
    elif label:
        if sloppy and random.random() < corpus.first_label:
            label, operations = LABELS[0], problem.prompt.split()[2 : 2 + len(operations)]
        written.append(label)
    for operation in operations:
        value = apply(value, operation)
        if sloppy and not end and random.random() >= corpus.step_accuracy:
            off = 1 if random.random() < corpus.off_by_one else int(random.integers(1, MODULUS))
            value = (value + off) % MODULUS
        written += [operation, str(value)]
    return prompt, " ".join(written)


def _lines_before(lines: Sequence[str], most: int) -> int:
    """The smallest number of lines of a solution after which at most ``most`` operations are left."""
    left = sum(map(_operations, lines))
    for given, line in enumerate(lines):
        if left <= most:
            return given
        left -= _operations(line)
    return len(lines)


def _operations(text: str) -> int:
    return sum(word in OPERATIONS for word in text.split())


def _in_full(value: int, operations: Sequence[str]) -> list[str]:
    return " ".join(solution_lines(value, operations, "own")).split()
