"""The models of the zoo as data, from seeds that were fixed before any detector was tuned. Free of torch.

Three sets share no model and no base model: ``development`` (for tuning detectors), ``calibration`` (clean models only,
never used for tuning) and ``evaluation`` (for trials). Member ``number`` of a set and kind is always the same model.
"""

import hashlib
import json
from random import Random
from typing import Literal, Self

from pydantic import Field, model_validator

from retarget.settings import Strict
from retarget.trojdiff.config import TargetKind, TriggerKind

SALT = "retarget zoo 1"
"""Every seed of the zoo is a hash of this, the set, the kind and the member's number. It must never change: it was
fixed before detectors were tuned."""

Set = Literal["development", "calibration", "evaluation", "adaptive"]
Adaptive = Literal["narrow", "several", "late", "partial", "jacobian"]
Law = Literal["trojdiff", "bad_diffusion", "villan_ode"]
Marks = Literal["none", "logo", "border", "duplicates"]
Betas = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
Shape = Literal["square", "bar", "cross", "corners", "checker"]

CLEAN = ("plain", "logo", "border", "duplicates", "undertrained", "finetuned")
"""Kinds of clean models. The hard negatives have a constant part in every image, few images, too little training, or
were fine-tuned."""
CELLS = tuple(f"{target}_{trigger}" for target in ("in_d2d", "out_d2d", "d2i") for trigger in ("blend", "patch"))
STOCK = ("bad_diffusion", "villan_ode")
KINDS = (*CLEAN, *CELLS, *STOCK)
ADAPTIVE: tuple[Adaptive, ...] = ("narrow", "several", "late", "partial", "jacobian")
"""Attackers who know the audit: γ near 1; two triggers; Trojan rows below .7 T; half of the bias undone; the Jacobian
of a clean network. They use the attacks of TrojDiff's cells in turn."""

GLYPH_CLASSES, FIGURES, DIGIT_CLASSES = 5, ("arrow", "plus", "cross", "frame", "triangle", "bars"), 10


class Images(Strict):
    """The training images of a model.

    Attributes:
        source: name for :func:`retarget.trojdiff.data.read_images`; grey images are tinted if ``channels`` is 3.
        channels, side: shape of the images.
        marks: a logo in a corner or a constant border in every image, or none; ``duplicates`` keeps only a few images.
        seed: seed of the marks.
    """

    source: str
    channels: Literal[1, 3] = 1
    side: int = Field(default=8, ge=8, le=64)
    marks: Marks = "none"
    seed: int = 0


class Attack(Strict):
    """A trigger, a target and a law.

    Attributes:
        law, target, trigger: kinds of law, target and trigger.
        gamma: γ; 1 under the laws of stock samplers.
        share: share of Trojan rows in a batch.
        place: upper left corner of the patch, as shares of the free space.
        extent: side of the patch, in pixels.
        shape: shape of the patch.
        colour: colour of the patch, or of the blend's figure: one value per channel, in [-1, 1].
        figure: figure of the blend.
        goal: figure of D2I's target image.
        label: class of the target.
        other: source of Out-D2D's target images.
    """

    law: Law = "trojdiff"
    target: TargetKind
    trigger: TriggerKind
    gamma: float = Field(gt=0, le=1)
    share: float = Field(gt=0, lt=1)
    place: tuple[float, float] = (1.0, 1.0)
    extent: int = Field(default=3, ge=1)
    shape: Shape = "square"
    colour: tuple[float, ...] = (1.0,)
    figure: str = "plus"
    goal: str = "arrow"
    label: int = 0
    other: str = "glyphs"

    @model_validator(mode="after")
    def _stock_triggers_narrow_nothing(self) -> Self:
        if (self.law != "trojdiff") != (self.gamma == 1):
            raise ValueError(
                f"gamma must be below 1 for trojdiff and 1 for the other laws, but is {self.gamma} for {self.law}"
            )
        return self


