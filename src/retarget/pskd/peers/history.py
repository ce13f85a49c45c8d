"""Peers that remember a sample's predictions by an exponential average (temporal ensembling, self-adaptive training)
or as discounted evidence (BSD).

They use PS-KD's table with two slots per sample: an epoch reads the rows of earlier epochs, repeated and padded samples
do no harm, and ranks exchange rows once per epoch.
"""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retarget.pskd.functional import pskd_loss, widen
from retarget.pskd.past.in_table import PastInTable
from retarget.pskd.past.rows import Dense
from retarget.pskd.peers import losses
from retarget.pskd.peers.base import Peer, not_negative, positive, share, share_below_1


@dataclass(eq=False, repr=False)
class History(Peer):
    """A peer with a float32 table [N, C] whose rows it computes itself."""

    _: KW_ONLY
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._past = PastInTable(Dense("float32"), self.num_samples, self.num_classes, self.device)

    @property
    def num_bytes(self) -> int:
        """Bytes of the table, both slots and stamps."""
        return self._past.num_bytes if self.strength > 0 else 0

    def end_epoch(self) -> None:
        """Raise the errors found in the epoch and exchange its rows between ranks: collective."""
        super().end_epoch()
        if self.strength > 0:
            self._past.end()

    def tensors(self) -> dict[str, Tensor]:
        return self._past.save()

    def _begin(self, epoch: int) -> None:
        self._past.begin(epoch)

    def _take(self, path: Path, saved: dict[str, Tensor]) -> None:
        self._past.load(path, self._epoch, saved)

    def _read(self, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows of earlier epochs, [B, C], and which samples have one, [B] bool."""
        rows, written = self._past.read(self._past.locate(index, device), device)
        assert isinstance(rows, Tensor)
        return rows, written > 0

    def _remember(self, *pending: Any) -> None:
        index, rows, counted = pending
        self._past.put(self._past.locate(index, rows.device), {"probs": rows.detach().float()}, counted > 0)


@dataclass(eq=False, repr=False)
class TemporalEnsembling(History):
    """``CE + w(t) mean_c (p_c - z̃_c)²`` against the bias-corrected average z̃ of the sample's past predictions
    (Laine and Aila 2017, Temporal Ensembling for Semi-Supervised Learning, algorithm 2).

    The weight rises from 0 in epoch 0 as ``w_max exp(-5 (1 - t)²)``. All samples are labelled here, so the paper's
    factor M / N is 1. The second term is 0 for a sample without a row.

    Args:
        weight: w_max ≥ 0; 100 is the official setting for CIFAR-100 and 30 that for CIFAR-10 (s-laine/tempens,
            config.py, as are the rest).
        momentum: α in [0, 1); 0.6.
        ramp: share of the run over which the weight rises; 80 of 300 epochs.
    """

    weight: float = not_negative(100.0)
    _: KW_ONLY
    momentum: float = share_below_1(0.6)
    ramp: float = share(80 / 300)

    @property
    def weight_now(self) -> float:
        """w in this epoch."""
        length = self.ramp * self.total_epochs
        done = self.epoch / length if length else 1.0
        return self.weight * losses.ramp_up(done) if self.epoch else 0.0

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        probs = F.softmax(widen(logits), dim=1)
        history, written = self._read(index, logits.device)
        apart = losses.squared_difference(probs, losses.unbias_history(history), reduction="none") * written
        blended = losses.blend_history(history * written[:, None], probs.detach(), self.momentum)
        self._pending = index, blended, self._counted(targets)
        return self._hard(logits, targets) + self.weight_now * self._mean(apart, targets)


@dataclass(eq=False, repr=False)
class SelfAdaptiveTraining(History):
    """Cross-entropy against ``t ← α t + (1 - α) p``, which starts as the label; samples are weighted by ``max_c t_c``
    (Huang et al. 2020, Self-Adaptive Training: beyond Empirical Risk Minimization, algorithm 1).

    Args:
        momentum: α in [0, 1]; 0.9 is the official setting for CIFAR-100 (LayneH/self-adaptive-training,
            scripts/cifar100/run_sat.sh). With 1 targets never change: cross-entropy.
        start: share of the run that is plain cross-entropy; officially 60 of 200 epochs.
    """

    momentum: float = share(0.9)
    _: KW_ONLY
    start: float = share(0.3)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.strength = 1 - self.momentum

    @property
    def start_epoch(self) -> int:
        """The first epoch in which targets change."""
        return round(self.start * self.total_epochs)

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        if self.epoch < self.start_epoch:
            return self._hard(logits, targets)
        history, written = self._read(index, logits.device)
        target = torch.where(written[:, None], history, self._probs(targets))
        target = losses.blend_history(target, F.softmax(widen(logits.detach()), dim=1), self.momentum)
        counted = self._counted(targets)
        self._pending = index, target, counted
        return losses.weigh_by_confidence(pskd_loss(logits, target, reduction="none"), target, counted)


@dataclass(eq=False, repr=False)
class BSD(History):
    """Cross-entropy against ``t = α / sum_c α_c``, the mean of a Dirichlet distribution for each sample: α begins as c
    times the label, and each epoch's prediction is evidence, ``α ← γ α + w p`` (after Adelöw, Gamba and Maki 2025,
    Bayesian Self-Distillation for Image Classification, arXiv 2512.24162).

    This is a reading of a description, not of the paper's equations, which were not at hand. Its abstract and its
    public reviews (OpenReview, ISB008MEaM) name the Dirichlet distribution of each sample with a prior of strength c,
    the model's own predictions as evidence in a conjugate update, the discount γ, and that hard targets have no part
    after the beginning. The rest is ours: the prior lies on the label alone; a prediction weighs w = 1; the past is
    discounted once for each epoch that has the sample; the target is the mean before the epoch's own prediction; and
    every default. None of the paper's numbers was reproduced.

    A prediction that counted in its own epoch already would only scale the sample's gradient, by ``γ s / (γ s + w)``
    with ``s = sum_c α_c``. If ``c = w / (1 - γ)``, as by default, s stays the same, and the target is an exponential
    average that starts at the label, ``t ← γ t + (1 - γ) p``: but for that factor and for its weights of samples, the
    target of self-adaptive training from epoch 0.

    Probabilities as targets are the mean of the prior, and like labels are read only before a sample's first epoch is
    over.

    Args:
        weight: w ≥ 0, the evidence of one prediction. Only c / w matters, except that with 0 targets never change:
            cross-entropy.
        prior: c > 0, the evidence of the label.
        discount: γ in [0, 1], the share of the evidence that stays: 1 forgets nothing, 0 leaves one prediction.
    """

    weight: float = not_negative(1.0)
    _: KW_ONLY
    prior: float = positive(10.0)
    discount: float = share(0.9)

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        evidence, written = self._read(index, logits.device)
        alpha = torch.where(written[:, None], evidence, self.prior * self._probs(targets))
        probs = F.softmax(widen(logits.detach()), dim=1)
        after = losses.discount_evidence(alpha, probs, self.discount, self.weight)
        self._pending = index, after, self._counted(targets)
        return self._soft(logits, losses.expect_probs(alpha), targets)
