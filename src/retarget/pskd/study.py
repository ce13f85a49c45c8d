"""The PS-KD study as data: settings, presets, arms, claims. Free of torch."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field

from retarget.errors import UserError
from retarget.pskd.peers import study as peer_study
from retarget.pskd.questions import QUESTIONS, Question
from retarget.settings import Strict, resolve_settings
from retarget.study.config import Arm, Claim, Condition, Metric, StudyPlan, choose_arms, claims_under, refuse_decided

_CODE = "official code, CIFAR-100 configuration"


class Settings(Strict):
    """Settings of one training run; an arm overrides those of its method."""

    dataset: str = Field(
        description="digits | torchvision:NAME | npz:FILE | folder:DIR | hf:DIR; see tasks/data.py for their layout"
    )
    root: str = Field(default="data", description="where torchvision keeps its data sets (downloads if missing)")
    train_images: int | None = Field(default=None, ge=2, description="stratified subset, validation part included")
    validation_images: int = Field(ge=1, description="stratified part of the training data: selection, temperature")
    test_images: int | None = Field(default=None, ge=1, description="stratified subset of the test set")
    label_noise: float = Field(default=0.0, ge=0, lt=1, description="share of training labels made wrong")
    data_seed: int = Field(default=2021, description="fixes subset, split and noise: the same for every seed")
    augmentation: Literal["none", "crop_flip", "trivial", "imagenet"] = Field(
        description=f"crop with padding 4, flip: {_CODE}; trivial: TrivialAugmentWide besides, Müller and Hutter 2021"
    )
    network: str
    epochs: int = Field(ge=1, description=f"300: {_CODE}")
    batch_size: int = Field(default=128, ge=2, description=_CODE)
    lr: float = Field(default=0.1, gt=0, description=_CODE)
    momentum: float = Field(default=0.9, ge=0, lt=1, description=f"Nesterov: {_CODE}")
    weight_decay: float = Field(default=5e-4, ge=0, description=_CODE)
    drops: tuple[float, ...] = Field(default=(0.5, 0.75), description=f"lr / 10 at 150 and 225 of 300: {_CODE}")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: str = "auto"
    workers: int = Field(default=0, ge=0, description="loader processes, for images read from files")
    # The arm
    targets: Literal["hard", "label_smoothing", "smoothing_schedule", "pskd"] = "hard"
    smoothing: float = Field(default=0.1, ge=0, le=1, description="label smoothing: Szegedy et al. 2016")
    alpha_T: float = Field(default=0.8, ge=0, le=1, description=f"{_CODE}; 0.3 for ImageNet")
    schedule: Literal["linear", "constant"] = "linear"
    store: str = Field(
        default="dense",
        pattern=r"^(dense|topk:\d+:(uniform|renormalise))$",
        description="dense, topk:K:uniform or topk:K:renormalise",
    )
    past: Literal["rows", "previous"] = Field(default="rows", description="previous: last epoch's weights, this view")
    past_of: Literal["itself", "same_class"] = "itself"
    mixing: Literal["none", "cutmix", "mixup"] = "none"
    mixing_alpha: float = Field(default=1.0, gt=0)
    mixing_prob: float = Field(
        default=0.5, ge=0, lt=1, description="CutMix for CIFAR-100: Yun et al. 2019, section 4.1.2"
    )
    mixed_rows: Literal["dropped", "kept"] = Field(default="dropped", description="predictions of mixed images")


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

MINUTES_PER_RUN = {"demo": 0.1, "small": 7.0, "paper": 90.0}

ARMS = (
    Arm(name="cross_entropy", label="cross-entropy"),
    Arm(name="pskd", label="PS-KD", settings={"targets": "pskd"}),
    Arm(
        name="label_smoothing",
        label="label smoothing 0.1",
        settings={"targets": "label_smoothing", "smoothing": 0.1},
    ),
    Arm(name="cutmix", label="CutMix", settings={"mixing": "cutmix"}),
    Arm(name="cutmix_pskd", label="CutMix + PS-KD", settings={"mixing": "cutmix", "targets": "pskd"}),
    Arm(name="mixup", label="Mixup", settings={"mixing": "mixup"}),
    Arm(name="mixup_pskd", label="Mixup + PS-KD", settings={"mixing": "mixup", "targets": "pskd"}),
    Arm(name="smoothing_schedule", label="label smoothing by alpha_t", settings={"targets": "smoothing_schedule"}),
    Arm(
        name="past_of_class",
        label="PS-KD, past rows swapped within the class",
        settings={"targets": "pskd", "past_of": "same_class"},
    ),
    Arm(name="constant_alpha", label="PS-KD, constant alpha", settings={"targets": "pskd", "schedule": "constant"}),
)

METRICS = (
    Metric(name="top1", label="top-1 accuracy", unit="%", better="higher"),
    Metric(name="top5", label="top-5 accuracy", unit="%", better="higher", optional=True),
    Metric(name="nll", label="NLL", better="lower", decimals=3),
    Metric(name="nll_scaled", label="NLL after temperature", better="lower", decimals=3),
    Metric(name="ece", label="ECE", unit="%", better="lower", description="10 equal-width bins (lo, hi]"),
    Metric(name="ece_scaled", label="ECE after temperature", unit="%", better="lower"),
    Metric(name="ece_mass", label="ECE, 15 equal-mass bins, debiased", unit="%", better="lower"),
    Metric(name="aurc", label="AURC", unit="×10⁻³", better="lower", decimals=1),
    Metric(name="aurc_scaled", label="AURC after temperature", unit="×10⁻³", better="lower", decimals=1),
    Metric(name="excess_aurc", label="E-AURC", unit="×10⁻³", better="lower", decimals=1),
    Metric(name="augrc", label="AUGRC", unit="×10⁻³", better="lower", decimals=1),
    Metric(name="failure_auroc", label="failure AUROC", unit="%", better="higher", optional=True),
    Metric(name="brier", label="Brier score", better="lower", decimals=3),
    Metric(name="temperature", label="fitted temperature", decimals=2),
    Metric(name="top1_selected", label="top-1 at the selected epoch", unit="%", better="higher"),
    Metric(name="nll_selected", label="NLL at the selected epoch", better="lower", decimals=3),
    Metric(name="ece_selected", label="ECE at the selected epoch", unit="%", better="lower"),
    Metric(name="aurc_selected", label="AURC at the selected epoch", unit="×10⁻³", better="lower", decimals=1),
    Metric(name="selected_epoch", label="selected epoch", decimals=0, description="highest validation top-1; from 1"),
    Metric(name="train_loss", label="training loss, last epoch", decimals=3),
    Metric(name="hard_gradient_share", label="gradient share of the hardest tenth", unit="%", optional=True),
    Metric(name="identity_error", label="largest error of the gradient identity", decimals=9, optional=True),
    Metric(name="step_ms", label="median training step", unit="ms", better="lower", decimals=1),
    Metric(name="store_mb", label="table of past rows", unit="MB", better="lower", deterministic=True),
)


def claims(condition: str, suffix: str = "") -> tuple[Claim, ...]:
    """The abstract's claims under one condition. Smallest effects are half or less of the paper's CIFAR-100 gains."""

    claim = claims_under(condition, suffix)
    pair = ("pskd", "cross_entropy")
    return (
        claim("accuracy", "PS-KD improves accuracy on image classification.", "top1", "higher", 0.5, pair),
        claim("calibration", "PS-KD improves confidence calibration.", "ece_scaled", "lower", 0.5, pair, shown="ece"),
        claim("likelihood", "PS-KD gives better confidence estimates.", "nll_scaled", "lower", 0.02, pair, shown="nll"),
        claim("ranking", "PS-KD improves the ordinal ranking of confidence.", "aurc_scaled", "lower", 3.0, pair,
              shown="aurc"),
        claim("self_knowledge", "The gain comes from the model's own past predictions, not from softer labels by the "
              "same schedule.", "nll_scaled", "lower", 0.02, ("pskd", "smoothing_schedule"), shown="nll"),
        claim("hard_examples", "PS-KD works as hard-example mining: the hardest tenth gets a larger share of the "
              "gradient.", "hard_gradient_share", "higher", 1.0, pair),
        claim("with_cutmix", "PS-KD adds to existing regularisation: CutMix.", "top1", "higher", 0.5,
              ("cutmix_pskd", "cutmix")),
        claim("with_mixup", "PS-KD adds to existing regularisation: Mixup.", "top1", "higher", 0.5,
              ("mixup_pskd", "mixup")),
    )  # fmt: skip


ELSEWHERE = (
    Claim(id="detection", sentence="PS-KD improves object detection.", metric="map", direction="higher",
          smallest_effect=0.5, arms=("detection_pskd", "detection_cross_entropy")),
    Claim(id="translation", sentence="PS-KD improves machine translation.", metric="bleu", direction="higher",
          smallest_effect=0.5, arms=("translation_pskd", "translation_cross_entropy")),
)  # fmt: skip


def plan(
    preset: str = "demo",
    config: dict[str, Any] | None = None,
    seeds: list[int] | None = None,
    arms: list[str] | None = None,
) -> StudyPlan:
    """The resolved study.

    Args:
        preset: ``demo`` (digits, minutes), ``small`` (10,000 CIFAR-100 images, hours on two cores) or ``paper``.
        config: settings that override the preset's (keys of :class:`Settings`), and in place of the arms
            ``question = NAME`` for one of :data:`retarget.pskd.questions.QUESTIONS`, or ``peers = true`` for PS-KD
            among its peers (then ``shift`` is a table of :class:`retarget.pskd.peers.study.Shift`);
            ``task = "translation"`` and ``task = "detection"`` are studies of their own.
        seeds: seeds in place of 0 to 4.
        arms: names of the arms to run.

    Raises:
        UserError: unknown preset, setting or arm.
    """
    config = dict(config or {})
    if "task" in config:
        return _task(config["task"])(preset, config, seeds, arms)
    if preset not in PRESETS:
        raise UserError(f"no preset {preset!r} for pskd: choose {', '.join(PRESETS)}")
    name, peers = config.pop("question", None), config.pop("peers", False)
    question = _question(name)
    if not isinstance(peers, bool):
        raise UserError(f"peers is true or false, not {peers!r}")
    if question and peers:
        raise UserError("question and peers are two studies: choose one")
    shift = config.pop("shift", {}) if peers else None
    base = dict(PRESETS[preset])
    if question and preset == "small":
        base |= question.small
    if config.get("dataset", base["dataset"]) != base["dataset"]:
        base.pop("train_images", None)  # a subset of the preset's own data, not of the user's
    settings = resolve_settings(Settings, {**base, **config})
    shift = None if shift is None else resolve_settings(peer_study.Shift, shift)
    if question and not question.ten_classes and settings.dataset == "digits":
        raise UserError("this question needs more than the ten classes of digits: choose --preset small or paper")
    asked = question or _asked(peers, _world(preset, settings, config))
    refuse_decided(config, (*ARMS, *asked.arms), asked.conditions)
    return StudyPlan(
        study="pskd" + (f"-{name}" if question else "-peers" * peers),
        title="PS-KD on image classification" + f": {asked.title}" * bool(asked.title),
        question="Do softened targets from the model's own past predictions help on this data?",
        preset=preset,
        task="retarget.pskd.tasks.peers:run" if peers else "retarget.pskd.tasks.classification:run",
        prepare="retarget.pskd.tasks.data:prepare",
        analysis="retarget.pskd.tasks.analysis:analyse",
        settings=settings.model_dump(mode="json") | ({"shift": shift.model_dump(mode="json")} if shift else {}),
        settings_model=Settings,
        others=("task=translation", "task=detection", "peers=true", *(f"question={one}" for one in QUESTIONS)),
        conditions=asked.conditions,
        arms=choose_arms(asked.arms, arms),
        seeds=tuple(seeds) if seeds else (0, 1, 2, 3, 4),
        metrics=peer_study.metrics(METRICS) if peers else METRICS,
        claims=asked.claims,
        minutes_per_run=_minutes(preset, settings, question),
    )


def _world(preset: str, settings: Settings, config: dict[str, Any]) -> tuple[Condition, ...]:
    """Clean labels, and in the demo wrong ones besides; or the share that the user gave."""
    if preset == "demo" and "label_noise" not in config:
        noisy = {"label_noise": 0.2}
        return (
            Condition(name="clean", label="clean labels"),
            Condition(name="noisy", label="20 % of the training labels wrong", settings=noisy),
        )
    wrong = f"{settings.label_noise:.0%} of the training labels wrong".replace("%", " %")
    return (Condition(label=wrong if settings.label_noise else "clean labels"),)


def _asked(peers: bool, world: tuple[Condition, ...]) -> Question:
    """The paper's own question, or that of the peers, in the same form as the others."""
    if peers:
        arms = (*ARMS[:2], *peer_study.ARMS)
        return Question(title="among its peers", arms=arms, conditions=world, claims=peer_study.claims(world[0].name))
    several = len(world) > 1
    stated = [claim for one in world for claim in claims(one.name, f"_{one.name}" * several)]
    return Question(title="", arms=ARMS, conditions=world, claims=(*stated, *ELSEWHERE))


def _task(name: str) -> Callable[..., StudyPlan]:
    """``plan`` of the study of another task."""
    from retarget.pskd.tasks import detection_study, translation_study

    tasks = {"translation": translation_study.plan, "detection": detection_study.plan}
    if name not in tasks:
        raise UserError(f"no task {name!r} for pskd: choose {', '.join(tasks)}, or none for image classification")
    return tasks[name]


def _question(name: str | None) -> Question | None:
    if name is None or name in QUESTIONS:
        return QUESTIONS[name] if name else None
    raise UserError(f"no question {name!r} for pskd: choose {', '.join(QUESTIONS)}")


def _minutes(preset: str, settings: Settings, question: Question | None) -> float | None:
    """The preset's measured time, scaled to the epochs; not known for other data or another network."""
    base, minutes = PRESETS[preset], MINUTES_PER_RUN[preset]
    if question and preset == "small":
        base, minutes = base | question.small, question.minutes
    base = Settings.model_validate(base)
    if (settings.network, settings.train_images) != (base.network, base.train_images):
        return None
    return round(minutes * settings.epochs / base.epochs, 2)
