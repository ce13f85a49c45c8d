"""Optimisers and learning-rate schedules of the image study, by its settings."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from retarget.pskd.studies.images.settings import Settings


def optimizer(parameters: Iterable[nn.Parameter], s: Settings) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW (Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization)."""
    if s.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=s.lr, weight_decay=s.weight_decay)
    return torch.optim.SGD(
        parameters, lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay, nesterov=s.momentum > 0
    )


def schedule(optimizer: torch.optim.Optimizer, s: Settings, count: Callable[[], int]) -> Any:
    """The schedule in Lightning's form: the official code's counts epochs, any other counts steps.

    Args:
        count: returns the number of steps in the run.
    """
    if s.lr_schedule == "steps" and not s.warmup_epochs:
        drops = [round(share * s.epochs) for share in s.drops]
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, gamma=0.1)
    steps = count()
    warmup = round(s.warmup_epochs / s.epochs * steps)
    drops = [round(share * s.epochs) / s.epochs for share in s.drops] if s.lr_schedule == "steps" else None
    by_steps = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share_of_lr(step, steps, warmup, drops))
    return {"scheduler": by_steps, "interval": "step"}


def share_of_lr(step: int, steps: int, warmup: int, drops: Sequence[float] | None) -> float:
    """The factor of the learning rate in one step.

    It grows linearly over ``warmup`` steps, from 1 / warmup (Goyal et al. 2017, Accurate, Large Minibatch SGD, section
    2.2). Then it is divided by 10 at each of ``drops``; without drops it falls as ``(1 + cos(π t)) / 2`` over the
    remaining steps (Loshchilov and Hutter 2017, SGDR, equation 5).

    Args:
        step: counted from 0.
        steps: number of steps in the run.
        drops: when to drop, as shares of the run.

    >>> [round(share_of_lr(step, 8, 2, None), 3) for step in range(8)]
    [0.5, 1.0, 1.0, 0.933, 0.75, 0.5, 0.25, 0.067]
    >>> [share_of_lr(step, 4, 0, (0.5,)) for step in range(4)]
    [1.0, 1.0, 0.1, 0.1]
    """
    if step < warmup:
        return (step + 1) / warmup
    if drops is not None:
        return 0.1 ** sum(step >= round(share * steps) for share in drops)
    return (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))) / 2
