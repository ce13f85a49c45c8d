"""The detection study as data: settings, presets, arms, claims. Does not import torch.

``retarget.pskd.study.plan`` passes configurations with ``task = "detection"`` on to ``plan``. A backbone is first
trained as a classifier (arms ``classifier_*``), then put into a Faster R-CNN and fine-tuned.
"""

from pathlib import Path
from typing import Any

from retarget.data import names
from retarget.errors import UserError
from retarget.pskd.studies.detection.settings import Settings
from retarget.pskd.studies.images.settings import Settings as ClassifierSettings
from retarget.pskd.studies.references import PSKD
from retarget.settings import resolve_settings
from retarget.study.config import SHARE, Arm, Claim, Metric, StudyPlan, choose_arms, claims_under, refuse_decided

_TINY = dict(
    network="timm:resnet10t", fpn_channels=64, head_channels=128, anchor_scale=3, roi_size=5, proposals=100,
    rois_per_image=64, freeze_norm=False, batch_size=8, clip=10.0, warmup_steps=50, accelerator="cpu",
)  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "demo": dict(
        dataset="digits", train_images=240, validation_images=60, test_images=120, min_size=64, max_size=64,
        augmentation="none", strides=(4, 8, 16), epochs=12, **_TINY,
        pretrain=dict(epochs=15, batch_size=50, lr=0.05, alpha_T=0.8),
    ),
    "small": dict(
        dataset="voc:BCCD", min_size=120, max_size=160, strides=(4, 8, 16), epochs=24, **_TINY,
        pretrain=dict(epochs=10, batch_size=64, lr=0.05, alpha_T=0.8, augmentation="crop_flip"),
    ),
    "paper": dict(
        dataset="voc:VOCdevkit/VOC2007+VOCdevkit/VOC2012", train_split="trainval", validation_split=None,
        validation_images=1000, network="timm:resnet152", epochs=26, precision="16-mixed", workers=8,
        pretrain=dict(dataset="folder:imagenet", image_size=224, augmentation="imagenet", validation_images=10_000,
                      epochs=90, batch_size=256, store="topk:10:uniform"),
    ),
}  # fmt: skip

MINUTES_PER_RUN = {"demo": 0.7, "small": 4.0, "paper": 900.0}

ARMS = (
    Arm(name="classifier_ce", label="classifier, cross-entropy", settings={"stage": "classifier"}),
    Arm(
        name="classifier_pskd",
        label="classifier, PS-KD",
        settings={"stage": "classifier", "classifier_targets": "pskd"},
    ),
    Arm(
        name="ce_backbone",
        label="cross-entropy backbone",
        settings={"backbone": "classifier_ce"},
        needs=("classifier_ce",),
    ),
    Arm(
        name="pskd_backbone",
        label="PS-KD backbone",
        settings={"backbone": "classifier_pskd"},
        needs=("classifier_pskd",),
    ),
    Arm(
        name="direct_instance",
        label="PS-KD on the head, rows of objects",
        settings={"backbone": "classifier_ce", "head_targets": "instance"},
        needs=("classifier_ce",),
    ),
    Arm(
        name="direct_previous",
        label="PS-KD on the head, previous detector",
        settings={"backbone": "classifier_ce", "head_targets": "previous"},
        needs=("classifier_ce",),
    ),
    Arm(name="no_pretraining", label="untrained backbone"),
)

METRICS = (
    Metric(name="map", label="mAP", **SHARE, better="higher", description="COCO's: mean over IoU 0.50 to 0.95",
           optional=True, floor=1.0, floor_for="every arm"),
    Metric(name="map50", label="mAP50", **SHARE, better="higher", description="IoU 0.50", optional=True),
    Metric(name="map75", label="mAP75", **SHARE, better="higher", description="IoU 0.75", optional=True),
    Metric(name="ece", label="detection ECE", **SHARE, better="lower", optional=True,
           description="all detections; correct: class and IoU 0.50 of an object not yet found; 10 bins (lo, hi]"),
    Metric(name="ece_scaled", label="detection ECE after Platt scaling", **SHARE, better="lower", optional=True,
           description="two numbers fitted on the validation detections"),
    Metric(name="nll_scaled", label="detection NLL after Platt scaling", better="lower", decimals=3, optional=True),
    Metric(name="confidence", label="mean confidence", **SHARE, optional=True),
    Metric(name="precision", label="right detections", **SHARE, better="higher", optional=True),
    Metric(name="detections", label="detections per image", decimals=1, optional=True),
    Metric(name="train_loss", label="training loss, last epoch", decimals=3),
    Metric(name="classifier_top1", label="classifier top-1", **SHARE, better="higher", optional=True),
    Metric(name="classifier_nll", label="classifier NLL", better="lower", decimals=3, optional=True),
    Metric(name="classifier_ece", label="classifier ECE", **SHARE, better="lower", optional=True),
    Metric(name="step_ms", label="median training step", unit="ms", better="lower", decimals=1),
    Metric(name="store_mb", label="table or past weights", unit="MB", better="lower", deterministic=True),
)  # fmt: skip


