"""Read samples logged by lm-evaluation-harness or Inspect: one arm per folder, one row per item and metric."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from retarget.errors import UserError
from retarget.study.rows import Row

_NAME = re.compile(r"samples_(?P<task>.+)_(?P<time>\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl")


def read_lm_eval(folders: Sequence[Path]) -> list[Row]:
    """The samples of two or more models as rows: the arm is the folder's name, the condition the task.

    With ``--log_samples`` lm-evaluation-harness writes ``samples_TASK_TIME.jsonl``, one line per document and filter.
    Metrics are named as in its results file: ``exact_match,strict-match``, or just ``acc`` without a filter. If a task
    was run several times the latest counts. Documents are paired by id and must have the same text.

    Raises:
        UserError: a folder has no samples or those of several models, a line is damaged, or documents with the same id
            differ between models.
    """
    if len({folder.resolve().name for folder in folders}) < len(folders):
        raise UserError(f"--lm-eval names arms after folders, but {_names(folders)} share a name: rename one")
    rows: list[Row] = []
    texts: dict[tuple[str, str], tuple[str, str]] = {}
    empty: dict[tuple[str, str], str] = {}
    for folder in folders:
        for task, path in sorted(_latest(folder).items()):
            for where, sample in _lines(path):
                rows += _rows(where, folder.resolve().name, task, sample, texts, empty)
    if not rows:
        raise UserError(f"{_names(folders)}: the logged samples have no numeric metric")
    for task, metric in dict.fromkeys((row.condition, row.metric) for row in rows):
        if (task, metric) in empty:
            raise UserError(
                f"{empty[task, metric]}, while others have one: it cannot be compared. Leave {metric} out of the "
                "samples' metrics if no claim needs it"
            )
    return rows


def _latest(folder: Path) -> dict[str, Path]:
    """The newest samples of each task below a folder."""
    found: dict[str, Path] = {}
    _refuse_missing(folder)
    paths = sorted(folder.rglob("samples_*.jsonl"), key=lambda path: path.name)
    if not paths:
        raise UserError(f"{folder} has no samples_TASK_TIME.jsonl: run lm_eval with --log_samples")
    homes = sorted({str(path.parent) for path in paths})
    if len(homes) > 1:
        raise UserError(
            f"{folder} has the samples of several models ({', '.join(homes[:3])}): pass one folder per model"
        )
    for path in paths:
        name = _NAME.fullmatch(path.name)
        if name is None:
            raise UserError(f"{path} is not named samples_TASK_TIME.jsonl")
        found[name["task"]] = path
    return found


def _refuse_missing(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder} {'is a file: give the folder of it' if folder.exists() else 'does not exist'}")


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
                    raise UserError(f"{where} is not a sample of lm_eval: it lacks doc_id or metrics")
                yield where, sample
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _rows(
    where: str, arm: str, task: str, sample: dict[str, Any], texts: dict[tuple[str, str], tuple[str, str]],
    empty: dict[tuple[str, str], str],
) -> Iterator[Row]:  # fmt: skip
    item, text = str(sample["doc_id"]), str(sample.get("doc_hash", ""))
    known = texts.setdefault((task, item), (text, arm))
    if known[0] != text:
        raise UserError(f"{where}: document {item} of {task} differs from the one in {known[1]}: they cannot be paired")
    chosen = sample.get("filter", "none")
    for name in sample["metrics"]:
        value = sample.get(name)
        metric = name if chosen == "none" else f"{name},{chosen}"
        if value is None:
            empty.setdefault((task, metric), f"{where}: document {item} of {task} has no value for {name}")
        elif isinstance(value, bool | int | float):
            if not math.isfinite(value):
                raise UserError(f"{where}: document {item} of {task} has {name} = {value}: it cannot be compared")
            yield Row(where, task, arm, metric, float(value), None, item, None)


def _names(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders))


_MARKS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}
"""Inspect's marks: correct, incorrect, partly correct, no answer."""


def read_inspect(folders: Sequence[Path]) -> list[Row]:
    """The samples of two or more models that Inspect logged: the arm is the folder's name, the condition the task.

    If a task has several logs the latest counts; it must have ended successfully. A metric is named after its scorer,
    or ``scorer/key`` if a score has several values; marks become 1, 0.5 and 0. Epochs of a sample, which ask the same
    model again, are averaged.

    Raises:
        UserError: Inspect is not installed, a folder has no log, or a log did not end successfully.
    """
    try:
        from inspect_ai.log import (  # pyright: ignore[reportMissingImports]
            list_eval_logs,
            read_eval_log,
            read_eval_log_sample_summaries,
        )
    except ModuleNotFoundError as error:
        raise UserError("Inspect's logs are read by its own package: pip install inspect_ai") from error
    rows: list[Row] = []
    for folder in folders:
        _refuse_missing(folder)
        logs = [(read_eval_log(one, header_only=True), one) for one in list_eval_logs(str(folder))]
        if not logs:
            raise UserError(f"{folder} has no log of Inspect")
        latest = {log.eval.task: (log, one) for log, one in sorted(logs, key=lambda pair: pair[0].eval.created)}
        for task, (log, one) in sorted(latest.items()):
            if log.status != "success":
                raise UserError(f"{folder}: the latest log of {task} has the status {log.status}, not success")
            rows += inspect_rows(f"{folder}, {task}", folder.resolve().name, task, read_eval_log_sample_summaries(one))
    return rows


def inspect_rows(where: str, arm: str, task: str, summaries: Sequence[Any]) -> list[Row]:
    """Rows from Inspect's sample summaries, which have ``id``, ``epoch`` and ``scores[name].value``.

    Raises:
        UserError: a sample has no score, or a score that is neither a number nor a mark.
    """
    values: dict[tuple[str, str], list[float]] = {}
    for sample in summaries:
        if not sample.scores:
            raise UserError(f"{where}: sample {sample.id}, epoch {sample.epoch} has no score")
        for name, score in sample.scores.items():
            parts = score.value if isinstance(score.value, dict) else {"": score.value}
            for key, value in parts.items():
                metric = f"{name}/{key}" if key else name
                number = _MARKS.get(value) if isinstance(value, str) else value
                if not isinstance(number, bool | int | float) or not math.isfinite(number):
                    raise UserError(
                        f"{where}: sample {sample.id} has {metric} = {value!r}, which is neither a number nor a mark"
                    )
                values.setdefault((metric, str(sample.id)), []).append(float(number))
    return [
        Row(where, task, arm, metric, sum(found) / len(found), None, item, None)
        for (metric, item), found in values.items()
    ]
