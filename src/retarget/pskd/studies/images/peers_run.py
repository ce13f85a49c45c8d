"""One training run of the peers study: the classification task with a peer's loss, and evaluation under shift."""

from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn
from torch.utils.data import BatchSampler as Batches
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from retarget.errors import UserError
from retarget.files import write_json
from retarget.own import part
from retarget.pskd import peers
from retarget.pskd.functional import widen
from retarget.pskd.peers.batches import BatchSampler
from retarget.pskd.peers.networks import scaled_decay
from retarget.pskd.peers.own import own_peer
from retarget.pskd.studies.images import run as classification
from retarget.pskd.studies.images.callbacks import Observe, Reseed, StopClock
from retarget.pskd.studies.images.classes import NAMES
from retarget.pskd.studies.images.data import (
    Images,
    Normalise,
    Place,
    Split,
    TrainingSet,
    split,
    stream,
    whole_batch,
)
from retarget.pskd.studies.images.networks import build
from retarget.pskd.studies.images.peers_plan import PeerSettings
from retarget.pskd.studies.images.prepare import built_in, no_peer
from retarget.pskd.studies.images.run import Classifier, Data
from retarget.pskd.studies.images.same import recorded
from retarget.pskd.studies.images.scores import scores
from retarget.pskd.studies.images.shift import shift_scores, shifted_images
from retarget.settings import resolve_settings
from retarget.study.record import Run, read_history


class PeerClassifier(Classifier):
    """The classifier with a peer's loss; evaluates ``method.evaluated`` if there is one."""

    def __init__(self, network: nn.Module, settings: PeerSettings, method: peers.Peer) -> None:
        super().__init__(network, settings)
        self.method = method
        average = method.evaluated
        self.average = average.train() if average else None  # a submodule, so that checkpoints hold it

    def forward(self, x: Tensor) -> Tensor:
        average = cast(nn.Module | None, self.average)
        return self.network(x) if self.training or average is None else average(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y, index = batch
        loss = self.finite(self.method.loss(self.finite(self(x), "outputs"), y, index, inputs=x))
        self.log(
            "train_loss", loss, on_epoch=True, on_step=False, batch_size=len(x), sync_dist=self.settings.devices > 1
        )
        return loss


class Views(Dataset):
    """The training set for batches with two views of a sample, distinguished by the epoch in the key."""

    def __init__(self, data: TrainingSet) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, places: list[Place]) -> list[Tensor]:
        parts = [self.data.__getitems__(list(part)) for _, part in groupby(places, key=lambda place: place[0])]
        return [torch.cat(column) for column in zip(*parts, strict=True)]


class Places(BatchSampler):
    """Batches of (epoch, sample): new samples with this epoch's augmentation, the rest with that of another epoch."""

    def __init__(self, batches: BatchSampler, size: int, total_epochs: int) -> None:
        super().__init__(batches)
        self.size, self.total_epochs = size, total_epochs

    def __iter__(self) -> Any:
        for batch in self.batches:
            views = [self.epoch] * self.size + [self.epoch + self.total_epochs] * (len(batch) - self.size)
            yield list(zip(views, batch, strict=True))


class PeerData(Data):
    """Loaders whose batches are those that the method needs."""

    def __init__(
        self, settings: PeerSettings, seed: int, parts: Split, normalise: Normalise, method: peers.Peer
    ) -> None:
        super().__init__(settings, seed, parts, normalise)
        self.method = method

    def train_dataloader(self) -> DataLoader:
        kind, s = self.method.needs.sampler, self.settings
        if kind == "none":
            return super().train_dataloader()
        data = TrainingSet(self.parts.train, self.normalise, s.augmentation, self.seed)
        order = DistributedSampler(data, num_replicas=1, rank=0, seed=self.seed)  # the same order as in the other arms
        plain = Batches(order, s.batch_size, drop_last=True)
        if kind == "same_class_pairs":
            batches: BatchSampler = peers.SameClassPairs(plain, self.parts.train.labels, stream(self.seed, 1))
        else:
            batches = peers.LastBatch(plain)
        return DataLoader(
            Views(data),
            batch_sampler=cast(Any, Places(batches, s.batch_size, s.epochs)),
            collate_fn=whole_batch,
            num_workers=s.workers,
            persistent_workers=s.workers > 0,
        )


def run(run: Run) -> dict[str, float]:
    """Train one arm with one seed, save its predictions, and return its metrics (``peers_plan.PEERS.metrics``).

    An arm without ``peer`` is run as in the classification study.
    """
    settings = resolve_settings(PeerSettings, run.settings)
    if settings.peer:
        metrics = _train(run, settings)
    else:
        metrics = {**classification.train(run, settings), "forwards": 1.0, "teacher_runs": 0.0}
    if settings.shift.kinds or settings.shift.ood:
        metrics |= _evaluate_shift(run, settings)
    return metrics


