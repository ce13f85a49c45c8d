"""Pretrained networks: weights from a file, or an image classifier of transformers from a folder."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from retarget.errors import UserError
from retarget.extras import require
from retarget.files import is_there


def load_weights(network: nn.Module, path: str, num_classes: int) -> None:
    """Load a network's weights from a safetensors file. With another number of classes the last layer stays new.

    Args:
        network: changed in place.
        path: a file written by ``timm`` or ``safetensors.torch.save_model``.
        num_classes: C; only parameters whose first dimension is C may differ, and only in that dimension.

    Raises:
        UserError: the file is missing or not a safetensors file, or its weights do not fit; the message names some.
    """
    if not is_there(path) or not Path(path).is_file():
        raise UserError(f"weights = {path!r}: there is no such file")
    try:
        given = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"weights = {path!r} is not a safetensors file ({error}). Pickles are never read: convert one with "
            "safetensors.torch.save_file(model.state_dict(), path)"
        ) from error
    own = network.state_dict()
    missing, strange = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or strange:
        lacks = f"it lacks {_some(missing)}" if missing else ""
        more = f"has {_some(strange)}, which the network lacks" if strange else ""
        raise UserError(f"weights = {path!r} belong to another network: {' and '.join(filter(None, (lacks, more)))}")
    new = [name for name, value in own.items() if given[name].shape != value.shape]
    wrong = [name for name in new if not _is_of_classes(own[name], given[name], num_classes)]
    if wrong:
        shapes = f"{list(given[wrong[0]].shape)} there and {list(own[wrong[0]].shape)} in the network"
        raise UserError(f"weights = {path!r}: {wrong[0]} is {shapes}")
    network.load_state_dict({name: own[name] if name in new else value for name, value in given.items()})


def _is_of_classes(own: Tensor, given: Tensor, num_classes: int) -> bool:
    return own.ndim == given.ndim > 0 and own.shape[0] == num_classes and own.shape[1:] == given.shape[1:]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class FromFolder(nn.Module):
    """An image classifier of transformers that maps images to logits [B, C], as the study's networks do.

    Args:
        folder: written by ``save_pretrained``. With another number of classes the last layer is new.
        num_classes: C.

    Raises:
        UserError: the folder holds no image classifier.
    """

    def __init__(self, folder: str, num_classes: int) -> None:
        super().__init__()
        transformers = require("transformers", "text")
        if not is_there(Path(folder) / "config.json"):
            raise UserError(f"network = 'hf:{folder}': it has no config.json; save_pretrained(DIR) writes one")
        try:
            self.model: Any = transformers.AutoModelForImageClassification.from_pretrained(
                folder, num_labels=num_classes, ignore_mismatched_sizes=True, local_files_only=True, dtype=torch.float32
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"network = 'hf:{folder}' is not an image classifier of transformers: {error}") from error

    def forward(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=images).logits
