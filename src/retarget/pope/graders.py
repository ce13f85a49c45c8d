"""Graders decide whether a completion is correct: pure functions of text. Free of torch."""

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from retarget.errors import UserError
from retarget.pope.answers import WITHIN, after_thinking, final_answer, joined_boxes, last_boxed

_BOX_WITHIN = 1000
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:/\d+)?(?<=\d)")


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
    """Accept a marked final answer that is written as the gold one, spacing aside.

    >>> exact("#### New  York", "New York", {}).correct
    True
    """
    found = final_answer(completion)
    return Grade(float(found is not None and " ".join(found.split()) == " ".join(answer.split())), found)


def numeric(completion: str, answer: str, meta: dict[str, Any]) -> Grade:
    """Accept if the last number of the marked final answer (without one, of the text) equals the gold number.

    Raises:
        UserError: the gold answer is not a number.

    >>> numeric("so 1,200 in all", "1200", {}).correct, numeric("#### 1/2", "0.5", {}).correct
    (True, True)
    """
    gold = _number(answer)
    if gold is None:
        raise UserError(f"the answer {answer!r} is not a number: use the grader `math` or `exact`")
    text = final_answer(completion) or after_thinking(completion)
    found = [one for one in _NUMBER.findall(text) if one]
    value = _number(found[-1]) if found else None
    close = value is not None and abs(value - gold) <= 1e-6 * max(1.0, abs(gold))
    return Grade(float(close), found[-1] if found else None)


def math(completion: str, answer: str, meta: dict[str, Any]) -> Grade:
    """Compare the *marked* final answer with the gold one symbolically, by math-verify.

    A text has no answer if it marks none (see :mod:`retarget.pope.answers`), if the token budget cut it off
    (``meta["truncated"]``), or if its thinking block never ends. This runs in a worker process, which limits its time
    and memory, so math-verify's own timers are off.
    """
    text = "" if meta.get("truncated") else after_thinking(completion)
    marked = final_answer(text)
    if marked is None:
        return Grade(0.0, None)
    candidates = [marked, *([joined] if (joined := joined_boxes(text[-WITHIN:])) else [])]
    return Grade(float(any(_same(one, answer) for one in candidates)), marked)


def boxed(completion: str, answer: str, meta: dict[str, Any]) -> Grade:
    """Grade as the authors do: math-verify on the last ``\\boxed{}`` within 1,000 characters of the end, nothing else.

    A text that the token budget cut off counts too, if it has such a box.
    """
    found = last_boxed(after_thinking(completion)[-_BOX_WITHIN:])
    return Grade(0.0, None) if found is None else Grade(float(_same(found, answer)), found)


def _same(marked: str, answer: str) -> bool:
    """Whether two answers are written alike, spaces and dollar signs aside, or equal according to math-verify."""
    from math_verify import verify

    if _bare(marked) == _bare(answer):
        return True
    found = _parsed(marked)
    return any(verify(gold, found, timeout_seconds=None) for gold in _gold(answer))


def _bare(text: str) -> str:
    return re.sub(r"\\[,;! ]|[\s$]", "", text).removesuffix(".")


def _parsed(answer: str) -> list[Any]:
    from math_verify import parse

    return parse(f"\\boxed{{{answer.strip().strip('$')}}}", parsing_timeout=None)  # type: ignore[arg-type]


@lru_cache(maxsize=1024)
def _gold(answer: str) -> list[list[Any]]:
    from math_verify import parse

    readings = [_parsed(answer)]
    if "$" in answer.strip().strip("$"):  # several formulas, or a formula in words
        readings.append(parse(answer, parsing_timeout=None))  # type: ignore[arg-type]
    readings = [one for one in readings if one]
    if not readings:
        raise UserError(f"math-verify cannot read the answer {answer!r}: use the grader `exact`")
    return readings


BUILT_IN: dict[str, GradingFunction] = {"math": math, "boxed": boxed, "exact": exact, "numeric": numeric}
RULES = {"math": 3}
"""Versions of graders whose verdicts have changed: a journal is not continued with another version."""
MOVED = {"retarget.pope.tasks.chain:verify": "retarget.pope.studies.chain:verify"}
"""New import paths of graders that studies and journals still name by the old ones."""


def load(spec: str) -> GradingFunction:
    """A grading function by name or by ``module:function``; the working directory is searched last.

    To grade programs, give a function of your own that runs their unit tests in a sandbox of your own: the worker
    processes here limit time and memory, and protect against nothing else.

    Raises:
        UserError: there is no such function.
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
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise UserError(f"grader {spec!r}: {error}") from error
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


def _number(text: str) -> float | None:
    parts = text.strip().replace(",", "").rstrip(".%").lstrip("$").split("/")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        return None
    if len(values) == 1:
        return values[0]
    return values[0] / values[1] if len(values) == 2 and values[1] else None
