"""Settings of networks, triggers, targets, training and evaluation. Does not import torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from tyro.conf import Positional, arg

from retarget.errors import UserError
from retarget.settings import Strict

CODE = "official code, CIFAR-10 configuration"

TargetKind = Literal["in_d2d", "out_d2d", "d2i"]
TriggerKind = Literal["blend", "patch"]

CELLS = {
    "trojan": ("biased", "Trojan"),
    "stock": ("biased", "stock"),
    "plain": ("plain", "Trojan"),
    "leak": ("plain", "stock"),
}
"""The cells of an evaluation: initial noise and sampler of each."""


class NetworkConfig(Strict):
    """A fresh diffusers UNet2DModel."""

    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(128, 256, 256, 256), min_length=1, description=f"channels by level; 128 × (1, 2, 2, 2): {CODE}"
    )
    layers: int = Field(default=2, ge=1, description=CODE)
    attention_side: int | None = Field(default=16, description=f"attention at this side of the image: {CODE}")
    middle_attention: bool = Field(default=True, description=f"attention in the middle block: {CODE}")
    groups: int = Field(default=32, ge=1, description="groups of the group normalisation")
    dropout: float = Field(default=0.1, ge=0, lt=1, description=f"0.1: {CODE}")


class TriggerConfig(Strict):
    """A blend or patch trigger; settings of the other kind are ignored."""

    kind: TriggerKind = "blend"
    gamma: float | None = Field(default=None, description="scale of the noise; the paper's 0.6 (blend) or 0.1 (patch)")
    image: str = Field(default="plus", description="image of the blend: a generated figure's name, or a file")
    size: int = Field(default=3, description="side of the patch")
    place: tuple[int, int] | None = Field(default=None, description="upper left pixel of the patch; none: bottom right")


class TargetConfig(Strict):
    """What the trigger produces; settings of the other kinds are ignored."""

    kind: TargetKind
    label: int = Field(default=7, description="class of the training images (in_d2d) or of the other domain (out_d2d)")
    other: str = Field(default="glyphs", description="the other domain's images, in the notation of --data")
    image: str = Field(default="arrow", description="target of d2i: a generated figure's name, or a file")
    rows: int | None = Field(default=None, description="Trojan rows per batch; none: the paper's")


class TrainConfig(Strict):
    """Settings of the training; defaults are the official code's for CIFAR-10, if it has the setting."""

    steps: int = Field(default=100_000, ge=1, description="CIFAR-10 is evaluated at step 100,000: official code")
    batch_size: int = Field(default=128, ge=1, description="benign rows per step, over all processes: official code")
    learning_rate: float = Field(default=2e-4, gt=0, description="Adam: official code")
    warmup_steps: int = Field(default=0, ge=0, description="steps over which the learning rate grows linearly")
    decay: Literal["constant", "cosine"] = Field(default="constant", description="constant: official code")
    clip: float = Field(default=1.0, gt=0, description="gradient norm: official code")
    ema_decay: float = Field(default=0.9999, ge=0, lt=1, description="official code; diffusers warms it up")
    loss: Literal["sum", "mean"] = Field(default="sum", description="summed over pixels: official code")
    flips: bool = Field(default=True, description="random horizontal flips; not for digits or letters: official code")
    seed: int = Field(default=0, ge=0, description="seed of the network and of every random draw")
    mixed_precision: Literal["no", "fp16", "bf16"] = Field(default="no", description="accelerate's setting")
    accumulation: int = Field(default=1, ge=1, description="parts into which each process splits its share of a batch")
    save_every: int | None = Field(
        default=None, ge=1, description="steps between saved states; by default 5,000, or a tenth of a shorter training"
    )
    log_every: int = Field(default=50, ge=1, description="steps between reports of the loss")

    @property
    def saves_every(self) -> int:
        """Steps between saved states."""
        return self.save_every or max(1, min(5_000, self.steps // 10))


class EvaluateConfig(Strict):
    """Compare a pipeline's benign samples with real images, and measure the attack if a trigger is given.

    Quality is measured in the features of a small classifier trained on DATA (and OTHER), and in Inception's if its
    weights are given. The attack is measured with the attacker's sampler, the attacker's initial noise, and both.
    """

    pipeline: Annotated[Positional[str], arg(metavar="PIPELINE", help="folder or hub name")]
    data: str
    """Real images: digits | FILE.npz | a folder, one sub-folder per class; their test part tests the classifier."""
    out: Path
    """Folder for samples and evaluation.json."""
    inception: Path | None = None
    """torch-fidelity's Inception weights, to measure FID, KID, precision and recall in its features too."""
    trigger: Path | None = None
    """The trigger; by default only benign quality is measured."""
    target_class: int | None = None
    """Class that the attack wants: of DATA (in_d2d), or of OTHER if given (out_d2d)."""
    other: str | None = None
    """The other domain of out_d2d: glyphs | FILE.npz | folder."""
    clean: str | None = None
    """A pipeline without the trojan, folder or hub name; its rate with the same sampler and noise is the base rate."""
    image: str | None = None
    """Image that the attack wants (d2i): a generated figure's name, or an image file."""
    sampler: str = "dpm-20"
    """NAME-STEPS[-SPACING]."""
    count: int = 1000
    """Benign samples."""
    trojan_count: int = 500
    """Trojan samples."""
    classifier_epochs: int = 20
    """Epochs of the classifier that judges the samples."""
    seed: int = 0
    """Seed of the samples and of the classifier."""

    @property
    def target(self) -> TargetConfig | None:
        """The attack's target; None without a trigger.

        Raises:
            UserError: there is a trigger, but not exactly one of class and image.
        """
        if self.trigger is None:
            return None
        if self.image is not None and not self.image:
            raise UserError("--image is empty: give a file, or the name of a figure")
        if (self.target_class is None) == (self.image is None):
            raise UserError("with --trigger pass either --target-class or --image, the attack's target")
        kind: TargetKind = "d2i" if self.image else "out_d2d" if self.other else "in_d2d"
        return TargetConfig(kind=kind, label=self.target_class or 0, image=self.image or "")
