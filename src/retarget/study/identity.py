"""Check that a recorded run is the one that a plan asks for: settings, task, data; also for older records."""

import ast
import io
from collections.abc import Collection, Iterable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from retarget.errors import UserError
from retarget.files import is_there, read_json, write_json
from retarget.identity import content, fingerprint, refuse_other
from retarget.own import origin_of, sources
from retarget.study.config import StudyPlan

REMEDY = "Choose another --out, or use the settings that the directory was made with"
DATA_REMEDY = "Restore the data of the earlier runs, or choose another --out"
SOURCE_REMEDY = "Restore the code of the earlier runs, or choose another --out"
CACHE = ".content.json"
"""File in a study's directory that caches its data's fingerprints; deleting it costs only time."""


def contents(plan: StudyPlan, root: Path, *, remember: bool) -> dict[str, str]:
    """Fingerprints of a plan's data and of the user's own sources: the task, and parts named by import path.

    Args:
        root: the study's directory, where fingerprints are cached.
        remember: whether to write the cache.

    Returns:
        Fingerprints by path; sources are keyed relative to their folder, so that they may move. Missing data are left
        out: the study's own ``prepare`` reports them if it needs them.
    """
    cache = root / CACHE
    known: dict[str, list[Any]] = _read_cache(cache)
    before = dict(known)
    found = {path: content(path, known) for path in plan.data if is_there(path)}
    parts = (plan.task, *plan.own_parts)
    found |= {name: measured_by(path, known, parts) for name, path in own_sources(parts).items()}
    if remember and known != before:
        write_json(cache, known)
    return found


def own_sources(parts: Iterable[str]) -> dict[str, Path]:
    """The files behind the import paths of users' own parts, keyed as :func:`retarget.own.sources` keys them."""
    found: dict[str, Path] = {}
    for part in parts:
        module = part.partition(":")[0]
        if module.partition(".")[0] != "retarget":  # this package's tasks are identified by name, not source
            found |= sources(module)
    return found


def measured_by(path: Path, known: dict[str, list[Any]], parts: Iterable[str]) -> str:
    """The fingerprint of a source; that of the study's file is without its function ``analyse``.

    This function reads finished runs and changes none, unless other code in the file uses it, too.

    Args:
        known: a cache of fingerprints.
        parts: import paths of the user's own code; a helper that they import may have an ``analyse`` that a run calls.
    """
    try:
        text = path.read_text(encoding="utf-8")
        body = ast.parse(text).body
    except (OSError, ValueError, SyntaxError):
        return content(path, known)
    found = [one for one in body if isinstance(one, ast.FunctionDef) and one.name == "analyse"]
    others = [node for one in body if one not in found for node in ast.walk(one)]
    used = any(isinstance(node, ast.Name) and node.id == "analyse" for node in others)
    if not found or used or path not in [origin_of(part.partition(":")[0]) for part in parts]:
        return content(path, known)
    lines = list(io.StringIO(text))  # split at line ends only, as the parser counts, and not at form feeds
    for one in reversed(found):
        first = min([one.lineno, *(decorator.lineno for decorator in one.decorator_list)])
        del lines[first - 1 : one.end_lineno]
    return fingerprint("".join(lines))


def _read_cache(path: Path) -> dict[str, list[Any]]:
    if not path.exists():
        return {}
    try:
        found = read_json(path)
    except UserError:  # it is only a cache
        return {}
    return found if isinstance(found, dict) else {}


def same_run(path: Path, record: Mapping[str, Any], plan: StudyPlan, asked: Mapping[str, Any]) -> None:
    """Refuse a run's record that differs from what a plan asks for.

    Args:
        path: path of the record, for messages.
        record: the config.json of a run.
        asked: ``plan.identity`` of the run.

    Raises:
        UserError: values differ (the message names each), or the record was edited.
    """
    if not isinstance(record, Mapping) or not isinstance(record.get("settings", {}), Mapping):
        raise UserError(f"{path} is damaged: it is not the record of a run. Delete the run's directory to repeat it")
    if "task_name" in record and _hash(record) != record.get("run_hash"):
        raise UserError(
            f"{path} was changed after it was written: its hash is wrong. Delete the run's directory to repeat it"
        )
    refuse_other(path.parent, _flat(known_as(record, plan, asked)), _flat(asked), remedy=REMEDY)


