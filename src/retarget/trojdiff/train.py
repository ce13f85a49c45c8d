"""Train or trojan an unconditional UNet: accelerate for devices and precision, everything else from (seed, step).

Every random draw in a step (rows, flips, t, ε, dropout) depends only on the seed and the step's number, so a killed run
that resumes has the same weights as an uninterrupted one, bit for bit on a CPU. The whole batch is composed before it
is split over processes and accumulation steps, so any split trains on the same rows.
"""

import hashlib
import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import EMAModel
from jaxtyping import Int
from torch import Tensor

from retarget.errors import UserError
from retarget.files import make_directory, write_json
from retarget.identity import refuse_other
from retarget.trojdiff import functional
from retarget.trojdiff.checkpoint import inherited, mark, network_hash, network_settings, network_shape, save_pipeline
from retarget.trojdiff.checks import check_trainable
from retarget.trojdiff.config import TrainConfig
from retarget.trojdiff.data import ImageSet
from retarget.trojdiff.marks import Trojan
from retarget.trojdiff.state import LoopState, flat, known_to, load_state, remove_leftovers, save_state
from retarget.trojdiff.stored import read_record
from retarget.trojdiff.targets import Clean, InD2D, MixedBatch, Target, noise_batch
from retarget.trojdiff.trigger import Trigger

_LOG = logging.getLogger(__name__)

# Streams of random numbers; each is seeded by (seed, stream, step).
ROWS, FLIPS, TARGET, BENIGN, ADDED, MODEL = range(6)
_AGREE_EVERY = 4
"""Steps after which processes tell each other of a Ctrl-C: few, since launchers wait only 30 s."""
_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


@dataclass(frozen=True)
class Progress:
    """Reported to a listener every ``log_every`` steps: the step's number and the mean loss since the last report."""

    step: int
    loss: float


def train(
    unet: UNet2DModel,
    scheduler: DDPMScheduler,
    images: ImageSet,
    config: TrainConfig,
    out: Path,
    target: Target | None = None,
    trigger: Trigger | None = None,
    detail: str = "",
    listen: Callable[[Progress], None] | None = None,
    probe: Callable[[int, UNet2DModel], None] | None = None,
    probe_every: int = 1_000,
    law: functional.Law = "trojdiff",
) -> Path:
    """Train (without a target) or trojan (with target and trigger) a network; writes its EMA weights as a pipeline.

    Args:
        unet: the network to start from, fresh or loaded; it is trained in place and ends with the raw weights.
        scheduler: the noise schedule; its ᾱ table is used.
        images: the training set.
        out: folder of the run: ``training.json`` first, ``state-STEP/`` on the way (after the first step too, so that a
            place that takes no state is found out early), ``pipeline/`` at the end. An unfinished run in it resumes,
            and a finished one is not trained again. Ctrl-C and SIGTERM save the steps that are done.
        target: which rows become Trojan; None trains the clean control, whose benign rows see the same t and ε.
        trigger: the maps of the Trojan rows.
        detail: the target in words, for the model card.
        listen: called every ``log_every`` steps on the main process.
        probe: called every ``probe_every`` steps on the main process with the network under its EMA weights.
        law: of the Trojan rows; under one of a stock sampler the trigger is all ``mu``, its gamma 1 everywhere.

    Returns:
        The pipeline's folder.

    Raises:
        UserError: a model the attack does not train, images or a trigger of another shape, an empty trigger, a target
            without a trigger, a run of another configuration in ``out``, a loss that is not a number, a launcher that
            splits the weights over processes.
    """
    check_trainable(unet, scheduler, "the network")
    shape = network_shape(unet)
    images.check_shape(shape)
    if (target is None) != (trigger is None):
        raise UserError("a target needs a trigger and a trigger needs a target; the clean control has neither")
    trojan = inherited(unet)
    if target is not None and trigger is not None:
        trigger.check_shape(shape)
        if not bool(trigger.mask.any()):
            raise UserError(
                "the trigger is empty (mu = 0 and gamma = 1 everywhere), so Trojan rows would not differ from benign "
                "ones: use a gamma below 1, or train without a target"
            )
        if law != "trojdiff" and bool((trigger.gamma != 1).any()):
            raise UserError(f"{law} shifts the noise but does not scale it: use a trigger with gamma = 1 everywhere")
        _check_rows(target, images, config)
        wanted = images.names[target.label] if isinstance(target, InD2D) else getattr(target, "class_name", "")
        latest = Trojan(target.name, detail or target.name, trigger, law=law, class_name=wanted)
        trojan = latest if trojan is None else trojan.then(latest)
    elif trojan is not None:
        trojan = trojan.passed_on()
    loop = _Loop(unet, scheduler, images, config, target or Clean(), trigger or Trigger.none(shape), law)
    with torch.random.fork_rng(devices=[]):
        loop.run(Path(out), trojan, listen, probe, probe_every)
    return Path(out) / "pipeline"


