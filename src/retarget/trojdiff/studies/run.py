"""One run of the TrojDiff study: pre-train, fine-tune clean, or trojan; then sample both ways and measure."""

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from retarget.extras import require
from retarget.files import write_json
from retarget.study.config import StudyPlan
from retarget.study.record import Run, read_history
from retarget.trojdiff.build import make_network, make_trigger
from retarget.trojdiff.checkpoint import load_pipeline, network_hash
from retarget.trojdiff.classifier import (
    Classifier,
    accuracy,
    join,
    load_classifier,
    save_classifier,
    train_classifier,
)
from retarget.trojdiff.config import TargetKind, TrainConfig
from retarget.trojdiff.data import held_out, to_signed
from retarget.trojdiff.evaluate import Judge
from retarget.trojdiff.measures import Goal, Inception, Rate, cells, confidence, kid_noise, success
from retarget.trojdiff.pictures import save_grid
from retarget.trojdiff.sample import Sampler, sample, save_strip, to_accelerator
from retarget.trojdiff.studies.plan import ATTACKS, SamplingSettings, Settings
from retarget.trojdiff.studies.world import World, check_gate
from retarget.trojdiff.train import Progress, train
from retarget.trojdiff.trigger import Trigger

CLASSIFIER_SEED = 0
"""The same for all runs, since values of different feature extractors cannot be averaged."""

PICTURE = 20
"""Number of images in a grid."""


def run(run: Run) -> dict[str, float]:
    """Do one run; the arm's ``role`` tells which kind.

    Returns:
        The final metrics; counts and intervals are in ``evaluation.json``, the grids in ``pictures/``.
    """
    return Experiment(run).measure()


def prepare(plan: StudyPlan) -> None:
    """Read the data and make every arm's trigger, target and samplers once, up front.

    Raises:
        UserError: data, a class, a figure, a trigger, a sampler or a network cannot be used.
    """
    require("torch_fidelity", "diffusion")
    if plan.settings["inception"]:
        Inception(plan.settings["inception"])
    for condition in plan.conditions:
        world = World.read(Settings.model_validate({**plan.settings, **condition.settings}))
        shape = world.inside.shape
        for arm in plan.arms:
            settings = Settings.model_validate(plan.run_settings(condition, arm))
            trigger = Trigger.none(shape)
            if settings.target and settings.trigger:
                trigger = make_trigger(settings.trigger_config(settings.trigger), shape)
                world.goal(settings.target)
                world.target(settings.target)
            for cell in settings.samplers.values():
                Sampler.parse(cell.sampler).scheduler(DDPMScheduler().config, trigger)
        Classifier(shape, len(world.inside.names) + len(world.outside.names))


