"""Trackers that people already look at, told what a run logs: TensorBoard, trackio, wandb, MLflow.

The trackers are accelerate's. A run is one of theirs, in the study's project, grouped by arm and named by its seed.
Tracking changes no result and is no part of a run's identity.
"""

import importlib.util
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retarget.extras import MissingExtraError, require
from retarget.identity import fingerprint

Name = Literal["tensorboard", "trackio", "wandb", "mlflow"]


def refuse_missing(name: str) -> None:
    """Say which package a tracker lacks, before anything is begun; imports none.

    Raises:
        MissingExtraError: naming the command that installs it.
    """
    for package in ("accelerate", name):
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:  # without an origin it is a folder of that name, as wandb leaves them
            raise MissingExtraError(f"--track {name}: {package} is not installed: pip install accelerate {name}")


@dataclass(frozen=True)
class Track:
    """Where a run is tracked, as plain data that travels to another process.

    Attributes:
        name: of the tracker.
        study: the project.
        group: condition and arm.
        seed: names the run in its group.
        directory: for what a tracker keeps in files.
    """

    name: Name
    study: str
    group: str
    seed: int
    directory: Path

    @property
    def run(self) -> str:
        """What the run is called there."""
        return f"{self.group}/seed-{self.seed}"


class Tracker:
    """One run of a tracker, begun, or gone on with.

    Args:
        track: which.
        settings: the run's, shown beside it.
    """

    def __init__(self, track: Track, settings: Mapping[str, Any]) -> None:
        require("accelerate", "text").PartialState()  # the trackers log by it
        trackers = require("accelerate.tracking", "text")
        shown = flat({"study": track.study, "group": track.group, "seed": track.seed, **settings})
        with _draws_nothing():
            if track.name == "tensorboard":
                self._tracker = trackers.TensorBoardTracker(track.run, logging_dir=str(track.directory))
            elif track.name == "trackio":
                self._tracker = trackers.TrackioTracker(
                    track.study, name=track.run, group=track.group, config=shown, resume="allow"
                )
            elif track.name == "wandb":
                track.directory.mkdir(parents=True, exist_ok=True)
                known = fingerprint([track.study, track.run, str(track.directory)])  # a run that resumes is the same
                self._tracker = trackers.WandBTracker(
                    track.study, id=known, resume="allow", name=track.run, group=track.group, config=shown,
                    dir=str(track.directory),
                )  # fmt: skip
            else:
                tags = {"group": track.group, "seed": str(track.seed)}
                self._tracker = trackers.MLflowTracker(track.study, run_name=track.run, tags=tags)
            self._tracker.start()
            if track.name in ("tensorboard", "mlflow"):
                self._tracker.store_init_configuration(shown)

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """One line; what is None is left out."""
        known = {name: value for name, value in values.items() if value is not None}
        if known:
            with _draws_nothing():
                self._tracker.log(known, step=step)

    def close(self) -> None:
        """The run is over, or stops."""
        self._tracker.finish()


@contextmanager
def _draws_nothing() -> Iterator[None]:
    """Leave Python's and NumPy's global generators as they are: a run that is tracked gives what it gives untracked."""
    import numpy as np

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Settings as the trackers take them: one level, numbers and texts.

    >>> flat({"lr": 0.1, "shift": {"kinds": ["blur"]}, "teacher": None})
    {'lr': 0.1, 'shift.kinds': "['blur']", 'teacher': 'None'}
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{name}.")
        else:
            found[above + name] = value if isinstance(value, int | float | str) else str(value)
    return found
