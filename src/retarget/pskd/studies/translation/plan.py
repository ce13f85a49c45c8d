"""The translation study as data: settings, presets, arms, claims. Does not import torch.

``retarget.pskd.study.plan`` passes configurations with ``task = "translation"`` on to ``plan``.
"""

from pathlib import Path
from typing import Any

from retarget.errors import UserError
from retarget.pskd.studies.references import PSKD
from retarget.pskd.studies.translation.settings import Settings
from retarget.settings import resolve_settings
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
)

PRESETS: dict[str, dict[str, Any]] = {
    "demo": dict(
        dataset="grammar", train_sentences=2000, vocabulary=200, max_tokens=40, d_model=64, ffn=128, layers=2,
        dropout=0.1, epochs=12, batch_sentences=50, lr=3e-3, warmup_steps=100, beams=3, accelerator="cpu",
    ),
    "small": dict(
        dataset="files:multi30k", vocabulary=5000, d_model=256, ffn=512, heads=8, layers=2, dropout=0.1, norm="pre",
        epochs=5, batch_sentences=64, lr=2e-3, lr_schedule="cosine", warmup_steps=300, accelerator="cpu", bf16=True,
    ),
    "paper": dict(dataset="files:multi30k", vocabulary=10_000, epochs=60, batch_sentences=256),
}  # fmt: skip

MINUTES_PER_RUN = {"demo": 0.7, "small": 14.0, "paper": 30.0}

ARMS = (
    Arm(name="cross_entropy", label="cross-entropy"),
    Arm(name="pskd", label="PS-KD", settings={"targets": "pskd"}),
    Arm(name="label_smoothing", label="label smoothing 0.1", settings={"smoothing": 0.1}),
    Arm(
        name="pskd_label_smoothing",
        label="PS-KD + label smoothing",
        settings={"targets": "pskd", "smoothing": 0.1},
    ),
)

METRICS = (
    Metric(name="bleu", label="BLEU", better="higher", decimals=1, floor=1.0, floor_for="every arm",
           description="sacreBLEU, signature in scores.json; a translator below 1 has learnt nothing"),
    Metric(name="chrf", label="chrF", better="higher", decimals=1, description="sacreBLEU's chrF2"),
    Metric(name="nll", label="token NLL", better="lower", decimals=3, description="test set, reference prefixes"),
    Metric(name="ece", label="token ECE", **SHARE, better="lower", description="10 equal-width bins (lo, hi]"),
    Metric(name="nll_scaled", label="token NLL after temperature", better="lower", decimals=3),
    Metric(name="ece_scaled", label="token ECE after temperature", **SHARE, better="lower"),
    Metric(name="temperature", label="fitted temperature", decimals=2, description="on the validation sentences"),
    Metric(name="token_accuracy", label="token accuracy", **SHARE, better="higher"),
    Metric(name="val_nll", label="validation token NLL, last epoch", better="lower", decimals=3),
    Metric(name="step_ms", label="median training step", unit="ms", better="lower", decimals=1),
    Metric(name="store_mb", label="table of past rows", unit="MB", better="lower", deterministic=True),
    Metric(
        name="store_share", label="table against dense fp32", unit="%", decimals=3, deterministic=True,
        description="size of both slots and stamps, relative to one float32 buffer",
    ),
)  # fmt: skip


def claims(condition: str, suffix: str = "") -> tuple[Claim, ...]:
    """The abstract's claims under one condition. Smallest effects are half or less of the paper's gains in BLEU."""

    claim = claims_under(condition, suffix)
    pair = ("pskd", "cross_entropy")
    return (
        claim("translation", "PS-KD improves machine translation.", "bleu", "higher", 0.5, pair, shown="chrf"),
        claim("translation_against_smoothing", "PS-KD improves machine translation beyond label smoothing.", "bleu",
              "higher", 0.5, ("pskd", "label_smoothing"), shown="chrf"),
        claim("translation_combined", "PS-KD adds to existing regularisation: label smoothing.", "bleu", "higher", 0.5,
              ("pskd_label_smoothing", "label_smoothing"), shown="chrf"),
        claim("translation_calibration", "PS-KD improves the calibration of a translator's words.", "ece_scaled",
              "lower", 0.5, pair, shown="ece"),
        claim("translation_likelihood", "PS-KD gives a translator better confidence estimates.", "nll_scaled", "lower",
              0.02, pair, shown="nll"),
    )  # fmt: skip


