"""Convert rows of public problem files to the fields of a problem. Free of torch.

- ``plain``: ``id, prompt, solution, answer, meta``, and no other field. An answer may be a number or a list, a prompt a
  list of messages.
- ``gsm8k``: ``question``, and ``answer`` with the final answer after ``####``.
- ``math``: ``problem`` and ``solution``, with the final answer in the solution's last ``\\boxed{}``.
- ``set``: public sets such as AIME, OlympiadBench, Omni-MATH, MATH-500, the authors' hard set, and files for ``verl``.
  The prompt is in ``problem`` or ``question`` (with its ``context``, ``options`` or ``choices``), the answer in
  ``answer`` or ``final_answer``, the solution, if there is one, in ``solution`` or ``gemini_solution``. The answer of a
  multiple-choice question becomes the letter of its option: sets give the letter, the option's number or its text.
"""

import json
import logging
import math
import re
import string
from collections.abc import Mapping
from decimal import Decimal
from functools import cache
from typing import Any, Literal

from retarget.errors import UserError
from retarget.pope.answers import after_thinking
from retarget.pope.boxes import joined_boxes, last_boxed
from retarget.pope.options import named, unlabelled

_LOG = logging.getLogger(__name__)

_IN_A_STUDY = """; in a study, --set 'fields={"answer": "FIELD"}'"""
Format = Literal["auto", "plain", "gsm8k", "math", "set"]

FIELDS = {
    "id": ("id", "unique_id", "problem_id"),
    "prompt": ("problem", "question", "prompt"),
    "answer": ("answer_idx", "answerKey", "answer", "final_answer", "reward_model.ground_truth"),
    "solution": ("solution", "gemini_solution"),
}
"""Field names of a ``set``: for each field of a problem, the first of these that a row has is used."""
META = ("level", "type", "subject", "difficulty", "domain", "subfield", "unit", "is_multiple_answer", "source", "year")
_EXACT = 2**53
_NO_ANSWER = ("proof", "notfound", "not found", "n/a", "null", "nan", "see solution", "unknown", "no answer", "")
"""What public sets (NuminaMath) and exports of tables write where a problem has no final answer."""
_THOUSANDS = re.compile(r"[^\d(\[{]*\d{1,3}(?:,\d{3})+(?:\.\d+)?[^\d,]*")
"""One number whose commas only separate its thousands."""
_CHECKED = ("problem_is_valid", "solution_is_valid")
"""Fields in which NuminaMath-1.5 says "Yes", "No", "Incomplete" or the like."""
_IMAGE = re.compile(r"(?:decoded_)?images?(?:_?\d+)?", re.IGNORECASE)
"""Fields in which sets of problems with figures (OlympiadBench, MMMU, MathVista) hold these."""
_CALCULATOR = re.compile(r"<<[^<>]*>>")


def normalised(row: Any, format: Format, fields: Mapping[str, str] | None = None) -> tuple[str, dict[str, Any]]:
    """A row's format, and its fields under the names of a problem.

    Args:
        row: a JSON object.
        format: the row's format; ``auto`` recognises it by the fields.
        fields: field names of a ``set`` that replace those of :data:`FIELDS`.

    Raises:
        UserError: fields are missing or are not text, the question has an image, or there is no final answer.

    >>> normalised({"question": "Half?", "final_answer": ["$0.5$"], "solution": ["Divide."]}, "auto")[1]["answer"]
    '0.5'
    """
    if not isinstance(row, dict):
        raise UserError(f"a problem must be a JSON object with fields, not {type(row).__name__}")
    if {"stratum", "guided"} <= row.keys() or str(row.get("data_source") or row.get("datasource")).startswith("pope/"):
        raise UserError("this is a row to train on, which `retarget pope mix` or `export` wrote, and not a problem")
    unknown = set(fields or ()) - set(FIELDS)
    if unknown:
        raise UserError(f"--fields: no field {', '.join(sorted(unknown))}; choose from {', '.join(FIELDS)}")
    if format in ("auto", "set") and not fields:
        row = _in_small_letters(row)
    if format == "auto":
        format = "set" if fields else _format_of(row)
        if format == "plain":
            for name in ("prompt", "answer"):
                if name not in row:
                    raise _unnamed(name, row)
    if format == "plain":
        row = {name: value for name, value in row.items() if value is not None}  # tables have nulls for what is missing
        answer = row.get("answer")
        _check_answer(answer)
        plain = isinstance(answer, int | float | Decimal | list) and not isinstance(answer, bool)
        return format, row | ({"answer": _answer(answer)} if plain else {}) | (
            {"prompt": _said(row["prompt"])} if "prompt" in row else {}
        ) | ({"solution": _worked(row["solution"], answer)} if "solution" in row else {})
    _refuse_images(row)
    for name in _CHECKED:
        if not _missing(said := row.get(name)) and str(said).strip().lower() not in ("yes", "true", ""):
            raise UserError(f"field {name!r} says {said!r}: its problem or solution is not to be trusted, leave it out")
    read = {"gsm8k": _gsm8k, "math": _math}.get(format)
    found = read(row) if read else _set(row, fields or {})
    found["solution"] = _worked(found["solution"], found["answer"])
    meta = {name: row[name] for name in META if not _missing(row.get(name))}
    return format, {**found, "id": _first(row, (fields or {}).get("id"), "id"), "meta": meta}


