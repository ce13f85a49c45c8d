"""Check, once, that the loss which PS-KD replaces is the cross-entropy of the labels.

A model may weigh its classes, add a term, or predict the next token without the trainer's knowledge. PS-KD would then
silently replace another loss, or teach a language model to copy its input. So the model's or the trainer's own loss on
the first batch is compared with the hard cross-entropy of the same logits.
"""

import inspect
import math
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retarget.errors import UserError
from retarget.pskd.functional import widen

_EXACT, _ROUNDED = 1e-4, 1e-2  # relative error of a loss taken in float32, and in bfloat16 or float16


def shifted(labels: Tensor, ignore_index: int) -> Tensor:
    """Labels [B, T] shifted by one: the target of the logit at each position, which predicts the next token."""
    return F.pad(labels[:, 1:], (0, 1), value=ignore_index)


def same_draws(tensor: Tensor) -> AbstractContextManager[None]:
    """Restore, after a forward pass on a tensor's device, the random state of the CPU and of that device."""
    return torch.random.fork_rng(devices=[tensor.device] if tensor.is_cuda else [])


@torch.no_grad()
def models_loss(model: nn.Module, bare: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor | None, Tensor]:
    """A model's own loss (None if it returns none) and its logits.

    The pass is made in evaluation mode and the random state is restored, so that it does not change the training.

    Args:
        model: the model to call; ``bare`` is the network inside its wrappers, whose signature tells what it accepts.
        inputs: the model's arguments, labels included.
    """
    taken = inspect.signature(bare.forward).parameters
    if not ("labels" in taken or any(one.kind is one.VAR_KEYWORD for one in taken.values())):
        return None, inputs["labels"]
    training = [one for one in model.modules() if one.training]
    model.eval()
    try:
        with same_draws(inputs["labels"]):
            outputs: Any = model(**inputs)
    finally:
        for one in training:
            one.training = True
    if isinstance(outputs, dict):
        own, logits = outputs.get("loss"), outputs["logits"]
    else:
        own, logits = outputs[0], outputs[-1 if len(outputs) == 1 else 1]
    return (own if isinstance(own, Tensor) and own.ndim == 0 else None), logits


def hard_loss(
    logits: Tensor,
    targets: Tensor,
    ignore_index: int,
    smoothing: float = 0.0,
    denominator: Tensor | float | None = None,
) -> float:
    """The cross-entropy of hard targets (binary for floats [B, C]): the mean over targets that are not ignored, NaN if
    there are none; or the sum divided by ``denominator``."""
    z = widen(logits.detach())
    if targets.is_floating_point():
        counted = targets != ignore_index
        losses = F.binary_cross_entropy_with_logits(z, targets.to(z.dtype), reduction="none")[counted]
        return float(losses.mean() if denominator is None else losses.sum() / denominator)
    z, flat = z.reshape(-1, z.shape[-1]), targets.reshape(-1)
    total = F.cross_entropy(z, flat, ignore_index=ignore_index, label_smoothing=smoothing, reduction="sum")
    return float(total / ((flat != ignore_index).sum() if denominator is None else denominator))


def _both_ways(
    logits: Tensor, labels: Tensor, shifts: bool, ignore_index: int, **more: Any
) -> tuple[float, float | None]:
    """:func:`hard_loss` of labels shifted as ``shifts`` says; and of the other choice, if labels are [B, T]."""
    moved = shifted(labels, ignore_index) if labels.ndim == 2 and not labels.is_floating_point() else None
    ours, other = (moved if shifts else labels), (labels if shifts else moved)
    assert ours is not None
    found = hard_loss(logits, ours, ignore_index, **more)
    return found, None if other is None else hard_loss(logits, other, ignore_index, **more)


def refuse_other_loss(
    own: float, logits: Tensor, labels: Tensor, shifts: bool, ignore_index: int, *,
    asked: bool, rounded: bool, whose: str, **more: Any,
) -> bool:  # fmt: skip
    """Raise unless the loss that PS-KD replaces is the cross-entropy of the labels.

    Args:
        own: the model's or the trainer's loss of these logits.
        shifts: whether PS-KD shifts the labels.
        asked: whether the user chose ``shift_labels``; then either choice is accepted.
        rounded: whether a loss of float32 logits was computed in bfloat16 or float16.
        whose: what messages call ``own``, such as "the model's own loss".
        more: the other arguments of :func:`hard_loss`.

    Returns:
        Whether this batch could tell: False if all labels are ignored, or if all losses are nearly the same.

    Raises:
        UserError: it is another loss; the message names the remedy.
    """
    ours, other = _both_ways(logits, labels, shifts, ignore_index, **more)
    if not math.isfinite(ours):
        return False  # every label is ignored
    rounded = rounded or logits.dtype in (torch.bfloat16, torch.float16)
    within = (_ROUNDED if rounded else _EXACT) * max(abs(ours), 1e-3)
    apart = None if other is None else abs(other - ours)
    if other is not None and not asked and abs(own - other) < min(within, abs(own - ours) / 4):
        raise UserError(
            f"{whose} is {own:.4g}, which is the cross-entropy of labels that are {'not ' if shifts else ''}shifted by "
            f"one token; PS-KD's would be {ours:.4g}. The trainer took this model for "
            f"{'a causal language model, but it is none' if shifts else 'one that does not predict the next token'}: "
            f"pass shift_labels={not shifts}"
        )
    if abs(own - ours) > within and not (asked and other is not None and abs(own - other) <= within):
        raise UserError(
            f"{whose} is {own:.4g} on the first batch, but the cross-entropy of its labels is {ours:.4g}: PS-KD would "
            "silently replace another loss. Remove what makes it differ (class weights, an additional term, a "
            'loss_type of the trainer other than "nll"), or call PSKD or SequencePSKD in a loop of your own'
        )
    told = asked or apart is None or apart > 4 * within
    return told and float(logits.detach().float().std(-1).mean()) > 1e-3  # with equal logits all losses are equal


def refuse_copying(input_ids: Tensor | None, labels: Tensor, ignore_index: int) -> None:
    """Raise if the labels repeat the input and the model, having no loss, does not show whether to shift them."""
    if input_ids is None or input_ids.shape != labels.shape:
        return
    counted = labels != ignore_index
    if counted.any() and torch.equal(input_ids[counted], labels[counted]):
        raise UserError(
            "the labels repeat input_ids, but the trainer does not recognise this model as a causal language model, "
            "and the model returns no loss that would show it: pass shift_labels=True if a logit predicts the next "
            "token, False if it predicts the token at its own position"
        )
