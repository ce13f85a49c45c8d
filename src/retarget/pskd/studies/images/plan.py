"""The image study as data: arms, metrics, claims, and the plan of each question. Does not import torch."""

from collections.abc import Callable
from typing import Any

from pydantic import Field

from retarget.errors import UserError
from retarget.pskd.studies.images.settings import MINUTES_PER_RUN, PRESETS, Settings
from retarget.pskd.studies.references import PSKD
from retarget.settings import Strict, resolve_settings
from retarget.study.config import (
    SHARE,
    Arm,
    Claim,
    Condition,
    Metric,
    StudyPlan,
    choose_arms,
    claims_under,
    refuse_decided,
    refuse_unknown,
)

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
    Metric(name="top1", label="top-1 accuracy", **SHARE, better="higher", floor="top1_chance", floor_for="every arm"),
    Metric(
        name="top1_chance",
        label="chance level of top-1, plus three standard errors",
        **SHARE,
        optional=True,
        description="share of the test images' most frequent class, plus three standard errors of a share",
    ),
    Metric(name="top5", label="top-5 accuracy", **SHARE, better="higher", optional=True),
    Metric(name="nll", label="NLL", better="lower", decimals=3),
    Metric(name="nll_scaled", label="NLL after temperature", better="lower", decimals=3),
    Metric(name="ece", label="ECE", **SHARE, better="lower", description="10 equal-width bins (lo, hi]"),
    Metric(name="ece_scaled", label="ECE after temperature", **SHARE, better="lower"),
    Metric(name="ece_mass", label="ECE, 15 equal-mass bins, debiased", unit="%", better="lower"),
    Metric(name="aurc", label="AURC", unit="×10⁻³", better="lower", decimals=1),
    Metric(name="aurc_scaled", label="AURC after temperature", unit="×10⁻³", better="lower", decimals=1),
    Metric(name="excess_aurc", label="E-AURC", unit="×10⁻³", better="lower", decimals=1),
    Metric(name="augrc", label="AUGRC", unit="×10⁻³", better="lower", decimals=1),
    Metric(name="failure_auroc", label="failure AUROC", **SHARE, better="higher", optional=True),
    Metric(name="brier", label="Brier score", better="lower", decimals=3),
    Metric(name="temperature", label="fitted temperature", decimals=2),
    Metric(name="top1_selected", label="top-1 at the selected epoch", **SHARE, better="higher"),
    Metric(name="nll_selected", label="NLL at the selected epoch", better="lower", decimals=3),
    Metric(name="ece_selected", label="ECE at the selected epoch", **SHARE, better="lower"),
    Metric(name="aurc_selected", label="AURC at the selected epoch", unit="×10⁻³", better="lower", decimals=1),
    Metric(name="selected_epoch", label="selected epoch", decimals=0, description="highest validation top-1; from 1"),
    Metric(name="train_loss", label="training loss, last epoch", decimals=3),
    Metric(name="hard_gradient_share", label="gradient share of the hardest tenth", **SHARE, optional=True),
    Metric(name="hard_gradient_middle", label="gradient share, PS-KD's weights, middle epoch", **SHARE, optional=True),
    Metric(name="hard_gradient_end", label="gradient share, PS-KD's weights, last epoch", **SHARE, optional=True),
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
        claim("hard_examples_middle", "On the same weights, in the middle of training, PS-KD's targets give the "
              "hardest tenth a larger share of the gradient than hard labels do.", "hard_gradient_middle", "higher",
              1.0, pair, family="secondary"),
        claim("hard_examples_end", "On the same weights, at the end of training, PS-KD's targets give the hardest "
              "tenth a larger share of the gradient than hard labels do.", "hard_gradient_end", "higher", 1.0, pair,
              family="secondary"),
        claim("hard_examples_schedule", "On the same weights, at the end of training, PS-KD's targets give the hardest "
              "tenth a larger share of the gradient than smoothing by the same schedule does.", "hard_gradient_end",
              "higher", 1.0, ("pskd", "smoothing_schedule"), family="secondary"),
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


