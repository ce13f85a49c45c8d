"""Before the first run of a detection study: what cannot work is refused, once and at once."""

from retarget.extras import require
from retarget.pskd.studies.detection.data import check as check_scenes
from retarget.pskd.studies.detection.plan import Settings, classifier_settings
from retarget.pskd.studies.images.prepare import look_at, try_out
from retarget.settings import resolve_settings
from retarget.study.config import StudyPlan


def prepare(plan: StudyPlan) -> None:
    """Refuse missing packages, scenes that cannot be used, and images to pre-train on that cannot be used."""
    for module in ("torchvision", "timm", "lightning.pytorch", "sklearn", "torchmetrics", "pycocotools"):
        require(module, "detection")
    settings = resolve_settings(Settings, plan.settings)
    check_scenes(settings)
    if settings.pretrain.dataset != "crops":
        try_out(classifier_settings(settings, settings.pretrain.dataset))


def check(plan: StudyPlan) -> None:
    """What :func:`prepare` refuses and is cheap to know, for a dry run: annotations are read, images are not."""
    settings = resolve_settings(Settings, plan.settings)
    if settings.dataset != "digits":
        check_scenes(settings)
    if settings.pretrain.dataset != "crops":
        look_at(classifier_settings(settings, settings.pretrain.dataset))
