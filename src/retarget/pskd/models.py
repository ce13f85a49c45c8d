"""What the Hugging Face trainer must know of a model: is it causal, what it reads and returns, what its labels are."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.sequences import LeftPadded, Offsets


def is_causal(model: Any, listed: Iterable[str]) -> bool:
    """Whether a model, or a class that it derives from, is among the library's causal language models."""
    return not {kind.__name__ for kind in type(model).__mro__}.isdisjoint(listed)


def needs_labels(model: Any) -> bool:
    """Whether a model's ``forward`` cannot be called without ``labels``."""
    taken = inspect.signature(model.forward).parameters.get("labels")
    return taken is not None and taken.default is taken.empty


def logits_of(outputs: Any) -> Tensor:
    """The logits in a model's outputs: a table or an object with logits, a tensor, or a tuple, behind a loss if any.

    Raises:
        UserError: there are none, or the model adds a loss of its own to that of the labels.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, list | tuple) and len(outputs) > 0:
        return outputs[1] if len(outputs) > 1 and outputs[0].ndim == 0 else outputs[0]
    held = outputs if isinstance(outputs, dict) else getattr(outputs, "__dict__", {})
    if "logits" not in held:
        only = ", ".join(held) or f"a {type(outputs).__name__}"
        raise UserError(f"the model's output has no logits, only {only}: name them logits")
    if held.get("aux_loss") is not None:
        raise UserError(
            "the model adds an auxiliary loss (aux_loss) to that of the labels, which is not supported; for a "
            "mixture of experts set config.output_router_logits = False"
        )
    return held["logits"]


def with_decoder_inputs(model: Any, inputs: dict[str, Any], labels: Tensor, *, smoothed: bool) -> dict[str, Any]:
    """Give an encoder-decoder, which no longer gets the labels, the decoder inputs that it would make from them.

    Args:
        smoothed: whether the trainer smooths labels itself, and so does not pass them to the model.

    Raises:
        UserError: only the model itself can make them, from labels that it does not get.
    """
    config = getattr(model, "config", None)
    if not getattr(config, "is_encoder_decoder", False) or labels.ndim != 2:
        return inputs
    if hasattr(config, "use_cache"):
        inputs = {"use_cache": False, **inputs}
    if "decoder_input_ids" in inputs or "decoder_inputs_embeds" in inputs:
        return inputs
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return {**inputs, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels=labels)}
    if smoothed:
        raise UserError(
            f"{type(model).__name__} makes its decoder's inputs from the labels, but label_smoothing_factor "
            "removes the labels: let the collator add decoder_input_ids"
        )
    return {**inputs, "labels": labels}  # M2M100 and others shift them inside; their loss is not used


def is_multilabel(logits: Tensor, labels: Tensor) -> bool:
    """Whether labels are multi-label floats [B, C], or else classes [B] or [B, T].

    Raises:
        UserError: they are neither.
    """
    if labels.is_floating_point() and labels.ndim == 2 and logits.shape == labels.shape:
        return True
    if labels.is_floating_point() or labels.ndim not in (1, 2) or logits.ndim != labels.ndim + 1:
        raise UserError(
            "PS-KD needs class labels [B] with logits [B, C], class labels [B, T] with logits [B, T, C], or "
            f"multi-label floats [B, C] with logits [B, C]: got labels {labels.dtype} {list(labels.shape)} and "
            f"logits {list(logits.shape)}"
        )
    return False


def refuse_mixed(labels: Tensor, problem: str | None) -> None:
    """Raise UserError if multi-label floats [B, C] are class distributions, as collators with Mixup make them.

    Args:
        problem: the model's ``problem_type``, which can say that they are multi-label all the same.
    """
    if problem == "multi_label_classification":
        return
    sums = labels.float().sum(1)
    distributions = bool((labels >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-2)
    if distributions and bool(((labels > 0) & (labels < 1)).any()):
        raise UserError(
            "each row of the labels sums to 1, as those of Mixup and CutMix do, and PS-KD would take them for "
            "multi-label: mix images in a loop of your own or in Lightning, with loss(..., mixed=shares); or set "
            'problem_type="multi_label_classification" in the model\'s config if a sample can have several labels'
        )


def refuse_no_tensor(labels: Any) -> None:
    """Raise UserError if a batch's labels are no tensor, such as a detector's list of boxes."""
    if not isinstance(labels, Tensor):
        raise UserError(
            f"the batch's labels are a {type(labels).__name__}, not a tensor: PS-KD needs class labels [B] or [B, T], "
            "or multi-label floats [B, C]. Of detectors it knows torchvision's Faster R-CNN: see DetectionPSKD"
        )


def refuse_labels(labels: Tensor, logits: Tensor, ignore_index: int) -> None:
    """Raise UserError if a label is not one of the logits' classes."""
    if labels.is_floating_point():
        return
    classes = logits.shape[-1]
    bad = ((labels != ignore_index) & ((labels < 0) | (labels >= classes))).nonzero()
    if len(bad):
        place = tuple(int(one) for one in bad[0])
        raise UserError(
            f"label {int(labels[place])} in row {place[0]} of the batch lies outside the classes [0, {classes})"
        )


@torch.no_grad()
def count_targets(loader: Iterable[Any], targets: Callable[[Tensor], Tensor], ignore_index: int) -> Offsets:
    """The rows of each sequence, counted in a pass over a loader; torch's random state is restored.

    Args:
        targets: gives the targets of a batch's labels, which are shifted for a causal language model.
    """
    counts, dropped, left = [], [], False
    with torch.random.fork_rng(devices=[]):
        for batch in loader:
            labels = batch["labels"]
            shifted = targets(labels)
            counts += shifted.ne(ignore_index).sum(1).tolist()
            if shifted is labels:
                continue
            dropped += labels[:, 0].ne(ignore_index).tolist()  # the first token, where no padding stands before it
            mask = batch.get("attention_mask")
            left |= mask is not None and mask.shape == labels.shape and not bool(mask[:, 0].all())
    if left:
        return LeftPadded(count + first for count, first in zip(counts, dropped, strict=True))
    return Offsets(counts)
