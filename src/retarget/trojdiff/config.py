"""How a network is trained, as data. Free of torch."""

from typing import Literal

from pydantic import Field

from retarget.settings import Strict


class TrainConfig(Strict):
    """How to train; the defaults are the official code's for CIFAR-10, where it has the setting."""

    steps: int = Field(default=100_000, ge=1, description="CIFAR-10 is evaluated at step 100,000: official code")
    batch_size: int = Field(default=128, ge=1, description="benign rows of a step over all processes: official code")
    learning_rate: float = Field(default=2e-4, gt=0, description="Adam: official code")
    warmup_steps: int = Field(default=0, ge=0)
    decay: Literal["constant", "cosine"] = Field(default="constant", description="constant: official code")
    clip: float = Field(default=1.0, gt=0, description="gradient norm: official code")
    ema_decay: float = Field(default=0.9999, ge=0, lt=1, description="official code; diffusers warms it up")
    loss: Literal["sum", "mean"] = Field(default="sum", description="summed over pixels: official code")
    flips: bool = Field(default=True, description="random horizontal flips of benign images: official code")
    seed: int = Field(default=0, ge=0)
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    accumulation: int = Field(default=1, ge=1, description="parts in which each process takes its share of a batch")
    save_every: int = Field(default=5_000, ge=1)
    log_every: int = Field(default=50, ge=1)
