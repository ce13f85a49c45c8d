"""The peers study as data: every method on the same seeds and budget. Does not import torch."""

from typing import Any, Literal

from pydantic import Field

from retarget.data import names
from retarget.own import is_path
from retarget.pskd.studies.images import plan
from retarget.pskd.studies.images.plan import METRICS, WorldQuestion
from retarget.pskd.studies.images.settings import Settings
from retarget.settings import Strict
from retarget.study.config import SHARE, Arm, Claim, Condition, Metric


class Shift(Strict):
    """Settings of the evaluation on shifted images, under ``shift`` in a study's settings."""

    kinds: tuple[
        Literal["gaussian_noise", "gaussian_blur", "brightness", "contrast", "jpeg", "shot_noise", "impulse_noise",
                "speckle_noise", "pixelate"], ...
    ] = Field(
        default=("gaussian_noise", "gaussian_blur", "brightness", "contrast", "jpeg"),
        description="corruptions to apply; shot_noise, impulse_noise, speckle_noise and pixelate exist too",
    )  # fmt: skip
    severity: int = Field(default=3, ge=1, le=5, description="severity of the corruptions")
    images: int = Field(default=2000, ge=1, description="most test images per corruption")
    ood: str = Field(
        default="phases",
        description="images of no class: phases (test images with random phases), a dataset in the notation of "
        "`dataset`, or empty for none",
    )


class PeerSettings(Settings):
    """Settings of one training run of the peers study."""

    shift: Shift = Shift()
    # The arm
    peer: dict[str, Any] | None = Field(
        default=None, description="method (a class of retarget.pskd.peers, or module:Class) and its settings"
    )
    teacher: str | None = Field(default=None, description="arm whose run trains the teacher")

    def data_paths(self) -> tuple[str, ...]:
        """Files and folders that a run with these settings reads, also for the shift."""
        return (*super().data_paths(), *names.data_paths(self.shift.ood))

    def own_parts(self) -> tuple[str, ...]:
        """Import paths of the user's own code that a run with these settings uses, also for the loss and the shift."""
        named = (str((self.peer or {}).get("method", "")), self.shift.ood)
        return (*super().own_parts(), *(one for one in named if is_path(one)))


def _arm(name: str, label: str, method: str, *, teacher: bool = False, **settings: Any) -> Arm:
    more: dict[str, Any] = {"teacher": "cross_entropy"} if teacher else {}
    return Arm(
        name=name,
        label=label,
        settings={"peer": {"method": method, **settings}, **more},
        needs=("cross_entropy",) if teacher else (),
    )


ARMS = (
    _arm("label_smoothing", "label smoothing 0.1", "LabelSmoothing"),
    _arm("online_label_smoothing", "online label smoothing", "OnlineLabelSmoothing"),
    _arm("margin_label_smoothing", "margin-based label smoothing", "MarginLabelSmoothing"),
    _arm("focal", "focal loss", "FocalLoss"),
    _arm("dual_focal", "dual focal loss", "DualFocalLoss"),
    _arm("max_sup", "MaxSup", "MaxSup"),
    _arm("cs_kd", "CS-KD", "CSKD"),
    _arm("tf_kd_self", "TF-KD, self", "TFKDSelf", teacher=True),
    _arm("tf_kd_reg", "TF-KD, hand-made teacher", "TFKDReg"),
    _arm("born_again", "born-again network", "BornAgain", teacher=True),
    _arm("dlb", "DLB", "DLB"),
    _arm("temporal_ensembling", "temporal ensembling", "TemporalEnsembling"),
    _arm("self_adaptive_training", "self-adaptive training", "SelfAdaptiveTraining"),
    _arm("bsd", "BSD", "BSD"),
    _arm("mean_teacher", "mean teacher", "MeanTeacher"),
    _arm("weight_ema", "average of weights", "WeightEMA"),
    _arm("mixup", "Mixup", "Mixup"),
    _arm("cutmix", "CutMix", "CutMix"),
)

EXTRA_METRICS = (
    Metric(name="corrupt_top1", label="top-1, corrupted", **SHARE, better="higher", optional=True),
    Metric(name="corrupt_nll", label="NLL, corrupted", better="lower", decimals=3, optional=True),
    Metric(name="corrupt_nll_scaled", label="NLL, corrupted, after temperature", better="lower", decimals=3,
           optional=True, description="the temperature is fitted on clean validation images"),
    Metric(name="corrupt_ece", label="ECE, corrupted", **SHARE, better="lower", optional=True),
    Metric(name="corrupt_ece_scaled", label="ECE, corrupted, after temperature", **SHARE, better="lower",
           optional=True),
    Metric(name="ood_auroc", label="out-of-distribution AUROC", **SHARE, better="higher", optional=True,
           description="largest probability, test images against images of no class"),
    Metric(name="ood_auroc_scaled", label="out-of-distribution AUROC after temperature", **SHARE, better="higher",
           optional=True),
    Metric(name="forwards", label="forward passes per sample", better="lower", decimals=0, deterministic=True),
    Metric(name="teacher_runs", label="earlier trainings needed", better="lower", decimals=0, deterministic=True,
           description="complete runs of another arm that a method needs first; not counted in its seconds"),
)  # fmt: skip


_RELABELLED = {"store_mb": "memory beyond the model"}


def _claims(world: tuple[Condition, ...]) -> tuple[Claim, ...]:
    """One claim per peer: PS-KD calibrates better once both may use a temperature."""
    return tuple(
        Claim(
            id=f"calibration_against_{arm.name}",
            sentence=f"PS-KD calibrates better than {arm.label}, a temperature allowed to both.",
            metric="ece_scaled",
            direction="lower",
            smallest_effect=0.5,
            arms=("pskd", arm.name),
            condition=world[0].name,
            shown="ece",
        )
        for arm in ARMS
    )


PEERS = WorldQuestion(
    name="peers",
    title="among its peers",
    arms=(*plan.ARMS[:2], *ARMS),
    metrics=(
        *(one.model_copy(update={"label": _RELABELLED.get(one.name, one.label)}) for one in METRICS),
        *EXTRA_METRICS,
    ),
    task="retarget.pskd.studies.images.peers_run:run",
    task_name="pskd.peers",
    former_tasks=("retarget.pskd.tasks.peers:run",),
    settings=PeerSettings,
    state=_claims,
)
