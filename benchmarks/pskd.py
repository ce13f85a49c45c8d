"""PS-KD's figures: what a training step costs with it and without."""

import tempfile
import time
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from benchmarks._pairs import figure, interleaved
from retarget.pskd import PSKD, Dense, PreviousModel, PSKDCallback, TopK, with_index
from retarget.pskd.studies.images.networks import build
from retarget.pskd.studies.images.run import Classifier
from retarget.pskd.studies.images.settings import PRESETS, Settings


def figures(smallest: bool = False) -> Iterator[dict[str, Any]]:
    """Every figure of this module."""
    sizes: dict[str, int] = {"pairs": 2, "batch": 4} if smallest else {}
    yield from _step(**sizes)
    yield from _previous_model(**sizes)


class _EveryOtherStep(pl.Callback):
    """Runs PS-KD on every other step of one loop and times whole steps, hooks included."""

    def __init__(self, pskd: PSKDCallback, warm_up: int = 2) -> None:
        self.pskd, self.seconds, self.step, self.warm_up = pskd, ([], []), 0, warm_up

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.pskd.on_fit_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.pskd.method.set_epoch(1)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.started = time.perf_counter()
        if self.step % 2:
            self.pskd.on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Any) -> None:
        self.pskd.on_before_backward(trainer, pl_module, loss)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.step % 2:
            self.pskd.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.step >= 2 * self.warm_up:
            self.seconds[self.step % 2].append(time.perf_counter() - self.started)
        self.step += 1


def _step(pairs: int = 30, batch: int = 128) -> Iterator[dict[str, Any]]:
    """A PS-KD step against a cross-entropy step in one Lightning loop: PreAct ResNet-18, CIFAR-100's shape."""
    settings = Settings(**PRESETS["paper"] | {"epochs": 4})
    images = batch * (2 * pairs + 4)
    labels = torch.randint(100, (images,))
    data = with_index(TensorDataset(torch.randn(images, 3, 32, 32), labels))
    for name, store, reach in (("dense", Dense(), "<= 1.02"), ("top-10", TopK(10), "<= 1.05")):
        method = PSKD(images, 100, total_epochs=4, store=store)
        method.set_epoch(0)
        for index in torch.arange(images).split(4096):  # every sample has a past row, as in any epoch but the first
            method.remember(torch.randn(len(index), 100), labels[index], index)
        clock = _EveryOtherStep(PSKDCallback(method))
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(
                max_epochs=1,
                callbacks=[clock],
                accelerator="cpu",
                default_root_dir=folder,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(Classifier(build("preact_resnet18", 100, 3), settings), DataLoader(data, batch))
        ratios = [on / off for off, on in zip(*clock.seconds, strict=True)]
        yield figure(f"PS-KD step against cross-entropy step, {name}, PreAct ResNet-18", ratios, "ratio", reach)


def _previous_model(pairs: int = 30, batch: int = 128) -> Iterator[dict[str, Any]]:
    """A step with each kind of past against a cross-entropy step: network and shape of the preset ``small``."""
    model = build("preact_resnet10_w24", 100, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    x, y, index = torch.randn(batch, 3, 32, 32), torch.randint(100, (batch,)), torch.arange(batch)

    def step(method: PSKD | None) -> None:
        logits = model(x)
        loss = method.loss(logits, y, index, inputs=x) if method else cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for name, store in (("dense rows", Dense()), ("TopK(10)", TopK(10)), ("PreviousModel", PreviousModel(model))):
        method = PSKD(50_000, 100, total_epochs=4, store=store)
        for epoch in range(2):
            method.set_epoch(epoch)
            method.loss(model(x), y, index, inputs=x)
        yield figure(f"step with {name} against cross-entropy step, PreAct ResNet-10, B = {batch}",
                     interleaved(lambda m=method: step(m), lambda: step(None), pairs, warmup=1), "ratio", None,
                     {"bytes_kept": method.num_bytes})  # fmt: skip
