"""Check a detection study once, up front, and refuse what cannot work.

Modules that need optional packages are imported only after the check that these are installed.
"""

from typing import TYPE_CHECKING

from retarget.extras import require
from retarget.pskd.studies.detection.plan import Settings, classifier_settings
from retarget.settings import resolve_settings
from retarget.study.config import StudyPlan

if TYPE_CHECKING:
    from retarget.pskd.studies.detection.data import Parts

PACKAGES = ("torchvision", "timm", "lightning.pytorch", "sklearn", "torchmetrics", "pycocotools")


def prepare(plan: StudyPlan) -> None:
    """Refuse missing packages and unusable scenes or pre-training images."""
    settings = _resolved(plan)
    from retarget.pskd.studies.detection.data import check_sizes
    from retarget.pskd.studies.images.prepare import try_out

    check_sizes(_parts(plan, settings))
    if settings.pretrain.dataset != "crops":
        try_out(classifier_settings(settings, settings.pretrain.dataset))


def check(plan: StudyPlan) -> None:
    """The cheap checks of :func:`prepare`, for a dry run: reads annotations, but of images at most headers."""
    settings = _resolved(plan)
    from retarget.pskd.studies.images.prepare import look_at

    _parts(plan, settings)
    if settings.pretrain.dataset != "crops":
        look_at(classifier_settings(settings, settings.pretrain.dataset))


def _parts(plan: StudyPlan, settings: Settings) -> "Parts":
    """The scenes; they give crops enough if an arm trains a classifier on them."""
    from retarget.pskd.studies.detection import data

    parts = data.check(settings)
    for arm in plan.arms:
        _check_store(resolve_settings(Settings, {**plan.settings, **arm.settings}), len(parts.classes))
    if settings.pretrain.dataset == "crops" and any(arm.settings.get("stage") == "classifier" for arm in plan.arms):
        data.check_crops(settings, parts)
    return parts


def _check_store(settings: Settings, classes: int) -> None:
    """Refuse a store that keeps more classes than a detector, which knows the background too, or its crops have."""
    from retarget.pskd.studies.images.prepare import check_store

    if settings.head_targets == "instance":
        check_store(settings.store, classes + 1)
    if settings.pretrain.dataset == "crops" and settings.classifier_targets == "pskd":
        check_store(settings.pretrain.store, classes, "pretrain.store")


def _resolved(plan: StudyPlan) -> Settings:
    for module in PACKAGES:
        require(module, "detection")
    return resolve_settings(Settings, plan.settings)