def claims() -> tuple[Claim, ...]:
    """The abstract's claim about detection, also for the direct ways. Smallest effects are half of the paper's gain."""

    claim = claims_under()
    return (
        claim("detection", "PS-KD improves object detection: a backbone pre-trained with it.", "map", "higher",
              0.5, ("pskd_backbone", "ce_backbone"), shown="map50"),
        claim("detection_calibration", "A backbone pre-trained with PS-KD makes detections better calibrated.",
              "ece_scaled", "lower", 0.5, ("pskd_backbone", "ce_backbone"), shown="ece"),
        claim("instance", "PS-KD on the detector's own head improves detection: rows of objects.", "map", "higher",
              0.5, ("direct_instance", "ce_backbone"), shown="map50"),
        claim("instance_calibration", "PS-KD on the detector's own head calibrates detections: rows of objects.",
              "ece_scaled", "lower", 0.5, ("direct_instance", "ce_backbone"), shown="ece"),
        claim("previous", "PS-KD on the detector's own head improves detection: previous detector.", "map", "higher",
              0.5, ("direct_previous", "ce_backbone"), shown="map50"),
        claim("previous_calibration", "PS-KD on the detector's own head calibrates detections: previous detector.",
              "ece_scaled", "lower", 0.5, ("direct_previous", "ce_backbone"), shown="ece"),
    )  # fmt: skip


def plan(
    preset: str = "demo",
    config: dict[str, Any] | None = None,
    seeds: list[int] | None = None,
    arms: list[str] | None = None,
) -> StudyPlan:
    """The resolved study.

    Args:
        preset: ``demo`` (digits composed into scenes, minutes), ``small`` (a small set in VOC's or COCO's layout;
            set ``dataset``) or ``paper`` (VOC 2007 and 2012, a ResNet-152 trained on ImageNet; for GPUs).
        config: settings that override the preset's (keys of :class:`Settings`, ``pretrain`` a table of
            :class:`Pretraining`).
        seeds: seeds to use instead of 0 to 2.
        arms: names of the arms to run; a detector needs its classifier's run, in this call or an earlier one.

    Raises:
        UserError: unknown preset, setting or arm.
    """
    config = dict(config or {})
    if preset not in PRESETS:
        raise UserError(f"no preset {preset!r} for detection: choose {', '.join(PRESETS)}")
    base = PRESETS[preset]
    pretrain = config.get("pretrain", {})
    if isinstance(pretrain, dict):
        config["pretrain"] = {**base["pretrain"], **pretrain}
    settings = resolve_settings(Settings, {**base, **config})
    if settings.max_size < settings.min_size:
        raise UserError(f"max_size = {settings.max_size} is below min_size = {settings.min_size}")
    refuse_decided(config, ARMS, ())
    return StudyPlan(
        study="pskd-detection",
        title="PS-KD on object detection",
        question="Does a backbone, or a detection head, that was trained with PS-KD detect better?",
        preset=preset,
        task="retarget.pskd.studies.detection.run:run",
        task_name="pskd.detection",
        former_tasks=("retarget.pskd.tasks.detection:run",),
        data=data_paths(settings),
        packages=(("lightning", "detection"), ("torchvision", "detection"), ("pycocotools", "detection")),
        prepare="retarget.pskd.studies.detection.prepare:prepare",
        check="retarget.pskd.studies.detection.prepare:check",
        analysis="retarget.pskd.studies.detection.analysis:analyse",
        settings=settings.model_dump(mode="json"),
        settings_model=Settings,
        unmeasured=("workers",),
        arms=choose_arms(ARMS, arms),
        seeds=tuple(seeds) if seeds else (0, 1, 2),
        metrics=METRICS,
        claims=claims(),
        minutes_per_run=_minutes(preset, settings),
        references=(PSKD,),
    )


_MEASURED = (
    "dataset", "train_split", "validation_split", "test_split", "train_images", "validation_images", "test_images",
    "min_size", "max_size", "network", "strides", "fpn_channels", "head_channels", "roi_size", "proposals",
    "rois_per_image",
)  # fmt: skip
"""Settings on which a run's time depends, besides the epochs."""
_MEASURED_PRETRAIN = ("dataset", "crop_size", "image_size", "images", "epochs")


def _minutes(preset: str, settings: Settings) -> float | None:
    """The preset's measured time, scaled to the epochs; None for other data, another network or other sizes."""
    of_preset = Settings.model_validate(PRESETS[preset])
    compared = (settings, of_preset, _MEASURED), (settings.pretrain, of_preset.pretrain, _MEASURED_PRETRAIN)
    if any(getattr(one, name) != getattr(other, name) for one, other, fields in compared for name in fields):
        return None
    return round(MINUTES_PER_RUN[preset] * settings.epochs / of_preset.epochs, 2)


def classifier_settings(s: Settings, dataset: str) -> ClassifierSettings:
    """The image study's settings for this study's classifier; ``dataset`` names its images."""
    return ClassifierSettings(
        **s.pretrain.model_dump(exclude={"dataset", "crop_size", "images"}),
        dataset=dataset,
        train_images=s.pretrain.images,
        targets=s.classifier_targets,
        network=s.network,
        momentum=s.momentum,
        data_seed=s.data_seed,
        precision=s.precision,
        accelerator=s.accelerator,
        workers=s.workers,
    )


def data_paths(settings: Settings) -> tuple[str, ...]:
    """Files and folders that a run with these settings reads: annotations, lists, images; also for pre-training."""
    kind, _, where = settings.dataset.partition(":")
    roots = [Path(root) for root in where.split("+")] if where else []
    splits = [one for one in (settings.train_split, settings.validation_split, settings.test_split) if one]
    if kind == "voc":
        found = [root / name for root in roots for name in ("Annotations", "ImageSets/Main", "JPEGImages")]
    else:
        found = [root / name for root in roots for one in splits for name in (f"annotations/instances_{one}.json", one)]
    pretrain = settings.pretrain.dataset
    return (*map(str, found), *(() if pretrain == "crops" else names.data_paths(pretrain)))
