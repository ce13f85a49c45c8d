"""Peers that compare samples of a batch, and their samplers: CS-KD (same-class pairs), DLB (the last mini-batch)."""

from collections.abc import Iterable, Iterator, Sized
from dataclasses import KW_ONLY, dataclass
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

from retarget.errors import UserError
from retarget.pskd.functional import widen
from retarget.pskd.peers import losses
from retarget.pskd.peers.base import Needs, Peer, not_negative, positive


@dataclass(eq=False, repr=False)
class CSKD(Peer):
    """Class-wise self-distillation: ``CE(x) + λ τ² KL(p_τ(x') ‖ p_τ(x))``, x' another sample of x's class (Yun et al.
    2020, Regularizing Class-wise Predictions via Self-knowledge Distillation, section 2).

    The batch holds [x_1 … x_B, x'_1 … x'_B]: use :class:`SameClassPairs` as batch sampler. The partners' half has no
    loss and no gradient of its own. Both halves pass through the network together, and so share batch norm's
    statistics; the official code forwards them one after the other (alinlab/cs-kd, train.py).

    Args:
        weight: λ ≥ 0; 1 is the official setting for CIFAR-100 (alinlab/cs-kd, README.md).
        temperature: τ > 0; 4 is the official default (train.py).
    """

    wanted = Needs(sampler="same_class_pairs", forwards=2.0)
    labels_only = True

    weight: float = not_negative(1.0)
    _: KW_ONLY
    temperature: float = positive(4.0)

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        if len(index) % 2:
            raise UserError(f"CS-KD needs batches [x…, partners…] of even size: got {len(index)} samples; {_PAIRS}")
        half = len(index) // 2
        first, second = targets[:half], targets[half:]
        self._checks.require(
            first == second,
            lambda row: (
                f"sample {int(index[row])} of class {int(first[row])}, row {row} of the batch, is paired with sample "
                f"{int(index[row + half])} of class {int(second[row])}; {_PAIRS}"
            ),
        )
        apart = losses.distill(logits[:half], logits[half:], self.temperature, reduction="none")
        return self._hard(logits[:half], first) + self.strength * self._mean(apart, first)


@dataclass(eq=False, repr=False)
class DLB(Peer):
    """Self-distillation from the last mini-batch: ``CE + α τ² KL(p_τ(last step) ‖ p_τ(now))`` for the samples that
    were in the batch before (Shen et al. 2022, Self-Distillation from the Last Mini-Batch).

    The batch holds [new samples, those of the batch before]: use :class:`LastBatch` as batch sampler. The logits of
    the last step are kept, by index. An epoch's first batch has none, and both halves pass through the network
    together; the official code (Meta-knowledge-Lab/DLB, dlb.py) keeps the last batch across epochs and forwards the
    halves one after the other, the repeated one in a second augmentation.

    Args:
        weight: α ≥ 0. The official code has no default for it, nor for the temperature; later implementations use 1
            and 3.
        temperature: τ > 0.
    """

    wanted = Needs(sampler="last_batch", forwards=2.0)

    weight: float = not_negative(1.0)
    _: KW_ONLY
    temperature: float = positive(3.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._last: tuple[Tensor, Tensor] | None = None
        self._rows = 0  # in a batch

    @property
    def num_bytes(self) -> int:
        """Bytes of the last step's logits and indices; 0 before the first step."""
        return self._rows * (4 * self.num_classes + 8)

    def _progress(self) -> dict[str, Any]:
        return {"rows": self._rows}

    def _resume(self, progress: dict[str, Any]) -> None:
        self._rows = progress["rows"]

    def _begin(self, epoch: int) -> None:
        self._last = None

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        loss = self._hard(logits, targets)
        at = index.to(logits.device)
        if self._last is not None:
            last_index, last_logits = self._last
            same = at[:, None] == last_index[None, :]
            apart = losses.distill(logits, last_logits[same.float().argmax(1)], self.temperature, reduction="none")
            repeated = same.any(1) * self._counted(targets)
            loss = loss + self.strength * (apart * repeated).sum() / repeated.sum().clamp_min(1.0)
        self._pending = at, widen(logits.detach())
        return loss

    def _remember(self, *pending: Any) -> None:
        at, logits = pending
        self._last, self._rows = (at, logits), len(at)


class BatchSampler(Sampler[list[int]]):
    """A batch sampler that wraps another; ``set_epoch`` tells it the epoch.

    Trainers look for ``batch_sampler.sampler.set_epoch``; ``sampler`` is therefore the object itself.
    """

    def __init__(self, batches: Iterable[list[int]]) -> None:
        self.batches, self.epoch = batches, 0

    @property
    def sampler(self) -> "BatchSampler":
        """The object itself, for trainers that call ``batch_sampler.sampler.set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, also of the samplers inside."""
        self.epoch = epoch
        for inside in (self.batches, getattr(self.batches, "sampler", None)):
            if hasattr(inside, "set_epoch"):
                cast(Any, inside).set_epoch(epoch)

    def __len__(self) -> int:
        return len(cast(Sized, self.batches))


class SameClassPairs(BatchSampler):
    """Each batch, followed by a partner of the same class for each of its samples, as CS-KD needs.

    A partner is drawn uniformly from the class's other samples and depends only on (seed, epoch, sample); the only
    sample of a class is its own partner. (The official sampler, alinlab/cs-kd, datasets.py, may draw the sample
    itself.)

    Args:
        batches: a batch sampler that yields lists of sample indices.
        labels: [N], the class of each sample.
        seed: seed of the draw of partners.

    >>> list(SameClassPairs([[0, 1], [2, 3]], labels=[0, 1, 0, 1], seed=0))
    [[0, 1, 2, 3], [2, 3, 0, 1]]
    """

    def __init__(self, batches: Iterable[list[int]], labels: Any, seed: int) -> None:
        super().__init__(batches)
        self.labels, self.seed = np.asarray(labels), seed

    def __iter__(self) -> Iterator[list[int]]:
        partner = self.partners()
        for batch in self.batches:
            yield [*batch, *(int(partner[sample]) for sample in batch)]

    def partners(self) -> np.ndarray:
        """[N], the partner of each sample in this epoch."""
        draw = np.random.default_rng([self.seed, self.epoch]).random(len(self.labels))
        partner = np.empty(len(self.labels), dtype=np.int64)
        for label in np.unique(self.labels):
            members = np.flatnonzero(self.labels == label)
            ahead = 1 + np.floor(draw[members] * (len(members) - 1)).astype(np.int64)  # never back to itself
            partner[members] = members[(np.arange(len(members)) + ahead) % len(members)]
        return partner


class LastBatch(BatchSampler):
    """Each batch, followed by the batch before, as DLB needs; nothing follows an epoch's first batch.

    >>> list(LastBatch([[0, 1], [2, 3], [4, 5]]))
    [[0, 1], [2, 3, 0, 1], [4, 5, 2, 3]]
    """

    def __iter__(self) -> Iterator[list[int]]:
        before: list[int] = []
        for batch in self.batches:
            yield [*batch, *before]
            before = list(batch)


_PAIRS = "build the loader with SameClassPairs as batch_sampler"
