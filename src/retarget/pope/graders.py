"""Graders decide whether a completion is correct: pure functions of text. Free of torch."""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, cast

from retarget.errors import UserError
from retarget.own import blame, origin_of
from retarget.pope.answers import WITHIN, after_thinking, final_answer, stated_line, unsettled
from retarget.pope.boxes import alternatives, joined_boxes, last_boxed, without_denied
from retarget.pope.comparison import same
from retarget.pope.quantities import last_number, one_number

_BOX_WITHIN = 1000


@dataclass(frozen=True)
class Grade:
    """The verdict on one completion.

    Attributes:
        reward: 0 to 1; above 0.5 counts as correct.
        extracted: the final answer found in the completion, None if there was none.
        status: ``ok``, or why there is no verdict (the reward is then 0): ``timeout``, ``crash`` (also out of memory)
            or ``error``.
    """

    reward: float
    extracted: str | None = None
    status: str = "ok"

    @property
    def correct(self) -> bool:
        """Whether the completion counts as a success."""
        return self.reward > 0.5


GradingFunction = Callable[[str, str, dict[str, Any]], "Grade | float | bool"]
"""``function(completion, answer, meta)``; meta is the problem's, with its id."""


def exact(completion: str, answer: str, meta: dict[str, Any]) -> Grade:
    """Accept a marked final answer that is written as the gold one, spacing aside, also if that is a whole line.

    There is no answer if several boxes, or a box and a number, are offered for it.

    >>> exact("#### New  York", "New York", {}).correct, exact("#### 12 apples", "12 apples", {}).correct
    (True, True)
    """
    gold = " ".join(answer.split())
    found, line = final_answer(completion), stated_line(completion)
    if line is not None and " ".join(line.split()) == gold:
        return Grade(1.0, line)  # "#### 12 apples"
    if unsettled(completion):
        return Grade(0.0, None)
    return Grade(float(found is not None and " ".join(found.split()) == gold), found)


def numeric(completion: str, answer: str, meta: dict[str, Any]) -> Grade:
    r"""Accept if the marked final answer is one number, with or without a unit, that equals the gold number.

    Two integers must be the same; other numbers may differ by one part in a million. If no answer is marked, the last
    number of the text counts. There is no answer if a marked one does not settle on a number ("the answer is 6 or 7",
    two boxes that "or" joins, a box that is denied), or if the token budget cut the text off (``meta["truncated"]``).

    Raises:
        UserError: the gold answer is not a number, or too large for one.

    >>> numeric("so 1,200 in all", "1200", {}).correct, numeric(r"\boxed{\frac{1}{2}}", "0.5", {}).correct
    (True, True)
    """
    gold = one_number(answer)
    if gold is None or not isfinite(gold.value):
        fault = "not a number" if gold is None else "outside the range of floating-point numbers"
        raise UserError(f"the answer {answer!r} is {fault}: use the grader `math` or `exact`")
    if meta.get("truncated"):
        return Grade(0.0, None)
    if unsettled(completion):
        return Grade(0.0, None)
    marked = final_answer(completion)
    if marked is None:
        marked = last_number(after_thinking(completion))
    value = None if marked is None else one_number(marked)
    return Grade(float(value is not None and value.equals(gold)), marked)


def math(completion: str, answer: str, meta: dict[str, Any]) -> Grade:
    """Compare the *marked* final answer with the gold one symbolically, by math-verify.

    Boxes that ``and``, ``or`` or a comma joins are one answer; a box is none beside another number ("or 5"), or if it
    is denied. A text has no answer if it marks none (see
    :mod:`retarget.pope.answers`), if its thinking never ends, or if the token budget cut it off
    (``meta["truncated"]``). This runs in a worker process, which limits its time and memory, so math-verify's own
    timers are off.
    """
    text = "" if meta.get("truncated") else after_thinking(completion)
    marked = final_answer(text)
    if marked is None:
        return Grade(0.0, None)
    end = without_denied(text)[0][-WITHIN:]
    joined, several = joined_boxes(end), alternatives(end)
    if several and joined is None:
        return Grade(0.0, None)
    candidates = [*([] if several else [marked]), *([joined] if joined else [])]
    return Grade(float(any(same(one, answer) for one in candidates)), marked)


def boxed(completion: str, answer: str, meta: dict[str, Any]) -> Grade:
    """Grade as the authors do: math-verify on the last ``\\boxed{}`` within 1,000 characters of the end, nothing else.

    A text that the token budget cut off counts too, if it has such a box.
    """
    found = last_boxed(after_thinking(completion)[-_BOX_WITHIN:])
    return Grade(0.0, None) if found is None else Grade(float(same(found, answer)), found)


BUILT_IN: dict[str, GradingFunction] = {"math": math, "boxed": boxed, "exact": exact, "numeric": numeric}
RULES = {"math": 12, "boxed": 8, "exact": 6, "numeric": 7}
"""Versions of graders whose verdicts have changed: a journal is not continued with another version."""
MOVED = {"retarget.pope.tasks.chain:verify": "retarget.pope.studies.chain:verify"}
"""New import paths of graders that studies and journals still name by the old ones."""


def load(spec: str) -> GradingFunction:
    """A grading function by name or by ``module:function``; the working directory is searched last.

    To grade programs, give a function of your own that runs their unit tests in a sandbox of your own: the worker
    processes here limit time and memory, and protect against nothing else.

    Raises:
        UserError: there is no such function, or importing it fails; then the message shows the user's own line.
    """
    if spec in BUILT_IN:
        return BUILT_IN[spec]
    module, colon, name = MOVED.get(spec, spec).partition(":")
    if not colon:
        raise UserError(f"no grader {spec!r}: choose {', '.join(BUILT_IN)}, or give module:function")
    before = list(sys.path)
    sys.path[:] = here_last(before)
    try:
        function: Any = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        origin = origin_of(module)
        raise UserError(f"grader {spec!r}: {blame(error, origin.parent) if origin else error}") from error
    finally:
        here = str(Path.cwd())
        sys.path[:] = before if here in before else [*before, here]
    if not callable(function):
        raise UserError(f"grader {spec!r} is not callable")
    return cast(GradingFunction, function)


def here_last(path: Sequence[str]) -> list[str]:
    """A module search path with the working directory moved to its end."""
    here = str(Path.cwd())
    return [*(one for one in path if one and one != here), here]


def as_grade(value: Any) -> Grade:
    """The return value of a grading function as a :class:`Grade`.

    Raises:
        UserError: it is neither a Grade nor a number from 0 to 1.
    """
    if isinstance(value, Grade):
        return value
    if isinstance(value, bool | int | float) and 0 <= value <= 1:
        return Grade(float(value), "")
    raise UserError(f"a grader must return a Grade or a number from 0 to 1, not {value!r}")
