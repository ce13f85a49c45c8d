"""Write one run's directory (:class:`Run`), and read the finished runs of a study (:class:`Results`)."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, SupportsFloat

import numpy as np
from pydantic import ValidationError

from retarget.errors import UserError
from retarget.files import cannot_write, finite_or_none, make_directory, read_json, replace_file, write_json, write_text
from retarget.identity import fingerprint
from retarget.settings import faults
from retarget.study.config import StudyPlan
from retarget.study.tracking import Track, Tracker

PROGRESS_EVERY = 0.2
"""Seconds between two progress messages of one run."""


def run_directory(root: Path, plan: StudyPlan, condition: str, arm: str, seed: int) -> Path:
    """A run's directory, ``root/runs/[CONDITION/]ARM/seed-N``; a single condition "default" gets no folder."""
    runs = root / "runs"
    only = [one.name for one in plan.conditions] == ["default"]
    return (runs if only else runs / condition) / arm / f"seed-{seed}"


@dataclass
class Run:
    """The argument of a task: its settings, and a directory to write to.

    A killed task is called again with the same directory and finds its own state in ``checkpoint``. It must log a step
    *before* it saves the checkpoint of that step, so that nothing is lost in between.

    Attributes:
        directory: this run's own directory.
        settings: merged settings: the study's, then the condition's, then the arm's.
        seed: the seed, which all arms share; derive everything random from it.
        threads: intra-operation threads, set already in the worker.
        track: the tracker, if any, to which the run's log is sent.
    """

    directory: Path
    settings: dict[str, Any]
    arm: str
    condition: str
    seed: int
    threads: int = 1
    needs: Mapping[str, Path] = field(default_factory=dict)
    _report: Callable[[int, int, str], None] | None = None
    track: Track | None = None
    _tracker: Tracker | None = None
    _last_step: int | None = None
    _reported: float = float("-inf")

    @classmethod
    def create(
        cls,
        directory: str | Path,
        *,
        settings: dict[str, Any],
        arm: str = "arm",
        condition: str = "default",
        seed: int = 0,
        threads: int = 1,
        needs: Mapping[str, Path] | None = None,
        report: Callable[[int, int, str], None] | None = None,
        track: Track | None = None,
    ) -> Self:
        """Open or create a run's directory; also works without a study.

        Args:
            directory: created if missing; files of a killed run are kept.
            needs: directories of the finished runs that :meth:`other` may return, by arm.
            report: called with ``(done, total, unit)`` by :meth:`progress`.
            track: the tracker to which every logged line is sent; call :meth:`close` at the end.

        Raises:
            UserError: the directory cannot be created, or its metrics.jsonl is damaged before the last line.
        """
        directory = Path(directory)
        make_directory(directory / "checkpoint")
        run = cls(directory, dict(settings), arm, condition, seed, threads, dict(needs or {}), report, track)
        run._repair_log()
        return run

    def __getstate__(self) -> dict[str, Any]:
        """A copy for another process (a rank of a distributed run) reports no progress."""
        return self.__dict__ | {"_report": None, "_tracker": None}

    @property
    def checkpoint(self) -> Path:
        """The directory for the task's own state; it stays when the run is killed and when it is finished."""
        return self.directory / "checkpoint"

    def log(self, step: int, **metrics: SupportsFloat) -> None:
        """Append one line to metrics.jsonl. Logging a step again adds to its line, and drops all later ones.

        So a run that resumes from an earlier checkpoint writes the same file as an uninterrupted one. Values that are
        not finite are written as null.
        """
        line = {"step": int(step)} | {name: finite_or_none(float(value)) for name, value in metrics.items()}
        values = {name: value for name, value in line.items() if name != "step"}
        if self._last_step is not None and step <= self._last_step:
            lines = read_history(self._log_path)
            self._keep([one for one in lines if one["step"] < step])
            line = next((one for one in lines if one["step"] == step), {}) | line
        try:
            with self._log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise cannot_write(self._log_path, error) from error
        self._last_step = int(step)
        self._tell(int(step), values)

    def _tell(self, step: int, values: Mapping[str, float | None]) -> None:
        if self.track:
            self._tracker = self._tracker or Tracker(self.track, self.settings)
            self._tracker.log(step, values)

    def close(self, metrics: Mapping[str, float] | None = None) -> None:
        """End the run at its tracker; the final ``metrics`` are logged as ``final/NAME``."""
        if metrics:
            self._tell(self._last_step or 0, {f"final/{name}": value for name, value in metrics.items()})
        if self._tracker:
            self._tracker.close()
            self._tracker = None

    def progress(self, done: int, total: int, unit: str = "epoch") -> None:
        """Report how far this run is; cheap enough for every step; does nothing without a study."""
        now = time.monotonic()
        if self._report and (done >= total or now - self._reported >= PROGRESS_EVERY):
            self._reported = now
            self._report(int(done), int(total), unit)

    def save_predictions(self, **arrays: Any) -> None:
        """Write predictions.safetensors, whole or not at all.

        Args:
            arrays: numpy arrays or torch tensors of numbers or booleans; bfloat16 is widened to float32, since
                numpy has none.

        Raises:
            TypeError: an array holds objects or text.
            UserError: the file cannot be written.
        """
        from safetensors.numpy import save_file

        plain = {name: _plain(name, value) for name, value in arrays.items()}
        replace_file(self.directory / "predictions.safetensors", lambda path: save_file(plain, path), apart=True)

    def other(self, arm: str) -> Path:
        """The directory of a finished run of the same seed and condition, for an arm that ``needs`` names.

        Raises:
            UserError: the arm is not among the needs, or its run is not complete.
        """
        if arm not in self.needs:
            raise UserError(f"arm {self.arm} asks for the run of arm {arm}, which is missing in its needs")
        directory = Path(self.needs[arm])
        if (read_status(directory) or {}).get("state") != "complete":
            raise UserError(f"arm {self.arm} needs the run in {directory}, which is not complete")
        return directory

    def logged(self) -> int:
        """How many lines metrics.jsonl has; it is read, since other processes of a run may have written them."""
        return len(read_history(self._log_path)) if self._log_path.exists() else 0

    @property
    def _log_path(self) -> Path:
        return self.directory / "metrics.jsonl"

    def _repair_log(self) -> None:
        """Remove an incomplete last line, left by a killed process, and find the last step."""
        if not self._log_path.exists():
            return
        text = self._log_path.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            whole = text[: text.rfind("\n") + 1]
            write_text(self._log_path, whole)
        lines = read_history(self._log_path)
        self._last_step = lines[-1]["step"] if lines else None

    def _keep(self, lines: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_text(self._log_path, text)


class Arrays(dict[str, np.ndarray]):
    """A run's saved arrays by name; asking for one that the file lacks is a UserError that names file and array."""

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__(arrays)
        self.path = path

    def __missing__(self, name: str) -> np.ndarray:
        there = f"it has {', '.join(sorted(self))}" if self else "it is empty"
        raise UserError(f"{self.path} has no array {name!r} ({there}). Delete its directory to repeat the run")


@dataclass(frozen=True)
class RunResult:
    """A finished run: its directory and final metrics, without those that are missing or not finite.

    Attributes:
        logged: how many lines its metrics.jsonl had at the end; 0 if unknown, as for runs of earlier versions.
    """

    directory: Path
    metrics: dict[str, float]
    logged: int = 0

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: ``{"step": ..., METRIC: number or None}``, in order of steps.

        Raises:
            UserError: the file is damaged, or lines that the run logged are missing.
        """
        path = self.directory / "metrics.jsonl"
        lines = read_history(path) if path.exists() else []
        if len(lines) < self.logged:
            what = f"has {len(lines)} lines" if path.exists() else "is missing"
            raise UserError(
                f"{path} {what}, but the run had logged {self.logged}. Delete its directory to repeat the run"
            )
        return lines

    def predictions(self) -> Arrays:
        """The arrays that the run saved.

        Raises:
            UserError: the run saved none, the file is damaged, or (on reading an array) it is not among them.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = self.directory / "predictions.safetensors"
        if not path.exists():
            raise UserError(f"{self.directory} has no predictions.safetensors. Delete the directory to repeat the run")
        try:
            return Arrays(path, load_file(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} is damaged: {error}. Delete its directory to repeat the run") from error


@dataclass
class Results:
    """A study's finished runs, read from its directory."""

    directory: Path
    plan: StudyPlan
    _runs: dict[tuple[str, str, int], RunResult | None] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Open a study's directory, finished or not.

        Raises:
            UserError: there is no study.json, or it is damaged.
        """
        directory = Path(directory)
        if not (directory / "study.json").is_file():
            raise UserError(f"{directory} is not a study's directory: it has no study.json")
        return cls(directory, read_plan(directory / "study.json"))

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """The study's seeds, in the order of every list of values."""
        return self.plan.seeds

    def run(self, condition: str, arm: str, seed: int) -> RunResult | None:
        """One run; None if it failed, is unfinished or was never started."""
        key = (condition, arm, seed)
        if key not in self._runs:
            directory = run_directory(self.directory, self.plan, *key)
            status = read_status(directory)
            done = status is not None and status["state"] == "complete"
            found = RunResult(directory, status["metrics"], status.get("logged", 0)) if status and done else None
            self._runs[key] = found
        return self._runs[key]

    def runs(self, condition: str, arm: str) -> list[RunResult | None]:
        """The runs of all seeds, in their order; None where :meth:`run` gives none."""
        return [self.run(condition, arm, seed) for seed in self.seeds]


def read_plan(path: Path) -> StudyPlan:
    """The plan in a study.json.

    Raises:
        UserError: the file is damaged, or was written by another version.
    """
    try:
        return StudyPlan.model_validate(read_json(path)["plan"])
    except ValidationError as error:
        raise UserError(f"{path} is not a study that this version can read: {faults(error, 'plan')}") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not a study that this version can read: it has no plan ({error})") from error


def write_status(directory: Path, status: dict[str, Any]) -> None:
    """Write a run's status.json with a seal over its values, so that an edited metric is noticed."""
    write_json(directory / "status.json", status | {"seal": fingerprint(status)})


def read_status(directory: Path) -> dict[str, Any] | None:
    """A run's status.json; None if there is none.

    Raises:
        UserError: it is damaged, or was changed after it was written.
    """
    path = directory / "status.json"
    if not path.exists():
        return None
    status = read_json(path)
    if not isinstance(status, dict) or not isinstance(status.get("state"), str):
        raise UserError(f"{path} is damaged: it has no state. Delete its directory to repeat the run")
    seal = status.pop("seal", None)
    sealed = seal is None or seal == _seal(status)  # records of version 0.1 have none
    if not sealed or (status["state"] == "complete" and not isinstance(status.get("metrics"), dict)):
        raise UserError(f"{path} was changed after it was written. Delete its directory to repeat the run")
    return status


def _seal(status: dict[str, Any]) -> str | None:
    try:
        return fingerprint(status)
    except ValueError:  # NaN or infinity, which a status never holds
        return None


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without an incomplete last line.

    Raises:
        UserError: an earlier line is damaged.
    """
    try:
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: {error}. Delete its directory to repeat the run") from error
    lines = []
    for number, line in enumerate(whole.split("\n") if whole else [], start=1):
        try:
            found = json.loads(line)
            if not isinstance(found, dict) or not isinstance(found.get("step"), int):
                raise ValueError("it has no step")
            lines.append(found)
        except ValueError as error:
            raise UserError(
                f"{path}, line {number} is damaged: {error}. Delete its directory to repeat the run"
            ) from error
    return lines


def _plain(name: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    array = np.asarray(value, order="C")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"predictions {name!r} hold {array.dtype}, not numbers or booleans")
    return array
