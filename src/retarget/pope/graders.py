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
from retarget.own import blame, origin_of
from retarget.pope.answers import WITHIN, after_thinking, final_answer, joined_boxes, last_boxed

_BOX_WITHIN = 1000
_NUMBER = r"(?:(?<![\w)}])[-+])?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:/\d+)?"
_NUMBERS = re.compile(_NUMBER)
_ONE_NUMBER = re.compile(rf"[-+]?[$€£]?(?P<number>{_NUMBER})\s*(?:%|°|(?P<unit>(?:[^\W\d_]+[.'²³]?(?:[/ -]|$))+))?\.?")
_NO_UNIT = re.compile(r"(?:[b-fi-kn-ru-z]|or|and|more|less|fewer|to|times|plus|minus|over|per)", re.IGNORECASE)
"""What changes a number that stands before it, unlike a unit: a variable, or "5 or more"."""
_LATEX = (
    (re.compile("[−–]"), "-"),
    (re.compile(r"\\(?:text|mathrm|textrm|mbox|operatorname)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?"), "°"),
    (re.compile(r"\{,\}|,\\!"), ","),
    (re.compile(r"\\[$%]"), lambda found: found[0][1]),
    (re.compile(r"\\[,;:! ]|\\left|\\right|\\displaystyle|[*_]{2}"), ""),
    (re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"\1/\2"),
    (re.compile(r"\\[dtc]?frac\s*(\d)\s*(\d)"), r"\1/\2"),
    (re.compile(r"\s*(?:\\times|\\cdot|×)\s*10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?"), r"e\1"),
    (re.compile(r"(?<=[A-Za-z])\s*\^\s*\{?\s*[23]\s*\}?"), ""),
)
"""How numbers and their units are written in LaTeX, and how as plain text."""
_OPTION = re.compile(
    r"\s*\$*\s*(?:(?:option|choice)\s+)?(?:\\(?:text|mathrm|mathbf|mbox)[a-z]*\s*\{\s*)?\(?\s*(?P<letter>[A-J])\s*"
    r"(?:[).:]|\}?\s*(?:\\[ ,;:]|\\q?quad|\$*\s*$))"
)
"""An answer that begins with the letter of an option: "B", "(B) 42", "option B", "\\textbf{(B)}\\ 42"."""

_IN_BASE = re.compile(r"(?P<digits>\d[\dA-Z,{}]*)_\{?(?:\\(?:text|mathrm)[a-z]*\{)?(?P<base>\d+|[a-z]+)\}*")
_BASES = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "eleven": "11", "twelve": "12", "sixteen": "16",
}  # fmt: skip


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
    r"""Accept if the marked final answer is one number, with or without a unit, that equals the gold number.

    If no answer is marked, the last number of the text counts; if the token budget cut the text off
    (``meta["truncated"]``), there is no answer.

    Raises:
        UserError: the gold answer is not a number.

    >>> numeric("so 1,200 in all", "1200", {}).correct, numeric(r"\boxed{\frac{1}{2}}", "0.5", {}).correct
    (True, True)
    """
    gold = _one_number(answer)
    if gold is None:
        raise UserError(f"the answer {answer!r} is not a number: use the grader `math` or `exact`")
    if meta.get("truncated"):
        return Grade(0.0, None)
    marked = final_answer(completion)
    if marked is None:
        found = _NUMBERS.findall(_plain(after_thinking(completion)))
        shown, value = (found[-1], _one_number(found[-1])) if found else (None, None)
    else:
        shown, value = marked, _one_number(marked)
    close = value is not None and abs(value - gold) <= 1e-6 * max(1.0, abs(gold))
    return Grade(float(close), shown)


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
    gold, found = (_IN_BASE.fullmatch(_bare(one)) for one in (answer, marked))
    if gold and found:  # math-verify drops the base of a numeral
        return _numeral(gold) == _numeral(found)
    gold = _OPTION.match(answer)
    if gold is not None and (option := _OPTION.match(marked)) is not None:
        return option["letter"] == gold["letter"]
    if gold is not None and (content := answer[gold.end() :].strip()):  # "\\textbf{(A)}\\ 12": by its value, too
        answer = content.lstrip("\\ ")
    found = _parsed(marked)
    return any(verify(gold, found, timeout_seconds=None) for gold in _gold(answer))


def _numeral(found: re.Match[str]) -> tuple[str, str]:
    return re.sub(r"[,{}]", "", found["digits"]), _BASES.get(found["base"], found["base"])


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
RULES = {"math": 4}
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


def _plain(text: str) -> str:
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    return text


def _one_number(text: str) -> float | None:
    """The value of a text that is one number, perhaps behind ``x =`` and before a unit; otherwise None."""
    plain = _plain(text).strip().strip("$").strip().rpartition("=")[2].strip()
    found = _ONE_NUMBER.fullmatch(plain)
    if found is None or any(_NO_UNIT.fullmatch(word) for word in re.split(r"[/ .'-]", found["unit"] or "") if word):
        return None
    sign = -1.0 if plain.startswith("-") else 1.0
    over, _, under = found["number"].lstrip("+-").replace(",", "").partition("/")
    divisor = float(under or 1)
    return sign * float(over) / divisor if divisor else None
