"""Peers with a second network: TF-KD and born-again networks (a trained teacher), mean teacher and weight EMA (a
running average of the weights)."""

from copy import deepcopy
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retarget.errors import UserError
from retarget.pskd.functional import widen
from retarget.pskd.past.previous import bare
from retarget.pskd.peers import losses
from retarget.pskd.peers.base import Needs, Peer, not_negative, positive, share


@dataclass(eq=False, repr=False)
class Taught(Peer):
    """A peer with a trained teacher. It keeps a copy in evaluation mode, without gradients, on the inputs' device.
    The teacher is not part of the saved state: pass the same one when resuming."""

    wanted = Needs(network="trained_teacher", forwards=2.0, inputs=True)

    _: KW_ONLY
    teacher: nn.Module

    def __post_init__(self) -> None:
        super().__post_init__()
        self.teacher = deepcopy(self.teacher).requires_grad_(False).eval()

    @property
    def num_bytes(self) -> int:
        """Bytes of the teacher."""
        return sum(t.numel() * t.element_size() for t in self.teacher.state_dict().values())

    def to(self, device: torch.device | str) -> None:
        """Move the teacher."""
        self.teacher.to(device)

    def _teach(self, inputs: Any, logits: Tensor) -> Tensor:
        taught = losses.forward(self.teacher, inputs)
        if taught.shape != logits.shape:
            raise UserError(f"the teacher's logits are {list(taught.shape)}, but the student's {list(logits.shape)}")
        return taught


@dataclass(eq=False, repr=False)
class TFKDSelf(Taught):
    """Teacher-free distillation from a trained network of the student's own kind:
    ``(1 - α) CE + α s τ² KL(p^t_τ ‖ p_τ)`` (Yuan et al. 2020, Tf-KD_self).

    The factor s is not in the equation. The official code multiplies the KL's mean over classes by a constant: s is
    that constant over C, 50 / 100 for ResNet-18 on CIFAR-100 (yuanli2333/Teacher-free-Knowledge-Distillation,
    my_loss_function.py and experiments/kd_experiments/resnet18_distill/resnet18_self_teacher/params.json).

    Args:
        teacher: a trained network of the student's architecture.
        weight: α in [0, 1]; 0.95 is the official setting for ResNet-18 on CIFAR-100, as are the next two.
        temperature: τ > 0.
        scale: s > 0.
    """

    weight: float = share(0.95)
    _: KW_ONLY
    temperature: float = positive(6.0)
    scale: float = positive(0.5)

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        taught = self._teach(inputs, logits)
        apart = self._mean(losses.distill(logits, taught, self.temperature, reduction="none"), targets)
        scaled = self.strength * self.scale
        return (1 - self.strength) * self._hard(logits, targets) + scaled * apart


@dataclass(eq=False, repr=False)
class BornAgain(Taught):
    """Distillation from an equal network: ``(1 - w) CE(y) + w CE(p^t)``, temperature 1 (Furlanello et al. 2018,
    Born-Again Neural Networks, section 3; the authors published no code).

    Args:
        teacher: a trained network; in the paper one of the student's architecture.
        weight: w in [0, 1]; 1 (only the teacher) is the paper's BAN, below 1 its BAN+L.
    """

    weight: float = share(1.0)

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        taught = F.softmax(self._teach(inputs, logits), dim=1)
        soft = self._soft(logits, taught, targets)
        return (1 - self.strength) * self._hard(logits, targets) + self.strength * soft


_NARROW = (torch.float16, torch.bfloat16)


