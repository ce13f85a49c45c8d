"""Settings and presets of the image study. Does not import torch."""

from typing import Any, Literal

from pydantic import Field, model_validator

from retarget.data import names
from retarget.own import is_path
from retarget.settings import Share, Strict

SAME_WEIGHTS = ("pskd", "cross_entropy", "smoothing_schedule")
"""Arms whose targets are compared on the weights of the PS-KD arm, to isolate the effect of the targets."""

_CODE = "official code, CIFAR-100 configuration"


class Settings(Strict):
    """Settings of one training run; an arm overrides those of its method."""

    dataset: str = Field(
        description="digits | torchvision:NAME | npz:FILE | folder:DIR | hf:DIR | module:function; see "
        "retarget/data/images.py"
    )
    root: str = Field(default="data", description="folder of torchvision's datasets (downloads missing ones)")
    train_images: int | None = Field(default=None, ge=2, description="stratified subset, validation part included")
    validation_images: int = Field(
        ge=1,
        description="for selection and temperature: stratified, of the data's validation part, or else of train",
    )
    test_images: int | None = Field(default=None, ge=1, description="stratified subset of the test set")
    label_noise: float = Field(default=0.0, ge=0, lt=1, description="share of training labels made wrong")
    data_seed: int = Field(default=2021, ge=0, description="draws subset, split and noise, the same for every seed")
    image_size: int | None = Field(
        default=None,
        ge=1,
        description="resize the middle square of each image to this side; null: do not resize images of one size",
    )
    augmentation: Literal["none", "crop_flip", "trivial", "imagenet"] = Field(
        description=f"none | crop_flip: crop with padding 4, flip: {_CODE} | trivial: also TrivialAugmentWide, "
        "Müller and Hutter 2021, for grey or RGB | imagenet: resized crop, flip, colours, for grey or RGB; the "
        "official code's image_size is 224"
    )
    network: str = Field(
        description="a name, timm:NAME, hf:DIR or module:function; see retarget/pskd/studies/images/networks.py"
    )
    epochs: int = Field(ge=1, description=f"300: {_CODE}")
    batch_size: int = Field(default=128, ge=2, description=_CODE)
    lr: float = Field(default=0.1, gt=0, description=_CODE)
    momentum: float = Field(default=0.9, ge=0, lt=1, description=f"Nesterov: {_CODE}")
    weight_decay: float = Field(default=5e-4, ge=0, description=_CODE)
    drops: tuple[Share, ...] = Field(
        default=(0.5, 0.75),
        description=f"shares of the epochs after which lr is divided by 10: 150 and 225 of 300: {_CODE}",
    )
    optimizer: Literal["sgd", "adamw"] = Field(
        default="sgd", description=f"sgd: {_CODE} | adamw: uses the same weight_decay and lr, so set lr lower"
    )
    lr_schedule: Literal["steps", "cosine"] = Field(default="steps", description="steps: drops | cosine: to 0")
    warmup_epochs: float = Field(default=0.0, ge=0, description="epochs over which lr grows linearly")
    weights: str | None = Field(
        default=None, description="FILE.safetensors with trained weights; with other classes the last layer is new"
    )
    devices: int = Field(default=1, ge=1, description="devices that share a run; batch_size is their total")
    strategy: Literal["auto", "ddp_spawn", "ddp_fork"] = Field(
        default="auto", description="Lightning's strategy for several devices; auto: ddp_spawn"
    )
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(
        default="32-true", description="Lightning's: 32-true | bf16-mixed | 16-mixed"
    )
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = Field(
        default="auto", description="Lightning's: auto | cpu | gpu | cuda | mps | tpu"
    )
    workers: int = Field(default=0, ge=0, description="loader processes; changes no result")
    evaluation_batch: int = Field(default=500, ge=1, description="batch size of predictions")
    # The arm
    targets: Literal["hard", "label_smoothing", "smoothing_schedule", "pskd"] = "hard"
    smoothing: float = Field(default=0.1, ge=0, le=1, description="label smoothing: Szegedy et al. 2016")
    alpha_T: float = Field(default=0.8, ge=0, le=1, description=_CODE)
    schedule: Literal["linear", "constant"] = Field(
        default="linear", description="how alpha grows to alpha_T: linear, as in the paper | constant"
    )
    store: str = Field(
        default="dense",
        pattern=r"^(dense|topk:[1-9]\d*:(uniform|renormalise))$",
        description="dense, topk:K:uniform or topk:K:renormalise",
    )
    past: Literal["rows", "previous"] = Field(default="rows", description="rows | previous: last epoch's weights")
    past_of: Literal["itself", "same_class"] = Field(
        default="itself", description="whose row is read: itself | same_class: that of another sample of the class"
    )
    mixing: Literal["none", "cutmix", "mixup"] = Field(default="none", description="none | cutmix | mixup")
    mixing_alpha: float = Field(default=1.0, gt=0, description="shares are drawn from Beta(alpha, alpha)")
    mixing_prob: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="probability that a batch is mixed; CutMix for CIFAR-100: Yun et al. 2019, section 4.1.2",
    )
    mixed_rows: Literal["dropped", "kept"] = Field(
        default="dropped", description="predictions of mixed images: dropped | kept as rows"
    )

    def packages(self) -> tuple[tuple[str, str], ...]:
        """Optional packages that a run with these settings imports, each with its extra."""
        extras = {"lightning": "vision", "torchvision": "vision"}
        if self.dataset == "digits":
            extras["sklearn"] = "vision"
        kind = self.network.partition(":")[0]
        return (*extras.items(), *{"timm": [("timm", "vision")], "hf": [("transformers", "text")]}.get(kind, ()))

    @model_validator(mode="after")
    def _fits(self) -> "Settings":
        if self.batch_size % self.devices:
            raise ValueError(f"batch_size = {self.batch_size} is not a multiple of devices = {self.devices}")
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs = {self.warmup_epochs:g} exceeds epochs = {self.epochs}")
        return self

    def data_paths(self) -> tuple[str, ...]:
        """Files and folders that a run with these settings reads."""
        kind, _, folder = self.network.partition(":")
        trained = (*([self.weights] if self.weights else []), *([folder] if kind == "hf" else []))
        return (*names.data_paths(self.dataset), *trained)

    def own_parts(self) -> tuple[str, ...]:
        """Import paths of the user's own code that a run with these settings uses."""
        return tuple(one for one in (self.network, self.dataset) if is_path(one))


PRESETS: dict[str, dict[str, Any]] = {
    "demo": dict(
        dataset="digits", train_images=700, validation_images=200, augmentation="none", network="small_cnn",
        epochs=40, batch_size=50, lr=0.05, accelerator="cpu",
    ),
    "small": dict(
        dataset="torchvision:CIFAR100", train_images=10_000, validation_images=1_000, augmentation="crop_flip",
        network="preact_resnet10_w24", epochs=30, precision="bf16-mixed", accelerator="cpu",
    ),
    "paper": dict(
        dataset="torchvision:CIFAR100", validation_images=5_000, augmentation="crop_flip",
        network="preact_resnet18", epochs=300,
    ),
}  # fmt: skip

MINUTES_PER_RUN = {"demo": 0.06, "small": 7.0, "paper": 90.0}