class Question(Strict):
    """A question: the arms that its study runs and the claims that it decides.

    Attributes:
        name: appended to the study's name; empty for the paper's own question.
        task: import path of the function that does a run.
        task_name: its name in a run's identity.
        former_tasks: its import paths in older records.
        settings: the model of a run's settings.
        small: settings that replace those of the ``small`` preset.
        minutes: duration of one run of ``small``; by default the preset's.
        ten_classes: whether data of ten classes can answer it.
        mine: the user's arms, whose settings are merged with those for all arms.
    """

    name: str = ""
    title: str = ""
    arms: tuple[Arm, ...]
    conditions: tuple[Condition, ...] = (Condition(),)
    claims: tuple[Claim, ...] = ()
    metrics: tuple[Metric, ...] = METRICS
    task: str = "retarget.pskd.studies.images.run:run"
    task_name: str = "pskd.images"
    former_tasks: tuple[str, ...] = ("retarget.pskd.tasks.classification:run",)
    settings: type[Settings] = Settings
    small: dict[str, Any] = Field(default_factory=dict)
    minutes: float | None = None
    ten_classes: bool = True
    mine: tuple[Arm, ...] = ()

    def under(self, world: tuple[Condition, ...]) -> "Question":
        """The question under the preset's and the user's conditions, unless it has its own."""
        return self


class WorldQuestion(Question):
    """A question for the conditions of the preset and the user; ``state`` makes the claims for them."""

    state: Callable[[tuple[Condition, ...]], tuple[Claim, ...]]

    def under(self, world: tuple[Condition, ...]) -> Question:
        return self.model_copy(update={"conditions": world, "claims": self.state(world)})


def _stated(world: tuple[Condition, ...]) -> tuple[Claim, ...]:
    suffix = "_{}" if len(world) > 1 else ""
    return (*(claim for one in world for claim in claims(one.name, suffix.format(one.name))), *ELSEWHERE)


PAPER = WorldQuestion(arms=ARMS, state=_stated)

DEMO_ARMS = ("cross_entropy", "pskd")
DEMO_CLAIMS = ("accuracy", "calibration", "likelihood", "ranking")
DEMO_SEEDS = tuple(range(12))
"""The demo's claims on its own data if no arms are named: few claims on many seeds, so that most are decided.

They were chosen on seeds 100 to 104, which the demo does not use, and only by the spread of the differences and the
cost (``tools/demo_spread.py`` prints them)::

    retarget study pskd --preset demo --arms cross_entropy pskd smoothing_schedule --seeds 100 101 102 103 104

Left out are the arms that need the most runs, and the claims whose interval would stay wider than the smallest effect
on as many seeds as fit into minutes: smoothing by the schedule, the share of the hardest tenth, calibration with wrong
labels. ``--arms all`` runs every arm and states every claim.
"""


def _demo(question: Question) -> Question:
    """The question with the demo's arms and claims."""
    claims = [one for one in question.claims if one.id.split("_")[0] in DEMO_CLAIMS and one.id != "calibration_noisy"]
    arms = [arm for arm in question.arms if arm.name in DEMO_ARMS]
    return question.model_copy(update={"arms": tuple(arms), "claims": tuple(claims)})


