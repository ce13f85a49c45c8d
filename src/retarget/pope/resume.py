"""Resume a training: check that its directory belongs to the same work, and find its checkpoint. Free of TRL."""

import json
import logging
import os
from collections.abc import Sequence
from operator import le
from pathlib import Path
from typing import Any

from retarget.errors import UserError
from retarget.files import make_directory, read_json, write_json
from retarget.identity import fingerprint, refuse_other
from retarget.pope.identity import tokenizer_of, unknown_before, weights_of
from retarget.pope.settings import TrainingSettings

_log = logging.getLogger(__name__)


def work_of(
    model: Any, rows: Sequence[dict[str, Any]], settings: TrainingSettings, peft_config: Any, curriculum: Any = None
) -> dict[str, Any]:
    """Everything that decides a training's result: fingerprints of rows, settings, model, adapter and curriculum, and
    the number of cycles.

    Options that earlier versions did not have (an objective, a curriculum) are left out at their default.
    """
    name = model if isinstance(model, str) else model.config._name_or_path
    adapter = peft_config.to_dict() if peft_config is not None else None
    # The order of a set differs between processes.
    plain = json.dumps(adapter, sort_keys=True, default=lambda one: sorted(one) if isinstance(one, set) else str(one))
    return {
        "rows": fingerprint(list(rows)),
        "settings": _settings(settings),
        "cycles": settings.cycles,
        "model": fingerprint([str(name), weights_of(name)]),
        **tokenizer_of(name),
        "adapter": fingerprint(plain),
        **({"curriculum": curriculum.identity} if curriculum is not None else {}),
    }


def _settings(settings: TrainingSettings) -> str:
    later = {"pass_at_k"} if settings.pass_at_k == 1 else set()
    return fingerprint(settings.model_dump(mode="json", exclude={"cycles", *later}))


def claim(output: Path, work: dict[str, Any], resume: bool, settings: TrainingSettings) -> None:
    """Write ``work.json`` into a training's directory, or refuse a directory of other work.

    A larger number of cycles continues the training: the order of the rows does not depend on that number.

    Raises:
        UserError: the directory's ``work.json`` is of other work, or there are checkpoints but no ``work.json``.
    """
    path = output / "work.json"
    checkpoints = any(output.glob("checkpoint-*"))
    if not path.exists():
        if checkpoints:
            raise UserError(
                f"{output}: there are checkpoints, but no {path.name} that identifies them; give another directory"
            )
    else:
        found = _with_cycles(read_json(path), work, settings)
        if resume or checkpoints:
            extends = {"tokenizer": unknown_before, **({"cycles": le} if resume else {})}
            remedy = "Give another directory, or the settings, rows and model that the training was started with"
            refuse_other(output, found, work, extends=extends, remedy=remedy)
        if found == work:
            return
    if int(os.environ.get("RANK", "0")) == 0:
        make_directory(output)
        write_json(path, work)


def _with_cycles(found: Any, work: dict[str, Any], settings: TrainingSettings) -> Any:
    """A ``work.json`` in today's form: earlier versions included the cycles in the settings' fingerprint."""
    if not isinstance(found, dict) or "cycles" in found:
        return found
    for cycles in range(settings.cycles, 0, -1):
        former = settings.model_copy(update={"cycles": cycles}).model_dump(mode="json", exclude={"pass_at_k"})
        if fingerprint(former) == found.get("settings"):
            return {**found, "settings": work["settings"], "cycles": cycles}
    return found


def last_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint, None if there is none.

    ``trainer_state.json`` is written last, so a folder without a readable one was left by a killed process.
    """
    found = []
    for folder in directory.glob("checkpoint-*"):
        step = folder.name.removeprefix("checkpoint-")
        try:
            state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            _log.warning("%s is incomplete and is ignored", folder)
            continue
        if step.isdigit() and state.get("global_step") == int(step):
            found.append((int(step), folder))
    return max(found)[1] if found else None
