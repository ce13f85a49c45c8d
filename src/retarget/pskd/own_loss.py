"""Check that the loss which PS-KD replaces is the cross-entropy of the labels.

A model may weigh its classes, add a term, or predict the next token without the trainer's knowledge. PS-KD would then
silently replace another loss, or teach a language model to copy its input. So the model's or the trainer's own loss on
the first batch is compared with the hard cross-entropy of the same logits.

Targets of one class have the same mean loss whatever the class weighs. So a model is asked again with other labels, and
a trainer with each batch, until batches with several classes have shown all of them.

A loss in 16 bits is rounded by more than weights change it while all losses are nearly equal, as in the first steps. So
the model's loss is taken in float32 of the logits that it returns, where PyTorch's functions compute it; where they do
not, rare later batches are compared until one tells.
"""

import inspect
import math
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from retarget.errors import UserError
from retarget.pskd.functional import widen
from retarget.pskd.models import logits_of

_EXACT, _ROUNDED = 1e-4, 1e-2  # relative error of a loss taken in float32, and in bfloat16 or float16
_MODELS_ASKS, _TRAINERS_ASKS = 20, 100  # most batches that are compared; a model's cost forward passes
_PROBES = 8  # most forward passes with other labels per batch
_REPLACED = "a training batch with its labels replaced by others"
_FEW_CLASSES = 1000  # with more, not every class is waited for


def shifted(labels: Tensor, ignore_index: int) -> Tensor:
    """Labels [B, T] shifted by one: the target of the logit at each position, which predicts the next token."""
    return F.pad(labels[:, 1:], (0, 1), value=ignore_index)


def same_draws(tensor: Tensor) -> AbstractContextManager[None]:
    """Restore, after a forward pass on a tensor's device, the random state of the CPU and of that device."""
    return torch.random.fork_rng(devices=[tensor.device] if tensor.is_cuda else [])


