"""Labels that stay labels: PyTorch's losses use their softened rows, everything else the hard labels.

A module passes its labels to a loss, to metrics, to ``(logits.argmax(1) == y)``. Only the loss may see soft targets:
so a batch's labels keep their values, type and shape, and only PyTorch's loss functions are given the rows. The rows
follow the labels through indexing, moving and reshaping (``y[mask]``, ``y.to(device)``, ``y.view(-1)``).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn._reduction import legacy_get_string
from torch.utils._pytree import tree_map

from retarget.errors import UserError
from retarget.pskd.checks import one_hot
from retarget.pskd.functional import widen

_eager: Any = torch.compiler.disable  # compiled code breaks its graph here


class Step:
    """Everything that a batch's labels need during their step.

    Args:
        hard: [B] classes; or [B, C] probabilities, or multi-label targets.
        rows: [B, C], softened; None if the hard labels are in use.
        alpha: [B], weight of the past in each row.
        num_classes: number of classes, C.
        ignore_index: label that has no loss.
        yes_or_no: whether every class is a target of its own, for binary losses.

    Attributes:
        reads: how often a loss, or ``soft_targets``, has asked for rows.
        mixed: whether the labels were read in two orders, as Mixup and CutMix do.
        order: [B], the sample of each label in the only order in which they were read; None for the batch's own.
        logits: the logits [B, C] of the loss that read all labels, in that order; None if no such loss did.
        parts: for each loss that read some of the labels [B], their places [K] in the batch and its logits [K, C].
    """

    def __init__(
        self, hard: Tensor, rows: Tensor | None, alpha: Tensor | None, num_classes: int, ignore_index: int,
        yes_or_no: bool = False,
    ) -> None:  # fmt: skip
        self.hard, self.rows, self.alpha = hard, rows, alpha
        self.num_classes, self.ignore_index, self.yes_or_no = num_classes, ignore_index, yes_or_no
        self.reads, self.mixed, self.open = 0, False, True
        self.probe: Tensor | None = None
        self.order: Tensor | None = None
        self.logits: Tensor | None = None
        self.parts: list[tuple[Tensor, Tensor]] = []
        self._labels: Tensor | None = None
        self._orders = 0

    def watch(self) -> None:
        """Make the autograd graph show whether a loss depends on the rows."""
        self.probe = torch.zeros((), device=self.hard.device, requires_grad=True)

    def dress(self, labels: Tensor) -> None:
        """Attach the rows to this tensor of labels in place: it stays the same object of the batch."""
        self._labels, self._class = labels, type(labels)
        labels.__class__ = SoftLabels
        _attach(labels, self, None)

    def close(self) -> None:
        """End the step: the labels become plain again, and copies of them no longer keep the rows in memory."""
        if self._labels is not None:
            for name in ("_step", "_places", "_moved", "_changes"):
                delattr(self._labels, name)
            self._labels.__class__ = self._class
            self._labels = None
        self.open, self.rows, self.alpha, self.probe, self.logits, self.parts = False, None, None, None, None, []

    def read(self, order: Tensor | None, logits: Tensor | None) -> None:
        """Note that all labels were read in an order, with these logits beside them."""
        if self._orders:
            same = order is self.order or (
                order is not None and self.order is not None and torch.equal(order, self.order)
            )
            self.mixed |= not same
        else:
            self.order = order
            self.logits = None if logits is None else logits.detach()
        self._orders += 1

    def crosses(self, logits: Tensor) -> bool:
        """Whether some labels were read in two orders, or beside other samples' rows of ``logits`` [B, C].

        A step that mixes a part of its batch does so. The first 32 labels of each loss are compared: mixing permutes
        all of them.
        """
        orders: dict[tuple[int, ...], list[int]] = {}
        for places, given in self.parts:
            order = places.tolist()
            if orders.setdefault(tuple(sorted(order)), order) != order:
                return True
            given, own = given[:32].float(), logits[places[:32]].float()
            nearest = torch.cdist(given, logits.float(), compute_mode="donot_use_mm_for_euclid_dist").amin(1)
            if bool(((nearest == 0) & (given != own).any(1)).any()):
                return True
        return False

    def one_hot(self) -> Tensor:
        """The hard labels as rows [B, C]."""
        if self.hard.is_floating_point():
            return self.hard.float()
        return one_hot(self.hard, self.num_classes, self.ignore_index)


class SoftLabels(Tensor):
    """Labels of a training batch, with their softened rows; see :func:`soft_targets`."""

    _step: Step
    _places: Tensor | None  # each label's position in the batch; None if none has been taken or moved
    _moved: bool  # whether their order may have changed
    _changes: int  # PyTorch's count of their changes in place, when they were attached

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _answer(func, args, kwargs or {})

    def __deepcopy__(self, memo: Any) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor).clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor).__reduce_ex__(protocol)


@_eager
def _answer(func: Any, args: Any, kwargs: Any) -> Any:
    loss = _LOSSES.get(func)
    with torch._C.DisableTorchFunctionSubclass():
        if loss is not None:
            answer = loss(func, *args, **kwargs)
            if answer is not None:
                return answer
        result = func(*args, **kwargs)  # a plain tensor, whatever the arguments were
        if func in _KEEP and not isinstance(result, SoftLabels):
            return _follow(func, args, kwargs, result)
        return result


def soft_targets(labels: Tensor, num_classes: int) -> Tensor:
    """The softened rows [B, C] of a batch's labels, for a loss of your own or for mixing; one-hot if there are none.

    It accepts any labels, so a module's code is the same with the callback, without it, and in validation.

    >>> soft_targets(torch.tensor([1]), num_classes=2)
    tensor([[0., 1.]])
    """
    return _named(labels, num_classes)


def depends_on(loss: Tensor, leaf: Tensor) -> bool:
    """Whether a loss's autograd graph reaches a leaf; computes no gradient."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", None) is leaf:
            return True
        waiting += [following for following, _ in node.next_functions]
    return False


