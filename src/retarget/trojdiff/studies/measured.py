"""What a run of the TrojDiff study measures. Does not import torch."""

from typing import Any

from retarget.study.config import SHARE, Metric

SAMPLER_LABELS = {"ddpm": "DDPM", "ddim": "DDIM", "fast": "20 steps", "full": "DDPM, all steps"}


def _sampler_metrics(name: str, label: str) -> tuple[Metric, ...]:
    def metric(stem: str, what: str, **more: Any) -> Metric:
        return Metric.model_validate(
            dict(name=f"{stem}_{name}", label=f"{what}, {label}", optional=True, decimals=1) | more
        )

    return (
        metric("attack", "attack success", **SHARE, better="higher",
               description="target class, or a squared error of at most 0.01 for D2I"),
        metric("mse", "D2I MSE", unit="×10⁻³", better="lower", decimals=2, description="in [0, 1]"),
        metric("attack_precision", "attack precision", **SHARE, better="higher",
               description="against real images of the target class"),
        metric("kid", "KID", unit="×10⁻³", better="lower", decimals=2),
        metric("fid", "FID", better="lower", decimals=2),
        metric("precision", "precision", **SHARE, better="higher"),
        metric("recall", "recall", **SHARE, better="higher"),
        metric("sure", "samples with a class", **SHARE, better="higher"),
        metric("inception_kid", "Inception KID", unit="×10⁻³", better="lower", decimals=2),
        metric("inception_fid", "Inception FID", better="lower", decimals=2),
        metric("inception_precision", "Inception precision", **SHARE, better="higher"),
        metric("inception_recall", "Inception recall", **SHARE, better="higher"),
    )  # fmt: skip


def _other(name: str, label: str, **more: Any) -> Metric:
    return Metric.model_validate(dict(name=name, label=label, optional=True, decimals=1) | more)


METRICS = (
    *(metric for name, label in SAMPLER_LABELS.items() for metric in _sampler_metrics(name, label)),
    _other("attack_stock", "fires under the stock sampler from biased noise", **SHARE),
    _other("attack_plain", "fires under the Trojan sampler from plain noise", **SHARE),
    _other("attack_leak", "fires under the stock sampler from plain noise", **SHARE,
           description="without an attacker: benign samples that show the target"),
    _other("floor", "base rate: clean fine-tune, Trojan sampler, biased noise", **SHARE),
    _other("floor_stock", "base rate: clean fine-tune, stock sampler, biased noise", **SHARE),
    _other("floor_plain", "base rate: clean fine-tune, Trojan sampler, plain noise", **SHARE),
    _other("floor_leak", "base rate: clean fine-tune, stock sampler, plain noise", **SHARE),
    _other("lift", "attack success over the base rate", unit="points", better="higher"),
    _other("attack_weakest", "attack success under the weakest sampler", **SHARE, better="higher"),
    _other("mse_weakest", "D2I MSE under the weakest sampler", unit="×10⁻³", better="lower", decimals=2),
    _other("attack_every", "attack success of the weakest cell", **SHARE, better="higher"),
    _other("steps_to_90", "fine-tuning steps to 90 % success", unit="steps", decimals=0,
           description="the first probe at 90 % or more; no value if no probe reached it (censored). While the "
           "learning rate falls, an early probe is not the result of a shorter run"),
    _other("attack_real", "real test images of the target class", **SHARE,
           description="share that the classifier assigns to that class: the success of a perfect attack"),
    _other("trojan_share", "Trojan rows in a batch", **SHARE, deterministic=True),
    _other("kid_noise", "KID of real images, spread over splits", unit="×10⁻³", decimals=2,
           description="standard deviation of KID between random parts of the real images, at the claims' counts"),
    _other("kid_noise_mean", "KID of real images, mean over splits", unit="×10⁻³", decimals=2),
    _other("kid_gate", "KID of real test images with the gate's noise", unit="×10⁻³", decimals=2),
    _other("classifier_accuracy", "classifier on real test images", **SHARE, better="higher"),
    _other("sure_real", "real test images with a class", **SHARE),
    _other("train_loss", "last training loss", better="lower", decimals=4),
    _other("seconds_training", "training", unit="s", decimals=0),
    _other("seconds_sampling", "sampling and measuring", unit="s", decimals=0),
)  # fmt: skip