def same_content(where: Path, had: Mapping[str, str], now: Mapping[str, str], data: Collection[str]) -> None:
    """Refuse data or code that were replaced; files that only one side knows cannot be compared.

    Absolute paths change where a study's folder has moved: such data are compared with those of the same name.

    Args:
        where: the run's directory.
        had, now: fingerprints by path.
        data: which of the paths are data; the others are the user's own code.
    """
    had = {_moved(path, had, now, data): digest for path, digest in had.items()}
    both = sorted(had.keys() & now.keys())
    replaced = [path for path in both if had[path] != now[path]]
    refuse_other(
        where,
        {f"the content of {path}": had[path] for path in both},
        {f"the content of {path}": now[path] for path in both},
        remedy=DATA_REMEDY if set(replaced) & set(data) else SOURCE_REMEDY,
    )


def _moved(path: str, had: Mapping[str, str], now: Mapping[str, str], data: Collection[str]) -> str:
    """The present path of data whose absolute path of before is not there: the path with the longest common ending."""
    if path in now or not Path(path).is_absolute():
        return path
    new = [one for one in data if one in now and one not in had and Path(one).is_absolute()]
    endings = {one: _common_ending(path, one) for one in new}
    best = max(endings, key=lambda one: endings[one], default=path)
    return best if endings.get(best) else path


def _common_ending(path: str, other: str) -> int:
    """How many of the last parts of two paths are the same.

    >>> _common_ending("/a/data/train.csv", "/b/data/train.csv"), _common_ending("/a/train.csv", "/a/test.csv")
    (2, 0)
    """
    pairs = zip(reversed(Path(path).parts), reversed(Path(other).parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def known_as(record: Mapping[str, Any], plan: StudyPlan, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a recorded run as this version would write it.

    A task is identified by its name, in older records by its former import path. A setting that an older record lacks
    is taken to have had its present default.
    """
    settings = {k: v for k, v in record.get("settings", {}).items() if k not in plan.unmeasured}
    return {
        "study": record.get("study"),
        "task": name_of_task(record.get("task_name"), record.get("task"), plan),
        "settings": with_defaults(settings, asked["settings"], plan.settings_model),
        "seed": record.get("seed"),
        "threads": record.get("threads"),
    }


def name_of_task(name: str | None, path: str | None, plan: StudyPlan) -> str | None:
    """The present name of a recorded task, from its name or from an import path that the plan lists as its own."""
    ours = path in (plan.task, *plan.former_tasks)
    return name or ((plan.task_name or plan.task) if ours else path)


def with_defaults(
    settings: Mapping[str, Any], asked: Mapping[str, Any], model: type[BaseModel] | None
) -> dict[str, Any]:
    """Settings of an older record, completed by the defaults of settings that it lacks, also inside tables.

    >>> class Settings(BaseModel):
    ...     lr: float
    ...     clip: float = 1.0
    >>> with_defaults({"lr": 0.1}, {"lr": 0.1, "clip": 1.0}, Settings)
    {'lr': 0.1, 'clip': 1.0}
    """
    result = dict(settings)
    for name, value in asked.items():
        field = model.model_fields.get(name) if model else None
        inner = field.annotation if field else None
        if field and name not in result and not field.is_required():
            result[name] = to_jsonable_python(field.get_default(call_default_factory=True, validated_data={}))
        elif isinstance(value, dict) and isinstance(result.get(name), dict):
            inner = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
            result[name] = with_defaults(result[name], value, inner)
    return result


def _hash(record: Mapping[str, Any]) -> str:
    """The ``run_hash`` that belongs to a record's values."""
    settings = {k: v for k, v in record.get("settings", {}).items() if k not in record.get("unmeasured", ())}
    task = record["task_name"] or record.get("task")
    parts = {"study": record.get("study"), "task": task, "settings": settings}
    return fingerprint(parts | {"seed": record.get("seed"), "threads": record.get("threads")})


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten an identity to one level, so that messages name settings by their own names."""
    return {**{k: v for k, v in identity.items() if k != "settings"}, **identity["settings"]}
