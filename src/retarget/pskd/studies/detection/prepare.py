"""Before the first run of a detection study: what cannot work is refused, once and at once.

Its data are imported behind the check that the packages for them are there.
"""

from retarget.extras import require
from retarget.pskd.studies.detection.plan import Settings, classifier_settings
from retarget.settings import resolve_settings
from retarget.study.config import StudyPlan

PACKAGES = ("torchvision", "timm", "lightning.pytorch", "sklearn", "torchmetrics", "pycocotools")


def prepare(plan: StudyPlan) -> None:
    """Refuse missing packages, scenes that cannot be used, and images to pre-train on that cannot be used."""
    settings = _resolved(plan)
    from retarget.pskd.studies.detection.data import check as check_scenes
    from retarget.pskd.studies.images.prepare import try_out

    check_scenes(settings)
    if settings.pretrain.dataset != "crops":
        try_out(classifier_settings(settings, settings.pretrain.dataset))


def check(plan: StudyPlan) -> None:
    """What :func:`prepare` refuses and is cheap to know, for a dry run: annotations are read, images are not."""
    settings = _resolved(plan)
    from retarget.pskd.studies.detection.data import check as check_scenes
    from retarget.pskd.studies.images.prepare import look_at

    if settings.dataset != "digits":
        check_scenes(settings)
    if settings.pretrain.dataset != "crops":
        look_at(classifier_settings(settings, settings.pretrain.dataset))


def _resolved(plan: StudyPlan) -> Settings:
    for module in PACKAGES:
        require(module, "detection")
    return resolve_settings(Settings, plan.settings)
