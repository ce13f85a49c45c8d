"""Samples that lm-evaluation-harness logged: one arm for each folder, one row for each document and metric."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from retarget.errors import UserError
from retarget.study.rows import Row

_NAME = re.compile(r"samples_(?P<task>.+)_(?P<time>\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl")


def read_lm_eval(folders: Sequence[Path]) -> list[Row]:
    """The samples of two or more models as rows: the arm is the folder's name, the condition the task.

    lm-evaluation-harness writes ``samples_TASK_TIME.jsonl`` under ``--log_samples``, one line for each document and
    filter. A metric's name is that of its results file: ``exact_match,strict-match``, and plain ``acc`` where there was
    no filter. Of several times of one task the latest counts. Documents are paired by id, and must be the same text.

    Raises:
        UserError: a folder holds no samples or those of several models, a line is damaged, or the documents of an id
            differ between models.
    """
    if len({folder.resolve().name for folder in folders}) < len(folders):
        raise UserError(f"--lm-eval names its arms after the folders, and {_names(folders)} share a name")
    rows: list[Row] = []
    texts: dict[tuple[str, str], tuple[str, str]] = {}
    for folder in folders:
        for task, path in sorted(_latest(folder).items()):
            for where, sample in _lines(path):
                rows += _rows(where, folder.resolve().name, task, sample, texts)
    if not rows:
        raise UserError(f"{_names(folders)}: the logged samples have no metric that is a number")
    return rows


def _latest(folder: Path) -> dict[str, Path]:
    """The newest samples of each task below a folder."""
    found: dict[str, Path] = {}
    paths = sorted(folder.rglob("samples_*.jsonl"), key=lambda path: path.name)
    if not paths:
        raise UserError(f"{folder} holds no samples_TASK_TIME.jsonl: run lm_eval with --log_samples")
    homes = sorted({str(path.parent) for path in paths})
    if len(homes) > 1:
        raise UserError(
            f"{folder} holds the samples of several models ({', '.join(homes[:3])}): name one folder for each"
        )
    for path in paths:
        name = _NAME.fullmatch(path.name)
        if name is None:
            raise UserError(f"{path}: not named samples_TASK_TIME.jsonl")
        found[name["task"]] = path
    return found


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}, line {number}"
                try:
                    sample = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{where} is not JSON: {error}") from error
                if (
                    not isinstance(sample, dict)
                    or "doc_id" not in sample
                    or not isinstance(sample.get("metrics"), list)
                ):
                    raise UserError(f"{where} is no sample of lm_eval: it lacks doc_id or metrics")
                yield where, sample
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _rows(
    where: str, arm: str, task: str, sample: dict[str, Any], texts: dict[tuple[str, str], tuple[str, str]]
) -> Iterator[Row]:
    item, text = str(sample["doc_id"]), str(sample.get("doc_hash", ""))
    known = texts.setdefault((task, item), (text, arm))
    if known[0] != text:
        raise UserError(f"{where}: document {item} of {task} is another text than in {known[1]}: they cannot be paired")
    chosen = sample.get("filter", "none")
    for name in sample["metrics"]:
        value = sample.get(name)
        if isinstance(value, bool | int | float):
            metric = name if chosen == "none" else f"{name},{chosen}"
            yield Row(where, task, arm, metric, float(value), None, item, None)


def _names(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders))
