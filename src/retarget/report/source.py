"""Read and check one study's directory, from which the page is made."""

import re
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from retarget.errors import UserError
from retarget.files import read_json
from retarget.study.config import StudyPlan
from retarget.study.figures import Analysis
from retarget.study.record import read_status, run_directory
from retarget.study.results import Summary

_PNG = b"\x89PNG\r\n\x1a\n"
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_Model = TypeVar("_Model", bound=BaseModel)


class RunState(NamedTuple):
    """How one run ended.

    Attributes:
        state: "complete", "failed", "running" (it was stopped), or "missing".
        reason: the last line of a failed run's traceback.
        seconds: duration of a complete run.
    """

    condition: str
    arm: str
    seed: int
    state: str
    reason: str
    seconds: float | None


class Study(NamedTuple):
    """Everything that the page needs to know about one study; ``runs`` is empty if they were made elsewhere."""

    directory: Path
    plan: StudyPlan
    summary: Summary
    analysis: Analysis
    command: str
    environment: dict[str, Any]
    runs: list[RunState]

    def image(self, file: Path) -> bytes:
        """The bytes of a PNG file inside the study's directory.

        Raises:
            UserError: the file is outside the directory, missing, or not a PNG file.
        """
        path = (self.directory / file).resolve()
        if file.is_absolute() and not path.is_relative_to(self.directory.resolve()) and "runs" in file.parts:
            # Earlier versions recorded absolute paths of pictures, and the study may have moved since.
            at = len(file.parts) - 1 - file.parts[::-1].index("runs")
            path = self.directory.joinpath(*file.parts[at:]).resolve()
        if not path.is_relative_to(self.directory.resolve()):
            raise UserError(f"{self.directory / 'analysis.json'}: the image {file} is outside the study's directory")
        if not path.is_file():
            raise UserError(f"{path}: this image, named in analysis.json, is missing; run the study again to make it")
        data = path.read_bytes()
        if not data.startswith(_PNG) or len(data) < 24:
            raise UserError(f"{path} is not a PNG file, and a page embeds only PNG images")
        return data


def read_study(directory: Path) -> Study:
    """Read a study's directory.

    Raises:
        UserError: it does not hold a finished study, or one of its files is damaged or has another format.
    """
    for name in ("study.json", "summary.json"):
        if not (directory / name).is_file():
            raise UserError(
                f"{directory} has no {name}, so it is not the directory of a finished study; "
                "pass the directory that `retarget study METHOD --out DIR` wrote"
            )
    path = directory / "study.json"
    record = printable(read_json(path))
    if not isinstance(record, dict):
        raise UserError(f"{path} is not in the format of a study: it must be an object")
    plan = _validated(StudyPlan, record.get("plan"), path)
    path = directory / "summary.json"
    summary = _validated(Summary, printable(read_json(path)), path)
    path = directory / "analysis.json"
    analysis = _validated(Analysis, printable(read_json(path)), path) if path.is_file() else Analysis()
    environment = {key: value for key, value in record.items() if key not in ("plan", "command", "runs")}
    elsewhere = record.get("runs") == "elsewhere"
    runs = [] if elsewhere else [_run(directory, plan, *key) for key in _keys(plan)]
    return Study(directory, plan, summary, analysis, str(record.get("command", "")), environment, runs)


def printable(value: Any) -> Any:
    """The same JSON value, with characters that HTML or UTF-8 cannot represent replaced by U+FFFD.

    >>> printable({"text": ["a\\x00b", 1]})
    {'text': ['a\ufffdb', 1]}
    """
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, list):
        return [printable(one) for one in value]
    if isinstance(value, dict):
        return {printable(key): printable(one) for key, one in value.items()}
    return value


def _keys(plan: StudyPlan) -> list[tuple[str, str, int]]:
    return [(c.name, arm.name, seed) for c in plan.conditions for arm in plan.arms for seed in plan.seeds]


def _run(directory: Path, plan: StudyPlan, condition: str, arm: str, seed: int) -> RunState:
    status = printable(read_status(run_directory(directory, plan, condition, arm, seed)))
    if not isinstance(status, dict):
        return RunState(condition, arm, seed, "missing", "", None)
    said = str(status.get("traceback") or status.get("error") or "").strip()
    reason = said.splitlines()[-1].strip() if said else ""
    return RunState(condition, arm, seed, str(status.get("state", "missing")), reason, status.get("seconds"))


def _validated(model: type[_Model], value: Any, path: Path) -> _Model:
    """Validate a value as a model.

    Raises:
        UserError: it is not valid; the message names the file, and the field and fault of the first three faults.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg']}" for one in error.errors()[:3]]
        raise UserError(f"{path} is not in the format of a study: {'; '.join(faults)}") from error
