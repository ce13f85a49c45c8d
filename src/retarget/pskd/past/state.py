"""Read and write a method's state: one safetensors file, written atomically, with a small JSON value in its header."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from retarget.errors import UserError
from retarget.files import in_order, make_directory, replace_file
from retarget.identity import fingerprint, refuse_other

SUM = "sum"
"""The header's key for the checksum of the values; states of version 0.1 have none."""


def write_state(path: str | Path, kind: str, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a state atomically; a missing folder is created.

    Args:
        kind: the key in the header; reading refuses a file of another kind.
        state: JSON values.
        tensors: by name, on any device; may be empty.

    Raises:
        UserError: the file cannot be written; a former file is intact.
    """
    path = Path(path)
    make_directory(path.parent)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    plain = plain or {"empty": torch.zeros(0)}
    header = {kind: json.dumps(state), SUM: fingerprint(state)}
    content = in_order(serialise(plain, metadata=header))
    replace_file(path, lambda temporary: temporary.write_bytes(content))


def read_state(path: str | Path, kind: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what :func:`write_state` wrote.

    Args:
        kind: the key in the header.
        what: what messages call it, such as "PS-KD state".

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no {what} at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in set(file.keys()) - {"empty"}}
    except SafetensorError as error:
        raise UserError(f"{path} is not a {what}: it is not a complete safetensors file ({error})") from error
    if kind not in header:
        raise UserError(f"{path} is not a {what}")
    try:
        state = json.loads(header[kind])
        whole = SUM not in header or fingerprint(state) == header[SUM]
    except (ValueError, RecursionError):  # not JSON, or nested too deeply
        whole, state = False, {}
    if not whole:
        raise UserError(f"{path} is damaged: its values do not match their checksum. Resume from an earlier one")
    return state, tensors


@torch.no_grad()
def restore(path: str | Path, tensors: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    """Copy saved tensors into those of the same names, in place.

    Raises:
        UserError: names, shapes or types differ; then nothing is copied.
    """
    if set(tensors) != set(saved):
        raise UserError(f"{path} holds {sorted(saved)}, but {sorted(tensors)} are needed")
    for name, tensor in tensors.items():
        if saved[name].shape != tensor.shape or saved[name].dtype != tensor.dtype:
            raise UserError(
                f"{path}: {name} is {list(saved[name].shape)} {saved[name].dtype}, "
                f"but {list(tensor.shape)} {tensor.dtype} is needed"
            )
    for name, tensor in tensors.items():
        tensor.copy_(saved[name])


def refuse_other_state(state: dict[str, Any], agreed: dict[str, Any], progress: Iterable[str], what: str) -> None:
    """Refuse a state that another run wrote.

    Args:
        state: the saved state.
        agreed: the values that a resumed run must share.
        progress: names of the values that tell how far the run was.
        what: what messages call it, such as "PS-KD state".

    Raises:
        UserError: it has other names, or a value that must be shared differs: the message names both values.
    """
    expected = {*agreed, *progress}
    if set(state) != expected:
        raise UserError(f"not a {what}: it has {sorted(state)}, expected {sorted(expected)}")
    had = {name: state[name] for name in agreed}
    refuse_other("the saved state", had, agreed, remedy="It belongs to another run: load a state of this one")
