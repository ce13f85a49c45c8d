"""Problems with their oracle solutions: read, check, write. Nothing that is wrong vanishes silently."""

import gzip
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationError

from retarget.errors import UserError
from retarget.extras import require
from retarget.files import make_directory, write_text
from retarget.settings import Strict

Format = Literal["auto", "plain", "gsm8k", "math"]
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_SHOWN = 20
_LOG = logging.getLogger(__name__)


class Problem(Strict):
    """One problem.

    Attributes:
        id: unique in its file.
        prompt: the question as a user would ask it, without instructions.
        solution: an oracle's worked solution, empty where there is none yet (``retarget pope oracle`` asks for one).
        answer: the gold final answer, as the grader reads it.
        meta: whatever the grader or a report needs beside it; JSON values.
    """

    id: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    solution: str = ""
    answer: str = Field(min_length=1)
    meta: dict[str, Any] = Field(default={})
    _former: str = PrivateAttr(default="")

    @property
    def former(self) -> str:
        """The id that earlier versions gave to this problem, by its line; journals of theirs know it by that."""
        return self._former

    def __eq__(self, other: object) -> bool:
        """Equal fields, wherever each was read."""
        return isinstance(other, Problem) and self.model_dump() == other.model_dump()


@dataclass(frozen=True)
class Reject:
    """A line that is not a usable problem: where it stands (from 1), why, and what stood there."""

    line: int
    reason: str
    text: str


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
) -> list[Problem]:
    """Read problems and check every one of them.

    Args:
        source: ``.jsonl`` (also ``.jsonl.gz``), ``.parquet``, a directory that ``datasets`` saved or that holds
            JSONL or Parquet files, or ``hf:NAME`` for a data set of the Hugging Face hub.
        format: ``plain`` has the fields of :class:`Problem`; ``gsm8k`` has ``question`` and ``answer`` (final answer
            behind ``####``); ``math`` has ``problem`` and ``solution`` (final answer in ``\\boxed{}``). ``auto`` tells
            by the fields of each row.
        split: which split of a data set.
        solutions: whether a problem without an oracle solution is invalid.
        answer_in_solution: whether a solution in which the answer does not occur is invalid. Switch it off where
            answers are equivalent forms of what the solution says (1/2 and 0.5).
        max_prompt_length: longest prompt, in the unit of ``length``.
        length: counts a prompt's tokens; None counts words.
        skip_invalid: leave invalid rows out and write them to ``rejects``, instead of refusing the file.
        rejects: default ``SOURCE.rejects.jsonl``; for the hub ``rejects.jsonl``.

    Raises:
        UserError: no such source, or invalid rows (each with its line) and ``skip_invalid`` is off, or no valid row.
    """
    problems: list[Problem] = []
    bad: list[Reject] = []
    seen: dict[str, int] = {}
    count = length or (lambda text: len(text.split()))
    for line, row in _rows(source, split):
        try:
            if isinstance(row, Reject):
                bad.append(row)
                continue
            problem = parse_row(row, line, format)
            _check(problem, solutions == "required", answer_in_solution)
            if problem.id in seen:
                raise UserError(f"id {problem.id!r} stands in line {seen[problem.id]} already")
            if max_prompt_length is not None and count(problem.prompt) > max_prompt_length:
                raise UserError(f"the prompt has {count(problem.prompt)} tokens, the limit is {max_prompt_length}")
        except UserError as error:
            bad.append(Reject(line, str(error), json.dumps(row, ensure_ascii=False, default=str)))
            continue
        seen[problem.id] = line
        problems.append(problem)
    if bad:
        _report(source, bad, len(problems), skip_invalid, rejects)
    if not problems:
        raise UserError(f"{source}: no valid problem ({len(bad)} invalid)")
    return problems


def write_problems(path: str | Path, problems: Iterable[Problem]) -> None:
    """Write JSONL in the ``plain`` format, whole or not at all."""
    lines = [json.dumps(problem.model_dump(mode="json"), ensure_ascii=False) + "\n" for problem in problems]
    make_directory(Path(path).parent)
    write_text(Path(path), "".join(lines))


def parse_row(row: Any, line: int = 1, format: Format = "auto") -> Problem:
    """One row of a file as a problem. One without an id gets a hash of its prompt.

    Raises:
        UserError: the row lacks fields, has unknown ones or values of a wrong type, or has no final answer.

    >>> parse_row({"question": "2 + 2?", "answer": "It is 2+2=<<2+2=4>>4.\\n#### 4"}, 7)
    Problem(id='gsm8k-70b499c547e0', prompt='2 + 2?', solution='It is 2+2=4.\\n#### 4', answer='4', meta={})
    """
    if not isinstance(row, dict):
        raise UserError(f"a problem is an object with fields, not {type(row).__name__}")
    if format == "auto":
        format = "gsm8k" if "question" in row else "math" if "problem" in row else "plain"
    if format == "gsm8k":
        question, worked = _text(row, "question"), _text(row, "answer")
        if "####" not in worked:
            raise UserError("GSM8K's answer has no final answer behind ####")
        answer = worked.rpartition("####")[2].strip().replace(",", "")
        row = dict(id=row.get("id"), prompt=question, solution=_CALCULATOR.sub("", worked), answer=answer)
    elif format == "math":
        worked = _text(row, "solution")
        answer = last_boxed(worked)
        if answer is None:
            raise UserError("the solution has no final answer in \\boxed{}")
        meta = {key: row[key] for key in ("level", "type") if key in row}
        row = dict(id=row.get("id"), prompt=_text(row, "problem"), solution=worked, answer=answer, meta=meta)
    former = f"{format}-{line}" if row.get("id") is None else ""
    name = str(row["id"]) if not former else hash_id(format, str(row.get("prompt")))
    try:
        problem = Problem.model_validate({**row, "id": name})
    except ValidationError as error:
        raise UserError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from error
    problem._former = former
    return problem


