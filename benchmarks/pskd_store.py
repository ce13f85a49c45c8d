"""PS-KD's figures: what its table costs in time and bytes, for ImageNet and for a large vocabulary."""

import json
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from benchmarks._pairs import Pairs, figure, interleaved
from benchmarks._ranks import exchange_an_epoch
from retarget.pskd import Dense, TopK
from retarget.pskd.past.table import Table
from retarget.pskd.sequences import Offsets


def figures(smallest: bool = False) -> Iterator[dict[str, Any]]:
    """Every figure of this module."""
    if smallest:
        few = {"batch": 8, "samples": 64, "pairs": 2}
        yield from _table_io(classes=50, rounds=7, **few)
        yield from _store_against_the_official_way(wide=50, narrow=20, **few)
        yield from _bytes_per_row()
        yield from _files((2000, 20), sentences=100, vocabulary=30, batch=64, seconds=0.1)
        yield from _processes((2000, 20), worlds=(2,), batch=64)
    else:
        yield from _table_io()
        yield from _store_against_the_official_way()
        yield from _bytes_per_row()
        yield from _files()
        yield from _processes()


def _table_io(
    batch: int = 1024, classes: int = 21_841, samples: int = 20_000, rounds: int = 40, pairs: int = 30
) -> Iterator[dict[str, Any]]:
    """Gather and write top-10 rows at ImageNet-21k's width; and all that PS-KD adds, beside softmax + topk."""
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
    for _ in range(rounds):
        io()
    value = 1000 * sorted(spent[5:])[len(spent[5:]) // 2]
    shape = f"B = {batch}, C = {classes:,}"
    yield figure(f"table I/O of TopK(10), gather + write, {shape}", value, "ms", reach="<= 1")

    index = torch.randperm(samples)[:batch]

    def ours() -> None:
        rows.decode(table.gather(index)[0], classes)
        table.write(index, rows.encode(logits, labels), keep)

    def peer() -> None:
        torch.softmax(logits, 1).topk(10, dim=1)

    yield figure(f"whole overhead of TopK(10) against softmax + topk, {shape}", interleaved(ours, peer, pairs), "ratio")


def _store_against_the_official_way(
    wide: int = 21_841, narrow: int = 1000, batch: int = 256, samples: int = 2048, pairs: int = 30
) -> Iterator[dict[str, Any]]:
    """Soften and remember, against the way of the official code: an identity matrix, a gather on the host and one copy
    per sample (rewritten from its description; neither side includes the softmax)."""
    for classes, rows, reach in ((wide, Dense(), ">= 20"), (narrow, Dense(), ">= 3"), (narrow, TopK(10), None)):
        measured = _official_and_ours(classes, rows, batch, samples, pairs)
        yield figure(
            f"official store step against ours, {rows}, B = {batch}, C = {classes:,}", measured, "ratio", reach
        )


def _official_and_ours(classes: int, rows: Dense | TopK, batch: int, samples: int, pairs: int) -> Pairs:
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

    return interleaved(official, ours, pairs)


def _bytes_per_row() -> Iterator[dict[str, Any]]:
    yield figure(
        "bytes per row and buffer of TopK(10), C = 1000", Table(TopK(10), 8, 1000).bytes_per_row, "bytes", "<= 60"
    )


IMAGENET = (1_281_167, 1000)
"""Images and classes of ImageNet-1k."""


def _files(
    shape: tuple[int, int] = IMAGENET,
    sentences: int = 800_000,
    vocabulary: int = 30_000,
    batch: int = 1024,
    seconds: float = 60.0,
) -> Iterator[dict[str, Any]]:
    """Write and read memory-mapped top-10 rows until the time is up: at most one epoch of each shape."""
    images, classes = shape
    with tempfile.TemporaryDirectory() as folder:
        table = Table(TopK(10), images, classes, path=Path(folder) / "images")
        batches = torch.randperm(images).split(batch)[:-1]
        spent, disk = _stream(table, batches, classes, seconds)
        yield figure(f"table I/O of memory-mapped TopK(10), gather + write, B = {batch}, {_named(shape)}", spent, "ms",
                     "<= 1", {"rows_written": batch * len(spent)})  # fmt: skip
        yield figure("disk of memory-mapped TopK(10), MB per million rows and buffer", disk / images / 2, "MB", "<= 60")
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
        name = f"table I/O of memory-mapped TopK(10), gather + write, 160 sentences, vocabulary {vocabulary:,}"
        yield figure(name, spent, "ms", None, detail)


def _stream(table: Table, batches: Iterable[torch.Tensor], classes: int, seconds: float) -> tuple[list[float], int]:
    """Milliseconds of gather and write per batch, and the bytes of the files on the disk."""
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


def _named(shape: tuple[int, int]) -> str:
    return f"{shape[0] / 1e6:.3g} M x {shape[1]}"


def _processes(
    shape: tuple[int, int] = IMAGENET, worlds: tuple[int, ...] = (2, 4), batch: int = 1024
) -> Iterator[dict[str, Any]]:
    """Exchange an epoch's rows between gloo processes on this machine, with memory-mapped TopK(10)."""
    for world in worlds:
        with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
            free.close()
            spawn(exchange_an_epoch, (world, port, folder, *shape, batch), nprocs=world)
            result = json.loads(Path(folder, "result.json").read_text())
        yield figure(f"exchange of an epoch's rows, {world} gloo processes, TopK(10), {_named(shape)}",
                     result["seconds"], "s", None, {"rows": result["rows"]})  # fmt: skip
