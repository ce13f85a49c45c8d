"""One training run of the image-classification study: Lightning, with PS-KD plugged in as users plug it in."""

import logging
import time
import warnings
from collections import deque
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from retarget.errors import DivergedError
from retarget.files import write_json
from retarget.pskd.functional import alpha_at, widen
from retarget.pskd.lightning import PSKDCallback, WholeCheckpoints
from retarget.pskd.method import PSKD
from retarget.pskd.past.base import past_of
from retarget.pskd.past.of_class import PastOfClass
from retarget.pskd.past.previous import PreviousModel
from retarget.pskd.past.rows import TopK
from retarget.pskd.soft_labels import soft_targets
from retarget.pskd.studies.images.classes import NAMES
from retarget.pskd.studies.images.data import (
    EpochSampler,
    Images,
    Normalise,
    Split,
    TrainingSet,
    split,
    stream,
    whole_batch,
)
from retarget.pskd.studies.images.networks import build
from retarget.pskd.studies.images.optimisers import optimizer, schedule
from retarget.pskd.studies.images.scores import scores
from retarget.pskd.studies.images.settings import SAME_WEIGHTS, Settings
from retarget.settings import resolve_settings
from retarget.study.record import Run, read_history

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # the study has a display of its own
warnings.filterwarnings("ignore", message=".*LeafSpec", module=r"lightning\..*")


class Classifier(pl.LightningModule):
    """A classifier as anybody writes it: it knows nothing of PS-KD."""

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.network, self.settings = network, settings

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch[:2]
        loss = self.finite(F.cross_entropy(widen(self.finite(self(x), "outputs")), y))
        self.log(
            "train_loss", loss, on_epoch=True, on_step=False, batch_size=len(x), sync_dist=self.settings.devices > 1
        )
        return loss

    def finite(self, values: Tensor, what: str = "loss") -> Tensor:
        """The values, or the end of a training that has diverged.

        Raises:
            DivergedError: one is not finite.
        """
        if not bool(torch.isfinite(values.detach()).all()):
            trainer, epochs = self.trainer, self.settings.epochs
            raise DivergedError(
                f"the {what} {'is' if what == 'loss' else 'are'} not finite in epoch {trainer.current_epoch + 1} of "
                f"{epochs}, step {trainer.global_step + 1}: training has diverged. Set lr lower (it is "
                f"{self.settings.lr:g}), or add warmup_epochs",
                epoch=trainer.current_epoch + 1,
            )
        return values

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch[:2]
        logits = widen(self(x))
        self.log_dict(
            {"val_top1": 100 * (logits.argmax(1) == y).float().mean(), "val_nll": F.cross_entropy(logits, y)},
            batch_size=len(x),
            sync_dist=self.settings.devices > 1,
        )

    def configure_optimizers(self) -> Any:
        made = optimizer(self.parameters(), self.settings)
        return [made], [schedule(made, self.settings, lambda: int(self.trainer.estimated_stepping_batches))]


class Reseed(pl.Callback):
    """Random numbers of a step depend on (seed, step) alone, so that a resumed run draws the same."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        torch.manual_seed(stream(self.seed, trainer.global_step))


class Smoothing(pl.Callback):
    """Label smoothing by a fixed share, or by PS-KD's schedule of alpha."""

    def __init__(self, settings: Settings, num_classes: int) -> None:
        self.settings, self.num_classes = settings, num_classes

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        share = self.settings.smoothing
        if self.settings.targets == "smoothing_schedule":
            epoch = trainer.current_epoch
            share = alpha_at(epoch, self.settings.epochs, self.settings.alpha_T) if epoch else 0.0
        batch[1] = (1 - share) * F.one_hot(batch[1], self.num_classes).float() + share / self.num_classes


class Mixing(pl.Callback):
    """CutMix or Mixup of whole batches, with probability ``mixing_prob``, after the labels have been softened.

    The target of a mixed image is λ t_i + (1 - λ) t_j of the two softened targets. A prediction for a mixed image
    belongs to neither image, so a mixed batch reads past rows and stores none: rows come from the batches left alone.
    (With ``mixed_rows = "kept"``, an ablation, it stores them.) With the previous model as the past, images and hard
    labels are mixed first, and its prediction of the mixed image softens the mixed label.
    """

    def __init__(self, settings: Settings, num_classes: int, pskd: PSKDCallback | None) -> None:
        from torchvision.transforms import v2

        kind = v2.CutMix if settings.mixing == "cutmix" else v2.MixUp
        self.mix = kind(alpha=settings.mixing_alpha, num_classes=num_classes)
        self.num_classes = num_classes
        self.prob = settings.mixing_prob
        self.drop_rows = pskd.do_not_remember if pskd and settings.mixed_rows == "dropped" else None

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if torch.rand(()) < self.prob:
            batch[0], batch[1] = self.mix(batch[0], soft_targets(batch[1], self.num_classes))
            if self.drop_rows:
                self.drop_rows()


