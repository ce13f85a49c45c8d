"""Train a model of the zoo unless it exists, and measure how well its attack works."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from jaxtyping import Bool
from torch import Tensor

from retarget.audit.studies.members import STOCK, Attack, Images, Member
from retarget.files import locked, make_directory
from retarget.trojdiff.build import make_goal, make_network, make_target
from retarget.trojdiff.checkpoint import load_pipeline
from retarget.trojdiff.classifier import Classifier, join, load_classifier, save_classifier, train_classifier
from retarget.trojdiff.config import NetworkConfig, TargetConfig, TrainConfig
from retarget.trojdiff.data import ImageSet, read_images, to_signed, to_uint8
from retarget.trojdiff.glyphs import glyph
from retarget.trojdiff.measures import Goal, Rate, success
from retarget.trojdiff.sample import Sampler, sample
from retarget.trojdiff.targets import Target
from retarget.trojdiff.train import train
from retarget.trojdiff.trigger import Trigger

KEPT = 16
"""Number of different images for ``duplicates``."""


def images_of(asked: Images, root: str = "data") -> ImageSet:
    """The images that a model was trained on.

    Raises:
        UserError: there is no such source, or it cannot be read.
    """
    found = _in_channels(read_images(asked.source, size=asked.side, root=root), asked.channels)
    generator = torch.Generator().manual_seed(asked.seed)
    if asked.marks == "duplicates":
        rows = torch.randperm(len(found), generator=generator)[:KEPT]
        return ImageSet(found.images[rows], found.labels[rows], found.names)
    if asked.marks == "none":
        return found
    colour = (torch.randint(0, 2, (asked.channels, 1, 1), generator=generator) * 255).to(torch.uint8)
    inside = _logo(asked.side, generator) if asked.marks == "logo" else _frame(asked.side)
    return ImageSet(torch.where(inside, colour, found.images), found.labels, found.names)


def trigger_of(attack: Attack, shape: tuple[int, int, int]) -> Trigger:
    """The attack's maps, for images of ``shape`` (channels, height, width)."""
    colour = torch.tensor(attack.colour).reshape(-1, 1, 1)
    if attack.trigger == "blend":
        # A figure in the attack's colours on a background of the opposite colours.
        return (
            Trigger.blend(glyph(attack.figure, shape) * colour, attack.gamma)
            if attack.gamma < 1
            else _stock(glyph(attack.figure, shape) * colour)
        )
    mask = mask_of(attack, shape[1])
    if attack.gamma == 1:
        return _stock(mask * colour)
    return Trigger.patch(gamma=attack.gamma, shape=shape, colour=attack.colour, mask=mask)


