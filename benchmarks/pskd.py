"""PS-KD's figures: what softening and remembering cost beside the step they ride on."""

import json
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from transformers import Seq2SeqTrainer, TrainerCallback

from benchmarks._pairs import Pairs, figure, interleaved
from benchmarks._ranks import exchange_an_epoch
from retarget.pskd import PSKD, Dense, PreviousModel, PSKDCallback, PSKDSeq2SeqTrainer, TopK, with_index
from retarget.pskd.ragged import Offsets
from retarget.pskd.store import Table
from retarget.pskd.tasks.classification import Classifier
from retarget.pskd.tasks.networks import build


def figures() -> Iterator[dict[str, Any]]:
    """Every figure of this module."""
    yield from _table_io()
    yield from _store_against_the_official_way()
    yield from _bytes_a_row()
    yield from _step()
    yield from _hf_step()
    yield from _files()
    yield from _previous_model()
    yield from _processes()


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
    for name, store, reach in (("dense", Dense(), "<= 1.02"), ("top-10", TopK(10), "<= 1.05")):
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


def _hf_step(pairs: int = 30, batch: int = 64, vocabulary: int = 5000) -> Iterator[dict[str, Any]]:
    """A PS-KD step against the library's own in one Hugging Face Trainer, a small Transformer, 64 × 16 targets."""
    from transformers import MarianConfig, MarianMTModel, Seq2SeqTrainingArguments

    steps = 2 * pairs + 4
    words = torch.randint(3, vocabulary, (steps * batch, 16)).tolist()  # all as long: pairs of steps are alike
    data = [{"input_ids": row, "labels": row} for row in words]
    for name, settings, reach in (("top-10", {"store": TopK(10)}, "<= 1.05"), ("previous model", {}, None)):
        model = MarianMTModel(
            MarianConfig(
                vocab_size=vocabulary, d_model=128, encoder_layers=3, decoder_layers=3, encoder_attention_heads=4,
                decoder_attention_heads=4, encoder_ffn_dim=256, decoder_ffn_dim=256, pad_token_id=0, eos_token_id=1,
                forced_eos_token_id=1, decoder_start_token_id=0, max_position_embeddings=32,
            )
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            trainer = _EveryOtherUpdate(
                model=model,
                args=Seq2SeqTrainingArguments(
                    folder, num_train_epochs=2, per_device_train_batch_size=batch, report_to=[], disable_tqdm=True,
                    save_strategy="no", logging_strategy="no", use_cpu=True, dataloader_pin_memory=False,
                ),
                train_dataset=data,
                lengths=[16] * len(data),
                **(settings or {"store": PreviousModel(model)}),
            )  # fmt: skip
            trainer.train()
        yield figure(f"PS-KD step against the library's in the HF Trainer, {name}, small Transformer, vocabulary "
                     f"{vocabulary:,}", trainer.pairs(), "ratio", reach)  # fmt: skip


class _EveryOtherUpdate(PSKDSeq2SeqTrainer):
    """In the second epoch every other update is the library's; times are from the end of one update to the next."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.seconds: tuple[list[float], list[float]] = ([], [])
        self.updates, self.ended = 0, 0.0
        trainer = self

        class Clock(TrainerCallback):
            def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                trainer.ended = time.perf_counter()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                now = time.perf_counter()
                if trainer.pskd and trainer.pskd.alpha > 0:
                    trainer.seconds[trainer.updates % 2].append(now - trainer.ended)
                    trainer.updates += 1
                trainer.ended = time.perf_counter()

        self.add_callback(Clock())

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The library's for updates of even number."""
        if self.pskd and self.pskd.alpha > 0 and self.updates % 2 == 0:
            inputs = {name: value for name, value in inputs.items() if name != "index"}
            return Seq2SeqTrainer.compute_loss(self, model, inputs, *args, **kwargs)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def pairs(self, warm_up: int = 2) -> Pairs:
        """Times with PS-KD and without it."""
        off, on = (times[warm_up:] for times in self.seconds)
        return Pairs(on[: len(off)], off[: len(on)])


IMAGENET = (1_281_167, 1000)
"""Images and classes of ImageNet-1k."""


def _files(seconds: float = 60.0) -> Iterator[dict[str, Any]]:
    """Memory-mapped top-10 rows, real rows written and read until the time is over: at most an epoch of each shape."""
    images, classes = IMAGENET
    with tempfile.TemporaryDirectory() as folder:
        table = Table(TopK(10), images, classes, path=Path(folder) / "images")
        batches = torch.randperm(images).split(1024)[:-1]
        spent, disk = _stream(table, batches, classes, seconds)
        yield figure("table I/O of memory-mapped TopK(10), gather + write, B = 1024, 1.28 M x 1000", spent, "ms",
                     "<= 1", {"rows_written": 1024 * len(spent)})  # fmt: skip
        yield figure("disk of memory-mapped TopK(10), MB a million rows and buffer", disk / images / 2, "MB", "<= 60")
    sentences, vocabulary = 800_000, 30_000
    with tempfile.TemporaryDirectory() as folder:
        where = Offsets(torch.randint(5, 46, (sentences,)).tolist())
        table = Table(TopK(10), where.num_rows, vocabulary, path=Path(folder) / "tokens")

        def rows(index: torch.Tensor) -> torch.Tensor:
            counted = torch.arange(45) < where.lengths[index][:, None]
            return where.rows(index, counted)[counted]

        batches = map(rows, torch.randperm(sentences).split(160))
        spent, disk = _stream(table, batches, vocabulary, seconds)
        detail = {"tokens": where.num_rows, "sentences_written": 160 * len(spent), "disk_mb": disk / 1e6,
                  "dense_fp32_gb": 4e-9 * where.num_rows * vocabulary}  # fmt: skip
        name = "table I/O of memory-mapped TopK(10), gather + write, 160 sentences, vocabulary 30,000"
        yield figure(name, spent, "ms", None, detail)


def _stream(table: Table, batches: Iterable[torch.Tensor], classes: int, seconds: float) -> tuple[list[float], int]:
    """Milliseconds of each batch's gather and write, and the bytes that the files take on the disk."""
    rows, until = TopK(10), time.monotonic() + seconds
    logits, labels = torch.randn(1024, classes), torch.randint(classes, (1024,))
    fields = rows.encode(logits, labels)
    table.begin(1)
    spent = []
    for index in batches:
        chosen = torch.randint(1024, (len(index),))
        new = {name: value[chosen] for name, value in fields.items()}
        keep = torch.ones(len(index), dtype=torch.bool)
        started = time.perf_counter()
        table.gather(index)
        table.write(index, new, keep)
        spent.append(1000 * (time.perf_counter() - started))
        if time.monotonic() > until:
            break
    assert table.path is not None
    return spent, sum(512 * file.stat().st_blocks for file in table.path.glob("*.bin"))


def _previous_model(pairs: int = 30, batch: int = 128) -> Iterator[dict[str, Any]]:
    """A step with each source of the past against a cross-entropy step, the small study's network and shape."""
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


def _processes() -> Iterator[dict[str, Any]]:
    """The exchange of an epoch's rows between gloo processes on this machine, memory-mapped TopK(10), 1.28 M x 1000."""
    images, classes = IMAGENET
    for world in (2, 4):
        with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
            free.close()
            spawn(exchange_an_epoch, (world, port, folder, images, classes, 1024), nprocs=world)
            result = json.loads(Path(folder, "result.json").read_text())
        yield figure(f"exchange of an epoch's rows, {world} gloo processes, TopK(10), 1.28 M x 1000",
                     result["seconds"], "s", None, {"rows": result["rows"]})  # fmt: skip
