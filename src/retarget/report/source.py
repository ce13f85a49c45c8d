"""Read and check one study's directory, from which the page is made."""

import re
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from retarget.errors import UserError
from retarget.files import read_json
from retarget.settings import faults
from retarget.study.config import StudyPlan
from retarget.study.figures import Analysis
from retarget.study.record import read_status, run_directory
from retarget.study.results import Summary

REMEDY = "pass the directory that `retarget study METHOD --out DIR` wrote"
_PNG = b"\x89PNG\r\n\x1a\n"
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_Model = TypeVar("_Model", bound=BaseModel)


class RunState(NamedTuple):
    """How one run ended.

    Attributes:
        state: "complete", "failed", "running" (it was stopped), or "missing".
        reason: the first line of a failed run's error.
        seconds: duration of a complete run.
    """

    condition: str
    arm: str
    seed: int
    state: str
    reason: str
    seconds: float | None


class Study(NamedTuple):
    """Everything that the page needs to know about one study; ``runs`` is empty if they were made elsewhere.

    ``unjudged`` says how many finished runs its summary does not know, or how many runs that it counts are gone; it is
    among the notes too.
    """

    directory: Path
    plan: StudyPlan
    summary: Summary
    analysis: Analysis
    command: str
    environment: dict[str, Any]
    runs: list[RunState]
    unjudged: str = ""

    @property
    def only_findings(self) -> bool:
        """Whether the directory keeps the findings of finished runs, without the runs."""
        return bool(self.summary.conditions) and all(run.state == "missing" for run in self.runs)

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
    if not (directory / "study.json").is_file():
        raise UserError(f"{directory} has no study.json, so it is not the directory of a finished study; {REMEDY}")
    path = directory / "study.json"
    record = printable(read_json(path))
    if not isinstance(record, dict):
        raise UserError(f"{path} is not in the format of a study: it must be an object")
    plan = _validated(StudyPlan, record.get("plan"), path)
    elsewhere = record.get("runs") == "elsewhere"
    path = directory / "summary.json"
    if not path.is_file():
        unjudged = "" if elsewhere else _unjudged(directory, plan, None)
        remedy = f"{unjudged[0].lower()}{unjudged[1:]}" if unjudged else REMEDY
        raise UserError(f"{directory} has no summary.json, so it is not the directory of a finished study; {remedy}")
    summary = _validated(Summary, printable(read_json(path)), path)
    path = directory / "analysis.json"
    analysis = _validated(Analysis, printable(read_json(path)), path) if path.is_file() else Analysis()
    environment = {key: value for key, value in record.items() if key not in ("plan", "command", "runs")}
    runs = [] if elsewhere else [_run(directory, plan, *key) for key in _keys(plan)]
    unjudged = "" if elsewhere else _unjudged(directory, plan, summary)
    analysis = analysis.model_copy(update={"notes": [*analysis.notes, unjudged]}) if unjudged else analysis
    return Study(directory, plan, summary, analysis, str(record.get("command", "")), environment, runs, unjudged)


def _unjudged(directory: Path, plan: StudyPlan, summary: Summary | None) -> str:
    """A sentence if the runs are not those that the summary counts, after an interruption or a deletion; or empty."""
    new = gone = there = 0
    for condition, arm, seed in _keys(plan):
        status = read_status(run_directory(directory, plan, condition, arm, seed)) or {}
        complete = status.get("state") == "complete"
        measured = set(status.get("metrics") or ()) if complete else set()
        judged = _judged(summary, condition, arm, seed)
        there += complete
        new += bool(measured) and judged.isdisjoint(measured)
        gone += bool(judged) and not complete
    if gone and there:  # of a record that keeps no run, the findings stay
        runs = "1 run that was judged is" if gone == 1 else f"{gone} runs that were judged are"
        return (
            f"{runs} not there any more; the verdicts and tables still count {'it' if gone == 1 else 'them'}: {_AGAIN}"
        )
    if new:
        return f"{'1 finished run is' if new == 1 else f'{new} finished runs are'} not judged yet: {_AGAIN}"
    return ""


_AGAIN = "run the study's command again."


def _judged(summary: Summary | None, condition: str, arm: str, seed: int) -> set[str]:
    """The metrics of a run that the summary has values of."""
    known = summary.conditions.get(condition, {}).get(arm, {}) if summary else {}
    return {
        name
        for name, one in known.items()
        for at, value in zip(summary.seeds if summary else (), one.values, strict=False)
        if at == seed and value is not None
    }


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
    return RunState(condition, arm, seed, str(status.get("state", "missing")), _reason(status), status.get("seconds"))


def _reason(status: dict[str, Any]) -> str:
    """The first line of a run's error that says something; of a record without one, the traceback's last line."""
    said = [line.strip() for line in str(status.get("error") or "").splitlines() if line.strip()]
    if said:
        return " ".join(said[: 2 if said[0].endswith(":") else 1])
    return next((line.strip() for line in reversed(str(status.get("traceback") or "").splitlines()) if line), "")


def _validated(model: type[_Model], value: Any, path: Path) -> _Model:
    """Validate a value as a model.

    Raises:
        UserError: it is not valid; the message names the file, and the field and fault of the first three faults.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{path} is not in the format of a study: {faults(error, most=3)}") from error
