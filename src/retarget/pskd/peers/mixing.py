"""Mixup and CutMix as peers; torchvision does the mixing."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from retarget.errors import UserError
from retarget.extras import require
from retarget.pskd.functional import pskd_loss
from retarget.pskd.peers.base import Needs, Peer, positive, share


@dataclass(eq=False, repr=False)
class Mixing(Peer):
    """Batches mixed with a neighbour: ``λ x_i + (1 - λ) x_j`` or a pasted box, target ``λ y_i + (1 - λ) y_j``.

    Call ``mix`` before the forward pass; it returns inputs and probability targets, which ``loss`` takes. A sample's
    partner is the sample before it in the (shuffled) batch, as in torchvision.
    """

    wanted = Needs(mix=True)
    transform: ClassVar[str]

    prob: float = share(1.0)
    _: KW_ONLY
    alpha: float = positive(1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = getattr(require("torchvision.transforms.v2", "vision"), self.transform)
        self._mix = kind(alpha=self.alpha, num_classes=self.num_classes)

    def mix(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """With probability ``prob``, mixed inputs and probability targets [B, C]; else both unchanged.

        Raises:
            UserError: the targets are not labels in [0, C).
        """
        if self.strength == 0 or (self.strength < 1 and torch.rand(()) >= self.strength):
            return inputs, targets
        if targets.is_floating_point() or targets.ndim != 1:
            raise UserError(f"{type(self).__name__} needs labels [B]: got {targets.dtype} {list(targets.shape)}")
        self._checks.require(
            (targets >= 0) & (targets < self.num_classes),
            lambda row: f"label {int(targets[row])}, row {row} of the batch, lies outside [0, {self.num_classes})",
        )
        return self._mix(inputs, targets)

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        return pskd_loss(logits, targets) if targets.is_floating_point() else self._hard(logits, targets)


class Mixup(Mixing):
    """Mixup (Zhang et al. 2018, mixup: Beyond Empirical Risk Minimization, section 2).

    Args:
        prob: share of batches that are mixed; the official code mixes all (facebookresearch/mixup-cifar10, train.py).
        alpha: of Beta(α, α), from which λ is drawn; 1 is its default.
    """

    transform = "MixUp"


@dataclass(eq=False, repr=False)
class CutMix(Mixing):
    """CutMix (Yun et al. 2019, CutMix: Regularization Strategy to Train Strong Classifiers, section 3.1).

    Args:
        prob: share of batches that are mixed; 0.5 is the official setting for CIFAR, 1 for ImageNet
            (clovaai/CutMix-PyTorch, README.md, as is the next).
        alpha: of Beta(α, α); 1.
    """

    transform = "CutMix"

    prob: float = share(0.5)