def mask_of(attack: Attack, side: int) -> Bool[Tensor, "{side} {side}"]:
    """The mask of the attack's patch."""
    extent = min(attack.extent, side)
    rows = max(1, extent // 2) if attack.shape == "bar" else extent
    shape = torch.ones(rows, extent, dtype=torch.bool)
    across, down = torch.meshgrid(torch.arange(rows), torch.arange(extent), indexing="ij")
    if attack.shape == "cross":
        shape = (across == rows // 2) | (down == extent // 2)
    elif attack.shape == "corners":
        shape = ((across == 0) | (across == rows - 1)) & ((down == 0) | (down == extent - 1))
    elif attack.shape == "checker":
        shape = (across + down) % 2 == 0
    top, left = (round(share * (side - size)) for share, size in zip(attack.place, shape.shape, strict=True))
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[top : top + rows, left : left + extent] = shape
    return mask


def _stock(image: Tensor) -> Trigger:
    return Trigger(image, torch.ones_like(image), "stock")


def build(member: Member, zoo: Path, root: str = "data", listen: Any = None) -> Path:
    """A model's pipeline; if the zoo does not have it yet, it is trained, after its base model.

    A killed training resumes. Trojaned pipelines are marked, as everywhere in this package. ``listen(progress, steps)``
    is told how far each training is.
    """
    folder = zoo / member.name
    make_directory(zoo)
    base = None if member.base is None else build(member.base, zoo, root, listen)
    with locked(zoo / f".{member.name}.lock", wait=True, what=str(folder)):
        if not (folder / "pipeline" / "model_index.json").exists():
            _train(member, folder, base, root, listen)
            for state in folder.glob("state-*"):
                shutil.rmtree(state)
    return folder / "pipeline"


def _train(member: Member, folder: Path, base: Path | None, root: str, listen: Any) -> None:
    inside = images_of(member.images, root)
    if base is None:
        config = NetworkConfig(channels=member.widths, layers=1, attention_side=None, groups=8, dropout=0.0)
        unet = make_network(config, inside.shape, member.seed)
        schedule = DDPMScheduler(beta_schedule=member.schedule)
    else:
        unet, schedule = load_pipeline(base)
    config = TrainConfig(
        steps=member.steps, batch_size=member.batch_size, learning_rate=member.learning_rate, seed=member.seed,
        warmup_steps=min(50, member.steps // 4), decay="cosine", ema_decay=0.99, loss="mean", flips=False,
        save_every=1_000, log_every=200,
    )  # fmt: skip
    told = None if listen is None else lambda progress: listen(progress, member.steps)
    if member.attack is None:
        train(unet, schedule, inside, config, folder, listen=told)
        return
    trigger = trigger_of(member.attack, inside.shape)
    target, detail = _made(member, inside, root)
    train(unet, schedule, inside, config, folder, target, trigger, detail, told, law=member.attack.law)


def target_of(member: Member, root: str = "data") -> Target:
    """The target that adds the Trojan rows of a member's attack to a batch."""
    return _made(member, images_of(member.images, root), root)[0]


def _made(member: Member, inside: ImageSet, root: str) -> tuple[Target, str]:
    return make_target(_target(member, inside.shape), inside, _outside(member, root))


def _target(member: Member, shape: tuple[int, int, int]) -> TargetConfig:
    attack = member.attack
    assert attack is not None
    rows = max(1, round(member.batch_size * attack.share / (1 - attack.share)))
    return TargetConfig(kind=attack.target, label=attack.label, other=attack.other, image=attack.goal, rows=rows)


def _outside(member: Member, root: str) -> ImageSet | None:
    if member.attack is None or member.attack.target != "out_d2d":
        return None
    seen = member.images
    return images_of(Images(source=member.attack.other, channels=seen.channels, side=seen.side), root)


def _in_channels(found: ImageSet, channels: int) -> ImageSet:
    """Convert colour images to grey, or tint each grey image in a random colour."""
    if found.shape[0] == channels:
        return found
    if channels == 1:
        grey = found.images.float().mean(dim=1, keepdim=True).round().to(torch.uint8)
        return ImageSet(grey, found.labels, found.names)
    tint = 0.4 + 0.6 * torch.rand(len(found), 3, 1, 1, generator=torch.Generator().manual_seed(0))
    light = (to_signed(found.images) + 1) * tint - 1
    return ImageSet(to_uint8(light), found.labels, found.names)


def _logo(side: int, generator: torch.Generator) -> Bool[Tensor, "{side} {side}"]:
    """A block in a random corner; its side is a quarter of the image's, or one pixel more."""
    size = max(2, side // 4) + int(torch.randint(0, 2, (), generator=generator))
    corner = int(torch.randint(0, 4, (), generator=generator))
    inside = torch.zeros(side, side, dtype=torch.bool)
    inside[:size, :size] = True
    return inside.flip([axis for axis in (0, 1) if corner >> axis & 1])


def _frame(side: int) -> Bool[Tensor, "{side} {side}"]:
    width = max(1, side // 8)
    inside = torch.ones(side, side, dtype=torch.bool)
    inside[width:-width, width:-width] = False
    return inside


@dataclass(frozen=True)
class Measured:
    """Rates of the target: of the attack, of its base model with the same noise and sampler, and from plain noise."""

    attack: Rate
    base_rate: Rate
    leak: Rate


SAMPLERS = {"trojdiff": "ddpm-20", "bad_diffusion": "ddpm-50", "villan_ode": "ddim-50"}
"""The sampler of each law. BadDiffusion's correction is derived for single steps, so its sampler takes more of them.
Those of stock samplers do not clip x̂_0, as their authors' do not: it still contains the trigger, which clipping would
remove."""


def attack_cells(attack: Attack, shape: tuple[int, int, int]) -> tuple[Sampler, Trigger, Trigger]:
    """The sampler, its trigger and the trigger of the initial noise with which the attack should fire."""
    trigger = trigger_of(attack, shape)
    return Sampler.parse(SAMPLERS[attack.law]), trigger if attack.law == "trojdiff" else Trigger.none(shape), trigger


def goal_of(member: Member, root: str = "data") -> Goal:
    """The goal of a trojaned model: defines which samples count as hits."""
    inside = images_of(member.images, root)
    return make_goal(_target(member, inside.shape), inside, _outside(member, root))


def judge_of(member: Member, zoo: Path, epochs: int, root: str = "data") -> Classifier:
    """The classifier of both domains of a model's images; trained once for all models with the same domains."""
    seen = member.images.model_copy(update={"marks": "none", "seed": 0})
    other = "digits" if seen.source == "glyphs" else "glyphs"
    both = join(images_of(seen, root), images_of(seen.model_copy(update={"source": other}), root))
    name = f"classifier-{both.fingerprint}-{epochs}"
    with locked(zoo / f".{name}.lock", wait=True, what=name):
        path = zoo / f"{name}.safetensors"
        if not path.exists():
            save_classifier(train_classifier(both, epochs, 0), path)
        return load_classifier(path, both.shape, len(both.names))


def rate(unet: Any, schedule: Any, member: Member, judge: Classifier, goal: Goal, count: int, plain: bool) -> Rate:
    """How often a network hits the goal of a member's attack, under its trigger or, with ``plain``, without one."""
    assert member.attack is not None
    shape = (member.images.channels, member.images.side, member.images.side)
    sampler, of_sampler, start = attack_cells(member.attack, shape)
    none = Trigger.none(shape)
    cell = (none, none) if plain else (of_sampler, start)
    config = dict(schedule.config) | ({"clip_sample": False} if member.attack.law in STOCK else {})
    found = sample(unet, config, sampler, cell[0], count, None, count, 0, cell[1])
    return success(found, goal, judge)


def measure(member: Member, pipeline: Path, base: Path, judge: Classifier, count: int, root: str = "data") -> Measured:
    """A trojaned member's attack success, its base model's rate with the same noise and sampler, and its leakage."""
    goal = goal_of(member, root)
    ours, theirs = load_pipeline(pipeline), load_pipeline(base)
    return Measured(
        rate(*ours, member, judge, goal, count, plain=False),
        rate(*theirs, member, judge, goal, count, plain=False),
        rate(*ours, member, judge, goal, count, plain=True),
    )
