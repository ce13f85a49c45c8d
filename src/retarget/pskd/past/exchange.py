"""Exchange rows between ranks once per epoch, so that every rank can read every row.

Traffic: each rank announces (sample, position, label), 24 bytes per row that it wrote, and every row of the epoch is
broadcast once. A rank therefore sends about N / world rows and receives N rows of ``Table.bytes_per_row`` less the
stamp: 4 MB per epoch for CIFAR-100 with ``TopK(20)``, 51 MB for ImageNet-1k with ``TopK(10)``.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from jaxtyping import Bool, Integer
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.checks import incomparable
from retarget.pskd.past.table import Table

_CHUNK_ROWS = 65_536  # rows per broadcast, which bounds the buffer


class WriteLog:
    """The samples that this rank wrote in this epoch, in order."""

    def __init__(self) -> None:
        self._steps: list[tuple[Tensor, Tensor]] = []

    def add(self, index: Integer[Tensor, "batch"], keep: Bool[Tensor, "batch"]) -> None:
        """Record one call of ``Table.write``."""
        if world_size() > 1:
            self._steps.append((index, keep))

    def take(self) -> tuple[Tensor, Tensor]:
        """Return the samples and their order keys (step, position in the batch, rank), both [W], and clear the log."""
        samples, keys = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.long)]
        for step, (index, keep) in enumerate(self._steps):
            place = keep.cpu().nonzero()[:, 0]
            samples.append(index.cpu()[place])
            keys.append((step << 40) | (place << 16) | dist.get_rank())
        self._steps = []
        return torch.cat(samples), torch.cat(keys)


def world_size() -> int:
    """Number of processes in the run; 1 if torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def in_one_place(write: Callable[[], None], writes: bool | None = None, *, near: torch.device | None = None) -> None:
    """Write files in one process while the others wait for them; collective: every rank calls it.

    Args:
        writes: whether this process writes; None for rank 0 alone.
        near: a device of this process, if it has its own; see :func:`communication_device`.

    Raises:
        UserError: in the other processes, if one could not write; in that one its own error.
    """
    if writes is None:
        writes = world_size() == 1 or dist.get_rank() == 0
    whole, failed = False, False
    try:
        if writes:
            write()
        whole = True
    finally:  # the others are told of an error, too
        if world_size() > 1:
            answer = torch.tensor([float(not whole)], device=communication_device(near))
            dist.all_reduce(answer)
            failed = bool(answer)
    if failed:
        raise UserError("another process could not save its state: its message says why")


def exchange(table: Table, log: WriteLog, labels: Tensor | None, name: Callable[[int], str]) -> None:
    """Give every rank's table the rows of all ranks; collective: every rank calls it.

    Of several rows for one sample, the one with the lowest (step, position in the rank's batch, rank) wins: this is the
    order in which ``DistributedSampler`` distributes a global batch.

    Args:
        labels: [N + 1] or longer, the label that this rank has last seen with each sample, or what stands for it; below
            0 if there is none. None if the rows themselves tell, an epoch later, or are not checked.
        name: gives the name of a row for messages.

    Raises:
        UserError: in every rank, if the ranks have tables of different lengths, or rows of one sample with different
            labels.
    """
    if world_size() == 1:
        return
    table.flush()
    device = communication_device(table.device)
    samples, keys = log.take()
    own = torch.full_like(samples, -1) if labels is None else labels.cpu()[samples].long()
    samples, keys, seen = _gather_all(torch.stack([samples, keys, own]), table.num_samples, device)
    keys, order = keys.sort()
    samples, by_sample = samples[order].sort(stable=True)
    keys, seen = keys[by_sample], seen[order][by_sample]
    _refuse_other_samples(samples, seen, keys & 0xFFFF, name)
    first = torch.ones(len(samples), dtype=torch.bool)
    first[1:] = samples[1:] != samples[:-1]
    winners, owners = samples[first], keys[first] & 0xFFFF
    for rank in range(world_size()):
        for chunk in winners[owners == rank].split(_CHUNK_ROWS):
            _broadcast(table, chunk.to(table.device), rank, device)


def _broadcast(table: Table, index: Tensor, source: int, device: torch.device) -> None:
    fields = table.own_rows(index)
    for name, value in fields.items():
        raw = value.to(device).contiguous().view(torch.uint8)
        dist.broadcast(raw, source)
        fields[name] = raw.view(value.dtype).to(table.device)
    if dist.get_rank() != source:
        table.overwrite(index, fields)


def _refuse_other_samples(samples: Tensor, labels: Tensor, ranks: Tensor, name: Callable[[int], str]) -> None:
    """Raise if ranks have seen one sample with different labels; all arguments are [W], ordered by sample."""
    samples, labels, ranks = samples[labels >= 0], labels[labels >= 0], ranks[labels >= 0]
    same = (samples[1:] != samples[:-1]) | (labels[1:] == labels[:-1]) | incomparable(labels[1:], labels[:-1])
    other = (~same).nonzero()
    if len(other):
        at = int(other[0])
        raise UserError(
            f"{name(int(samples[at]))} has one label in process {int(ranks[at])} and another in process "
            f"{int(ranks[at + 1])}: the index must mean the same sample in all of them. If each process has a part of "
            "the training set, number the samples before it is divided: with_index(dataset) first, and num_samples is "
            "the length of the whole"
        )


def _gather_all(mine: Tensor, num_samples: int, device: torch.device) -> Tensor:
    """Join [3, W] of every rank to one; the ranks must have tables of the same length."""
    length = torch.tensor([mine.shape[1], num_samples], device=device)
    lengths = [torch.zeros_like(length) for _ in range(world_size())]
    dist.all_gather(lengths, length)
    counts = [int(one[0]) for one in lengths]
    sizes = [int(one[1]) for one in lengths]
    if len(set(sizes)) > 1:
        raise UserError(
            f"the processes have tables of {', '.join(f'{one:,}' for one in sizes)} rows: num_samples, or what stands "
            "for it, must be that of the whole training set in all of them. If each has a part of it, number the "
            "samples before it is divided: with_index(dataset) first"
        )
    padded = torch.zeros(len(mine), max(counts), dtype=torch.long)
    padded[:, : mine.shape[1]] = mine
    parts = [torch.zeros_like(padded, device=device) for _ in range(world_size())]
    dist.all_gather(parts, padded.to(device))
    return torch.cat([part.cpu()[:, :count] for part, count in zip(parts, counts, strict=True)], dim=1)


def communication_device(near: torch.device | None = None) -> torch.device:
    """The device that the backend communicates on: NCCL does not support CPU tensors.

    ``get_backend()`` does not tell: after ``init_process_group()`` without a backend it is "undefined".
    Of the GPUs it is that of the table, ``near``: a loop that calls no ``set_device`` leaves the first one current in
    every process, and NCCL refuses one GPU for two of them.
    """
    kinds = [pair.partition(":")[0] for pair in dist.get_backend_config().split(",")]  # "cuda:nccl", "cpu:gloo,cuda:…"
    if "cpu" in kinds:
        return torch.device("cpu")
    return near if near and near.type == "cuda" else torch.device("cuda", torch.cuda.current_device())
