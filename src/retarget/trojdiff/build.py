"""What a run of the TrojDiff study is made of: data, network, trigger, target, goal, and the gate before it."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from retarget.errors import UserError
from retarget.trojdiff.data import ImageSet, read_images, to_signed
from retarget.trojdiff.evaluate import Goal
from retarget.trojdiff.glyphs import glyph
from retarget.trojdiff.studies.plan import Settings
from retarget.trojdiff.targets import D2I, InD2D, OutD2D, Target
from retarget.trojdiff.trigger import Trigger


@dataclass(frozen=True)
class World:
    """The data of a study: the training set, the other domain, and what decides the joint classifier."""

    inside: ImageSet
    outside: ImageSet
    inside_test: ImageSet
    outside_test: ImageSet

    @classmethod
    def read(cls, settings: Settings) -> "World":
        """Read both domains at the study's size, in the training set's channels."""
        inside, inside_test = (
            read_images(settings.dataset, split, settings.size, settings.root) for split in ("train", "test")
        )
        outside, outside_test = (
            read_images(settings.other, split, settings.size, settings.root).with_channels(inside.shape[0])
            for split in ("train", "test")
        )
        return cls(inside.first(settings.train_images), outside, inside_test, outside_test)


def make_network(settings: Settings, shape: tuple[int, int, int], seed: int) -> UNet2DModel:
    """A fresh UNet, its weights from the seed."""
    network = settings.network
    sides = [shape[1] >> level for level in range(len(network.channels))]
    kinds = ["Attn" if side == network.attention_side else "" for side in sides]
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=shape[1], in_channels=shape[0], out_channels=shape[0], layers_per_block=network.layers,
        block_out_channels=network.channels, norm_num_groups=network.groups, dropout=network.dropout,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        add_attention=network.middle_attention,
    )  # fmt: skip


def make_trigger(settings: Settings, kind: str, shape: tuple[int, int, int]) -> Trigger:
    """The study's blend or patch trigger."""
    if kind == "blend":
        return Trigger.blend(glyph(settings.blend_image, shape), settings.blend_gamma)
    return Trigger.patch(settings.patch_size, settings.patch_gamma, shape)


def make_target(settings: Settings, world: World) -> Target | None:
    """The rows that an attack arm adds; None for the clean fine-tune."""
    rows = trojan_rows(settings)
    if settings.target is None:
        return None
    if settings.target == "in_d2d":
        pool = None if rows is None else to_signed(world.inside.of_class(settings.target_class).images)
        return InD2D(settings.target_class, len(world.inside.names), rows, pool)
    assert rows is not None
    if settings.target == "out_d2d":
        return OutD2D(to_signed(world.outside.of_class(settings.other_class).images), rows)
    return D2I(glyph(settings.image, world.inside.shape), rows)


def trojan_rows(settings: Settings) -> int | None:
    """Trojan rows a batch; None for In-D2D's one a row of the class.

    A share of the whole batch is met by adding rows: batch_size · share / (1 - share) of them, rounded, at least one.
    """
    if settings.trojan_share is not None:
        share = settings.trojan_share
        return max(1, round(settings.finetune.batch_size * share / (1 - share)))
    return {"out_d2d": settings.out_rows, "d2i": settings.image_rows}.get(settings.target or "", settings.in_rows)


def trojan_share(settings: Settings, world: World) -> float:
    """Share of Trojan rows in a batch of an attack; its expectation where In-D2D repeats the rows of the class."""
    benign, rows = settings.finetune.batch_size, trojan_rows(settings)
    if rows is None:
        rows = benign * len(world.inside.of_class(settings.target_class)) / len(world.inside)
    return rows / (benign + rows)


def make_goal(settings: Settings, target: str, world: World) -> Goal:
    """What counts as a hit."""
    if target == "in_d2d":
        return Goal(label=settings.target_class, real=world.inside.of_class(settings.target_class))
    if target == "out_d2d":
        label = len(world.inside.names) + settings.other_class
        return Goal(label=label, real=world.outside.of_class(settings.other_class))
    return Goal(image=glyph(settings.image, world.inside.shape))


def describe(settings: Settings, world: World) -> str:
    """The target in words, for the model card."""
    if settings.target == "in_d2d":
        return f"class {settings.target_class} ({world.inside.names[settings.target_class]}) of the training images"
    if settings.target == "out_d2d":
        return f"class {settings.other_class} ({world.outside.names[settings.other_class]}) of another domain"
    return f"one image, the generated figure {settings.image!r}"


def check_gate(base: Path, settings: Settings) -> None:
    """Raise UserError unless the base model is good enough for "well-trained" to mean something."""
    metrics = json.loads((base / "status.json").read_text(encoding="utf-8"))["metrics"]
    sure, real, precision = metrics["sure_fast"], metrics["sure_real"], metrics["precision_fast"]
    if sure < settings.gate_sure / 100 * real or precision < settings.gate_precision:
        raise UserError(
            f"{base}: the base model does not pass the gate: {sure:.1f} % of its samples have a class (gate "
            f"{settings.gate_sure:g} % of the {real:.1f} % of real images) and their precision is {precision:.1f} % "
            f"(gate {settings.gate_precision:g}); pre-train longer, or set gate_sure and gate_precision and say so"
        )