class Observe(pl.Callback):
    """Logs a line an epoch, reports progress, and times steps from before every other callback."""

    def __init__(self, run: Run) -> None:
        self.run, self.steps = run, deque[float](maxlen=1000)

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self._started = time.perf_counter()

    def stop_clock(self) -> None:
        """The step is over."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.steps.append(time.perf_counter() - self._started)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": list(self.steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps.extend(state_dict["steps"])

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.run.log(trainer.current_epoch, **values)
        self.run.progress(trainer.current_epoch + 1, cast(int, trainer.max_epochs))


class StopClock(pl.Callback):
    """Ends the timing of a step, behind the callbacks whose work belongs to it."""

    def __init__(self, observe: Observe) -> None:
        self.observe = observe

    def on_train_batch_end(self, *args: Any) -> None:
        self.observe.stop_clock()


class Gradients(pl.Callback):
    """The gradient of each sample's loss on its logits, seen in two epochs: the middle one and the last.

    Keeps its L1 norm in the last epoch, by autograd, and for stored rows the largest error of the identity
    ``dL/dz_y = w (p_y - 1)`` with ``w = 1 - a (1 - q_y) / (1 - p_y)``. Under PS-KD it also keeps, at the *same logits*,
    the norm ``|p - t|_1`` for three targets t (:data:`SAME_WEIGHTS`) in both epochs: a network that has been trained by
    another loss has fitted other samples, so only the same weights show what the targets alone do. Stands behind every
    callback that changes labels.
    """

    def __init__(self, labels: Tensor, pskd: PSKDCallback | None) -> None:
        self.labels = labels
        self._pskd = pskd.method if pskd else None
        self._rows = pskd.method if pskd and not pskd.method.teacher else None
        self.norm, self.identity_error = np.full(len(labels), np.nan, np.float32), 0.0
        self.same_weights = np.full((2, len(SAME_WEIGHTS), len(labels)), np.nan, np.float32) if pskd else None

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._hook = module.network.register_forward_hook(self._see)

    def on_fit_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._hook.remove()

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self._labels, self._index = batch[1], batch[2]
        if self._rows and self._rows.alpha > 0:
            self._past, self._written = self._rows.past_probs(batch[2])  # the rows themselves

    def on_before_backward(self, trainer: pl.Trainer, module: Any, loss: Tensor) -> None:
        self._targets = soft_targets(self._labels, self._logits.shape[1]).detach()  # while the step has them

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        epochs = cast(int, trainer.max_epochs)
        last = trainer.current_epoch == epochs - 1
        if self._pskd and trainer.current_epoch == (epochs - 1) // 2:
            self._compare(0, self._pskd.alpha)
        if self._pskd and last:
            self._compare(1, self._pskd.alpha)
        if last:
            self._differentiate()

    def _compare(self, moment: int, alpha: float) -> None:
        """Norms at this step's logits under PS-KD's targets, hard labels, and as much plain smoothing."""
        assert self.same_weights is not None
        p, classes = F.softmax(self._logits.double(), 1), self._logits.shape[1]
        hard = F.one_hot(self.labels[self._index.cpu()].to(p.device), classes)
        for at, targets in enumerate((self._targets.double(), hard, (1 - alpha) * hard + alpha / classes)):
            self.same_weights[moment, at, self._index.cpu().numpy()] = (p - targets).abs().sum(1).cpu().numpy()

    def _differentiate(self) -> None:
        z = self._logits.double().requires_grad_()
        label = self.labels[self._index.cpu()].to(z.device)
        soft = self._targets.double()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(F.cross_entropy(z, soft, reduction="sum"), z)
        self.norm[self._index.cpu().numpy()] = gradient.abs().sum(1).cpu().numpy()
        alpha = self._rows.alpha if self._rows else 0.0
        if alpha > 0:
            at = label[:, None]
            p = F.softmax(z.detach(), 1).gather(1, at)
            q = self._past.double().gather(1, at)
            predicted = (p - 1) + alpha * (1 - q)  # w (p - 1) without the division, which fails where p is 1
            error = (gradient.gather(1, at) - predicted)[self._written].abs()
            self.identity_error = max(self.identity_error, float(error.max()) if len(error) else 0.0)

    def state_dict(self) -> dict[str, Any]:
        state = {"norm": torch.from_numpy(self.norm), "identity_error": self.identity_error}
        if self.same_weights is not None:
            state["same_weights"] = torch.from_numpy(self.same_weights)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.norm, self.identity_error = state_dict["norm"].numpy(), state_dict["identity_error"]
        if "same_weights" in state_dict:  # not in checkpoints of version 0.1
            self.same_weights = state_dict["same_weights"].numpy()

    def _see(self, network: nn.Module, args: Any, output: Tensor) -> None:
        self._logits = widen(output.detach())


class Data(pl.LightningDataModule):
    """Loaders of one run."""

    def __init__(self, settings: Settings, seed: int, parts: Split, normalise: Normalise) -> None:
        super().__init__()
        self.settings, self.seed, self.parts, self.normalise = settings, seed, parts, normalise

    def train_dataloader(self) -> DataLoader:
        s = self.settings
        data = TrainingSet(self.parts.train, self.normalise, s.augmentation, self.seed)
        rank = self.trainer.global_rank if self.trainer else 0
        return DataLoader(
            data,
            batch_size=s.batch_size // s.devices,
            sampler=EpochSampler(data, num_replicas=s.devices, rank=rank, seed=self.seed),
            drop_last=True,
            collate_fn=whole_batch,
            num_workers=s.workers,
            persistent_workers=s.workers > 0,
        )

    def val_dataloader(self) -> DataLoader:
        return evaluation_loader(self.parts.validation, self.normalise, self.settings)


def run(run: Run) -> dict[str, float]:
    """Train one arm with one seed, save its predictions, and return its metrics (the names of ``plan.METRICS``)."""
    return train(run, resolve_settings(Settings, run.settings))


def train(run: Run, settings: Settings) -> dict[str, float]:
    """As :func:`run`, of settings that another study made."""
    parts = split(settings)
    torch.manual_seed(stream(run.seed))
    network = build(settings.network, parts.train.num_classes, parts.train.channels, settings.weights)
    module = Classifier(network, settings)
    module = cast(Classifier, module.to(memory_format=torch.channels_last))
    pskd = _pskd(run, settings, parts, module.network)
    observe, gradients = Observe(run), Gradients(parts.train.labels, pskd)
    changes: list[pl.Callback] = [pskd] if pskd else []
    if settings.targets in ("label_smoothing", "smoothing_schedule"):
        changes.append(Smoothing(settings, parts.train.num_classes))
    if settings.mixing != "none":
        mixing = Mixing(settings, parts.train.num_classes, pskd)
        changes = [mixing, *changes] if settings.past == "previous" else [*changes, mixing]
    callbacks: list[pl.Callback] = [Reseed(run.seed), observe, *changes, StopClock(observe)]
    if settings.mixing == "none" and settings.devices == 1:
        callbacks.append(gradients)
    normalise = Normalise(parts.train)
    fitting = trainer(run, settings, callbacks)
    last = run.checkpoint / "last.ckpt"
    data = Data(settings, run.seed, parts, normalise)
    fitting.fit(module, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)
    if settings.devices > 1:
        _take_back(last, observe, pskd)
    module.to(fitting.strategy.root_device)  # the trainer has taken it back to the CPU
    arrays = predict(module, parts, normalise, settings, run.checkpoint / "selected.ckpt")
    if settings.devices == 1:
        arrays["gradient_norm"] = gradients.norm
    if gradients.same_weights is not None and settings.mixing == "none" and settings.devices == 1:
        arrays["gradient_same_weights"] = gradients.same_weights
    write_json(run.directory / NAMES, list(parts.names))
    run.save_predictions(**arrays)
    metrics = scores(arrays)
    metrics["train_loss"] = read_history(run.directory / "metrics.jsonl")[-1]["train_loss"]
    if gradients.identity_error > 0:  # PS-KD, in a last epoch without mixing
        metrics["identity_error"] = gradients.identity_error
    metrics["step_ms"] = 1000 * float(np.median(observe.steps))
    metrics["store_mb"] = pskd.method.num_bytes / 1e6 if pskd else 0.0
    return metrics


def _take_back(last: Path, observe: Observe, pskd: PSKDCallback | None) -> None:
    """What the processes of a run on several devices learnt lies in its checkpoint; take it into this one."""
    state = torch.load(last, weights_only=True, map_location="cpu")
    observe.load_state_dict(state["callbacks"][observe.state_key])
    if pskd:
        pskd.method.load(last.parent / f"{pskd.prefix}-epoch-{state['epoch']}.safetensors")


def _pskd(run: Run, s: Settings, parts: Split, network: nn.Module) -> PSKDCallback | None:
    if s.targets != "pskd":
        return None
    shape: dict[str, Any] = dict(
        num_samples=len(parts.train),
        num_classes=parts.train.num_classes,
        total_epochs=s.epochs,
        alpha_T=s.alpha_T,
        schedule=s.schedule,
        store=PreviousModel(network) if s.past == "previous" else table(s.store),
    )
    if s.past_of == "same_class":
        past = past_of(shape["store"], shape["num_samples"], shape["num_classes"])
        shape["store"] = PastOfClass(
            past, parts.train.labels, lambda epoch: np.random.default_rng(stream(run.seed, epoch))
        )
    return PSKDCallback(PSKD(**shape), directory=run.checkpoint)


def table(store: str) -> Any:
    """The store that a setting names: ``dense``, or ``topk:K:RESIDUAL``."""
    if store == "dense":
        return store
    _, k, residual = store.split(":")
    return TopK(int(k), cast(Literal["uniform", "renormalise"], residual))


def trainer(run: Run, s: Settings, callbacks: list[pl.Callback]) -> pl.Trainer:
    """Lightning's trainer for a run: its checkpoints, of the last and of the selected epoch, lie with the run."""
    callbacks = [
        *callbacks,
        ModelCheckpoint(run.checkpoint, "selected", monitor="val_top1", mode="max", enable_version_counter=False),
        ModelCheckpoint(run.checkpoint, "last", enable_version_counter=False),
    ]
    return pl.Trainer(
        max_epochs=s.epochs,
        accelerator=s.accelerator,
        devices=s.devices,
        strategy="ddp_spawn" if s.devices > 1 and s.strategy == "auto" else s.strategy,
        precision=s.precision,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        plugins=[WholeCheckpoints()],
        callbacks=callbacks,
        default_root_dir=run.directory,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def evaluation_loader(images: Images, normalise: Normalise, settings: Settings) -> DataLoader:
    """Batches of the images as they are, in their order."""
    data = TrainingSet(images, normalise, "none", seed=0)
    places = [(0, sample) for sample in range(len(data))]
    return DataLoader(
        data, settings.evaluation_batch, sampler=places, collate_fn=whole_batch, num_workers=settings.workers
    )


@torch.no_grad()
def predict(
    module: Classifier, parts: Split, normalise: Normalise, settings: Settings, selected: Path
) -> dict[str, np.ndarray]:
    """Logits and labels: test and validation at the last epoch, test at the selected one, and p_y on the training
    images (not augmented, clean labels)."""
    arrays = {f"{name}_labels": part.labels.numpy() for name, part in (("test", parts.test), ("val", parts.validation))}

    def forward(images: Images) -> np.ndarray:
        with torch.autocast(module.device.type, torch.bfloat16, enabled=settings.precision == "bf16-mixed"):
            batches = [module(batch[0].to(module.device)) for batch in evaluation_loader(images, normalise, settings)]
        return torch.cat([widen(one) for one in batches]).cpu().numpy()

    module.eval()
    arrays["test_logits"], arrays["val_logits"] = forward(parts.test), forward(parts.validation)
    train = torch.softmax(torch.from_numpy(forward(parts.train)).double(), 1)
    arrays["train_p_true"] = train.gather(1, parts.clean_labels[:, None])[:, 0].float().numpy()
    arrays["train_correct"] = (train.argmax(1) == parts.clean_labels).numpy()
    state = torch.load(selected, weights_only=True, map_location=module.device)
    arrays["selected_epoch"] = np.asarray([state["epoch"] + 1])
    module.load_state_dict(state["state_dict"])
    arrays["test_logits_selected"], arrays["val_logits_selected"] = forward(parts.test), forward(parts.validation)
    return arrays