class _Wide(TorchFunctionMode):
    """Takes PyTorch's losses of 16-bit logits in float32, also under autocast.

    Attributes:
        largest: the largest logit of each cross-entropy so far; its tensor tells of which logits it was taken.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _OF_LOGITS:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(Tensor, widen, (args, kwargs or {}))
        logits = args[0] if args else kwargs["input"]
        self.largest += [logits.detach().max()] if logits.numel() else []
        with torch.autocast(logits.device.type, enabled=False):
            return func(*args, **kwargs)

    def exact(self, loss: Tensor | None, logits: Tensor) -> bool:
        """Whether a loss was taken in float32, of these very logits, and not rounded to 16 bits after it."""
        if loss is None or not logits.numel() or float(logits.max()) not in map(float, self.largest):
            return False
        return all(bool(loss.to(narrow).double() != loss.double()) for narrow in (torch.bfloat16, torch.float16))


_OF_LOGITS = {F.cross_entropy, F.binary_cross_entropy_with_logits}


@torch.no_grad()
def models_loss(model: nn.Module, bare: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor | None, Tensor, bool]:
    """A model's own loss (None if it returns none), its logits, and whether that loss is exact: not rounded to 16 bits.

    The pass is made in evaluation mode and the random state is restored, so that it does not change the training.

    Args:
        model: the model to call; ``bare`` is the network inside its wrappers, whose signature tells what it accepts.
        inputs: the model's arguments, labels included.
    """
    taken = inspect.signature(bare.forward).parameters
    if not ("labels" in taken or any(one.kind is one.VAR_KEYWORD for one in taken.values())):
        return None, inputs["labels"], False
    with _Wide() as wide:
        outputs = _evaluated(model, inputs, inputs["labels"])
    if isinstance(outputs, Tensor):
        own, logits = None, outputs
    elif isinstance(outputs, dict):
        own, logits = outputs.get("loss"), outputs["logits"]
    elif hasattr(outputs, "logits"):
        own, logits = getattr(outputs, "loss", None), outputs.logits
    else:
        own, logits = outputs[0], outputs[-1 if len(outputs) == 1 else 1]
    own = own if isinstance(own, Tensor) and own.ndim == 0 else None
    return own, logits, wide.exact(own, logits)


def _evaluated(model: nn.Module, inputs: dict[str, Any], near: Tensor) -> Any:
    """A model's outputs in evaluation mode, uncompiled; its mode, and the random state of the device of ``near``, are
    restored."""
    training = [one for one in model.modules() if one.training]
    model.eval()
    try:
        with same_draws(near), torch.compiler.set_stance("force_eager"):
            return model(**inputs)
    finally:
        for one in training:
            one.training = True


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


def tells(logits: Tensor, targets: Tensor, ignore_index: int, error: float) -> bool:
    """Whether the mean loss of these targets would differ if their classes were weighed.

    It does if the mean losses of the classes differ; for floats [B, C] if the loss holds a share of ones and of zeros.

    Args:
        error: relative error of a loss; what must differ is four times as much.
    """
    z = widen(logits.detach())
    counted = targets != ignore_index
    if not counted.any():
        return False
    if targets.is_floating_point():
        z, y = z[counted], targets[counted].to(z.dtype)
        ones, zeros = float((y * F.softplus(-z)).mean()), float(((1 - y) * F.softplus(z)).mean())
        return min(ones, zeros) > 4 * error * max(ones + zeros, 1e-3)
    flat, counted = targets.reshape(-1), counted.reshape(-1)
    losses = F.cross_entropy(z.reshape(-1, z.shape[-1]), flat, ignore_index=ignore_index, reduction="none")
    losses, flat = losses[counted].cpu(), flat[counted].cpu()  # on the CPU the sums are deterministic
    classes, member = flat.unique(return_inverse=True)
    means = losses.new_zeros(len(classes)).index_add_(0, member, losses) / member.bincount()
    mean = losses.mean()
    return float((means - mean).abs().max()) > 4 * error * max(float(mean), 1e-3)


def relative_error(logits: Tensor, rounded: bool = False) -> float:
    """Relative error of a loss of these logits; ``rounded`` if it was computed in bfloat16 or float16."""
    return _ROUNDED if rounded or logits.dtype in (torch.bfloat16, torch.float16) else _EXACT


def _both_ways(
    logits: Tensor, labels: Tensor, shifts: bool, ignore_index: int, **more: Any
) -> tuple[float, float | None]:
    """:func:`hard_loss` of labels shifted as ``shifts`` says; and of the other choice, if labels are [B, T]."""
    moved = shifted(labels, ignore_index) if labels.ndim == 2 and not labels.is_floating_point() else None
    ours, other = (moved if shifts else labels), (labels if shifts else moved)
    assert ours is not None
    found = hard_loss(logits, ours, ignore_index, **more)
    return found, None if other is None else hard_loss(logits, other, ignore_index, **more)


def _off(own: float, *losses: float | None) -> float:
    """Relative difference of a loss from the nearest of others."""
    return min((abs(own - one) / max(abs(one), 1e-3) for one in losses if one is not None), default=math.inf)


def refuse_other_loss(
    own: float, logits: Tensor, labels: Tensor, shifts: bool, ignore_index: int, *,
    asked: bool, rounded: bool, whose: str, batch: str = "a training batch", smoothing: float = 0.0,
    denominator: Tensor | float | None = None, exact: bool = False,
) -> bool:  # fmt: skip
    """Raise unless the loss that PS-KD replaces is the cross-entropy of the labels.

    Args:
        own: the model's or the trainer's loss of these logits.
        shifts: whether PS-KD shifts the labels.
        asked: whether the user chose ``shift_labels``; then either choice is accepted.
        rounded: whether a loss of float32 logits was computed in bfloat16 or float16.
        whose, batch: what messages call ``own``, such as "the model's own loss", and the batch.
        smoothing, denominator: as in :func:`hard_loss`; with a denominator the mean over the batch is accepted too.
        exact: whether ``own`` was computed in float32 in spite of ``rounded`` and of the logits' type.

    Returns:
        Whether this batch could tell: False if all labels are ignored or of one class, or if all losses are nearly the
        same.

    Raises:
        UserError: it is another loss; the message names the remedy.
    """
    ours, other = _both_ways(logits, labels, shifts, ignore_index, smoothing=smoothing, denominator=denominator)
    if not math.isfinite(ours):
        return False  # every label is ignored
    error = _EXACT if exact else relative_error(logits, rounded)
    if denominator is not None and _off(own, ours, other) > error:
        # A trainer of the user's may divide by the batch's own targets, also while gradients accumulate.
        mean, moved = _both_ways(logits, labels, shifts, ignore_index, smoothing=smoothing)
        if _off(own, mean, moved) < _off(own, ours, other):
            ours, other = mean, moved
    within = error * max(abs(ours), 1e-3)
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
            f"{whose} is {own:.4g} on {batch}, but the cross-entropy of its labels is {ours:.4g}: PS-KD would "
            "silently replace another loss. Remove what makes it differ (class weights, pos_weight, an additional "
            'term, a loss_type of the trainer other than "nll"), or call PSKD or SequencePSKD in a loop of your own'
        )
    told = asked or apart is None or apart > 4 * within
    return told and tells(logits, shifted(labels, ignore_index) if shifts else labels, ignore_index, error)


class Answer(NamedTuple):
    """What the comparison of one batch says.

    Attributes:
        told: whether it could tell.
        whole: whether all classes have been in a batch that could.
        blurred: whether it could have told but for the rounding of the loss.
    """

    told: bool
    whole: bool
    blurred: bool = False


class SameLoss:
    """Compares the loss that PS-KD replaces with the cross-entropy of the labels, in the first batches of a training.

    Args:
        whose: what messages call the loss that is replaced: "the model's own loss" or "the trainer's own loss".
        asked, rounded: as in :func:`refuse_other_loss`.

    Attributes:
        told: whether a batch could tell.
        blurred: whether a batch could not tell only because the loss is rounded.
        done: whether no more batches need be compared.
    """

    def __init__(self, whose: str, *, asked: bool, rounded: bool, ignore_index: int) -> None:
        self.whose, self.ignore_index = whose, ignore_index
        self.told = self.blurred = self.done = False
        self._flags: dict[str, Any] = {"asked": asked, "rounded": rounded}
        self._warned = False
        self._times, self._most = 0, _MODELS_ASKS if whose.startswith("the model") else _TRAINERS_ASKS
        self._batches = 0
        self._seen: set[int] = set()

    def due(self) -> bool:
        """Whether to compare the next batch: each of the first ones; then, while rounding hides the answer, only the
        one with twice the number of the last. To be asked once per batch."""
        self._batches += 1
        if self.done:
            return False
        rarely, odd = divmod(self._batches, self._most)
        return self._batches <= self._most or (odd == 0 and rarely & (rarely - 1) == 0)

    def compare(self, own: float, logits: Tensor, labels: Tensor, shifts: bool, **more: Any) -> Answer:
        """What this batch tells; raises as :func:`refuse_other_loss`."""
        told = refuse_other_loss(
            own, logits, labels, shifts, self.ignore_index, whose=self.whose, **self._flags, **more
        )
        if not told and not more.get("exact") and relative_error(logits, self._flags["rounded"]) > _EXACT:
            targets = shifted(labels, self.ignore_index) if shifts else labels
            return Answer(False, False, tells(logits, targets, self.ignore_index, _EXACT))
        if not told or labels.is_floating_point() or logits.shape[-1] > _FEW_CLASSES:
            return Answer(told, told)
        self._seen.update(labels[labels != self.ignore_index].unique().tolist())
        return Answer(told, len(self._seen) >= logits.shape[-1])

    def compare_model(
        self, model: nn.Module, bare: nn.Module, inputs: dict[str, Any], shifts: bool, unlabelled: bool = False
    ) -> Answer | None:
        """As :meth:`compare`, for the model's own loss, also of other labels; None if it has no loss.

        Args:
            unlabelled: whether the model is trained without labels among its arguments.
        """
        own, logits, exact = models_loss(model, bare, inputs)
        if own is None:
            return None
        if unlabelled and not self._times:
            self._refuse_label_dependent(model, inputs, logits)
        answer = self.compare(float(own), logits, inputs["labels"], shifts, exact=exact)
        for other in with_other_labels(inputs, logits.shape[-1], self.ignore_index):
            try:
                own, found, exact = models_loss(model, bare, other)
            except (RuntimeError, ValueError):
                if len(other["labels"]) == len(inputs["labels"]):
                    raise
                continue  # a model that accepts only a single sample
            if own is not None and len(found) == len(other["labels"]):
                more = self.compare(float(own), found, other["labels"], shifts, batch=_REPLACED, exact=exact)
                answer = Answer(*(one or another for one, another in zip(answer, more, strict=True)))
        return answer

    @torch.no_grad()
    def _refuse_label_dependent(self, model: nn.Module, inputs: dict[str, Any], logits: Tensor) -> None:
        """Raise if the logits [B, …] of a model that got its labels are other ones without them."""
        without = {name: value for name, value in inputs.items() if name != "labels"}
        plain = logits_of(_evaluated(model, without, inputs["labels"]))
        error = relative_error(logits, self._flags["rounded"])
        if plain.shape == logits.shape and bool((plain - logits).abs().amax() > 4 * error * logits.abs().amax()):
            raise UserError(
                "the model's logits depend on the labels that it gets (as with a margin, ArcFace's say), but PS-KD "
                "trains it without them and computes the loss itself, so what they do would be lost: make labels a "
                "required argument of forward, then it gets them; or call PSKD in a loop of your own"
            )

    def note(self, told: bool, whole: bool, blurred: bool = False) -> None:
        """Note the :class:`Answer` of one batch, on which all processes agree."""
        self._times += 1
        self.told |= told
        self.blurred |= blurred
        enough = self._times >= self._most and (self.told or not self.blurred)
        self.done = (self.told and whole) or enough
        if self.done:
            self.warn()

    def warn(self) -> None:
        """Warn if batches were compared but none could tell, after the last that is compared."""
        if self._times and not (self.told or self._warned):
            self._warned = True
            why = (
                "all targets were of one class (or all logits equal), and their mean loss is the same whatever the "
                "class weights"
            )
            remedy = "use larger, shuffled batches to have it checked"
            if self.blurred:
                why = (
                    "all targets were of one class, or the mean losses of the classes differed by less than "
                    f"{4 * _ROUNDED:.0%}, which the rounding of a loss in 16 bits (bf16, fp16) hides"
                )
                remedy = "train a few steps in float32 to have it checked"
            warnings.warn(
                f"PS-KD could not check that {self.whose} is the cross-entropy of the labels: in each of the "
                f"{self._times} batches compared, {why}. If classes are weighed (weight=, pos_weight=), the "
                f"weights are lost: {remedy}, or call PSKD in a loop of your own",
                stacklevel=3,
            )


def with_other_labels(inputs: dict[str, Any], classes: int, ignore_index: int) -> Iterator[dict[str, Any]]:
    """A batch with its labels replaced, so that between them the classes are all there, if they are not too many.

    A single sample is doubled, unless an argument of the model cannot be. Their number depends on nothing but the
    number of classes, since all processes must call the model equally often. Labels of sequences are not replaced:
    most batches hold several classes, and a model may read its labels.
    """
    labels = inputs["labels"]
    if labels.is_floating_point():
        yield {**inputs, "labels": torch.where(labels == ignore_index, labels, 1 - labels)}
    elif labels.ndim == 1:
        doubled = inputs if len(labels) > 1 else _doubled(inputs)
        if doubled is None:
            return
        size, calls = len(doubled["labels"]), min(_PROBES, classes - 1)
        chosen = torch.linspace(0, classes - 1, min(classes, calls * (size - 1) + 1)).round().to(labels)
        for call in range(calls):  # neighbouring calls share a class, so that all weights are compared
            at = (call * (size - 1) + torch.arange(size, device=labels.device)) % len(chosen)
            yield {**doubled, "labels": chosen[at]}


def _doubled(inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments of a model for a single sample, for two of them; None if one is not of a known kind."""
    found = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.ndim:
            if len(value) != 1:
                return None
            value = torch.cat([value, value])
        elif not isinstance(value, Tensor | bool | int | float | str | None):
            return None
        found[name] = value
    return found


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