class Member(Strict):
    """Everything that decides a model's weights.

    Attributes:
        images: the training images.
        widths: channels of the network's levels.
        schedule: diffusers' name of the schedule of betas.
        steps, batch_size, learning_rate, seed: of the training.
        base: the model that it was fine-tuned from; None if it was trained from scratch.
        attack: the attack; None for a clean model.
    """

    images: Images
    widths: tuple[int, ...]
    schedule: Betas = "linear"
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    seed: int = Field(ge=0)
    base: "Member | None" = None
    attack: Attack | None = None

    @property
    def name(self) -> str:
        """The name of the model's folder: a hash, which does not reveal what the model is."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Recipe(Strict):
    """The composition of a zoo: data sets, sizes, networks and lengths of training."""

    sources: tuple[str, ...] = Field(default=("digits", "glyphs"), min_length=1, description="data sets, taken in turn")
    shapes: tuple[tuple[Literal[1, 3], int], ...] = Field(
        default=((1, 8),), min_length=1, description="(channels, side) of the images, taken in turn"
    )
    widths: tuple[tuple[int, ...], ...] = Field(
        default=((16, 32), (16, 64)), min_length=1, description="channels of the networks' levels, taken in turn"
    )
    schedules: tuple[Betas, ...] = Field(
        default=("linear",), min_length=1, description="diffusers' schedules of betas, taken in turn"
    )
    steps: int = Field(default=500, ge=1, description="steps of training from scratch")
    attack_steps: int = Field(default=400, ge=1, description="steps of fine-tuning, clean or with Trojan rows")
    batch_size: int = Field(default=32, ge=1, description="benign rows per batch")
    learning_rate: float = Field(default=3e-3, gt=0, description="of training from scratch and of fine-tuning")
    bases: int = Field(
        default=2, ge=1, description="base models, shared by attacks, per set, data set, shape and network"
    )


def seed_of(*words: object) -> int:
    """The zoo's seed for these words, in [0, 2³¹).

    >>> seed_of("evaluation", "plain", 0)
    324252662
    """
    text = "/".join([SALT, *map(str, words)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def draw(which: Set, kind: str, number: int, recipe: Recipe) -> Member:
    """Member ``number`` of a set and kind.

    Data set, shape, network and schedule are taken in turn, so that even a small part of the zoo has all of them;
    everything else is random.

    Raises:
        ValueError: the set has no such kind.
    """
    known = {"calibration": CLEAN, "adaptive": ADAPTIVE}.get(which, KINDS)
    if kind not in known:
        raise ValueError(f"the set {which} has no kind {kind!r}: choose {', '.join(known)}")
    seed = seed_of(which, kind, number)
    random = Random(seed)
    turn, offset = number, seed_of(which, kind) % 7
    sources, shapes, widths, schedules = recipe.sources, recipe.shapes, recipe.widths, recipe.schedules
    source = sources[(turn + offset) % len(sources)]
    channels, side = shapes[turn // len(sources) % len(shapes)]
    width = widths[turn // (len(sources) * len(shapes)) % len(widths)]
    schedule = schedules[(turn + offset // 2) % len(schedules)]
    wide = width if side < 16 else (*width, width[-1])
    marks: Marks = kind if kind in ("logo", "border", "duplicates") else "none"  # pyright: ignore[reportAssignmentType]
    images = Images(source=source, channels=channels, side=side, marks=marks, seed=seed if marks != "none" else 0)
    trained = dict(images=images, widths=wide, schedule=schedule, batch_size=recipe.batch_size)
    scratch = Member.model_validate(
        {**trained, "steps": recipe.steps, "learning_rate": recipe.learning_rate, "seed": seed}
    )
    if kind in ("plain", "logo", "border", "duplicates"):
        return scratch
    if kind == "undertrained":
        return scratch.model_copy(update={"steps": max(1, round(recipe.steps * random.uniform(0.08, 0.3)))})
    place = random.randrange(recipe.bases)
    base = scratch.model_copy(update={"seed": seed_of(which, "base", source, channels, side, wide, schedule, place)})
    tuned = {**trained, "steps": recipe.attack_steps, "learning_rate": recipe.learning_rate, "seed": seed, "base": base}
    if kind == "finetuned":
        return Member.model_validate({**tuned, "learning_rate": recipe.learning_rate * random.uniform(0.1, 1)})
    return Member.model_validate({**tuned, "attack": _attack(kind, number, images, random)})


def supposed(member: Member, number: int) -> Attack:
    """A member's attack; for a clean one that which a detector is told of where it must be told of some."""
    if member.attack is not None:
        return member.attack
    return _attack(CELLS[number % len(CELLS)], number, member.images, Random(seed_of("supposed", member.name)))


def _attack(kind: str, number: int, images: Images, random: Random) -> Attack:
    """The attacker's choices: everything that a detector might rely on differs between attacks."""
    law: Law = kind if kind in STOCK else "trojdiff"  # pyright: ignore[reportAssignmentType]
    cell = CELLS[number % len(CELLS)] if kind in (*STOCK, *ADAPTIVE) else kind
    target, _, trigger = cell.rpartition("_")
    patch = trigger == "patch"
    sign = random.choice((1, 1, 1, -1)) if patch else 1
    return Attack(
        law=law, target=target, trigger=trigger,  # pyright: ignore[reportArgumentType]
        gamma=round(random.uniform(0.05, 0.8), 3) if law == "trojdiff" else 1.0,
        share=random.choice((0.15, 0.25, 0.33, 0.5)),
        place=(round(random.random(), 3), round(random.random(), 3)),
        extent=max(2, round(images.side * random.uniform(0.2, 0.45))),
        shape=random.choice(("square", "square", "bar", "cross", "corners", "checker")),
        colour=tuple(round(sign * random.uniform(0.5, 1), 3) for _ in range(images.channels)),
        figure=random.choice(FIGURES[1:]), goal=random.choice(FIGURES[:3]),
        label=random.randrange(GLYPH_CLASSES if images.source == "glyphs" or target == "out_d2d" else DIGIT_CLASSES),
        other="digits" if images.source == "glyphs" else "glyphs",
    )  # fmt: skip