def _refuse_images(row: dict[str, Any]) -> None:
    for name, value in row.items():
        some = value if isinstance(value, list) else [value]
        shown = _IMAGE.fullmatch(str(name)) and any(not _missing(one) and bool(one) for one in some)
        if shown or (str(name).lower() == "modality" and str(value).lower().startswith("multi")):
            raise UserError(f"the question has an image, in field {name!r}, which no prompt would show: leave it out")


def _in_small_letters(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose fields have known names only in other letters (``Problem``, ``Answer``), under the known names."""
    if {name for names in FIELDS.values() for name in names} & row.keys():
        return row
    small = {str(name).lower(): value for name, value in row.items()}
    return small if len(small) == len(row) and set(FIELDS["prompt"]) & small.keys() else row


def _missing(value: Any) -> bool:
    """Whether a table holds nothing here: a null, or the number that is none."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _format_of(row: dict[str, Any]) -> Format:
    if isinstance(row.get("question"), str) and "####" in str(row.get("answer")) and not row.get("solution"):
        return "gsm8k"
    has_answer = any(field_of(row, name) is not None for name in FIELDS["answer"])
    if isinstance(row.get("problem"), str) and not has_answer:
        return "math"
    return "set" if {"problem", "question", "reward_model"} & row.keys() else "plain"


def _gsm8k(row: dict[str, Any]) -> dict[str, Any]:
    question, worked = _text(row, "question"), _text(row, "answer")
    if "####" not in worked:
        raise UserError("field 'answer' has no final answer after ####, as GSM8K's format requires")
    answer = _last_line(worked)
    return {"prompt": question, "solution": _CALCULATOR.sub("", worked), "answer": answer}


def _last_line(worked: str) -> str:
    line = worked.rpartition("####")[2].strip()
    return line.replace(",", "") if _THOUSANDS.fullmatch(line) else line


def _math(row: dict[str, Any]) -> dict[str, Any]:
    if row.get("solution") is None:
        raise _named_otherwise(row)
    worked = _text(row, "solution")
    answer = row["answer"] if isinstance(row.get("answer"), str) else last_boxed(worked)
    if answer is None:
        missing = "the field 'answer' is empty" if "answer" in row else "there is no field 'answer'"
        raise UserError(f"the solution has no final answer in \\boxed{{}}, and {missing}")
    if not isinstance(row.get("answer"), str) and (several := joined_boxes(after_thinking(worked))):
        raise UserError(f"the solution ends with several boxes, {several}: give the answer in a field 'answer'")
    return {"prompt": _text(row, "problem"), "solution": worked, "answer": answer}


def _set(row: dict[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    level = str(row.get("level") or field_of(row, "extra_info.level") or "").replace("_", "-")
    if "with-guidance" in level:
        raise UserError("this row is a guided variant of a problem: use the rows without guidance")
    prompt, answer = (_first(row, fields.get(name), name) for name in ("prompt", "answer"))
    solution = _first(row, fields.get("solution"), "solution")
    for name, value in (("prompt", prompt), ("answer", answer)):
        if value is None:
            raise _unnamed(name, row)
    text = _said(prompt)
    context = row.get("context")
    if isinstance(context, str) and context.strip():
        text = f"{context.strip()}\n\n{text}"
    if isinstance(answer, str) and "####" in answer:  # GSM8K's worked text, in a table with other columns
        answer = _last_line(answer)
    options = row.get("options") or row.get("choices")
    if options and isinstance(text, str):
        text, answer = _chosen(text, options, answer)
    _check_answer(answer)
    if isinstance(solution, list):  # several solutions: the first
        solution = next((one for one in solution if isinstance(one, str) and one.strip()), "")
    return {"prompt": text, "solution": solution or "", "answer": _answer(answer)}


def _check_answer(answer: Any) -> None:
    if isinstance(answer, str) and answer.strip().lower() in _NO_ANSWER:
        raise UserError(f"the row has no final answer, only {answer!r}: leave it out")
    if isinstance(answer, list) and any(isinstance(one, dict) for one in answer):
        raise UserError("the answer is a list of objects, such as messages: name the field of the final answer")


def _named_otherwise(row: dict[str, Any]) -> UserError:
    """What to do with a row that has neither an answer nor a solution under a known name."""
    guesses = []
    for name in ("answer", "solution"):
        like = [str(one) for one, value in row.items() if name in str(one).lower() and isinstance(value, str)]
        guesses.append(f"{name}={like[0] if len(like) == 1 else 'FIELD'}")
    return UserError(
        "no field 'answer' or 'solution': say which fields hold them, such as "
        f"--fields {' '.join(guesses)} (fields: {', '.join(map(str, row))}){_IN_A_STUDY}"
    )


def _unnamed(name: str, row: dict[str, Any]) -> UserError:
    return UserError(
        f"no field holds the {name}: name one with --fields {name}=FIELD (fields: {', '.join(map(str, row))})"
        f"{_IN_A_STUDY}"
    )


def _worked(solution: Any, answer: Any) -> Any:
    """A solution; empty if it is only the answer, which some sets (DAPO's) repeat in the field for the solution."""
    if not isinstance(solution, str):
        return solution
    bare = solution.strip().strip("$").strip()
    boxed = re.fullmatch(r"\\boxed\{(.*)\}", bare, re.DOTALL)
    return "" if (boxed[1] if boxed else bare).strip() == str(_answer(answer)).strip() else solution


def _answer(value: Any) -> Any:
    r"""An answer as text: numbers as people write them, several answers joined by commas, no dollars or box around it.

    >>> _answer([51.0, "$2$"]), _answer('["4", "5"]'), _answer(r"$\boxed{2}$"), _answer("[1, 2]")
    ('51, 2', '4, 5', '2', '[1, 2]')
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return str(int(value))  # a table of floats holds 51.0 where people write 51
    if isinstance(value, Decimal):
        value = int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"the answer is {value}, which is no answer: leave the row out")
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f")  # 0.00001, not 1e-05
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, list):
        return ", ".join(str(_answer(one)) for one in value)
    if not isinstance(value, str):
        return value
    bare = value.strip()
    if re.match(r'\["[^"]', bare) and isinstance(several := _json_or_none(bare), list):  # Skywork's '["4"]'
        return _answer(several)
    inner = bare.strip("$").strip()
    if bare.startswith("$") and bare.endswith("$") and "$" not in inner:
        return _answer(inner)
    boxed = last_boxed(bare)
    return _answer(boxed) if boxed is not None and bare == f"\\boxed{{{boxed}}}" else bare


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _chosen(question: str, options: Any, answer: Any) -> tuple[str, Any]:
    """A multiple-choice question with its options, one per line, and the letter of the right one.

    Args:
        question: the text.
        options: texts, texts by letter, or ``{"text": [...], "label": [...]}``. Missing ones keep their letter.
        answer: a letter, an option's text, or its number from 0; or a list of these.

    Raises:
        UserError: the options have another form, or the answer is none of them or can be read in two ways.

    >>> _chosen("Which?", ["red", "B) blue"], 1)
    ('Which?\\nA) red\\nB) blue', 'B')
    """
    given = options
    if isinstance(options, dict) and isinstance(options.get("text"), list) and isinstance(options.get("label"), list):
        given = dict(zip(options["label"], options["text"], strict=False))
    elif isinstance(options, list):
        given = dict(zip(string.ascii_uppercase, options, strict=False))
    letters = list(given) if isinstance(given, dict) else []
    if isinstance(given, dict):
        given = {letter: _option(option) for letter, option in given.items() if not _missing(option)}
    if not isinstance(given, dict) or not all(isinstance(one, str) for part in given.items() for one in part):
        raise UserError(f"the options cannot be read: texts, or texts by letter, not {str(options)[:80]}")
    if not given:
        return question, answer
    bare = {letter: unlabelled(letter, option) for letter, option in given.items()}
    lines = [
        option.strip() if bare[letter] != option.strip() else f"{letter}) {bare[letter]}"
        for letter, option in given.items()
    ]
    several = isinstance(answer, list)
    chosen = [_letter(one, letters, bare) for one in (answer if several else [answer])]
    return "\n".join([question, *lines]), chosen if several else chosen[0]


def _letter(answer: Any, letters: list[Any], options: Mapping[str, str]) -> str:
    """The letter of the option that an answer names, or an answer of several letters as it is.

    Args:
        answer: see :func:`_chosen`.
        letters: those of all options, also of missing ones.
        options: the options' texts by letter, without their own letters.

    Raises:
        UserError: it names none, or can be read in two ways.
    """
    _check_answer(answer)
    said = str(_answer(answer)).strip()
    found = named(said, options)
    if isinstance(answer, int | float | Decimal) and not isinstance(answer, bool) and answer == int(answer):
        at = int(answer)
        either = {*found, *(letters[at : at + 1] if at >= 0 else ())}
        if len(either) > 1:
            raise UserError(f"the answer {said} may be the option of that number or of that text")
        found = [one for one in either if one in options]
    if len(found) == 1:
        return found[0]
    if len({options[one] for one in found}) > 1:
        return said
    listed = ", ".join(f"{letter}) {option[:30]}" for letter, option in options.items())
    raise UserError(
        f"the answer {said!r} is {'the text of several' if found else 'none'} of the options {listed}: give the letter "
        "of the right one, its text, or, as a number and not as text, its place from 0"
    )


def _option(value: Any) -> Any:
    return _answer(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _said(prompt: Any) -> Any:
    """The question: of a prompt that is a list of messages, also as JSON text, the user message.

    Raises:
        UserError: there are several turns, of which the question may need the earlier ones.
    """
    if isinstance(prompt, str) and re.match(r'\s*\[\s*\{\s*"(?:role|content)"', prompt):
        prompt = _json_or_none(prompt) or prompt
    if not isinstance(prompt, list):
        return prompt
    by_role: dict[str, list[Any]] = {}
    for one in prompt:
        if isinstance(one, dict):
            by_role.setdefault(str(one.get("role")), []).append(one.get("content"))
    said = by_role.get("user", [])
    if len(said) > 1 or (said and "assistant" in by_role):
        raise UserError(
            f"the prompt has {len(prompt)} messages, of which only one of the user is read: write what the question "
            "needs of the others into one text"
        )
    for one in by_role.get("system", []) if said else []:
        _tell_of_system(str(_joined(one)))
    return _joined(said[0]) if said else prompt


@cache
def _tell_of_system(message: str) -> None:
    """Log once per system message that it is left out."""
    _LOG.warning(
        "the prompts' system message is left out, since the templates have their own (--templates): %s", message[:200]
    )


def _joined(content: Any) -> Any:
    """A message's text; of one in parts, ``[{"type": "text", "text": ...}]``, all of them, if all are text."""
    if not isinstance(content, list):
        return content
    parts = [one.get("text") if isinstance(one, dict) and one.get("type") == "text" else None for one in content]
    if not parts or not all(isinstance(part, str) for part in parts):
        raise UserError("the prompt's last user message has parts that are not text, such as an image")
    return "\n".join(str(part) for part in parts)


def _first(row: dict[str, Any], named: str | None, name: str) -> Any:
    for one in (named,) if named else FIELDS[name]:
        value = field_of(row, one)
        if value is not None:
            return value
    return None


def field_of(row: dict[str, Any], name: str) -> Any:
    """A field's value; a name with dots goes into nested objects. None if it is missing."""
    value: Any = row
    if name in row:
        return row[name]
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return value


def _text(row: dict[str, Any], field: str) -> str:
    if not isinstance(row.get(field), str):
        raise UserError(f"field {field!r} is missing or is not text; fields: {', '.join(map(str, row))}")
    return row[field]
