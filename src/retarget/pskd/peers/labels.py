"""Peers that change the target or the loss of a sample and need nothing else: label smoothing, OLS, TF-KD with a
hand-made teacher, focal and dual focal loss, margin-based label smoothing, MaxSup."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from retarget.pskd.functional import cross_entropy
from retarget.pskd.past.exchange import communication_device, world_size
from retarget.pskd.peers import losses
from retarget.pskd.peers.base import Peer, not_negative, positive, share


@dataclass(eq=False, repr=False)
class LabelSmoothing(Peer):
    """Cross-entropy against ``(1 - ε) target + ε / C`` (Szegedy et al. 2016, section 7).

    Args:
        smoothing: ε in [0, 1]; 0.1 is the paper's.
    """

    smoothing: float = share(0.1)

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        return cross_entropy(logits, targets, self.ignore_index, label_smoothing=self.strength)


@dataclass(eq=False, repr=False)
class OnlineLabelSmoothing(Peer):
    """OLS: targets from a C×C table, the mean prediction of each class's correctly classified samples in the epoch
    before (Zhang et al. 2021, Delving Deep into Label Smoothing, algorithm 1).

    ``(1 - w) CE(y) + w CE(S_y)``. As in the official code (zhangchbin/OnlineLabelSmoothing,
    cifar/scripts/train_cifar_all_methods.py) the table is zero in the first epoch, which therefore has only the first
    term, and a class without correctly classified samples gets the uniform row. Under torch.distributed ``set_epoch``
    and ``save`` are collective.

    Args:
        soft_weight: w in [0, 1]; 0.5 in the official code.
    """

    labels_only = True

    soft_weight: float = share(0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rows = torch.zeros(self.num_classes, self.num_classes)
        self.local = torch.zeros_like(self.rows)  # this rank's sums in the epoch
        self.total = torch.zeros_like(self.rows)  # those of all ranks

    def end_epoch(self) -> None:
        """Raise the errors found in the epoch and sum the table over ranks: collective, for a rank without data too."""
        super().end_epoch()
        total = self.local.clone()
        if world_size() > 1:
            total = total.to(communication_device(total.device))
            dist.all_reduce(total)
        self.total = total.to(self.local.device)

    def tensors(self) -> dict[str, Tensor]:
        return {"rows": self.rows, "total": self.total}

    def _take(self, path: Path, saved: dict[str, Tensor]) -> None:
        super()._take(path, saved)
        first = world_size() == 1 or dist.get_rank() == 0
        self.local = self.total.clone() if first else torch.zeros_like(self.total)

    def _begin(self, epoch: int) -> None:
        if epoch == 0:
            self.rows.zero_()
        elif self._epoch is not None and epoch > self._epoch:
            self.rows = losses.refresh_class_rows(self.total)
        self.local, self.total = torch.zeros_like(self.local), torch.zeros_like(self.total)

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        if self.rows.device != logits.device:
            self.rows, self.local, self.total = (t.to(logits.device) for t in (self.rows, self.local, self.total))
        soft = self._soft(logits, self.rows[labels], targets)
        self._pending = logits, labels, self._counted(targets)
        return (1 - self.strength) * self._hard(logits, targets) + self.strength * soft

    def _remember(self, *pending: Any) -> None:
        logits, labels, counted = pending
        losses.accumulate_class_rows(logits, labels, self.local, counted)


@dataclass(eq=False, repr=False)
class TFKDReg(Peer):
    """Teacher-free distillation from a hand-made teacher:
    ``(1 - α) CE + α KL(p^d_τ ‖ p)`` (Yuan et al. 2020, Tf-KD_reg).

    The student's side has temperature 1 and the KL is summed over classes; both as the official code computes at its
    CIFAR-100 setting, a mean over 100 classes times 100 (yuanli2333/Teacher-free-Knowledge-Distillation,
    my_loss_function.py and experiments/base_experiments/base_resnet18/params.json).

    Args:
        weight: α in [0, 1]; 0.1 is the official setting for ResNet-18 on CIFAR-100, as are the next two.
        correct_prob: the teacher's probability of the label, in (0, 1].
        temperature: τ of the teacher, above 0.
    """

    labels_only = True

    weight: float = share(0.1)
    _: KW_ONLY
    correct_prob: float = share(0.99)
    temperature: float = positive(20.0)

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        teacher = losses.design_teacher(labels, self.num_classes, self.correct_prob, self.temperature)
        soft = self._mean(losses.match_probs(logits, teacher, reduction="none"), targets)
        return (1 - self.strength) * self._hard(logits, targets) + self.strength * soft


@dataclass(eq=False, repr=False)
class FocalLoss(Peer):
    """``-(1 - p_y)^γ log p_y`` (Lin et al. 2017, section 3.2).

    Args:
        gamma: γ ≥ 0; 3 is the larger of the fixed values of Mukhoti et al. 2020 (Calibrating Deep Neural Networks
            using Focal Loss; torrvision/focal_calibration, train_scripts/cifar100.sh); detection uses 2. Their loss
            sums over the batch, this one averages: with their learning rate, multiply it by the batch size.
    """

    labels_only = True

    gamma: float = not_negative(3.0)

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        return self._mean(losses.focal_loss(logits, labels, self.strength, reduction="none"), targets)


@dataclass(eq=False, repr=False)
class DualFocalLoss(Peer):
    """``-(1 - p_y + p_j)^γ log p_y`` with p_j the largest probability below p_y (Tao et al. 2023).

    Args:
        gamma: γ ≥ 0; 5 is the value of the paper's table of settings for most networks on CIFAR-100.
    """

    labels_only = True

    gamma: float = not_negative(5.0)

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        return self._mean(losses.dual_focal_loss(logits, labels, self.strength, reduction="none"), targets)


@dataclass(eq=False, repr=False)
class MaxSup(Peer):
    """``CE + λ_t (max_c z_c - mean_c z_c)``, λ growing linearly over the epochs (Zhou et al. 2025, MaxSup).

    Args:
        weight: λ ≥ 0 in the first epoch; 0.1 is the official setting of convolutional networks
            (ZhouYuxuanYX/Maximum-Suppression-Regularization, Conv/ffcv/losses.py), as are the growth and its end.
        final: λ ≥ 0 that the growth would reach one epoch after the last; 0.2.
    """

    weight: float = not_negative(0.1)
    _: KW_ONLY
    final: float = not_negative(0.2)

    @property
    def weight_now(self) -> float:
        """λ in this epoch."""
        return self.weight + (self.final - self.weight) * self.epoch / self.total_epochs

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        penalty = losses.suppress_maximum(logits, reduction="none")
        return self._hard(logits, targets) + self.weight_now * self._mean(penalty, targets)


@dataclass(eq=False, repr=False)
class MarginLabelSmoothing(Peer):
    """MbLS: ``CE + λ mean_c max(0, max_j z_j - z_c - m)`` (Liu et al. 2022, The Devil is in the
    Margin).

    Args:
        weight: λ ≥ 0; 0.1 is the official code's (by-liu/MbLS, configs/loss/logit_margin.yaml), as is the next.
        margin: m ≥ 0; 10.
    """

    weight: float = not_negative(0.1)
    _: KW_ONLY
    margin: float = not_negative(10.0)

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        penalty = losses.penalise_margin(logits, self.margin, reduction="none")
        return self._hard(logits, targets) + self.strength * self._mean(penalty, targets)
