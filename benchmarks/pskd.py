"""PS-KD's figures: what softening and remembering cost beside the step they ride on."""

import tempfile
import time
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks._pairs import Pairs, figure, interleaved
from retarget.pskd import PSKD, Dense, PSKDCallback, TopK, with_index
from retarget.pskd.store import Table
from retarget.pskd.tasks.classification import Classifier
from retarget.pskd.tasks.networks import build


def figures() -> Iterator[dict[str, Any]]:
    """Every figure of this module."""
    yield from _table_io()
    yield from _store_against_the_official_way()
    yield from _bytes_a_row()
    yield from _step()


def _table_io(batch: int = 1024, classes: int = 21_841, samples: int = 20_000) -> Iterator[dict[str, Any]]:
    """Gather and write of top-10 rows at ImageNet-21k's width, and the whole overhead beside softmax + topk."""
    rows, table = TopK(10), Table(TopK(10), samples, classes)
    logits, labels = torch.randn(batch, classes), torch.randint(classes, (batch,))
    fields = rows.encode(logits, labels)
    keep = torch.ones(batch, dtype=torch.bool)
    epoch = 0

    def io() -> None:
        nonlocal epoch
        epoch += 1
        table.begin(epoch)
        index = torch.randint(samples, (batch,))
        started = time.perf_counter()
        table.gather(index)
        table.write(index, fields, keep)
        spent.append(time.perf_counter() - started)

    spent: list[float] = []
    for _ in range(40):
        io()
    value = 1000 * sorted(spent[5:])[len(spent[5:]) // 2]
    yield figure("table I/O of TopK(10), gather + write, B = 1024, C = 21,841", value, "ms", reach="<= 1")

    index = torch.randperm(samples)[:batch]

    def ours() -> None:
        rows.decode(table.gather(index)[0], classes)
        table.write(index, rows.encode(logits, labels), keep)

    def peer() -> None:
        torch.softmax(logits, 1).topk(10, dim=1)

    ratio = interleaved(ours, peer)
    yield figure("whole overhead of TopK(10) against softmax + topk, B = 1024, C = 21,841", ratio, "ratio")


def _store_against_the_official_way() -> Iterator[dict[str, Any]]:
    """Soften and remember, against an identity matrix, a host gather and one copy a sample, as the official step does
    (written anew from its description; softmax left out on both sides)."""
    for classes, rows, reach in ((21_841, Dense(), ">= 20"), (1000, Dense(), ">= 3"), (1000, TopK(10), None)):
        pairs = _official_and_ours(classes, rows)
        yield figure(f"official store step against ours, {rows}, B = 256, C = {classes:,}", pairs, "ratio", reach)


def _official_and_ours(classes: int, rows: Dense | TopK, batch: int = 256, samples: int = 2048) -> Pairs:
    logits, labels = torch.randn(batch, classes), torch.randint(classes, (batch,))
    probs = torch.softmax(logits, 1)
    index = torch.randperm(samples)[:batch]
    fields = {"probs": probs} if isinstance(rows, Dense) else rows.encode(logits, labels)
    keep = torch.ones(batch, dtype=torch.bool)
    alpha = torch.full((batch,), 0.5)
    table, host = Table(rows, samples, classes), torch.zeros(samples, classes)
    table.write(index, fields, keep)

    def ours() -> None:
        table.begin(table.epoch + 1)
        past = rows.decode(table.gather(index)[0], classes)
        if isinstance(past, torch.Tensor):
            past.mul_(alpha[:, None]).scatter_add_(1, labels[:, None], (1 - alpha)[:, None])
        table.write(index, fields, keep)

    def official() -> None:
        0.5 * torch.eye(classes)[labels] + 0.5 * host[index]
        for row in range(batch):
            host[index[row]] = probs[row]

    return interleaved(official, ours)


def _bytes_a_row() -> Iterator[dict[str, Any]]:
    yield figure(
        "bytes a row and buffer of TopK(10), C = 1000", Table(TopK(10), 8, 1000).bytes_per_row, "bytes", "<= 60"
    )


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

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.step % 2:
            self.pskd.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.step >= 2 * self.warm_up:
            self.seconds[self.step % 2].append(time.perf_counter() - self.started)
        self.step += 1


def _step(pairs: int = 30, batch: int = 128) -> Iterator[dict[str, Any]]:
    """A PS-KD step against a cross-entropy step in the same Lightning loop, PreAct ResNet-18, CIFAR-100's shape."""
    settings = dict(lr=0.1, momentum=0.9, weight_decay=5e-4, drops=(0.5, 0.75), epochs=4)
    images = batch * (2 * pairs + 4)
    data = with_index(TensorDataset(torch.randn(images, 3, 32, 32), torch.randint(100, (images,))))
    for name, store, reach in (("dense", "dense", "<= 1.02"), ("top-10", TopK(10), "<= 1.05")):
        method = PSKD(images, 100, total_epochs=4, store=store)
        method.set_epoch(0)
        for index in torch.arange(images).split(4096):  # every sample has a past row, as in any epoch but the first
            method.remember(torch.randn(len(index), 100), torch.zeros(len(index), dtype=torch.long), index)
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
