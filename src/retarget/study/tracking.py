"""Send what a run logs to an experiment tracker: TensorBoard, trackio, wandb or MLflow.

The trackers are accelerate's. Each run is one run of the tracker, in the study's project, grouped by arm and named by
its seed. Tracking changes no result and does not belong to a run's identity.
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
    """Refuse a tracker whose package is missing, before anything is started; imports nothing.

    Raises:
        MissingExtraError: the message has the command that installs it.
    """
    for package in ("accelerate", name):
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:  # a folder of that name, as wandb leaves, has no origin
            raise MissingExtraError(f"--track {name}: {package} is not installed: pip install accelerate {name}")


@dataclass(frozen=True)
class Track:
    """Where a run is tracked, as plain data that can be sent to another process.

    Attributes:
        name: name of the tracker.
        study: the project.
        group: condition and arm.
        seed: the run's name in its group.
        directory: where the tracker stores its files.
    """

    name: Name
    study: str
    group: str
    seed: int
    directory: Path

    @property
    def run(self) -> str:
        """The tracker's name for the run."""
        return f"{self.group}/seed-{self.seed}"


class Tracker:
    """One run of a tracker, started or continued.

    Args:
        track: which run it is.
        settings: the run's settings, shown beside it.
    """

    def __init__(self, track: Track, settings: Mapping[str, Any]) -> None:
        require("accelerate", "text").PartialState()  # the trackers need it to log
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
                known = fingerprint([track.study, track.run, str(track.directory)])  # the same when a run resumes
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
        """Log one line, without values that are None."""
        known = {name: value for name, value in values.items() if value is not None}
        if known:
            with _draws_nothing():
                self._tracker.log(known, step=step)

    def close(self) -> None:
        """End or interrupt the run."""
        self._tracker.finish()


@contextmanager
def _draws_nothing() -> Iterator[None]:
    """Restore Python's and NumPy's random state, so that tracking a run does not change its result."""
    import numpy as np

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Flatten settings to one level of numbers and texts, as the trackers need them.

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