@dataclass(eq=False, repr=False)
class Averaged(Peer):
    """A peer that keeps a running average of the weights, updated by ``after_step``, and evaluates it.

    In the first steps the average is the true mean of the weights after each step: the decay in step s, from 0, is at
    most 1 - 1 / (s + 1). The official mean teacher does the same, but includes the initial weights
    (CuriousAI/mean-teacher, pytorch/main.py).
    """

    averages_buffers = True

    _: KW_ONLY
    model: nn.Module

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model = bare(self.model)
        narrow = next((one.dtype for one in self.model.parameters() if one.dtype in _NARROW), None)
        if narrow is not None:
            raise UserError(
                f"the model's weights are {narrow}, in which an average of many steps stands still: keep them in "
                "float32 and train under autocast"
            )
        self.average = deepcopy(self.model).requires_grad_(False)
        self.steps, self._losses, self._stepped = 0, 0, False

    @property
    def evaluated(self) -> nn.Module | None:
        return self.average.eval() if self.strength > 0 else None

    def to(self, device: torch.device | str) -> None:
        """Move the average."""
        self.average.to(device)

    @property
    def decay_now(self) -> float:
        """The decay of the next update, after the first steps."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Move the average towards the current weights; call it once after each optimizer step."""
        decay = min(self.decay_now, 1 - 1 / (self.steps + 1))
        losses.average_weights(self.average, self.model, decay, buffers=self.averages_buffers)
        self.steps, self._stepped = self.steps + 1, True

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.average.state_dict())

    def _begin(self, epoch: int) -> None:
        if self._losses and not self._stepped and self.strength > 0:
            raise UserError(f"{type(self).__name__} needs after_step() after every optimizer step: it was never called")
        self._losses, self._stepped = 0, False

    def _progress(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def _resume(self, progress: dict[str, Any]) -> None:
        self.steps = progress["steps"]


def scaled_decay(steps: int) -> float:
    """The decay for a run of ``steps``: it averages over the same share of the run as 0.999 (1,000 steps) does in the
    official mean teacher's 150,000, but over at least 10 steps.

    >>> scaled_decay(150_000), round(scaled_decay(3000), 3), scaled_decay(100)
    (0.999, 0.95, 0.9)
    """
    return max(0.9, 1 - 150 / steps)


@dataclass(eq=False, repr=False)
class WeightEMA(Averaged):
    """Plain cross-entropy; the exponential average of the weights is evaluated (Polyak and Juditsky 1992; Tarvainen
    and Valpola 2017, section 2, without its consistency term). Batch norm's statistics are averaged with the weights.

    Args:
        decay: d in [0, 1]; 0.999 is mean teacher's for 150,000 steps; :func:`scaled_decay` computes it for a shorter
            run. 0 evaluates the weights themselves, 1 the mean of all steps' weights.
    """

    wanted = Needs(network="average", after_step=True)

    decay: float = share(0.999)

    @property
    def decay_now(self) -> float:
        return self.decay

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        self._losses += 1
        return self._hard(logits, targets)


@dataclass(eq=False, repr=False)
class MeanTeacher(Averaged):
    """``CE + w(t) mean_c (p_c - p'_c)²`` against the prediction p' of the averaged weights for the same input
    (Tarvainen and Valpola 2017, Mean teachers are better role models, section 2); the average is evaluated.

    Teacher and student are both in training mode, each with batch norm statistics of its own, and here see the same
    view. The weight rises as ``w_max exp(-5 (1 - t)²)``.

    Args:
        weight: w_max ≥ 0; 100 is the official setting for CIFAR-10 with every label, as are the rest
            (CuriousAI/mean-teacher, tensorflow/experiments/cifar10_final_eval.py and mean_teacher/model.py).
        ramp: share of the run over which the weight rises; 40,000 of 150,000 steps.
        decay_in_ramp, decay_after: decay of the average, in [0, 1]; for SVHN the first is 0.99. 0.999 is for 150,000
            steps; :func:`scaled_decay` computes it for a shorter run.
    """

    wanted = Needs(network="average", forwards=2.0, inputs=True, after_step=True)
    averages_buffers = False

    weight: float = not_negative(100.0)
    _: KW_ONLY
    ramp: float = share(4 / 15)
    decay_in_ramp: float = share(0.999)
    decay_after: float = share(0.999)

    @property
    def ramped(self) -> float:
        """How far the ramp is in this epoch; over from 1 on."""
        length = self.ramp * self.total_epochs
        return self.epoch / length if length else 1.0

    @property
    def weight_now(self) -> float:
        """w in this epoch."""
        return self.weight * losses.ramp_up(self.ramped)

    @property
    def decay_now(self) -> float:
        return self.decay_in_ramp if self.ramped < 1 else self.decay_after

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        self._losses += 1
        taught = F.softmax(losses.forward(self.average.train(), inputs), dim=1)
        apart = losses.squared_difference(F.softmax(widen(logits), dim=1), taught, reduction="none")
        return self._hard(logits, targets) + self.weight_now * self._mean(apart, targets)
