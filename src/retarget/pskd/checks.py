"""Refuse bad batches, with an error that names the sample, the row and the value.

On a CPU the error is raised at once. On an accelerator, looking at a value would make the host wait for the device in
every step; so the result is copied without waiting and the error is raised in a later step, at the latest when the next
epoch begins. When the failed epoch is begun again, what it had stored is forgotten.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retarget.errors import UserError

_MOST_PENDING = 16


class Checks:
    """Conditions on device tensors, raised at once or as soon as their value is known.

    Args:
        name: gives the name of a table's row for messages; by default "sample N".
    """

    def __init__(self, name: Callable[[int], str] | None = None) -> None:
        self.name = name or "sample {}".format
        self._pending: list[tuple[torch.cuda.Event, Tensor, Tensor, Callable[[int], str]]] = []

    def place(self, key: int, row: int) -> str:
        """The table's row and where it stands in the batch, which its name may say already.

        >>> Checks().place(5, 1)
        'sample 5, row 1 of the batch,'
        >>> Checks("item {} of the batch".format).place(2, 2)
        'item 2 of the batch'
        """
        name = self.name(key)
        return name if name.endswith("of the batch") else f"{name}, row {row} of the batch,"

    def require(self, holds: Tensor, describe: Callable[[int], str]) -> None:
        """Raise unless every element holds.

        Args:
            holds: [B] bool.
            describe: message for the first row that does not hold.
        """
        if holds.device.type != "cuda":
            self._raise(holds, describe)
            return
        answer = torch.empty((), dtype=torch.bool, pin_memory=True)
        answer.copy_(holds.all(), non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(holds.device))
        self._pending.append((event, answer, holds, describe))
        if len(self._pending) > _MOST_PENDING:  # each keeps its batch in memory
            self.poll(wait=True)

    def poll(self, wait: bool = False) -> None:
        """Raise the errors found so far; with ``wait``, first wait for every pending check."""
        while self._pending and (wait or self._pending[0][0].query()):
            event, answer, holds, describe = self._pending.pop(0)
            event.synchronize()
            if not answer:
                self._raise(holds, describe)

    @staticmethod
    def _raise(holds: Tensor, describe: Callable[[int], str]) -> None:
        if not holds.all():
            raise UserError(describe(int((~holds).reshape(-1).nonzero()[0, 0])))


def check_shapes(logits: Tensor | None, targets: Tensor, index: Tensor, num_classes: int) -> None:
    """Refuse a batch that is not index [B], logits [B, C] (if any) and labels [B] or probabilities [B, C]."""
    if index.dtype.is_floating_point or index.dtype == torch.bool or index.ndim != 1:
        raise UserError(f"index holds whole numbers [B]: got {index.dtype} {list(index.shape)}")
    shape = (len(index), num_classes)
    refuse_outputs(logits)
    if logits is not None and tuple(logits.shape) != shape:
        raise UserError(f"logits are [B, C] = {list(shape)}: got {list(logits.shape)}")
    if tuple(targets.shape) != (shape if targets.is_floating_point() else shape[:1]):
        raise UserError(
            f"targets are labels [{shape[0]}] or probabilities {list(shape)} as floats: got {targets.dtype} "
            f"{list(targets.shape)}"
        )


def refuse_outputs(logits: Any) -> None:
    """Refuse the outputs of a model that are not its logits alone, such as a dict or a tuple."""
    if logits is None or isinstance(logits, Tensor):
        return
    held = f" with {', '.join(map(str, logits))}" if isinstance(logits, Mapping) else ""
    raise UserError(
        f"logits must be a tensor: got a {type(logits).__name__}{held}. Pass the logits of the model's outputs: "
        "outputs.logits (Hugging Face, Inception), outputs['out'] (torchvision's segmentation)"
    )


def as_index(index: Any, num_samples: int | None, device: torch.device) -> Tensor:
    """An index as a tensor: a loader whose sampler gives whole batches hands on a list.

    Raises:
        UserError: it holds no numbers, such as the texts that key a dataset.
    """
    if isinstance(index, Tensor):
        return index
    try:
        return torch.as_tensor(index, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        first = next(iter(index), None) if isinstance(index, Iterable) else index
        raise UserError(
            f"index holds whole numbers [B]{'' if num_samples is None else f' in [0, {num_samples})'}: got a "
            f"{type(index).__name__} with {first!r}. Number the samples of a dataset whose keys are no such numbers, "
            "in the same order in every epoch"
        ) from error


def check_index(checks: Checks, index: Tensor, num_samples: int | None) -> Tensor:
    """Refuse indices outside the training set, if its size is known; returns the index made safe to gather with."""
    if num_samples is None:
        return index
    checks.require(
        (index >= 0) & (index < num_samples),
        lambda row: (
            f"sample index {int(index[row])} in row {row} of the batch lies outside [0, {num_samples}): "
            "num_samples does not match the dataset that the indices come from"
        ),
    )
    return index.clamp(0, num_samples - 1)


def check_targets(
    checks: Checks, targets: Tensor, index: Tensor, num_classes: int, ignore_index: int, some: bool = True
) -> Tensor:
    """Refuse bad targets, labels [B] or probabilities [B, C]; returns labels made safe to gather with.

    Args:
        some: refuse a batch whose labels are all ignored.
    """
    if targets.is_floating_point():
        check_probabilities(checks, targets, index)
        return targets.argmax(1)
    if some:
        check_some(checks, targets, ignore_index)
    near = index.to(targets.device, non_blocking=True)
    return check_labels(checks, targets.long(), near, num_classes, ignore_index)


def check_labels(checks: Checks, labels: Tensor, index: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Refuse labels outside the classes, samples with two labels; returns labels safe to gather with, ignored as 0."""
    ignored = labels == ignore_index
    checks.require(
        ignored | ((labels >= 0) & (labels < num_classes)),
        lambda row: (
            f"label {int(labels[row])} of {checks.place(int(index[row]), row)} lies outside the classes "
            f"[0, {num_classes})"
        ),
    )
    check_one_label(checks, labels, index, ~ignored)
    return labels.masked_fill(ignored, 0).clamp(0, num_classes - 1)


