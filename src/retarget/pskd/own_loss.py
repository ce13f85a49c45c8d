"""Is the loss that PS-KD replaces the cross-entropy of the labels? Asked once, of the model's own or the trainer's.

A model may weigh its classes, add a term, or predict the next token without the trainer's knowledge. PS-KD would
replace that loss without a word, or teach a language model to copy its input. So the first batch's own loss is
held against the hard cross-entropy of the same logits.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retarget.errors import UserError
from retarget.pskd.functional import widen

_EXACT, _ROUNDED = 1e-4, 1e-2  # relative error of a loss taken in float32, and in bfloat16 or float16


def shifted(labels: Tensor, ignore_index: int) -> Tensor:
    """Labels [B, T] as targets of the logits at the same place, where a logit predicts the next token."""
    return F.pad(labels[:, 1:], (0, 1), value=ignore_index)


def random_devices(tensor: Tensor) -> list[torch.device]:
    """Where random numbers are drawn, besides the CPU."""
    return [tensor.device] if tensor.is_cuda else []


@torch.no_grad()
def models_loss(model: nn.Module, bare: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor | None, Tensor]:
    """A model's own loss, None where it gives none, and its logits.

    In evaluation mode, and with random numbers that are put back: it trains on as if it had not been asked.

    Args:
        model: as it is called; ``bare`` is the network inside wrappers, whose signature says what it takes.
        inputs: labels among them.
    """
    taken = inspect.signature(bare.forward).parameters
    if not ("labels" in taken or any(one.kind is one.VAR_KEYWORD for one in taken.values())):
        return None, inputs["labels"]
    training = [one for one in model.modules() if one.training]
    model.eval()
    try:
        with torch.random.fork_rng(devices=random_devices(inputs["labels"])):
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
    """The cross-entropy of hard targets, a mean over those that count, or a sum over ``denominator``; binary for [B, C]
    numbers. NaN where none counts."""
    z = widen(logits.detach())
    if targets.is_floating_point():
        counted = targets != ignore_index
        losses = F.binary_cross_entropy_with_logits(z, targets.to(z.dtype), reduction="none")[counted]
        return float(losses.mean() if denominator is None else losses.sum() / denominator)
    z, flat = z.reshape(-1, z.shape[-1]), targets.reshape(-1)
    total = F.cross_entropy(z, flat, ignore_index=ignore_index, label_smoothing=smoothing, reduction="sum")
    return float(total / ((flat != ignore_index).sum() if denominator is None else denominator))


def refuse_other_loss(
    own: float, ours: float, other: float | None, shifts: bool, asked: bool, rounded: bool, whose: str
) -> bool:
    """Raise unless a model's own loss is the cross-entropy that takes its place.

    Args:
        own: the model's or the trainer's.
        ours: hard cross-entropy of the same logits.
        other: the same with labels shifted the other way; None where there is no other way.
        shifts: whether ``ours`` shifts the labels.
        asked: the user has said so; then either way is taken.
        rounded: the loss was taken in bfloat16 or float16.
        whose: "the model's own loss", say.

    Returns:
        Whether this batch could tell: False where both ways give nearly the same.

    Raises:
        UserError: another loss, with the remedy.
    """
    within = (_ROUNDED if rounded else _EXACT) * max(abs(ours), 1e-3)
    apart = None if other is None else abs(other - ours)
    if other is not None and not asked and abs(own - other) < min(within, abs(own - ours) / 4):
        raise UserError(
            f"{whose} is {own:.4g}, which is the cross-entropy of labels that are {'not ' if shifts else ''}shifted by "
            f"one place; PS-KD's would be {ours:.4g}. The trainer did not recognise this model as "
            f"{'one that labels its own places' if shifts else 'a causal language model'}: give it "
            f"shift_labels={not shifts}"
        )
    if abs(own - ours) > within and not (asked and other is not None and abs(own - other) <= within):
        raise UserError(
            f"{whose} is {own:.4g} on the first batch, and the cross-entropy of its labels is {ours:.4g}: PS-KD would "
            "replace another loss without a word. Leave out what makes it differ (class weights, a term of its own, "
            'the trainer\'s loss_type other than "nll"), or call PSKD or SequencePSKD in a loop of your own'
        )
    return asked or apart is None or apart > 4 * within


def refuse_copying(input_ids: Tensor | None, labels: Tensor, ignore_index: int) -> None:
    """Raise where labels repeat the input and nothing says whether they are to be shifted: the model has no loss."""
    if input_ids is None or input_ids.shape != labels.shape:
        return
    counted = labels != ignore_index
    if counted.any() and torch.equal(input_ids[counted], labels[counted]):
        raise UserError(
            "the labels repeat input_ids, the trainer does not recognise this model as a causal language model, and it "
            "gives no loss of its own that would show it: give shift_labels=True where a logit predicts the next "
            "token, False where it predicts its own place"
        )
