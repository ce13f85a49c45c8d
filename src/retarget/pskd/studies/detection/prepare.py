"""Check a detection study once, up front, and refuse what cannot work.

Modules that need optional packages are imported only after the check that these are installed.
"""

from retarget.extras import require
from retarget.pskd.studies.detection.plan import Settings, classifier_settings
from retarget.settings import resolve_settings
from retarget.study.config import StudyPlan

PACKAGES = ("torchvision", "timm", "lightning.pytorch", "sklearn", "torchmetrics", "pycocotools")


def prepare(plan: StudyPlan) -> None:
    """Refuse missing packages and unusable scenes or pre-training images."""
    settings = _resolved(plan)
    from retarget.pskd.studies.detection.data import check as check_scenes
    from retarget.pskd.studies.detection.data import check_sizes
    from retarget.pskd.studies.images.prepare import try_out

    check_sizes(check_scenes(settings))
    if settings.pretrain.dataset != "crops":
        try_out(classifier_settings(settings, settings.pretrain.dataset))


def check(plan: StudyPlan) -> None:
    """The cheap checks of :func:`prepare`, for a dry run: reads annotations but not images."""
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