def make(
    run: Run, settings: PeerSettings, num_samples: int, num_classes: int, network: nn.Module, channels: int
) -> peers.Peer:
    """The method in ``settings.peer``, which is ``{"method": "OnlineLabelSmoothing", setting: value, …}``.

    A name with a colon is the import path of a user's own loss (:func:`~retarget.pskd.peers.own.own_peer`).
    """
    own: dict[str, Any] = dict(settings.peer or {})
    name = str(own.pop("method", None))
    kind = part(name, "loss") if ":" in name else built_in().get(name)
    if kind is None:
        raise no_peer(name)
    needed = getattr(kind, "wanted", peers.Needs()).network
    if needed == "average":
        own["model"] = network
        steps = settings.epochs * (num_samples // settings.batch_size)
        decays = ("decay",) if kind is peers.WeightEMA else ("decay_in_ramp", "decay_after")
        own = {**dict.fromkeys(decays, scaled_decay(max(steps, 1))), **own}
    elif needed == "trained_teacher":
        if settings.teacher is None:
            raise UserError(f"{name} needs a trained teacher: set teacher to the name of its arm")
        teacher = build(settings.network, num_classes, channels)
        teacher.load_state_dict(_weights(run.other(settings.teacher) / "checkpoint" / "last.ckpt", "network."))
        own["teacher"] = _channels_last(teacher)
    return (
        own_peer(name, num_samples, num_classes, settings.epochs, **own)
        if ":" in name
        else cast(Any, kind)(num_samples, num_classes, settings.epochs, **own)
    )


def _train(run: Run, settings: PeerSettings) -> dict[str, float]:
    parts = recorded(run.directory, settings)
    channels = parts.train.channels
    torch.manual_seed(stream(run.seed, 2) if settings.teacher else stream(run.seed))  # not its teacher's weights
    network = _channels_last(build(settings.network, parts.train.num_classes, channels, settings.weights))
    method = make(run, settings, len(parts.train), parts.train.num_classes, network, channels)
    if settings.devices > 1 and method.needs.sampler != "none":
        raise UserError(
            f"devices = {settings.devices}, but {type(method).__name__} compares samples of one batch "
            f"({method.needs.sampler.replace('_', ' ')}), which cannot be shared among devices: set devices = 1"
        )
    module = PeerClassifier(network, settings, method)
    observe, normalise = Observe(run), Normalise(parts.train)
    callback = peers.PeerCallback(method, directory=run.checkpoint)
    trainer = classification.trainer(run, settings, [Reseed(run.seed), observe, callback, StopClock(observe)])
    last = run.checkpoint / "last.ckpt"
    data = PeerData(settings, run.seed, parts, normalise, method)
    trainer.fit(module, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)
    if settings.devices > 1:
        classification.take_back(last, observe, callback)
    module.to(trainer.strategy.root_device)  # the trainer has moved it back to the CPU
    arrays = classification.predict(module, parts, normalise, settings, run.checkpoint / "selected.ckpt")
    write_json(run.directory / NAMES, list(parts.names))
    run.save_predictions(**arrays)
    metrics = scores(arrays)
    metrics["train_loss"] = read_history(run.directory / "metrics.jsonl")[-1]["train_loss"]
    metrics["step_ms"] = 1000 * float(np.median(observe.steps))
    metrics["store_mb"] = method.num_bytes / 1e6
    metrics["forwards"] = method.needs.forwards
    metrics["teacher_runs"] = float(method.needs.network == "trained_teacher")
    return metrics


def _evaluate_shift(run: Run, settings: PeerSettings) -> dict[str, float]:
    """Predict the shifted images with the last epoch's weights; save the logits with the other predictions."""
    path = run.directory / "predictions.safetensors"
    parts = split(settings)
    channels = parts.train.channels
    state = torch.load(run.checkpoint / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]
    prefix = "average." if any(name.startswith("average.") for name in state) else "network."
    network = build(settings.network, parts.train.num_classes, channels)
    network.load_state_dict(_weights(run.checkpoint / "last.ckpt", prefix))
    network = _channels_last(network).eval()
    trainer = pl.Trainer(accelerator=settings.accelerator, devices=1, logger=False, enable_checkpointing=False)
    network.to(trainer.strategy.root_device)  # where the run trained
    index, images = shifted_images(parts.test, settings)
    normalise = Normalise(parts.train)
    arrays = {**load_file(path), "shift_index": index}
    for name, pixels in images.items():
        arrays[f"shift_logits_{name}"] = _logits(network, pixels, parts.test, normalise, settings)
    run.save_predictions(**arrays)
    return shift_scores(arrays)


@torch.no_grad()
def _logits(
    network: nn.Module, pixels: Tensor, test: Images, normalise: Normalise, settings: PeerSettings
) -> np.ndarray:
    images = replace(test, pixels=pixels, labels=torch.zeros(len(pixels), dtype=torch.long))
    loader = classification.evaluation_loader(images, normalise, settings)
    device = next(network.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16-mixed"):
        return torch.cat([widen(network(batch[0].to(device))) for batch in loader]).cpu().numpy()


def _channels_last(network: nn.Module) -> nn.Module:
    return cast(Any, network).to(memory_format=torch.channels_last)


def _weights(checkpoint: Path, prefix: str) -> dict[str, Tensor]:
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")["state_dict"]
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
