"""Resume a training: check that its directory belongs to the same work, and find its checkpoint. Free of TRL."""

import json
import logging
import os
from collections.abc import Callable, Sequence
from operator import le
from pathlib import Path
from typing import Any

from retarget.errors import UserError
from retarget.files import make_directory, read_json, write_json
from retarget.identity import fingerprint, refuse_other
from retarget.pope.grading import Reward
from retarget.pope.identity import base_of, grader_of, tokenizer_of, unknown_before, weights_of
from retarget.pope.settings import TrainingSettings

_log = logging.getLogger(__name__)
_ADDED = ("tokenizer", "base", "chosen", "reward", "grader", "grader_rules", "grader_source")
"""Entries that earlier versions did not record."""
_MODELS = ("config.json", "adapter_config.json")


def refuse_own_model(model: Any, output: Path) -> None:
    """Refuse an output directory in which the training would write over the model that it starts from.

    Raises:
        UserError: the directory is the model's own folder, or the model is one of its checkpoints.
    """
    name, target = _name(model), output.resolve()
    folder = Path(name).resolve()
    checkpoint = folder.name.startswith("checkpoint-") and folder.parent == target
    if name and folder.is_dir() and (folder == target or checkpoint):
        raise UserError(f"{output}: the training would write over its own model {name}: give another directory")


def work_of(
    model: Any,
    rows: Sequence[dict[str, Any]],
    settings: TrainingSettings,
    peft_config: Any,
    curriculum: Any = None,
    reward: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Everything that decides a training's result: fingerprints of rows, settings, model, adapter and curriculum, the
    reward's name, rules and source, and the number of cycles. The settings themselves are for messages.

    Options that earlier versions did not have (an objective, a curriculum) are left out at their default.
    """
    name = _name(model)
    adapter = peft_config.to_dict() if peft_config is not None else None
    # The order of a set differs between processes.
    plain = json.dumps(adapter, sort_keys=True, default=lambda one: sorted(one) if isinstance(one, set) else str(one))
    return {
        "rows": fingerprint(list(rows)),
        "settings": _settings(settings),
        "chosen": _chosen(settings),
        "cycles": settings.cycles,
        "model": fingerprint([str(name), weights_of(name)]),
        **tokenizer_of(name),
        **base_of(name),
        **_reward(reward),
        "adapter": fingerprint(plain),
        **({"curriculum": curriculum.identity} if curriculum is not None else {}),
    }


def _name(model: Any) -> str:
    return str(model if isinstance(model, str) else model.config._name_or_path)


def _chosen(settings: TrainingSettings) -> dict[str, Any]:
    later = {"pass_at_k"} if settings.pass_at_k == 1 else set()
    return settings.model_dump(mode="json", exclude={"cycles", *later})


def _settings(settings: TrainingSettings) -> str:
    return fingerprint(_chosen(settings))


def _reward(reward: Callable[..., Any] | None) -> dict[str, Any]:
    """What identifies a reward: its grader's, or the import path of a function; nothing of any other object."""
    if isinstance(reward, Reward):
        return grader_of(reward.grader.spec)
    name, module = getattr(reward, "__qualname__", None), getattr(reward, "__module__", None)
    return {"reward": f"{module}:{name}"} if name and module else {}


def check_work(output: Path, work: dict[str, Any], resume: bool, settings: TrainingSettings) -> None:
    """Refuse a training's directory that belongs to other work.

    A larger number of cycles continues the training: the order of the rows does not depend on that number. A directory
    with neither a checkpoint nor a model belongs to nobody: its training was refused or killed before its first.

    Raises:
        UserError: the directory's ``work.json`` is of other work, or there are checkpoints or a model, but no
            ``work.json``.
    """
    path = output / "work.json"
    checkpoints = any(output.glob("checkpoint-*"))
    trained = any((output / name).exists() for name in _MODELS)
    if not path.exists():
        if checkpoints or trained:
            what = "there are checkpoints" if checkpoints else "there is a model"
            raise UserError(f"{output}: {what}, but no {path.name} that says of which work; give another directory")
    elif checkpoints or (resume and trained):
        extends = {**dict.fromkeys(_ADDED, unknown_before), **({"cycles": le} if resume else {})}
        remedy = "Give another directory, or the settings, rows, model and reward that the training was started with"
        found = _with_cycles(read_json(path), work, settings)
        refuse_other(output, *_named(found, work), extends=extends, remedy=remedy)


def claim(output: Path, work: dict[str, Any]) -> None:
    """Write ``work.json`` into a training's directory, which :func:`check_work` has accepted."""
    path = output / "work.json"
    if int(os.environ.get("RANK", "0")) == 0 and not (path.exists() and read_json(path) == work):
        make_directory(output)
        write_json(path, work)


def _named(found: Any, work: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both works with their settings by name in place of a fingerprint, if both have them."""
    had, now = dict(found), dict(work)
    chosen = had.pop("chosen", None), now.pop("chosen")
    if had.get("settings") != now["settings"] and isinstance(chosen[0], dict):
        del had["settings"], now["settings"]
        had, now = {**chosen[0], **had}, {**chosen[1], **now}
    return had, now


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