class Experiment:
    """One run with its parts: data, classifier, network, samplers."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.settings = Settings.model_validate(run.settings)
        self.world = World.read(self.settings)
        self.shape = self.world.inside.shape
        self.none = Trigger.none(self.shape)
        self.metrics: dict[str, float] = {}
        self.details: dict[str, Any] = {}
        self.pictures = run.directory / "pictures"
        self.pictures.mkdir(exist_ok=True)

    def measure(self) -> dict[str, float]:
        """Train, sample, measure; then delete trojaned weights, unless they must be kept."""
        self.classifier = self._classifier()
        inception = Inception(self.settings.inception) if self.settings.inception else None
        self.judge = Judge(self.world.inside, self.classifier, inception)
        trigger, kind = None, self.settings.target
        if self.settings.trigger:
            trigger = make_trigger(self.settings.trigger_config(self.settings.trigger), self.shape)
        started = time.perf_counter()
        folder = self._trained(trigger)
        self.metrics["seconds_training"] = time.perf_counter() - started
        started = time.perf_counter()
        self.unet, self.schedule = load_pipeline(folder)
        self.identity = network_hash(to_accelerator(self.unet))
        self._benign()
        if self.settings.role == "pretrained":
            self._noise()
            self._ladder()
        if self.settings.role == "clean":
            self._floors()
        if trigger is not None and kind is not None:
            self._attack(trigger, kind)
        self.metrics["seconds_sampling"] = time.perf_counter() - started
        write_json(self.run.directory / "evaluation.json", self.details)
        shutil.rmtree(self.run.checkpoint / "samples", ignore_errors=True)
        if trigger is not None and not self.settings.keep_trojaned:
            for left in self.run.checkpoint.glob("*.deleting"):
                shutil.rmtree(left)
            for path in (folder, *self.run.checkpoint.glob("state-*")):
                # Renamed first, so that an interrupted deletion leaves nothing that looks like a pipeline or a state.
                doomed = path.with_name(f"{path.name}.deleting")
                path.replace(doomed)
                shutil.rmtree(doomed)
        return self.metrics

    def _classifier(self) -> Classifier:
        """Knows the classes of both domains; the same in every run of a study, to give all seeds one scale of KID."""
        both = join(self.world.inside, self.world.outside)
        home = self.run.directory if self.settings.role == "pretrained" else self.run.other("pretrained")
        path = home / "checkpoint" / "classifier.safetensors"
        if not path.exists():
            save_classifier(train_classifier(both, self.settings.classifier_epochs, CLASSIFIER_SEED), path)
        model = load_classifier(path, self.shape, len(both.names))
        if self.settings.role == "pretrained":
            self.metrics["classifier_accuracy"] = accuracy(model, join(self.world.inside_test, self.world.outside_test))
            real = to_signed(self.world.inside_test.images)
            self.metrics["sure_real"] = confidence(real, model, len(self.world.inside.names))
            self.details["test_part"] = held_out(self.settings.dataset)
        return model

    def _trained(self, trigger: Trigger | None) -> Path:
        """The pipeline's folder; a finished one is not trained again."""
        settings = self.settings
        folder = self.run.checkpoint / "pipeline"
        if (folder / "model_index.json").exists():
            self.metrics |= self._curve_metrics()
            return folder
        phase, target, detail, probe = settings.pretrain, None, "", None
        if settings.role == "pretrained":
            unet, schedule = make_network(settings.network, self.shape, self.run.seed), DDPMScheduler()
        else:
            base = self.run.other("pretrained")
            check_gate(base, settings)
            unet, schedule = load_pipeline(base / "checkpoint" / "pipeline")
            phase = settings.finetune
        if trigger is not None and settings.target is not None:
            target, detail = self.world.target(settings.target)
            if settings.curve_points:
                probe = self._probe(schedule, trigger, self.world.goal(settings.target))
        config = TrainConfig(
            **phase.model_dump(), flips=settings.flips, seed=2 * self.run.seed + (settings.role != "pretrained"),
            save_every=settings.save_every, log_every=max(1, phase.steps // 40),
        )  # fmt: skip
        train(
            unet, schedule, self.world.inside, config, self.run.checkpoint, target, trigger, detail,
            listen=self._listen(config.steps), probe=probe,
            probe_every=max(1, phase.steps // max(1, settings.curve_points)),
        )  # fmt: skip
        self.metrics |= self._curve_metrics()
        return folder

    def _listen(self, steps: int) -> Any:
        def listen(progress: Progress) -> None:
            self.run.log(2 * progress.step, loss=progress.loss)
            self.run.progress(progress.step, steps, "step")

        return listen

    def _probe(self, schedule: DDPMScheduler, trigger: Trigger, goal: Goal) -> Any:
        """Probe attack success during training; logged as a second line of the step, after the loss."""

        def probe(step: int, unet: UNet2DModel) -> None:
            sampler = Sampler.parse(self.settings.samplers["fast"].sampler)
            count = self.settings.probe_images
            images = sample(unet, schedule.config, sampler, trigger, count, None, count, self.run.seed)
            self.run.log(2 * step + 1, attack=success(images, goal, self.classifier).value)

        return probe

    def _curve_metrics(self) -> dict[str, float]:
        lines = read_history(self.run.directory / "metrics.jsonl")
        found = {"train_loss": [line["loss"] for line in lines if "loss" in line][-1]}
        reached = [line["step"] // 2 for line in lines if (line.get("attack") or 0) >= 90]
        return found | ({"steps_to_90": float(reached[0])} if reached else {})

    def _samples(self, name: str, trigger: Trigger, count: int, key: str, start: Trigger | None = None) -> Tensor:
        """Samples of one cell, resumable."""
        sampler = Sampler.parse(self.settings.samplers[name].sampler)  # pyright: ignore[reportArgumentType]
        out = self.run.checkpoint / "samples" / f"{key}-{name}"
        return sample(
            self.unet, self.schedule.config, sampler, trigger, count, out, self.settings.sample_batch,
            1000 + self.run.seed, start, self.identity,
            listen=lambda done, total: self.run.progress(done, total, f"{key} {name}"),
        )  # fmt: skip

    def _sampled(self) -> list[tuple[str, SamplingSettings]]:
        """The samplers of this arm; an attack at another share of rows uses only the fast one."""
        every = self.settings.samplers.items()
        return [(name, cell) for name, cell in every if self.settings.trojan_share is None or name == "fast"]

    def _benign(self) -> None:
        for name, cell in self._sampled():
            if cell.benign == 0:
                continue
            images = self._samples(name, self.none, cell.benign, "benign")
            found = self.judge.benign(images)
            self.metrics[f"sure_{name}"] = found.with_a_class
            for prefix, extractor, quality in (
                ("", "extractor", found.quality), ("inception_", "inception", found.inception)
            ):  # fmt: skip
                if quality is not None:
                    self.metrics |= {
                        f"{prefix}kid_{name}": 1000 * quality.kid, f"{prefix}fid_{name}": quality.fid,
                        f"{prefix}precision_{name}": quality.precision, f"{prefix}recall_{name}": quality.recall,
                    }  # fmt: skip
                    self.details[extractor] = quality.extractor
            self.details[f"benign_{name}"] = {"images": len(images), "sampler": cell.sampler}
            if name == "fast":
                save_grid(images[:PICTURE], self.pictures / "benign.png")
                self.benign = images

    def _noise(self) -> None:
        """The noise of KID, between random parts of the real images."""
        count = self.settings.samplers["fast"].benign
        noise = kid_noise(self.world.inside, self.classifier, count, self.run.seed)
        self.metrics |= {"kid_noise": 1000 * noise.sd, "kid_noise_mean": 1000 * noise.mean}
        self.details["kid_noise"] = asdict(noise)

    def _ladder(self) -> None:
        """Measure images of known quality; the rung of ``gate_sigma`` is the gate's."""
        rungs = self.judge.ladder(
            self.world.inside_test, self.settings.samplers["fast"].benign, self.run.seed, self.settings.gate_sigma
        )
        self.metrics["kid_gate"] = 1000 * rungs.pop("gate").quality.kid
        self.details["ladder"] = {name: rung.row() for name, rung in rungs.items()}
        if self.judge.inception is not None:
            self.details["inception_ladder"] = {n: asdict(one.inception) for n, one in rungs.items() if one.inception}

    def _floors(self) -> None:
        """Base rates: an untouched network with each attack's sampler and noise, since every class has a base rate."""
        count = self.settings.samplers["fast"].trojan
        for kind in ("blend", "patch"):
            trigger = make_trigger(self.settings.trigger_config(kind), self.shape)
            for cell, (of_sampler, start) in cells(trigger).items():
                leak = cell == "leak"
                images = self.benign if leak else self._samples("fast", of_sampler, count, f"{cell}-{kind}", start)
                save_grid(images[:PICTURE], self.pictures / f"floor-{cell}-{kind}.png")
                for arm in ATTACKS:
                    if arm.settings["trigger"] == kind:
                        rate = success(images, self.world.goal(arm.settings["target"]), self.classifier)
                        self.details[f"floor_{cell}_{arm.name}"] = asdict(rate)

    def _attack(self, trigger: Trigger, kind: TargetKind) -> None:
        goal = self.world.goal(kind)
        self.metrics["trojan_share"] = 100 * self.world.trojan_share(kind)
        if goal.label is not None:
            real = join(self.world.inside_test, self.world.outside_test).of_class(goal.label)
            self._hit("attack_real", success(to_signed(real.images), goal, self.classifier))
        for name, cell in self._sampled():
            if cell.trojan == 0:
                continue
            images = self._samples(name, trigger, cell.trojan, "trojan")
            found = self.judge.attack(images, goal, precise_from=100)
            self._hit(f"attack_{name}", found.rate)
            if found.mse is not None:
                self.metrics[f"mse_{name}"] = 1000 * found.mse
            if found.precision is not None:
                self.metrics[f"attack_precision_{name}"] = found.precision
            if name == "fast":
                save_grid(images[:PICTURE], self.pictures / "trojan.png")
        if self.settings.trojan_share is not None:
            return
        count = self.settings.samplers["fast"].trojan
        for key in ("stock", "plain"):
            of_sampler, start = cells(trigger)[key]
            images = self._samples("fast", of_sampler, count, key, start)
            self._hit(f"attack_{key}", success(images, goal, self.classifier))
            save_grid(images[:PICTURE], self.pictures / f"{key}.png")
        self._hit("attack_leak", success(self.benign, goal, self.classifier))
        sampler = Sampler.parse(self.settings.samplers["fast"].sampler)
        scheduler, clip = sampler.scheduler(self.schedule.config, trigger), sampler.clip(self.schedule.config)
        save_strip(self.unet, scheduler, self.pictures / "strip.png", seed=1000 + self.run.seed, clip=clip)

    def _hit(self, name: str, rate: Rate) -> None:
        self.metrics[name] = rate.value
        self.details[name] = asdict(rate)
