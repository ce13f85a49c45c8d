"""Read, check and write problems with their oracle solutions. Invalid rows are never dropped silently."""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError

from retarget.errors import UserError
from retarget.files import make_directory, write_text
from retarget.pope.answers import THINKING_BEGINS, THINKING_ENDS, after_thinking, final_answer
from retarget.pope.formats import Format, field_of, normalised
from retarget.pope.rows import Reject, rows_of
from retarget.settings import Strict, faults

_SHOWN = 20
_LOG = logging.getLogger(__name__)


def _json(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not a JSON value: {error}") from error
    return value


class Problem(Strict):
    """One problem.

    Attributes:
        id: unique in its file.
        prompt: the question as a user would ask it, without instructions.
        solution: an oracle's worked solution, empty if there is none yet (``retarget pope oracle`` asks for one).
        answer: the gold final answer, in a form that the grader reads.
        meta: JSON values for a grader or a report.
    """

    id: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    solution: str = ""
    answer: str = Field(min_length=1)
    meta: dict[str, Annotated[Any, AfterValidator(_json)]] = Field(default={})
    _former: str = PrivateAttr(default="")

    @property
    def former(self) -> str:
        """The id that earlier versions gave to this problem by its line, and that their journals use."""
        return self._former

    def __eq__(self, other: object) -> bool:
        """Whether all fields are equal, wherever the problems were read."""
        return isinstance(other, Problem) and self.model_dump() == other.model_dump()


def read_problems(
    source: str | Path,
    format: Format = "auto",
    *,
    split: str = "train",
    solutions: Literal["required", "optional"] = "required",
    answer_in_solution: bool = True,
    max_prompt_length: int | None = None,
    length: Callable[[str], int] | None = None,
    skip_invalid: bool = False,
    rejects: Path | None = None,
    fields: Mapping[str, str] | None = None,
    write_rejects: bool = True,
) -> list[Problem]:
    """Read problems and check each of them.

    Args:
        source: a ``.jsonl`` or ``.json`` file (one object per line; ``.json`` may also be an array of objects), also
            with ``.gz``; a ``.parquet`` file; a directory that ``datasets`` saved or that contains JSONL or Parquet
            files; or ``hf:NAME`` or ``hf:NAME:CONFIG``, a data set of the Hugging Face hub.
        format: see :mod:`retarget.pope.formats`; ``auto`` recognises the format of each row by its fields.
        split: the split to read of a data set.
        solutions: ``required`` makes a problem without an oracle solution invalid.
        answer_in_solution: whether a solution that does not contain the answer is invalid. Public sets with a field for
            the answer are exempt. Set it to False if answers are written in another form than in the solutions.
        max_prompt_length: length of the longest valid prompt, as ``length`` counts it.
        length: counts the tokens of a prompt; None counts words.
        skip_invalid: leave out invalid rows and write them to ``rejects``, instead of refusing the source.
        rejects: file for invalid rows; by default ``SOURCE.rejects.jsonl``, for the hub ``rejects.jsonl``.
        fields: a set's names of ``id``, ``prompt``, ``solution`` and ``answer``, such as ``{"prompt": "question"}``.
            A dot goes into an object: ``reward_model.ground_truth``.
        write_rejects: whether to write the rejects file.

    Rows with the prompt and the answer of an earlier row are left out with a warning, whatever their ids: their copies
    of completions would count as independent ones.

    Raises:
        UserError: no such source, no valid row, a field in ``fields`` that no row has, or invalid rows (the message
            lists them) without ``skip_invalid``.
    """
    problems: list[Problem] = []
    bad: list[Reject] = []
    ids, copies = _Ids(), _Copies()
    count = length or (lambda text: len(text.split()))
    absent = dict(fields or {})
    known: tuple[str, ...] = ()
    for line, row in rows_of(source, split):
        if isinstance(row, Reject):
            bad.append(row)
            continue
        if absent and isinstance(row, dict):
            known = known or tuple(map(str, row))
            absent = {name: field for name, field in absent.items() if field_of(row, field) is None}
        try:
            problem, literal = _parsed(row, line, format, fields)
            _check(problem, solutions == "required", answer_in_solution and literal)
            if max_prompt_length is not None and count(problem.prompt) > max_prompt_length:
                raise UserError(f"the prompt has {count(problem.prompt)} tokens, the limit is {max_prompt_length}")
            if (problem.former or problem.id not in ids.lines) and copies.holds(problem, problems):
                continue
            problem = ids.unique(problem)
        except UserError as error:
            bad.append(Reject(line, str(error), json.dumps(row, ensure_ascii=False, default=str)))
            continue
        ids.lines[problem.id] = line
        problems.append(problem)
    ids.warn_of_repeats(source)
    copies.warn(source)
    if bad:
        _report(source, bad, len(problems), skip_invalid, rejects, write_rejects)
    if absent and known:
        said = ", ".join(f"{name}={field}" for name, field in absent.items())
        raise UserError(f"{source}: no row has a value in the field of {said}; its first row has {', '.join(known)}")
    if not problems:
        raise UserError(f"{source}: there is no valid problem in it" + (f" ({len(bad)} invalid)" if bad else ""))
    return problems


class _Ids:
    """The ids of the problems read so far, with their lines, and the repeats of questions without one."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.repeats: Counter[str] = Counter()

    def warn_of_repeats(self, source: str | Path) -> None:
        """Say how many rows repeat a question: each of them is mined."""
        if self.repeats:
            _LOG.warning(
                "%s: %d rows repeat the question of an earlier row; each is a problem of its own, and is sampled",
                source, self.repeats.total(),
            )  # fmt: skip

    def unique(self, problem: Problem) -> Problem:
        """The problem; if its id is a hash that has occurred (the same question twice), under a new one.

        Raises:
            UserError: the row gives an id that has occurred.
        """
        if problem.former and problem.id in self.lines:
            self.repeats[problem.id] += 1
            problem = problem.model_copy(update={"id": f"{problem.id}_{self.repeats[problem.id] + 1}"})
        if problem.id in self.lines:
            raise UserError(f"id {problem.id!r} is already used in line {self.lines[problem.id]}")
        return problem


class _Copies:
    """Rows with the question and the answer of an earlier row: one problem, which is sampled and counted once."""

    def __init__(self) -> None:
        self.places: dict[tuple[str, str], int] = {}
        self.count = 0

    def holds(self, problem: Problem, problems: list[Problem]) -> bool:
        """Whether a problem is a copy of an earlier one, which takes its solution if it has none itself."""
        at = self.places.setdefault((problem.prompt, problem.answer), len(problems))
        if at == len(problems):
            return False
        self.count += 1
        if problem.solution.strip() and not problems[at].solution.strip():
            problems[at] = problems[at].model_copy(update={"solution": problem.solution})
        return True

    def warn(self, source: str | Path) -> None:
        if self.count:
            _LOG.warning(
                "%s: rows left out because they have the question and the answer of an earlier row: %d; completions of "
                "copies would not be independent", source, self.count,
            )  # fmt: skip


def refuse_equal_ids(problems: Sequence[Problem]) -> None:
    """Refuse problems of which two have the same id.

    Raises:
        UserError: two have.
    """
    twice = [one for one, count in Counter(problem.id for problem in problems).items() if count > 1]
    if twice:
        raise UserError(f"two problems have the same id, {twice[0]!r}: give every problem an id of its own")


def write_problems(path: str | Path, problems: Iterable[Problem]) -> None:
    """Write JSONL in the ``plain`` format, completely or not at all."""
    lines = [json.dumps(problem.model_dump(mode="json"), ensure_ascii=False) + "\n" for problem in problems]
    make_directory(Path(path).parent)
    write_text(Path(path), utf8("".join(lines)))


def parse_row(row: Any, line: int = 1, format: Format = "auto", fields: Mapping[str, str] | None = None) -> Problem:
    """A row of a file as a problem; see :mod:`retarget.pope.formats`. Without an id, it gets a hash of its prompt.

    Raises:
        UserError: the row lacks fields, has unknown fields or values of a wrong type, or has no final answer.

    >>> parse_row({"question": "2 + 2?", "answer": "It is 2+2=<<2+2=4>>4.\\n#### 4"}, 7)
    Problem(id='gsm8k-70b499c547e0', prompt='2 + 2?', solution='It is 2+2=4.\\n#### 4', answer='4', meta={})
    """
    return _parsed(row, line, format, fields)[0]


def _parsed(row: Any, line: int, format: Format, fields: Mapping[str, str] | None) -> tuple[Problem, bool]:
    """A problem, and whether its solution must contain its answer (False for sets with a field for the answer)."""
    kind, plain = normalised(row, format, fields)
    plain = plain | {"solution": _said(plain["solution"])} if "solution" in plain else plain
    named = plain.get("id") is not None
    name = str(plain["id"]) if named else hash_id(kind, str(plain.get("prompt")))
    try:
        problem = Problem.model_validate({**plain, "id": name})
    except ValidationError as error:
        other = kind == "plain" and any(e["type"] == "extra_forbidden" for e in error.errors())
        hint = "; --format set (in a study, --set format=set) reads rows with other fields, too" if other else ""
        raise UserError(f"{faults(error, 'the row')}{hint}") from error
    problem._former = "" if named else f"{kind}-{line}"
    return problem, kind != "set"


def _said(solution: Any) -> Any:
    """A solution without the thinking block before it: a prefix of that would be no prefix of a solution."""
    if not isinstance(solution, str) or not (THINKING_BEGINS in solution or THINKING_ENDS in solution):
        return solution
    said = after_thinking(solution).strip()
    if not said:
        raise UserError(
            f"the solution is only a thinking block, with nothing after {THINKING_ENDS}; leave the solution out, and "
            "`retarget pope oracle` can ask a teacher for one"
        )
    return said


def hash_id(kind: str, prompt: str) -> str:
    """The id of a problem without one; the same in every file and shard.

    >>> hash_id("gsm8k", "2 + 2?")
    'gsm8k-70b499c547e0'
    """
    return f"{kind}-{hashlib.sha256(prompt.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


_LETTER = "[^\\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
"""A letter that continues a word or number. Chinese, Japanese and Korean have no spaces around numbers."""
SAME = re.compile(r"\s|\$|\\left(?![a-z])|\\right(?![a-z])|\\[,;!]|(?<=\\)[dtc](?=frac)")
"""Parts of LaTeX that do not change an answer."""
_GROUPED = r"(?:[,\u0020\u00a0\u202f]|\{,\}|,\\!|\\[,;: ])?"
"""What may stand between the thousands of a number."""
_THOUSANDS = re.compile(r"\d{1,3}(?:(?:,|\{,\}|,\\!)\d{3})+")


def find_answer(text: str, answer: str) -> Iterator[int]:
    """Offsets at which an answer occurs as a separate token: not ``5`` in ``15``, ``5.2`` or ``-5``.

    >>> list(find_answer("15 apples, 5.2 kg, 5.", "5"))
    [19]
    >>> list(find_answer("一共有7个，不是17个", "7"))
    [3]
    """
    return (start for start, _ in answer_spans(text, answer))


def answer_spans(text: str, answer: str) -> Iterator[tuple[int, int]]:
    """Spans of an answer in a text; see :func:`find_answer`.

    >>> list(answer_spans("It is $1{,}200$, not 200.", "1200")), list(answer_spans("1{,}200, not 200.", "200"))
    ([(7, 14)], [(13, 16)])
    """
    if not answer.strip():
        return
    before = (
        rf"(?<!{_LETTER})(?<!\.)(?<!\d,)(?<!\d\{{,\}})(?<!\d,\\!)(?<!\s-)(?<!^-)"
        if answer[0].isalnum() or answer[0] in "-+."
        else ""
    )
    after = rf"(?!{_LETTER})(?!(?:[.,]|\{{,\}}|,\\!)\d)" if answer[-1].isalnum() else ""
    written = re.escape(answer)
    digits = re.sub(r"\{,\}|,\\!|,", "", answer) if _THOUSANDS.fullmatch(answer) else answer
    if digits.isdigit():  # 1200 may be written as 1,200 or 1 200 or 1{,}200
        written = re.sub(r"(?<=\d)(?=(?:\d{3})+$)", lambda _: _GROUPED, digits)
    for found in re.finditer(before + written + after, text):
        yield found.span()


def _check(problem: Problem, needs_solution: bool, needs_answer: bool) -> None:
    if not problem.prompt.strip():
        raise UserError("the prompt is empty")
    if not problem.answer.strip():
        raise UserError("the answer is empty")
    if not problem.solution.strip():
        if needs_solution:
            raise UserError("the solution is empty; `retarget pope oracle` can ask a teacher for one")
        return
    if needs_answer and final_answer(problem.solution) is None and not _holds(problem.solution, problem.answer):
        raise UserError(f"the solution does not contain the answer {problem.answer!r}; --answer-anywhere accepts that")


def _holds(solution: str, answer: str) -> bool:
    """Whether a solution contains an answer, literally or except for spacing and the size of fractions."""
    if next(find_answer(solution, answer), None) is not None:
        return True
    bare = SAME.sub("", answer)
    return not bare.isalnum() and next(find_answer(SAME.sub("", solution), bare), None) is not None


def _report(
    source: str | Path, bad: Sequence[Reject], good: int, skip: bool, rejects: Path | None, write: bool
) -> None:
    if not skip:
        reasons: dict[str, list[int]] = {}
        for one in bad:
            reasons.setdefault(one.reason, []).append(one.line)
        listed = "\n".join(f"  {_lines(at)}: {reason}" for reason, at in list(reasons.items())[:_SHOWN])
        more = f"\n  and {len(reasons) - _SHOWN} more reasons" if len(reasons) > _SHOWN else ""
        raise UserError(
            f"{source}: {len(bad)} of {len(bad) + good} rows are not valid problems; correct them, or leave them out: "
            f"--skip-invalid also writes them to a rejects file, in a study it is --set skip_invalid=true\n"
            f"{listed}{more}"
        )
    if rejects is None:
        rejects = Path("rejects.jsonl") if str(source).startswith("hf:") else Path(f"{source}.rejects.jsonl")
    if write:
        lines = [json.dumps({"line": r.line, "reason": r.reason, "text": r.text}, ensure_ascii=False) for r in bad]
        write_text(rejects, utf8("\n".join(lines) + "\n"))
    _LOG.warning(
        "%s: %d of %d rows left out; %s", source, len(bad), len(bad) + good,
        f"{rejects} lists them with the reasons" if write else "they are not written to a file",
    )  # fmt: skip


def _lines(at: Sequence[int]) -> str:
    """Line numbers for a message.

    >>> _lines([3]), _lines([1, 2, 3, 4, 5, 6, 7])
    ('line 3', 'lines 1, 2, 3, 4, 5 and 2 more')
    """
    if len(at) == 1:
        return f"line {at[0]}"
    return f"lines {', '.join(map(str, at[:5]))}" + (f" and {len(at) - 5} more" if len(at) > 5 else "")


def utf8(text: str) -> str:
    r"""JSON text that can be encoded as UTF-8: half a surrogate pair becomes a JSON escape.

    >>> utf8('"' + chr(0xD835) + '"') == '"' + chr(92) + 'ud835"'
    True
    """
    return text.encode("utf-8", "backslashreplace").decode()