def plan(
    preset: str = "demo",
    config: dict[str, Any] | None = None,
    seeds: list[int] | None = None,
    arms: list[str] | None = None,
    question: Question = PAPER,
) -> StudyPlan:
    """The resolved study of one question.

    Args:
        preset: ``demo`` (digits, minutes), ``small`` (10,000 CIFAR-100 images, hours on two cores) or ``paper``.
        config: settings that override the preset's (keys of the question's settings).
        seeds: seeds to use instead of 0 to 4 (0 to 11 for ``demo`` with its own arms and claims).
        arms: names of the arms to run, or ``all``. By default ``demo``, on its own data, runs two arms and states the
            claims that it can decide.
        question: the question that the study asks.

    Raises:
        UserError: unknown preset, setting or arm.
    """
    config = dict(config or {})
    settings, of_preset = _settings(preset, config, question)
    asked = question.under(_world(preset, settings, config))
    refuse_decided(config, [arm for arm in (*ARMS, *asked.arms) if arm not in asked.mine], asked.conditions)
    runs = [settings, *(_of_arm(arm, settings) for arm in asked.mine)]
    usual: tuple[int, ...] = (0, 1, 2, 3, 4)
    if preset == "demo" and arms is None and question is PAPER and "dataset" not in config:
        asked, usual = _demo(asked), DEMO_SEEDS
    minutes = question.minutes if preset == "small" and question.minutes else MINUTES_PER_RUN[preset]
    made = StudyPlan(
        study="-".join(filter(None, ("pskd", asked.name))),
        title=": ".join(filter(None, ("PS-KD on image classification", asked.title))),
        question="Do softened targets from the model's own past predictions help on this data?",
        preset=preset,
        task=asked.task,
        task_name=asked.task_name,
        former_tasks=asked.former_tasks,
        data=tuple(dict.fromkeys(path for one in runs for path in one.data_paths())),
        packages=tuple(dict.fromkeys(one for run in runs for one in run.packages())),
        own_parts=tuple(dict.fromkeys(path for one in runs for path in one.own_parts())),
        prepare="retarget.pskd.studies.images.prepare:prepare",
        check="retarget.pskd.studies.images.prepare:check",
        remark="retarget.pskd.studies.images.analysis:remark",
        analysis="retarget.pskd.studies.images.analysis:analyse",
        settings=settings.model_dump(mode="json"),
        settings_model=asked.settings,
        unmeasured=("workers",),
        conditions=asked.conditions,
        arms=choose_arms(asked.arms, None if arms == ["all"] else arms),
        seeds=tuple(seeds) if seeds else usual,
        metrics=asked.metrics,
        claims=asked.claims,
        minutes_per_run=_minutes(minutes, settings, of_preset),
        references=(PSKD,),
    )
    if asked.mine or asked.name == "own":
        refuse_unknown(made, "[[claims]]", [arm.name for arm in asked.arms])
    return made


def _settings(preset: str, config: dict[str, Any], question: Question) -> tuple[Settings, Settings]:
    """The study's settings, and the preset's without what the user changed."""
    if preset not in PRESETS:
        raise UserError(f"no preset {preset!r} for pskd: choose {', '.join(PRESETS)}")
    values = PRESETS[preset] | (question.small if preset == "small" else {})
    base = dict(values)
    if config.get("dataset", base["dataset"]) != base["dataset"]:
        base.pop("train_images", None)  # applies to the preset's own data, not to the user's
    settings = resolve_settings(question.settings, {**base, **config})
    if not question.ten_classes and settings.dataset == "digits":
        raise UserError("this question needs more than the ten classes of digits: choose --preset small or paper")
    return settings, Settings.model_validate(values)


def _of_arm(arm: Arm, settings: Settings) -> Settings:
    """The settings of a run of one of the user's arms."""
    try:
        return resolve_settings(type(settings), {**settings.model_dump(mode="json"), **arm.settings})
    except UserError as error:
        raise UserError(f"arm {arm.name}: {error}") from error


def _world(preset: str, settings: Settings, config: dict[str, Any]) -> tuple[Condition, ...]:
    """Clean labels, and in the demo also wrong ones; or the share of wrong labels that the user set."""
    if preset == "demo" and "label_noise" not in config:
        noisy = {"label_noise": 0.2}
        return (
            Condition(name="clean", label="clean labels"),
            Condition(name="noisy", label="20 % of the training labels wrong", settings=noisy),
        )
    wrong = f"{settings.label_noise:.0%} of the training labels wrong".replace("%", " %")
    return (Condition(label=wrong if settings.label_noise else "clean labels"),)


def _minutes(minutes: float, settings: Settings, preset: Settings) -> float | None:
    """The preset's measured time, scaled to the epochs; None for other data or another network."""
    if (settings.network, settings.train_images) != (preset.network, preset.train_images):
        return None
    return round(minutes * settings.epochs / preset.epochs, 2)