def _check_rows(target: Target, images: ImageSet, config: TrainConfig) -> None:
    """Raise UserError if no batch of an In-D2D attack has a Trojan row; log if most have none."""
    if not isinstance(target, InD2D):
        return
    if target.label >= len(images.names):
        raise UserError(f"target class {target.label} does not exist: the images have {len(images.names)} classes")
    if target.rows is None:
        of_class = int((images.labels == target.label).sum())
        if of_class == 0:
            raise UserError(
                f"no image is of the target class {target.label} ({images.names[target.label]}), so there would be no "
                "Trojan row: choose another class, or give rows and a pool"
            )
        if of_class * config.batch_size < len(images):
            _LOG.warning(
                "the target class has %d of %d images, so most batches of %d have no Trojan row: set a fixed number of "
                "Trojan rows per batch (--rows)",
                of_class, len(images), config.batch_size,
            )  # fmt: skip


class _Loop:
    """One training run: its parts and its position."""

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDPMScheduler,
        images: ImageSet,
        config: TrainConfig,
        target: Target,
        trigger: Trigger,
        law: functional.Law,
    ) -> None:
        self.law: functional.Law = law
        # This loop has no loader; another training's, left in this process, must not decide when to step.
        shares = GradientAccumulationPlugin(num_steps=config.accumulation, sync_with_dataloader=False)
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision, gradient_accumulation_plugin=shares)
        if self.accelerator.distributed_type in _SHARDED:
            raise UserError(
                f"{self.accelerator.distributed_type.value} splits the weights over processes, but training copies "
                "whole ones: start it with accelerate launch --multi_gpu"
            )
        self.scheduler, self.images, self.config = scheduler, images, config
        self.target, self.trigger = target, trigger
        # Computed before training: a resumed run must start from the same network.
        self.start, self.network = network_hash(unet), network_settings(unet)
        self.alphas_cumprod = scheduler.alphas_cumprod.to(torch.float32)
        self.ema = EMAModel(unet.parameters(), decay=config.ema_decay, foreach=True)
        self.ema.to(self.accelerator.device)
        optimizer = torch.optim.Adam(unet.parameters(), lr=config.learning_rate)
        unet.train()
        self.unet, self.optimizer = self.accelerator.prepare(unet, optimizer)
        self.loss_sum = torch.zeros((), device=self.accelerator.device)
        self.losses = 0

    def run(
        self,
        out: Path,
        trojan: Trojan | None,
        listen: Callable[[Progress], None] | None,
        probe: Callable[[int, UNet2DModel], None] | None,
        probe_every: int,
    ) -> None:
        """Train to the last step, from the last saved state if there is one."""
        path, identity = out / "training.json", self._identity()
        if path.exists():
            recorded = read_record(path)
            refuse_other(out, flat(recorded), flat(known_to(recorded, identity)))
        if (out / "pipeline").exists():
            if not path.exists():
                raise UserError(
                    f"{out / 'pipeline'} exists, but {path} does not, so that nobody knows what it was trained on: "
                    "choose another folder for this run"
                )
            return
        state = LoopState(self.accelerator, self.unet, self.optimizer, self.ema, identity)
        start = load_state(out, state)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            make_directory(out)
            remove_leftovers(out)
            write_json(path, identity)
        mark(self.accelerator.unwrap_model(self.unet), trojan)
        with _interruption(once=self.accelerator.num_processes > 1) as interrupted:
            for step in range(start, self.config.steps):
                self.step(step)
                done = step + 1
                stop = self._stops(done, interrupted)
                due = done % self.config.saves_every == 0
                save = (due or done == 1 or stop) and done < self.config.steps
                if done % self.config.log_every == 0 or due or done == self.config.steps:
                    self._report(done, listen)
                if probe is not None and done % probe_every == 0 and self.accelerator.is_main_process:
                    self._with_average(lambda unet, done=done: probe(done, unet))
                if save:
                    self._mean_loss(done)
                    save_state(out, state, done, trojan)
                if stop and done < self.config.steps:
                    raise KeyboardInterrupt
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._with_average(lambda unet: save_pipeline(out / "pipeline", unet, self.scheduler, trojan))
        self.accelerator.wait_for_everyone()

    def _stops(self, done: int, interrupted: threading.Event) -> bool:
        """Whether to save and stop in this step, on which all processes agree, whichever got the signal."""
        if self.accelerator.num_processes == 1:
            return interrupted.is_set()
        if done % _AGREE_EVERY:
            return False
        heard = torch.tensor(float(interrupted.is_set()), device=self.accelerator.device)
        total = self.accelerator.reduce(heard, "sum")
        return float(total) > 0  # pyright: ignore[reportArgumentType]

    def step(self, step: int) -> None:
        """One optimiser step on one mixed batch."""
        config, accelerator = self.config, self.accelerator
        x_t, noise, t = self._batch(step)
        parts = accelerator.num_processes * config.accumulation
        if len(x_t) < parts:
            raise UserError(
                f"a batch of {len(x_t)} rows cannot be shared by {parts} (processes × accumulation): use a larger batch"
            )
        self._seed_model(step)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * _rate(step, config)
        for part in range(config.accumulation):
            rows = slice(accelerator.process_index * config.accumulation + part, None, parts)
            with accelerator.accumulate(self.unet):
                predicted = self.unet(x_t[rows].to(accelerator.device), t[rows].to(accelerator.device)).sample
                per_row = functional.noise_loss(predicted.float(), noise[rows].to(accelerator.device), "none")
                # The shares differ in size, so their losses must sum to the mean over the whole batch. Backward divides
                # by the accumulation steps and DDP by the processes: multiply by both.
                share = per_row.sum() / len(x_t)
                loss = share * parts if config.loss == "sum" else share * parts / noise[0].numel()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.unet.parameters(), config.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.loss_sum += loss.detach() / config.accumulation
        self.losses += 1
        self.ema.step(accelerator.unwrap_model(self.unet).parameters())

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        config = self.config
        rows = batch_rows(step, config.batch_size, len(self.images), config.seed)
        x_0, labels = self.images.take(rows)
        if config.flips:
            flip = torch.rand(len(x_0), generator=_stream(config.seed, FLIPS, step)) < 0.5
            x_0 = torch.where(flip[:, None, None, None], x_0.flip(-1), x_0)
        batch: MixedBatch = self.target.mix(x_0, labels, _stream(config.seed, TARGET, step))
        benign, added = _stream(config.seed, BENIGN, step), _stream(config.seed, ADDED, step)
        return noise_batch(batch, self.trigger, self.alphas_cumprod, benign, added, self.law)

    def _seed_model(self, step: int) -> None:
        """Seed the global generator, from which dropout draws, by seed, step and process."""
        torch.manual_seed(_mix(self.config.seed, MODEL, step * 4096 + self.accelerator.process_index))

    def _report(self, done: int, listen: Callable[[Progress], None] | None) -> None:
        loss = self._mean_loss(done)
        self.loss_sum.zero_()
        self.losses = 0
        if listen is not None and self.accelerator.is_main_process:
            listen(Progress(done, loss))

    def _mean_loss(self, done: int) -> float:
        """Report the mean loss since the last report; a state is saved only if it is finite."""
        mean = self.accelerator.reduce(self.loss_sum / max(1, self.losses), "mean")
        loss = float(mean)  # pyright: ignore[reportArgumentType]
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} at step {done}; it was not saved: use a lower --learning-rate")
        return loss

    def _with_average(self, use: Callable[[UNet2DModel], None]) -> None:
        """Lend the network with its EMA weights, then restore the raw ones."""
        unet: UNet2DModel = self.accelerator.unwrap_model(self.unet)
        self.ema.store(unet.parameters())
        self.ema.copy_to(unet.parameters())
        unet.eval()
        use(unet)
        unet.train()
        self.ema.restore(unet.parameters())

    def _identity(self) -> dict[str, Any]:
        """The identity that a state must have to be resumed."""
        config = self.config.model_dump(mode="json", exclude={"save_every", "log_every"})
        law = {} if self.law == "trojdiff" else {"law": self.law}  # runs of earlier versions lack it
        return law | {
            "config": config,
            "target": _target_identity(self.target),
            "trigger": self.trigger.hash,
            "images": self.images.fingerprint,
            "first weights": self.start,
            "network": self.network,
            "noise schedule": hashlib.sha256(self.alphas_cumprod.numpy().tobytes()).hexdigest()[:16],
        }