def plan(
    preset: str = "demo",
    config: dict[str, Any] | None = None,
    seeds: list[int] | None = None,
    arms: list[str] | None = None,
) -> StudyPlan:
    """The resolved study.

    Args:
        preset: ``demo`` (a generated language, minutes), ``small`` (Multi30k, hours on a CPU) or ``paper``.
        config: settings that override the preset's (keys of :class:`Settings`). With ``files:DIR`` the two directions
            are two conditions; set ``source`` and ``target`` for only one.
        seeds: seeds to use instead of 0 to 2.
        arms: names of the arms to run.

    Raises:
        UserError: unknown preset, setting or arm.
    """
    config = dict(config or {})
    if preset not in PRESETS:
        raise UserError(f"no preset {preset!r} for translation: choose {', '.join(PRESETS)}")
    settings = resolve_settings(Settings, {**PRESETS[preset], **config})
    if settings.d_model % settings.heads:
        raise UserError(f"d_model = {settings.d_model} is not a multiple of heads = {settings.heads}")
    if settings.topk > settings.vocabulary:
        raise UserError(f"topk = {settings.topk} exceeds vocabulary = {settings.vocabulary}")
    if settings.dataset != "grammar":
        _refuse_same(settings)
    both_ways = settings.dataset != "grammar" and not {"source", "target"} & set(config)
    conditions = _directions(settings.source, settings.target) if both_ways else (Condition(),)
    refuse_decided(config, ARMS, conditions)
    return StudyPlan(
        study="pskd-translation",
        title="PS-KD on machine translation",
        question="Do softened targets from the model's own past predictions help this translator?",
        preset=preset,
        task="retarget.pskd.studies.translation.run:run",
        task_name="pskd.translation",
        former_tasks=("retarget.pskd.tasks.translation:run",),
        data=data_paths(settings),
        packages=(("transformers", "text"), ("accelerate", "text"), ("sacrebleu", "text")),
        prepare="retarget.pskd.studies.translation.prepare:prepare",
        check="retarget.pskd.studies.translation.prepare:prepare",
        analysis="retarget.pskd.studies.translation.analysis:analyse",
        settings=settings.model_dump(mode="json"),
        settings_model=Settings,
        conditions=conditions,
        arms=choose_arms(ARMS, arms),
        seeds=tuple(seeds) if seeds else (0, 1, 2),
        metrics=METRICS,
        claims=tuple(
            one for c in conditions for one in claims(c.name, "" if len(conditions) == 1 else f"_{c.name}")
        ),
        minutes_per_run=_minutes(preset, settings),
        references=(PSKD,),
    )  # fmt: skip


_MEASURED = ("train_sentences", "test_sentences", "vocabulary", "d_model", "ffn", "layers", "beams")
"""Settings on which a run's time depends, besides the epochs."""


def _minutes(preset: str, settings: Settings) -> float | None:
    """The preset's measured time, scaled to the epochs; None for other data or another network."""
    of_preset = Settings.model_validate(PRESETS[preset])
    generated = {settings.dataset == "grammar", of_preset.dataset == "grammar"}
    if len(generated) == 2 or any(getattr(settings, name) != getattr(of_preset, name) for name in _MEASURED):
        return None
    return round(MINUTES_PER_RUN[preset] * settings.epochs / of_preset.epochs, 2)


def _refuse_same(settings: Settings) -> None:
    """Raise if a study would translate a language into itself, or test on training or validation pairs."""
    if settings.source == settings.target:
        raise UserError(f"source and target are both {settings.source}: a translator that copies would have all marks")
    if settings.test in ("train", "val"):
        raise UserError(
            f"test={settings.test} names the {'training' if settings.test == 'train' else 'validation'} files, so the "
            "study would measure memory: name files of other pairs"
        )


def _directions(source: str, target: str) -> tuple[Condition, ...]:
    return tuple(
        Condition(name=f"{a}-{b}", label=f"{a} to {b}", settings={"source": a, "target": b})
        for a, b in ((source, target), (target, source))
    )


def data_paths(settings: Settings) -> tuple[str, ...]:
    """The files that a run with these settings reads."""
    if settings.dataset == "grammar":
        return ()
    parts = ("train", "val", settings.test)
    return tuple(str(file_of(settings, part, one)) for part in parts for one in (settings.source, settings.target))


def file_of(settings: Settings, part: str, language: str) -> Path:
    """``NAME.LANGUAGE.gz`` if it exists, else ``NAME.LANGUAGE``."""
    folder = Path(settings.dataset.removeprefix("files:"))
    packed = folder / f"{part}.{language}.gz"
    return packed if packed.is_file() else folder / f"{part}.{language}"