def check_one_label(checks: Checks, labels: Tensor, index: Tensor, counted: Tensor) -> None:
    """Refuse samples with two labels in the batch, of those that are counted, [B]."""
    ordered, order = index.masked_fill(~counted, -1).sort(stable=True)
    of = labels[order]
    agree = torch.ones_like(counted)
    agree[1:] = (ordered[1:] < 0) | (ordered[1:] != ordered[:-1]) | (of[1:] == of[:-1])
    checks.require(
        agree,
        lambda at: (
            f"{checks.name(int(ordered[at]))} has two labels in this batch, {int(of[at - 1])} in row "
            f"{int(order[at - 1])} and {int(of[at])} in row {int(order[at])}: each sample must have an index of its own"
        ),
    )


def check_one_answer(checks: Checks, answers: Tensor, index: Tensor) -> None:
    """Refuse samples with two :func:`fingerprints` of their multi-label targets in the batch."""
    ordered, order = index.sort(stable=True)
    of = answers[order]
    agree = torch.ones_like(ordered, dtype=torch.bool)
    agree[1:] = (ordered[1:] != ordered[:-1]) | (of[1:] == of[:-1]) | incomparable(of[1:], of[:-1])
    checks.require(
        agree,
        lambda at: (
            f"{checks.name(int(ordered[at]))} has two different targets in this batch, in rows {int(order[at - 1])} "
            f"and {int(order[at])}: each sample must have an index of its own"
        ),
    )


def fingerprints(targets: Tensor, counted: Tensor, multipliers: Tensor) -> Tensor:
    """A number for each row of multi-label targets, [B] int64, from 0 on: 31 bits for which targets are counted, above
    31 bits for which of them are more than a half. So it stays if the targets are smoothed.

    Args:
        targets, counted: [B, C].
        multipliers: [C] int64, random and odd.
    """
    yes, there = (
        ((bits.long() * multipliers).sum(1) >> 32) & 0x7FFFFFFF for bits in ((targets > 0.5) & counted, counted)
    )
    return (there << 31) | yes


def incomparable(one: Tensor, other: Tensor) -> Tensor:
    """Whether :func:`fingerprints` are of rows in which other targets are counted; never so for labels."""
    return (one >> 31) != (other >> 31)


def check_some(checks: Checks, labels: Tensor, ignore_index: int) -> None:
    """Refuse a batch whose labels are all ignored: its mean loss would be 0 / 0."""
    checks.require(
        (labels != ignore_index).any().reshape(1),
        lambda _: (
            (f"every label of the batch is {ignore_index} (ignore_index)" if len(labels) else "the batch is empty")
            + ": there is nothing to learn from"
        ),
    )