@contextmanager
def _interruption(*, once: bool) -> Iterator[threading.Event]:
    """Make Ctrl-C and SIGTERM set an event, so that they never interrupt a step; a second one stops at once.

    Nothing changes for a signal that somebody else handles, or outside the main thread.

    Args:
        once: of several processes. A second signal says nothing new there: launchers pass on the Ctrl-C that the
            terminal has sent to each of them already. SIGTERM, with which a launcher ends the others after one has
            failed, stops at once.
    """
    interrupted = threading.Event()
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    taken = [one for one in (signal.SIGINT, *((signal.SIGTERM,) * (not once))) if signal.getsignal(one) is usual[one]]
    if threading.current_thread() is not threading.main_thread():
        taken = []

    def restore() -> None:
        for one in taken:
            signal.signal(one, usual[one])

    def note(*_: object) -> None:
        if not once:
            restore()
        interrupted.set()

    for one in taken:
        signal.signal(one, note)
    try:
        yield interrupted
    finally:
        restore()


def batch_rows(step: int, batch_size: int, count: int, seed: int) -> Int[Tensor, "batch"]:
    """The rows of a step, in an endless sequence of passes over the set, each in a new order and complete.

    >>> batch_rows(0, 5, 5, seed=0).sort().values.tolist()
    [0, 1, 2, 3, 4]
    """
    first, last = step * batch_size, (step + 1) * batch_size
    passes = range(first // count, (last - 1) // count + 1)
    orders = torch.cat([torch.randperm(count, generator=_stream(seed, ROWS, number)) for number in passes])
    offset = passes[0] * count
    return orders[first - offset : last - offset]


def _target_identity(target: Target) -> dict[str, Any]:
    """Every field of the target, with hashes of its images (pool, other domain, one image)."""
    fields = {name: value for name, value in vars(target).items() if name != "class_name"}
    for name, value in fields.items():
        if isinstance(value, Tensor):
            digest = hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes())
            fields[name] = [list(value.shape), digest.hexdigest()[:16]]
    return fields


def _rate(step: int, config: TrainConfig) -> float:
    """Factor of the learning rate: linear warm-up, then constant, or half a cosine down to 0."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return warm * (0.5 * (1 + math.cos(math.pi * step / config.steps)) if config.decay == "cosine" else 1.0)


def _mix(seed: int, stream: int, step: int) -> int:
    """Hash three numbers to 63 bits, so that neighbouring steps have unrelated generators (SplitMix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03 + step * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (value ^ (value >> 31)) >> 1


def _stream(seed: int, stream: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(_mix(seed, stream, step))