# -- inside: losses


@_eager
def _named(labels: Tensor, num_classes: int) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        if isinstance(labels, SoftLabels) and labels._step.open:
            return _probed(_rows(labels, labels._step.rows), labels._step)
        return labels if labels.is_floating_point() else one_hot(labels, num_classes, -100)


def _cross_entropy(
    func: Any, input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None,
    ignore_index: int = -100, reduce: bool | None = None, reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor | None:  # fmt: skip
    """PyTorch's cross-entropy, with the rows in place of the labels.

    Arguments mean what they mean for labels: ``weight`` weighs classes and the mean is over the weights of the *hard*
    labels, so that the loss approaches PyTorch's as alpha approaches 0; ``label_smoothing`` smooths the label and not
    the past, as ``PSKD.loss(smoothing=)`` does.
    """
    if not isinstance(target, SoftLabels) or not target._step.open or target._step.yes_or_no:
        return None
    step = target._step
    if size_average is not None or reduce is not None:
        reduction = legacy_get_string(size_average, reduce)
    if step.rows is None:  # the hard labels are in use: exactly PyTorch's loss
        extra = {"label_smoothing": label_smoothing} if func is F.cross_entropy else {}
        _note(target, input)
        loss = func(input, target, weight=weight, ignore_index=ignore_index, reduction=reduction, **extra)
        return _probed(loss, step)
    soft = _rows(target, step.rows, input)
    axis = 1 if input.ndim > 1 else 0
    soft = soft.movedim(-1, axis)
    if soft.shape != input.shape:
        raise UserError(
            f"the loss compares logits {list(input.shape)} with labels {list(target.shape)} of {step.num_classes} "
            "classes: num_classes must equal dimension 1 of the logits"
        )
    soft = soft.to(widen(input).dtype)
    log_probs = F.log_softmax(widen(input), axis) if func is F.cross_entropy else input
    if label_smoothing:
        hard = _rows(target, step.one_hot(), note=False).movedim(-1, axis)
        share = (1 - _rows(target, step.alpha, note=False).unsqueeze(axis)) * label_smoothing  # the label's share
        soft = soft + share * (1 / step.num_classes - hard) * (hard.sum(axis, keepdim=True) > 0)
    if weight is None:
        losses = -(soft * log_probs).sum(axis)
    else:
        shape = [-1 if dimension == axis else 1 for dimension in range(input.ndim)]
        losses = -(soft * weight.view(shape) * log_probs).sum(axis)
    labels: Tensor = target
    if labels.is_floating_point():
        total = losses.numel()
    else:
        counted = (labels != ignore_index) & (labels != step.ignore_index)
        losses = losses * counted
        of = counted if weight is None else weight[labels.masked_fill(~counted, 0)] * counted
        total = of.sum()
    loss = losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.sum() / total
    return _probed(loss, step)


def _binary(func: Any, input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """A binary loss, or another that is linear in its targets, which takes soft targets unchanged."""
    if not isinstance(target, SoftLabels) or not target._step.open or not target._step.yes_or_no:
        return None
    step = target._step
    soft = target if step.rows is None else _rows(target, step.rows, input).to(target.dtype)
    if step.rows is None:
        _note(target, input)
    return _probed(func(input, soft, *args, **kwargs), step)


_LOSSES: dict[Any, Callable[..., Tensor | None]] = {
    F.cross_entropy: _cross_entropy,
    F.nll_loss: _cross_entropy,
    F.binary_cross_entropy_with_logits: _binary,
    F.binary_cross_entropy: _binary,
    F.multilabel_soft_margin_loss: _binary,
}


def _probed(loss: Tensor, step: Step) -> Tensor:
    return loss if step.probe is None else loss + (step.probe * 0).to(loss.dtype)  # x + 0 is x


def _note(labels: SoftLabels, logits: Tensor | None) -> None:
    step = labels._step
    step.reads += 1
    if labels._version != labels._changes:
        _refuse_edited(labels)
    places = labels._places
    if labels.numel() != step.hard.numel():
        if step.hard.ndim == 1 and places is not None and logits is not None and logits.ndim == 2:
            step.parts.append((places.flatten().to(logits.device), logits.detach()))
        return
    order = None
    if labels._moved and places is not None:
        flat = places.flatten()
        order = None if torch.equal(flat, torch.arange(len(flat), device=flat.device)) else flat
    step.read(order, logits if logits is not None and logits.shape == (len(step.hard), step.num_classes) else None)


def _refuse_edited(labels: SoftLabels) -> None:
    """Raise if a label was changed in place, except to one that has no loss: the rows are of the batch's own labels."""
    step = labels._step
    hard = step.hard if labels._places is None else step.hard.flatten()[labels._places.to(step.hard.device)]
    edited = (labels != hard.to(labels.device, labels.dtype)) & (labels != step.ignore_index)
    if edited.any():
        raise UserError(
            "training_step changed labels of the batch in place, but their softened rows are of the labels that it "
            "came with: change labels in the dataset or in collate_fn. (One set to ignore_index has no loss.)"
        )


def _rows(labels: SoftLabels, rows: Tensor | None, logits: Tensor | None = None, note: bool = True) -> Tensor:
    """The rows, [B, C] or [B], of these labels, whichever part of the batch they are."""
    step = labels._step
    if note:
        _note(labels, logits)
    rows = step.one_hot() if rows is None else rows
    places = labels._places
    if places is None:
        return rows.to(labels.device)
    if step.hard.ndim > 1 and rows.ndim > 1:  # a position is an entry of the row
        rows = rows.flatten()
    elif step.hard.ndim > 1:  # one number per row, for each entry of it
        places = places[..., 0] // step.num_classes
    return rows[places.to(rows.device)].to(labels.device)


# -- inside: what takes, moves or reshapes labels

_TAKE = (
    "__getitem__", "roll", "flip", "index_select", "masked_select", "take", "repeat", "repeat_interleave", "expand",
)  # fmt: skip
_SHAPE = (
    "view", "reshape", "flatten", "ravel", "squeeze", "unsqueeze", "narrow", "select", "split", "chunk", "unbind",
    "transpose", "permute", "movedim", "view_as", "reshape_as", "expand_as", "tensor_split",
)  # fmt: skip
_COPY = ("clone", "detach", "contiguous", "cpu", "cuda", "to", "long", "int", "pin_memory", "float", "double", "half",
         "bfloat16", "type", "type_as")  # fmt: skip


def _functions(names: tuple[str, ...]) -> set[Any]:
    homes = (torch, Tensor)
    return {getattr(home, name) for home in homes for name in names if callable(getattr(home, name, None))} - {
        torch.float, torch.double, torch.half, torch.bfloat16, torch.long, torch.int,
    }  # fmt: skip


_TAKES, _COPIES = _functions(_TAKE), _functions(_COPY)
_CATS = {torch.cat, torch.concat, torch.concatenate, torch.stack}
_KEEP = _TAKES | _functions(_SHAPE) | _COPIES | _CATS


def _attach(labels: Tensor, step: Step, places: Tensor | None, moved: bool = False) -> Tensor:
    labels._step, labels._places, labels._moved = step, places, moved  # type: ignore[attr-defined]
    labels._changes = labels._version  # type: ignore[attr-defined]
    return labels


def _follow(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """Attach to the result the rows of the arguments, if all of them came from one batch."""
    parts = list(args[0]) if func in _CATS and isinstance(args[0], list | tuple) else list(args[:1])
    if not parts or not all(isinstance(part, SoftLabels) and part._step.open for part in parts):
        return result
    step, moved = parts[0]._step, any(part._moved for part in parts) or func in _TAKES
    if any(part._step is not step for part in parts):
        return result
    if func in _COPIES:
        if result.is_floating_point() != step.hard.is_floating_point():
            return result  # a number, no longer labels
        return _attach(result.as_subclass(SoftLabels), step, parts[0]._places, moved)
    places = func(*tree_map(_places, args), **tree_map(_places, kwargs))
    if isinstance(result, Tensor):
        return _attach(result.as_subclass(SoftLabels), step, places, moved)
    return type(result)(
        _attach(one.as_subclass(SoftLabels), step, place, moved) for one, place in zip(result, places, strict=True)
    )


def _places(value: Any) -> Any:
    if not isinstance(value, SoftLabels):
        return value
    if value._places is not None:
        return value._places
    return torch.arange(value.numel(), device=value.device).view(value.shape)
