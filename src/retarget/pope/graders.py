"""What decides whether one completion is right: pure functions of text. Free of torch."""

import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from retarget.errors import UserError
from retarget.pope.problems import last_boxed

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:/\d+)?(?<=\d)")
# Possessive, and only over a text's end: completions are untrusted, and backtracking over their spaces takes minutes.
_MARKED = re.compile(r"(?:####|answer[ \t]*+(?:is|:|=))[ \t:]*+\n?+[ \t]*+(\S[^\n]*+)", re.IGNORECASE)
_MARKED_WITHIN = 4000
_THINKING_BEGINS, _THINKING_ENDS = "<think>", "</think>"


@dataclass(frozen=True)
class Grade:
    """The verdict on one completion.

    Attributes:
        reward: 0 to 1; above 0.5 counts as correct.
        extracted: the final answer that was found in it, None where there was none.
        status: ``ok``, or why the grader gave none (and the reward is 0): ``timeout``, ``crash`` (also: out of
            memory) or ``error``.
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


def after_thinking(completion: str) -> str:
    """What follows the thinking block; nothing where one never ends; all of a text without one.

    >>> after_thinking("<think> 4? </think>5"), after_thinking("<think> 4?"), after_thinking("5")
    ('5', '', '5')
    """
    text = completion.rpartition(_THINKING_ENDS)[2]
    return "" if _THINKING_BEGINS in text else text


def final_answer(completion: str) -> str | None:
    """The final answer as written: in the last ``\\boxed{}``, behind ``####``, or behind "the answer is".

    Only what follows a thinking block counts, where there is one (see :func:`after_thinking`). A marker in words is
    looked for in the last 4,000 characters.

    >>> final_answer("<think>4?</think> The answer is 5.")
    '5'
    """
    text = after_thinking(completion)
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    marked = _MARKED.findall(text[-_MARKED_WITHIN:])
    return marked[-1].strip().rstrip(".").strip("$* ") or None if marked else None


def exact(completion: str, answer: str, meta: dict[str, Any]) -> Grade:
    """The marked final answer is the gold one, spaces apart.

    >>> exact("#### New  York", "New York", {}).correct
    True
    """
    found = final_answer(completion)
    return Grade(float(found is not None and " ".join(found.split()) == " ".join(answer.split())), found)


def numeric(completion: str, answer: str, meta: dict[str, Any]) -> Grade:
    """The marked final answer, or else the last number in the text, equals the gold number.

    Raises:
        UserError: the gold answer is not a number.

    >>> numeric("so 1,200 in all", "1200", {}).correct, numeric("#### 1/2", "0.5", {}).correct
    (True, True)
    """
    gold = _number(answer)
    if gold is None:
        raise UserError(f"the answer {answer!r} is not a number: grade this set by `math` or `exact`")
    text = final_answer(completion) or after_thinking(completion)
    found = [one for one in _NUMBER.findall(text) if one]
    value = _number(found[-1]) if found else None
    close = value is not None and abs(value - gold) <= 1e-6 * max(1.0, abs(gold))
    return Grade(float(close), found[-1] if found else None)


def math(completion: str, answer: str, meta: dict[str, Any]) -> Grade:
    """math-verify's symbolic comparison of the final answer with the gold one.

    It runs in a worker process, which bounds its time and memory, so its own timers stay off.
    """
    from math_verify import parse, verify

    gold = _gold(answer)
    text = after_thinking(completion)
    marked = final_answer(text)
    found = parse(f"\\boxed{{{marked}}}", parsing_timeout=None) if marked is not None else []  # type: ignore[arg-type]
    if not found:
        found = parse(text, parsing_timeout=None)  # type: ignore[arg-type]
    if not found:
        return Grade(0.0, None)
    shown = marked if marked is not None else str(found[-1])
    return Grade(float(verify(gold, found, timeout_seconds=None)), shown)


@lru_cache(maxsize=1024)
def _gold(answer: str) -> list[Any]:
    from math_verify import parse

    parsed = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)  # type: ignore[arg-type]
    if not parsed:
        raise UserError(f"math-verify cannot read the answer {answer!r}: grade this set by `exact`")
    return parsed


BUILT_IN: dict[str, GradingFunction] = {"math": math, "exact": exact, "numeric": numeric}
MOVED = {"retarget.pope.tasks.chain:verify": "retarget.pope.studies.chain:verify"}
"""Graders that studies and journals know by the name of an earlier place."""


def load(spec: str) -> GradingFunction:
    """A grading function by name or by ``module:function``; the working directory is searched too.

    Code problems are graded by a function of the user's, which runs their unit tests in a sandbox of the user's:
    the worker processes here bound time and memory and protect nothing else.

    Raises:
        UserError: no such function.
    """
    if spec in BUILT_IN:
        return BUILT_IN[spec]
    module, colon, name = MOVED.get(spec, spec).partition(":")
    if not colon:
        raise UserError(f"no grader {spec!r}: choose {', '.join(BUILT_IN)} or give module:function")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        function: Any = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise UserError(f"grader {spec!r}: {error}") from error
    if not callable(function):
        raise UserError(f"grader {spec!r} is not callable")
    return cast(GradingFunction, function)


def as_grade(value: Any) -> Grade:
    """What a grading function returned as a :class:`Grade`.

    Raises:
        UserError: neither a Grade nor a number from 0 to 1.
    """
    if isinstance(value, Grade):
        return value
    if isinstance(value, bool | int | float) and 0 <= value <= 1:
        return Grade(float(value), "")
    raise UserError(f"a grader returns a Grade or a number from 0 to 1, not {value!r}")


def _number(text: str) -> float | None:
    parts = text.strip().replace(",", "").rstrip(".%").lstrip("$").split("/")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        return None
    if len(values) == 1:
        return values[0]
    return values[0] / values[1] if len(values) == 2 and values[1] else None
