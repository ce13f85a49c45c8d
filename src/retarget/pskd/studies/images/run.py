"""One training run of the image study: Lightning, with PS-KD plugged in as users do it."""

import logging
import warnings
from collections.abc import Iterator
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
from retarget.pskd.functional import widen
from retarget.pskd.lightning import PSKDCallback, SavedBeside, WholeCheckpoints
from retarget.pskd.method import PSKD
from retarget.pskd.past.base import past_of
from retarget.pskd.past.of_class import PastOfClass
from retarget.pskd.past.previous import PreviousModel
from retarget.pskd.past.rows import TopK
from retarget.pskd.studies.images.callbacks import Gradients, Mixing, Observe, Reseed, Smoothing, StopClock
from retarget.pskd.studies.images.classes import NAMES
from retarget.pskd.studies.images.data import (
    EpochSampler,
    Images,
    Normalise,
    Split,
    TrainingSet,
    stream,
    whole_batch,
)
from retarget.pskd.studies.images.networks import build
from retarget.pskd.studies.images.optimisers import optimizer, schedule
from retarget.pskd.studies.images.same import recorded
from retarget.pskd.studies.images.scores import scores
from retarget.pskd.studies.images.settings import Settings
from retarget.settings import resolve_settings
from retarget.study.record import Run, read_history

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # the study has a display of its own
warnings.filterwarnings("ignore", message=".*LeafSpec", module=r"lightning\..*")


class Classifier(pl.LightningModule):
    """An ordinary classifier, without a line about PS-KD."""

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
        """Return the values, unless training has diverged.

        Raises:
            DivergedError: one of the values is not finite.
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


class Data(pl.LightningDataModule):
    """The loaders of one run."""

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
    """As :func:`run`, with settings from another study."""
    parts = recorded(run.directory, settings)
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
        take_back(last, observe, pskd)
    module.to(fitting.strategy.root_device)  # the trainer has moved it back to the CPU
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


def take_back(last: Path, observe: Observe, method: SavedBeside | None) -> None:
    """Load the state of a run on several devices, left in its checkpoint, into this process."""
    state = torch.load(last, weights_only=True, map_location="cpu")
    observe.load_state_dict(state["callbacks"][observe.state_key])
    if method:
        method.load_state_dict(state["callbacks"][method.state_key])
        method.load_from(last.parent)


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
    """The ``store`` that a setting names: ``dense``, or ``topk:K:RESIDUAL``."""
    if store == "dense":
        return store
    _, k, residual = store.split(":")
    return TopK(int(k), cast(Literal["uniform", "renormalise"], residual))


def trainer(run: Run, s: Settings, callbacks: list[pl.Callback]) -> pl.Trainer:
    """Lightning's trainer for a run; checkpoints of the last and the selected epoch go into the run's directory."""
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
    """Batches of the images in their order, without augmentation."""
    data = TrainingSet(images, normalise, "none", seed=0)
    places = [(0, sample) for sample in range(len(data))]
    return DataLoader(
        data, settings.evaluation_batch, sampler=places, collate_fn=whole_batch, num_workers=settings.workers
    )


@torch.no_grad()
def predict(
    module: Classifier, parts: Split, normalise: Normalise, settings: Settings, selected: Path
) -> dict[str, np.ndarray]:
    """Logits and labels of test and validation images at the last and the selected epoch, and p_y of the training
    images (without augmentation, clean labels)."""
    arrays = {f"{name}_labels": part.labels.numpy() for name, part in (("test", parts.test), ("val", parts.validation))}

    def batches(images: Images) -> Iterator[Tensor]:
        for batch in evaluation_loader(images, normalise, settings):
            with torch.autocast(module.device.type, torch.bfloat16, enabled=settings.precision == "bf16-mixed"):
                logits = module(batch[0].to(module.device))
            yield widen(logits).cpu()

    def forward(images: Images) -> np.ndarray:
        return torch.cat(list(batches(images))).numpy()

    module.eval()
    arrays["test_logits"], arrays["val_logits"] = forward(parts.test), forward(parts.validation)
    found = []  # not the training images' probabilities: ImageNet's are 10 GB
    for logits, labels in zip(batches(parts.train), parts.clean_labels.split(settings.evaluation_batch), strict=True):
        probs = torch.softmax(logits.double(), 1)
        found.append((probs.gather(1, labels[:, None])[:, 0].float(), probs.argmax(1) == labels))
    arrays["train_p_true"], arrays["train_correct"] = (torch.cat(one).numpy() for one in zip(*found, strict=True))
    state = torch.load(selected, weights_only=True, map_location=module.device)
    arrays["selected_epoch"] = np.asarray([state["epoch"] + 1])
    module.load_state_dict(state["state_dict"])
    arrays["test_logits_selected"], arrays["val_logits_selected"] = forward(parts.test), forward(parts.validation)
    return arrays
