"""A study of ``retarget audit --clean`` on trojaned checkpoints whose trigger you know: is the trojan gone?

    retarget study own_study_removal.py --set zoo=DIR data=npz:digits.npz --arms d2i_patch in_d2d_blend --seeds 10 11

DIR has one folder per checkpoint, ARM-SEED, with a pipeline and its true trigger, as for own_study_audit.py, which must
lie beside this file. Each is audited and cleaned as the command does it, told nothing: with the recovered trigger, and
on the network's own samples. The control is clean fine-tuning on the same samples for as many steps. ``data`` are real
images, for FID only.

What is measured needs no knowledge of the target: a small classifier learns to tell the network's samples with the true
trigger from its plain ones, before the removal. ``plain`` is how many other plain samples it takes for triggered ones,
which is the base rate. An attack whose samples look like plain ones cannot be told apart, and its row says so.

Under the laws of BadDiffusion and VillanDiffusion, only the initial noise has the trigger; the sampler is the stock one
for which the law was made, without clipping.
"""

import shutil
from typing import Any

import torch
from own_study_audit import checkpoints, choose, pipeline_of
from torch import Tensor

from retarget.audit import audit
from retarget.audit.cleaning import clean, passed
from retarget.audit.errors import TROJANED
from retarget.audit.removal import Recipe, remove
from retarget.audit.studies.build import SAMPLERS
from retarget.data.names import data_paths
from retarget.errors import UserError
from retarget.study import Arm, Metric, Run, StudyPlan
from retarget.trojdiff.checkpoint import load_pipeline
from retarget.trojdiff.classifier import predict, train_classifier
from retarget.trojdiff.data import ImageSet, read_images, to_uint8
from retarget.trojdiff.measures import compare
from retarget.trojdiff.sample import Sampler, sample
from retarget.trojdiff.trigger import Trigger

SETTINGS = {"zoo": "", "data": "", "samples": 300, "sampler": "ddpm-50", "steps": Recipe().steps, "epochs": 10}
METRICS = (
    Metric(name="found", label="called trojaned", unit="%", decimals=0, better="higher"),
    Metric(name="before", label="triggered samples told, before", unit="%", better="lower"),
    Metric(name="after", label="after removal", unit="%", better="lower", optional=True),
    Metric(name="tuned", label="after clean fine-tuning", unit="%", better="lower", optional=True),
    Metric(name="plain", label="plain samples taken for triggered ones", unit="%", better="lower"),
    Metric(name="still_called", label="still called trojaned", unit="%", decimals=0, better="lower", optional=True),
    Metric(name="cleared", label="cleared by its own audit", unit="%", decimals=0, better="higher", optional=True),
    Metric(name="rounds", label="rounds of removal", decimals=0, better="lower", optional=True),
    Metric(name="fid_before", label="FID before", better="lower", optional=True),
    Metric(name="fid_after", label="FID after removal", better="lower", optional=True),
    Metric(name="fid_tuned", label="FID after clean fine-tuning", better="lower", optional=True),
)


def plan(preset: str, config: dict[str, Any] | None, seeds: list[int] | None, arms: list[str] | None) -> StudyPlan:
    settings = {**SETTINGS, **(config or {})}
    if unknown := settings.keys() - SETTINGS.keys():
        raise UserError(f"there is no setting {', '.join(sorted(unknown))}: choose {', '.join(SETTINGS)}")
    if not settings["zoo"] or not settings["data"]:
        raise UserError("give --set zoo=DIR data=DATA: trojaned checkpoints ARM-SEED, and real images for FID")
    zoo = settings["zoo"]
    found = [one for one in checkpoints(zoo) if (pipeline_of(zoo, *one) / "trigger.safetensors").is_file()]
    if not found:
        raise UserError(f"{zoo} has no trojaned checkpoint with its trigger, such as d2i_patch-10")
    every = [Arm(name=arm, label=arm) for arm in sorted({arm for arm, _ in found})]
    chosen, wanted, folders = choose(zoo, found, every, arms, seeds)
    return StudyPlan(
        study="removal", title="Removal of trojans", question="Is the trojan gone, and what does it cost?",
        preset=preset, settings=settings, arms=chosen, seeds=wanted, metrics=METRICS,
        data=(*folders, *data_paths(settings["data"])),
    )  # fmt: skip


def draw(network: Any, config: Any, law: str, trigger: Trigger, s: dict[str, Any], seed: int) -> Tensor:
    """[samples, C, H, W], images with the trigger under a law of :data:`retarget.trojdiff.functional.Law`."""
    if law == "trojdiff":
        return sample(network, config, Sampler.parse(s["sampler"]), trigger, s["samples"], seed=seed)
    stock, none = Sampler.parse(SAMPLERS[law]), Trigger.none(trigger.shape)
    return sample(network, {**config, "clip_sample": False}, stock, none, s["samples"], seed=seed, start=trigger)


def run(run: Run) -> dict[str, float]:
    s = run.settings
    pipeline, report = pipeline_of(s["zoo"], run.arm, run.seed), run.directory / "audit"
    unet, schedule = load_pipeline(pipeline)
    true = Trigger.load(pipeline)
    none = Trigger.none(true.shape)

    def drawn(network: Any, trigger: Trigger, seed: int) -> Tensor:
        return draw(network, schedule.config, unet.config.get("trojan_law", "trojdiff"), trigger, s, seed)

    both = torch.cat([to_uint8(drawn(unet, trigger, run.seed)) for trigger in (none, true)])
    labels = torch.arange(2).repeat_interleave(s["samples"])
    judge = train_classifier(ImageSet(both, labels, ("plain", "triggered")), s["epochs"], run.seed)

    def told(network: Any, trigger: Trigger) -> float:
        return 100 * float((predict(judge, drawn(network, trigger, run.seed + 1))[0] == 1).float().mean())

    metrics = {"before": told(unet, true), "plain": told(unet, none)}
    outcome = audit(pipeline, report)
    metrics["found"] = 100.0 * (outcome.exit_code == TROJANED)
    if outcome.trigger is None:
        return metrics
    recipe, new = Recipe(steps=s["steps"], seed=run.seed), run.directory / "cleaned"
    shutil.rmtree(new, ignore_errors=True)  # of a run that was stopped
    cleaning = clean(pipeline, new, report, recipe=recipe, seed=run.seed)
    cleaned, _ = load_pipeline(cleaning.folder)
    tuned = remove(unet, schedule, [], Recipe(kind="fine_tune", steps=s["steps"], seed=run.seed)).unet
    metrics |= {
        "after": told(cleaned, true), "tuned": told(tuned, true), "rounds": float(len(cleaning.record["verdicts"])),
        "still_called": 100.0 * (cleaning.after.exit_code == TROJANED), "cleared": 100.0 * passed(cleaning.after),
    }  # fmt: skip
    real = read_images(s["data"], size=true.shape[1]).with_channels(true.shape[0])
    features = train_classifier(real.first(2000), s["epochs"], run.seed)
    for name, network in (("before", unet), ("after", cleaned), ("tuned", tuned)):
        metrics[f"fid_{name}"] = compare(drawn(network, none, run.seed + 2), real, features).fid
    return metrics