def hash_id(kind: str, prompt: str) -> str:
    """The id of a problem that has none: the same in every file and shard.

    >>> hash_id("gsm8k", "2 + 2?")
    'gsm8k-70b499c547e0'
    """
    return f"{kind}-{hashlib.sha256(prompt.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def last_boxed(text: str) -> str | None:
    r"""What the last ``\boxed{...}`` holds, with nested braces; None where there is none or it never closes.

    >>> last_boxed(r"so \boxed{1}, no: \boxed{\frac{1}{2}}")
    '\\frac{1}{2}'
    """
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    opening = text.index("{", start)
    depth = 0
    for at in range(opening, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[opening + 1 : at].strip()
    return None


def find_answer(text: str, answer: str) -> Iterator[int]:
    """Offsets at which an answer occurs as a token of its own: ``5`` neither in ``15`` nor in ``5.2`` nor in ``-5``.

    >>> list(find_answer("15 apples, 5.2 kg, 5.", "5"))
    [19]
    """
    if not answer.strip():
        return
    before = r"(?<![\w.])(?<!\d,)(?<!\s-)(?<!^-)" if answer[0].isalnum() or answer[0] in "-+." else ""
    after = r"(?!\w)(?![.,]\d)" if answer[-1].isalnum() else ""
    # 1200 is also written 1,200.
    written = re.sub(r"(?<=\d)(?=(?:\d{3})+$)", ",?", answer) if answer.isdigit() else re.escape(answer)
    for found in re.finditer(before + written + after, text):
        yield found.start()


def _check(problem: Problem, needs_solution: bool, needs_answer: bool) -> None:
    if not problem.prompt.strip():
        raise UserError("the prompt is empty")
    if not problem.answer.strip():
        raise UserError("the answer is empty")
    if not problem.solution.strip():
        if needs_solution:
            raise UserError("the solution is empty; `retarget pope oracle` can ask a teacher for it")
        return
    if needs_answer and next(find_answer(problem.solution, problem.answer), None) is None:
        raise UserError(f"the answer {problem.answer!r} does not occur in the solution")


def _text(row: dict[str, Any], field: str) -> str:
    if not isinstance(row.get(field), str):
        raise UserError(f"field {field!r} is missing or is not a text; fields: {', '.join(map(str, row))}")
    return row[field]


def _rows(source: str | Path, split: str) -> Iterator[tuple[int, Any]]:
    name = str(source)
    if name.startswith("hf:"):
        yield from enumerate(require("datasets", "rl").load_dataset(name[3:], split=split), 1)
        return
    path = Path(source)
    if path.is_dir():
        yield from enumerate(_directory(path, split), 1)
    elif not path.exists():
        raise UserError(f"{path}: no such file or directory (a data set of the hub is written hf:NAME)")
    elif path.suffix == ".parquet":
        rows = require("pyarrow.parquet", "rl").read_table(path).to_pylist()
        yield from enumerate(rows, 1)
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from _json_lines(path)
    else:
        raise UserError(f"{path}: a problem file ends in .jsonl, .jsonl.gz or .parquet")


def _directory(path: Path, split: str) -> Iterable[Any]:
    datasets = require("datasets", "rl")
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        loaded = datasets.load_from_disk(str(path))
        if not hasattr(loaded, "keys"):
            return loaded
        if split not in loaded:
            raise UserError(f"{path}: no split {split!r}; it has {', '.join(loaded)}")
        return loaded[split]
    return datasets.load_dataset(str(path), split=split)


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    # Only \n ends a line: splitlines would also break at characters that occur in texts.
    for line, content in enumerate(raw.split(b"\n"), 1):
        if not content.strip():
            continue
        shown = content.decode("utf-8", errors="backslashreplace")
        try:
            yield line, json.loads(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield line, Reject(line, f"not UTF-8 at byte {error.start}", shown)
        except json.JSONDecodeError as error:
            yield line, Reject(line, f"not JSON: {error.msg} at column {error.colno}", shown)


def _report(source: str | Path, bad: Sequence[Reject], good: int, skip: bool, rejects: Path | None) -> None:
    if not skip:
        listed = "\n".join(f"  line {one.line}: {one.reason}" for one in bad[:_SHOWN])
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise UserError(
            f"{source}: {len(bad)} of {len(bad) + good} rows are not valid problems; correct them or pass "
            f"--skip-invalid, which writes them to a rejects file\n{listed}{more}"
        )
    if rejects is None:
        rejects = Path("rejects.jsonl") if str(source).startswith("hf:") else Path(f"{source}.rejects.jsonl")
    lines = [json.dumps({"line": r.line, "reason": r.reason, "text": r.text}, ensure_ascii=False) for r in bad]
    write_text(rejects, "\n".join(lines) + "\n")
    _LOG.warning(
        "%s: %d of %d rows left out; %s has them with their reasons", source, len(bad), len(bad) + good, rejects
    )
