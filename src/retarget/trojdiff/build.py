"""Make network, trigger, target and goal from settings, for the verbs and for the study."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from jaxtyping import Float
from torch import Tensor

from retarget.data.pictures import Picture, decode_all
from retarget.errors import UserError
from retarget.trojdiff.checks import check_side
from retarget.trojdiff.config import NetworkConfig, TargetConfig, TriggerConfig
from retarget.trojdiff.data import ImageSet, to_signed
from retarget.trojdiff.glyphs import FIGURES, glyph
from retarget.trojdiff.measures import Goal
from retarget.trojdiff.targets import D2I, InD2D, OutD2D, Target
from retarget.trojdiff.trigger import Trigger

GAMMA = {"blend": 0.6, "patch": 0.1}
"""The paper's γ, section 4.1."""


def make_network(config: NetworkConfig, shape: tuple[int, int, int], seed: int) -> UNet2DModel:
    """A fresh UNet for images of ``shape`` (channels, height, width), its weights from the seed.

    Raises:
        UserError: the levels cannot halve the side, the groups do not divide the channels, or the attention cannot
            divide the channels into heads.
    """
    check_side(shape[1], len(config.channels), "the network")
    odd = [one for one in config.channels if one % config.groups]
    if odd:
        raise UserError(f"the network's {odd[0]} channels are not a multiple of {config.groups} groups: set --groups")
    sides = [shape[1] >> level for level in range(len(config.channels))]
    usual = NetworkConfig.model_fields["attention_side"].default
    if config.attention_side not in (None, usual, *sides):
        raise UserError(
            f"attention at side {config.attention_side}: for images of side {shape[1]} the network's levels have the "
            f"sides {', '.join(map(str, sides))}"
        )
    kinds = ["Attn" if shape[1] >> level == config.attention_side else "" for level in range(len(config.channels))]
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=shape[1], in_channels=shape[0], out_channels=shape[0], layers_per_block=config.layers,
        block_out_channels=config.channels, norm_num_groups=config.groups, dropout=config.dropout,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        add_attention=config.middle_attention,
    )  # fmt: skip


def make_trigger(config: TriggerConfig, shape: tuple[int, int, int]) -> Trigger:
    """The blend or patch trigger for images of ``shape``."""
    gamma = GAMMA[config.kind] if config.gamma is None else config.gamma
    if config.kind == "blend":
        return Trigger.blend(picture(config.image, shape), gamma)
    return Trigger.patch(config.size, gamma, shape, config.place)


def make_target(config: TargetConfig, inside: ImageSet, outside: ImageSet | None) -> tuple[Target, str]:
    """The target, which adds an attack's rows to a batch, and its description for the model card.

    Args:
        inside: the training images.
        outside: the other domain, for Out-D2D.
    """
    fixed: dict[str, Any] = {} if config.rows is None else {"rows": config.rows}
    if config.kind == "d2i":
        return D2I(picture(config.image, inside.shape), **fixed), f"one image, {config.image}"
    members = _members(config, inside, outside)
    named = f"class {config.label} ({members.names[config.label]}) of"
    if config.kind == "out_d2d":
        wanted = members.names[config.label]
        return OutD2D(to_signed(members.images), **fixed, class_name=wanted), f"{named} {config.other}"
    pool = to_signed(members.images) if fixed else None
    return InD2D(config.label, len(inside.names), config.rows, pool), f"{named} the training images"


def make_goal(config: TargetConfig, inside: ImageSet, outside: ImageSet | None) -> Goal:
    """The goal, which tells hits. The joint classifier numbers the other domain's classes after the training set's."""
    if config.kind == "d2i":
        return Goal(image=picture(config.image, inside.shape))
    first = len(inside.names) if config.kind == "out_d2d" else 0
    return Goal(label=first + config.label, real=_members(config, inside, outside))


def _members(config: TargetConfig, inside: ImageSet, outside: ImageSet | None) -> ImageSet:
    """The real images of the class that the attack wants.

    Raises:
        UserError: there is no such class, no other class to tell it from, or the other domain is the training images.
    """
    domain = outside if config.kind == "out_d2d" else inside
    assert domain is not None
    if config.kind == "in_d2d" and len(inside.labels.unique()) < 2:
        raise UserError(
            "the images have one class, so that every sample would be of the target class: put them into one "
            "sub-folder per class, or choose another target than in_d2d"
        )
    if config.kind == "out_d2d" and domain.fingerprint == inside.fingerprint:
        raise UserError("the other domain of out_d2d has the same images as the training set: give another --other")
    return domain.of_class(config.label)


def picture(source: str, shape: tuple[int, int, int]) -> Float[Tensor, "channels height width"]:
    """A generated figure by name, or an image file, resized to ``shape``; in [-1, 1].

    Raises:
        UserError: it is neither a figure nor a file, or the file is not a complete image.
    """
    if source in FIGURES:
        return glyph(source, shape)
    if not Path(source).is_file():
        raise UserError(f"{source} is neither an image file nor one of the figures {', '.join(FIGURES)}")
    from PIL import Image

    (pixels,) = decode_all([Picture(source, Path(source))], shape[0])
    pixels = pixels.transpose(1, 2, 0)
    whole = Image.fromarray(pixels[..., 0] if shape[0] == 1 else pixels)
    fitted = np.array(whole.resize((shape[2], shape[1]), Image.Resampling.BOX))
    fitted = fitted[None] if shape[0] == 1 else fitted.transpose(2, 0, 1)
    return torch.from_numpy(fitted.copy()).float() / 127.5 - 1
