"""Bad batches are refused with the sample, the row and the value named.

On a CPU at once. On an accelerator looking at a value would make the host wait for the device every step, so the
answer is fetched without waiting and raised on a later step, at the latest when the next epoch begins. What was stored
in that epoch is forgotten when it is begun again.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from retarget.errors import UserError

_MOST_PENDING = 16


class Checks:
    """Conditions on device tensors, raised at once or as soon as their value is known.

    Args:
        name: what a row of the table is called in a message; by default a sample.
    """

    def __init__(self, name: Callable[[int], str] | None = None) -> None:
        self.name = name or "sample {}".format
        self._pending: list[tuple[torch.cuda.Event, Tensor, Tensor, Callable[[int], str]]] = []

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
        if len(self._pending) > _MOST_PENDING:  # each holds on to its batch
            self.poll(wait=True)

    def poll(self, wait: bool = False) -> None:
        """Raise what has been found; with ``wait``, look at everything that was asked."""
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
    """A batch is index [B], logits [B, C] if any, and labels [B] or probabilities [B, C]."""
    if index.dtype.is_floating_point or index.dtype == torch.bool or index.ndim != 1:
        raise UserError(f"index holds whole numbers [B]: got {index.dtype} {list(index.shape)}")
    shape = (len(index), num_classes)
    if logits is not None and tuple(logits.shape) != shape:
        raise UserError(f"logits are [B, C] = {list(shape)}: got {list(logits.shape)}")
    if tuple(targets.shape) != (shape if targets.is_floating_point() else shape[:1]):
        raise UserError(f"targets are labels [{shape[0]}] or probabilities {list(shape)}: got {list(targets.shape)}")


def check_index(checks: Checks, index: Tensor, num_samples: int | None) -> Tensor:
    """Samples exist, of a known number; returns the index made safe to gather with."""
    if num_samples is None:
        return index
    checks.require(
        (index >= 0) & (index < num_samples),
        lambda row: (
            f"sample index {int(index[row])} in row {row} of the batch lies outside [0, {num_samples}): "
            "num_samples and the dataset that gives the indices differ"
        ),
    )
    return index.clamp(0, num_samples - 1)


def check_targets(
    checks: Checks, targets: Tensor, index: Tensor, num_classes: int, ignore_index: int, some: bool = True
) -> Tensor:
    """Targets are labels [B] or probabilities [B, C]; returns labels made safe to gather with.

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
    """Labels are classes, and a sample has one; returns the labels made safe to gather with (ignored ones as 0)."""
    ignored = labels == ignore_index
    checks.require(
        ignored | ((labels >= 0) & (labels < num_classes)),
        lambda row: (
            f"label {int(labels[row])} of {checks.name(int(index[row]))}, row {row} of the batch, "
            f"lies outside the classes [0, {num_classes})"
        ),
    )
    ordered, order = index.masked_fill(ignored, -1).sort(stable=True)
    of = labels[order]
    agree = torch.ones_like(ignored)
    agree[1:] = (ordered[1:] != ordered[:-1]) | (of[1:] == of[:-1])
    checks.require(
        agree,
        lambda at: (
            f"{checks.name(int(ordered[at]))} is in the batch with two labels, {int(of[at - 1])} in row "
            f"{int(order[at - 1])} and {int(of[at])} in row {int(order[at])}: indices must be unique to a sample"
        ),
    )
    return labels.masked_fill(ignored, 0).clamp(0, num_classes - 1)


def check_some(checks: Checks, labels: Tensor, ignore_index: int) -> None:
    """A mean over the batch's labels needs one that counts."""
    checks.require(
        (labels != ignore_index).any().reshape(1),
        lambda _: f"every label of the batch is {ignore_index}, which is ignored: there is nothing to learn from",
    )


def check_listed(checks: Checks, past_classes: Tensor, labels: Tensor, index: Tensor, counted: Tensor) -> None:
    """A stored top-k row lists the label that its sample had then, so another label now shows."""
    check_unchanged(checks, (past_classes == labels[:, None]).any(1) | ~counted, labels, index)


def check_unchanged(checks: Checks, unchanged: Tensor, labels: Tensor, index: Tensor) -> None:
    """Samples have the labels that they were last seen with."""
    checks.require(
        unchanged,
        lambda row: (
            f"{checks.name(int(index[row]))} has the label {int(labels[row])} (row {row} of the batch), which it had "
            "not when it was last seen: the index must mean the same sample, with the same label, in every epoch"
        ),
    )


def check_probabilities(checks: Checks, targets: Tensor, index: Tensor) -> None:
    """Probability targets are finite, not negative, and sum to 1 within 1e-3."""
    total = targets.sum(1)
    checks.require(
        ((total - 1).abs() <= 1e-3) & (targets.amin(1) >= 0),  # a NaN fails both
        lambda row: (
            f"the target of {checks.name(int(index[row]))}, row {row} of the batch, is no probability: it sums to "
            f"{float(total[row]):.6g} and its least value is {float(targets[row].min()):.6g}"
        ),
    )


def check_mixed(checks: Checks, mixed: Tensor, index: Tensor) -> Tensor:
    """Shares of the batch's samples in each input, [B, B] or with more columns that are empty; rows sum to 1."""
    size = len(index)
    if not mixed.is_floating_point() or mixed.ndim != 2 or len(mixed) != size or mixed.shape[1] < size:
        raise UserError(
            f"mixed says how much of each of the {size} samples is in each input, floating point [{size}, {size}]: got "
            f"{mixed.dtype} {list(mixed.shape)}"
        )
    mixed = mixed[:, :size].detach()
    total = mixed.sum(1)
    checks.require(
        ((total - 1).abs() <= 1e-3) & (mixed.amin(1) >= 0),
        lambda row: f"mixed holds shares that sum to 1: row {row} sums to {float(total[row]):.6g}",
    )
    return mixed


def check_loss(checks: Checks, loss: Tensor, logits: Tensor, index: Tensor) -> None:
    """The loss is finite, which it is not where a logit is not: cheaper than a pass over the logits each step."""
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


def one_hot(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """One-hot rows in float32, [B, C]; an ignored label gives a row of zeros."""
    kept = labels != ignore_index
    rows = F.one_hot(labels.masked_fill(~kept, 0).clamp(0, num_classes - 1), num_classes)
    return rows.float() * kept[:, None]