def check_listed(checks: Checks, past_classes: Tensor, labels: Tensor, index: Tensor, counted: Tensor) -> None:
    """Refuse labels that a stored top-k row does not list: it always lists the label that its sample had then."""
    check_unchanged(checks, (past_classes == labels[:, None]).any(1) | ~counted, labels, index)


def check_unchanged(checks: Checks, unchanged: Tensor, labels: Tensor, index: Tensor, hint: str = "") -> None:
    """Refuse samples whose label differs from the one they were last seen with; ``hint`` ends the message."""
    checks.require(
        unchanged,
        lambda row: (
            f"{checks.name(int(index[row]))} has the label {int(labels[row])} (row {row} of the batch), but had another"
            " label when it was last seen: the index must mean the same sample, with the same label, in every epoch"
            + hint
        ),
    )


def check_probabilities(checks: Checks, targets: Tensor, index: Tensor) -> None:
    """Refuse probability targets that are not finite, are negative, or do not sum to 1 within 1e-3."""
    total = targets.sum(1)
    checks.require(
        ((total - 1).abs() <= 1e-3) & (targets.amin(1) >= 0),  # a NaN fails both
        lambda row: (
            f"the target of {checks.place(int(index[row]), row)} is not a probability distribution: it "
            f"sums to {float(total[row]):.6g} and its smallest value is {float(targets[row].min()):.6g}"
        ),
    )


def check_mixed(checks: Checks, mixed: Tensor, index: Tensor) -> Tensor:
    """Refuse shares of samples in inputs unless [B, B] (or wider, padded with zeros) and each row sums to 1."""
    size = len(index)
    if not mixed.is_floating_point() or mixed.ndim != 2 or len(mixed) != size or mixed.shape[1] < size:
        raise UserError(
            f"mixed must hold the share of each of the {size} samples in each input, as floats [{size}, {size}]: got "
            f"{mixed.dtype} {list(mixed.shape)}"
        )
    mixed = mixed[:, :size].detach()
    total = mixed.sum(1)
    checks.require(
        ((total - 1).abs() <= 1e-3) & (mixed.amin(1) >= 0),
        lambda row: f"each row of mixed must sum to 1: row {row} sums to {float(total[row]):.6g}",
    )
    least = mixed.amin(1)
    alike = (mixed == least[:, None]).sum(1)  # all but the two that are mixed
    checks.require(
        (least <= 0) | (alike < max(size - 2, 2)) | (alike == size),
        lambda row: (
            f"row {row} of mixed gives {float(least[row]):.4g} to every other sample of the batch: the mixer smooths "
            "labels, here over samples and not over classes. Make it with label_smoothing=0, and smooth in the loss, "
            "loss(..., smoothing=)"
        ),
    )
    return mixed


def check_loss(checks: Checks, loss: Tensor, logits: Tensor, index: Tensor) -> None:
    """Refuse a loss that is not finite. A bad logit makes it so, and checking the loss is cheaper than every logit."""
    logits = logits.detach()

    def describe(_: int) -> str:
        bad = (~logits.isfinite()).nonzero()
        if len(bad) == 0:
            return "the loss is not finite although every logit is: the model has diverged"
        row, column = (int(place) for place in bad[0])
        return (
            f"logit {float(logits[row, column])} for class {column} of {checks.name(int(index[row]))}, row {row} of "
            "the batch: the model has diverged, or the input holds a value that is not finite"
        )

    checks.require(loss.detach().isfinite().reshape(1), describe)


def as_labels(targets: Tensor) -> Tensor:
    """Labels of any integer type as int64, in which ``ignore_index`` is no class: in uint8, -100 is 156.

    Raises:
        UserError: they are no tensor, such as a list of texts.
    """
    if not isinstance(targets, Tensor):
        raise UserError(f"targets must be a tensor of class numbers or probabilities: got a {type(targets).__name__}")
    return targets if targets.is_floating_point() else targets.long()


def one_hot(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """One-hot rows, float32 [B, C]; the row of an ignored label is zero."""
    kept = labels != ignore_index
    rows = F.one_hot(labels.masked_fill(~kept, 0).clamp(0, num_classes - 1), num_classes)
    return rows.float() * kept[:, None]
