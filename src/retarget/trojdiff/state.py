"""Save and load a training run's state: complete or absent, and refused by a run with another configuration."""

import hashlib
import io
import json
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from pydantic import Field, ValidationError

from retarget.errors import UserError
from retarget.files import replace_folder
from retarget.identity import refuse_other
from retarget.settings import Strict, faults
from retarget.trojdiff.checkpoint import Trojan
from retarget.trojdiff.stored import read_record, read_tensors, write_tensors


@dataclass
class LoopState:
    """The live objects that a state stores, and the identity that it must have."""

    accelerator: Accelerator
    unet: Any
    optimizer: Any
    ema: EMAModel
    identity: dict[str, Any]

    def named_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """The network's parameters, in EMA's order."""
        return list(self.accelerator.unwrap_model(self.unet).named_parameters())


def save_state(out: Path, state: LoopState, step: int, trojan: Trojan | None) -> None:
    """Write ``out/state-STEP`` and remove older ones. A trojaned run's weights have its marks.

    Raises:
        UserError: the disk is full or cannot be written; the older states stay.
    """
    accelerator = state.accelerator
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        older = find_states(out)
        replace_folder(out / f"state-{step:08d}", lambda part: _write_state(part, state, step, trojan))
        for folder in older:
            shutil.rmtree(folder, ignore_errors=True)
    accelerator.wait_for_everyone()


def _write_state(part: Path, state: LoopState, step: int, trojan: Trojan | None) -> None:
    accelerator = state.accelerator
    header = {"format": "pt", **(trojan.marks() if trojan else {})}
    if trojan:
        # The maps come first, so that trojaned weights are never there without their trigger.
        trojan.save_triggers(part)
    unet = accelerator.unwrap_model(state.unet)
    write_tensors(part / "model.safetensors", unet.state_dict(), header)
    names = [name for name, _ in state.named_parameters()]
    shadow = dict(zip(names, state.ema.shadow_params, strict=True))
    write_tensors(part / "ema.safetensors", shadow, header)
    optimizer = io.BytesIO()  # torch.save to a file reports a full disk by another error
    torch.save(state.optimizer.state_dict(), optimizer)
    (part / "optimizer.pt").write_bytes(optimizer.getvalue())
    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
    digest = hashlib.sha256(optimizer.getvalue()).hexdigest()
    loop = {
        "step": step,
        "optimizer_sha256": digest,
        "ema_step": state.ema.optimization_step,
        "scaler": scaler,
        "identity": state.identity,
    }
    (part / "loop.json").write_text(json.dumps(loop), encoding="utf-8")


def find_states(out: Path) -> list[Path]:
    """Complete states in a run's folder, oldest first."""
    return sorted(path.parent for path in out.glob("state-*[0-9]/loop.json"))


def remove_leftovers(out: Path) -> None:
    """Remove incomplete states of a killed process."""
    for part in (*out.glob(".state-*.tmp"), *out.glob(".pipeline.tmp")):
        shutil.rmtree(part, ignore_errors=True)


def load_state(out: Path, state: LoopState) -> int:
    """Load the newest state of ``out`` into the live objects.

    Returns:
        The number of finished steps; 0 if there is no state.

    Raises:
        UserError: the state belongs to a run with another configuration.
    """
    found = find_states(out)
    if not found:
        return 0
    folder = found[-1]
    loop = _loop(folder / "loop.json")
    refuse_other(folder, flat(loop.identity), flat(known_to(loop.identity, state.identity)))
    unet = state.accelerator.unwrap_model(state.unet)
    shapes = {name: tuple(value.shape) for name, value in unet.state_dict().items()}
    remedy = f"Delete {folder} to train from the start"
    unet.load_state_dict(read_tensors(folder / "model.safetensors", shapes, remedy))
    names = [name for name, _ in state.named_parameters()]
    shadow = read_tensors(folder / "ema.safetensors", {name: shapes[name] for name in names}, remedy)
    device = state.accelerator.device
    state.ema.shadow_params = [shadow[name].to(device) for name in names]
    state.ema.optimization_step = loop.ema_step
    _load_optimizer(folder / "optimizer.pt", state, loop.optimizer_sha256, remedy)
    if state.accelerator.scaler is not None and loop.scaler is not None:
        state.accelerator.scaler.load_state_dict(loop.scaler)
    return loop.step


def known_to(record: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity as a run's record has it: those of version 0.1 lack the network's settings."""
    return {name: value for name, value in identity.items() if name != "network" or name in record}


class Loop(Strict):
    """A state's ``loop.json``: its position, and the identity that it must have."""

    step: int = Field(ge=0)
    ema_step: int = Field(ge=0)
    scaler: dict[str, Any] | None
    identity: dict[str, Any]
    optimizer_sha256: str | None = None


def _loop(path: Path) -> Loop:
    try:
        return Loop.model_validate(read_record(path))
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {faults(error, most=1)}. Delete {path.parent} to start again") from error


def _load_optimizer(path: Path, state: LoopState, digest: str | None, remedy: str) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. {remedy}") from error
    if digest not in (None, hashlib.sha256(content).hexdigest()):
        raise UserError(f"{path} is damaged: its checksum is wrong. {remedy}")
    try:
        stored = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # Adam moves it
        state.optimizer.load_state_dict(stored)
    except (pickle.UnpicklingError, EOFError, RuntimeError, LookupError, ValueError, TypeError) as error:
        # A state of an earlier version has no checksum, and torch has no specific error for a damaged file.
        raise UserError(f"{path} is damaged: {error}. {remedy}") from error


def flat(identity: dict[str, Any]) -> dict[str, Any]:
    """Flatten an identity to one level, so that a message names only the settings that differ."""
    flat: dict[str, Any] = {}
    for key, value in identity.items():
        flat |= {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
    return flat
