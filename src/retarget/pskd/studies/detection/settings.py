"""Settings of the detection study, a strict model."""

from typing import Literal

from pydantic import Field

from retarget.settings import Share, Strict

_IMAGENET = "official code, ImageNet configuration"
_TORCHVISION = "torchvision's FasterRCNN"
_REFERENCE = "torchvision's reference training of Faster R-CNN"


class Pretraining(Strict):
    """Settings of the backbone's training as a classifier."""

    dataset: str = Field(
        default="crops",
        description="crops (of the detector's training objects), or a dataset of the classification study",
    )
    root: str = Field(default="data", description="folder of torchvision's datasets")
    crop_size: int = Field(default=32, ge=8, description="side of a crop, pixels")
    image_size: int | None = Field(
        default=None, ge=8, description="resize the middle square of each image to this side; null: do not resize"
    )
    images: int | None = Field(default=None, ge=2, description="stratified subset, validation part included")
    validation_images: int = Field(default=100, ge=1, description="held out of the training images")
    augmentation: Literal["none", "crop_flip", "imagenet"] = "none"
    epochs: int = Field(ge=1)
    batch_size: int = Field(default=128, ge=2)
    lr: float = Field(default=0.1, gt=0, description=_IMAGENET)
    weight_decay: float = Field(default=1e-4, ge=0, description=_IMAGENET)
    drops: tuple[Share, ...] = Field(
        default=(1 / 3, 2 / 3), description=f"shares of the epochs; lr / 10 at 30 and 60 of 90: {_IMAGENET}"
    )
    alpha_T: float = Field(default=0.8, ge=0, le=1, description="every official command, also for ImageNet")
    store: str = Field(
        default="dense",
        pattern=r"^(dense|topk:[1-9]\d*:(uniform|renormalise))$",
        description="dense, topk:K:uniform or topk:K:renormalise",
    )


class Settings(Strict):
    """Settings of one training run; an arm overrides those of its method."""

    task: Literal["detection"] = "detection"
    dataset: str = Field(
        pattern=r"^(digits|voc:.+|coco:.+)$",
        description="digits (composed into scenes) | voc:DIR or voc:DIR+DIR | coco:DIR; see detection/data.py",
    )
    train_split: str = Field(default="train", description="name of the split to train on")
    validation_split: str | None = Field(default="val", description="null: hold out validation_images training images")
    test_split: str = Field(default="test", description="name of the split to test on")
    classes: tuple[str, ...] | None = Field(
        default=None, description="objects of others are left out; by default those in the training part"
    )
    bad_boxes: Literal["drop", "refuse"] = Field(
        default="drop", description="boxes without an area or outside their image: drop and report them, or an error"
    )
    train_images: int | None = Field(default=None, ge=1, description="scenes to compose, or a subset of the files")
    validation_images: int | None = Field(default=None, ge=1)
    test_images: int | None = Field(default=None, ge=1)
    data_seed: int = Field(default=2021, ge=0, description="draws scenes and subsets, the same for every seed")
    min_size: int = Field(default=800, ge=16, description=f"resize the shorter side to this, pixels: {_TORCHVISION}")
    max_size: int = Field(default=1333, ge=16, description=f"limit of the longer side, pixels: {_TORCHVISION}")
    augmentation: Literal["none", "flip"] = Field(default="flip", description=_REFERENCE)
    network: str = Field(pattern=r"^timm:.+", description="timm:NAME, any network with feature maps; not pre-trained")
    strides: tuple[int, ...] = Field(
        default=(4, 8, 16, 32), min_length=1, description=f"strides of the FPN's feature maps: {_TORCHVISION}"
    )
    fpn_channels: int = Field(default=256, ge=8, description=_TORCHVISION)
    head_channels: int = Field(default=1024, ge=8, description=_TORCHVISION)
    anchor_scale: float = Field(
        default=8, gt=0, description=f"side of an anchor, in strides of its map: {_TORCHVISION}"
    )
    roi_size: int = Field(default=7, ge=1, description=_TORCHVISION)
    proposals: int = Field(default=1000, ge=1, description=f"kept per image: {_TORCHVISION}, 2000 in training")
    rois_per_image: int = Field(default=512, ge=2, description=f"sampled to train the head: {_TORCHVISION}")
    freeze_norm: bool = Field(default=True, description=f"do not train batch norm: {_TORCHVISION}")
    epochs: int = Field(ge=1, description=f"26: {_REFERENCE}")
    batch_size: int = Field(default=16, ge=1, description=_REFERENCE)
    lr: float = Field(default=0.02, gt=0, description=_REFERENCE)
    momentum: float = Field(default=0.9, ge=0, lt=1, description=_REFERENCE)
    weight_decay: float = Field(default=1e-4, ge=0, description=_REFERENCE)
    drops: tuple[Share, ...] = Field(
        default=(16 / 26, 22 / 26), description=f"lr / 10 at 16 and 22 of 26: {_REFERENCE}"
    )
    warmup_steps: int = Field(default=1000, ge=0, description=f"linear: {_REFERENCE}")
    clip: float | None = Field(default=None, gt=0, description="clip the gradient to this norm")
    pictures: int = Field(default=6, ge=0, description="test images to draw with their detections")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(
        default="32-true", description="Lightning's: 32-true | bf16-mixed | 16-mixed"
    )
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = Field(
        default="auto", description="Lightning's: auto | cpu | gpu | cuda | mps | tpu"
    )
    workers: int = Field(default=0, ge=0, description="loader processes; changes no result")
    pretrain: Pretraining
    # The arm
    stage: Literal["classifier", "detector"] = "detector"
    classifier_targets: Literal["hard", "pskd"] = "hard"
    backbone: str | None = Field(default=None, description="arm whose classifier becomes the backbone; null: untrained")
    head_targets: Literal["hard", "instance", "previous"] = "hard"
    alpha_T: float = Field(default=0.8, ge=0, le=1, description="for the head's targets; no published value")
    schedule: Literal["linear", "constant"] = Field(
        default="linear", description="how alpha grows to alpha_T: linear, as in the paper | constant"
    )
    store: str = Field(
        default="dense",
        pattern=r"^(dense|topk:[1-9]\d*:(uniform|renormalise))$",
        description="dense, topk:K:uniform or topk:K:renormalise",
    )
