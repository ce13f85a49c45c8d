"""PS-KD for a plain training loop: one object, two calls."""

import warnings
from typing import Any, Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.checks import (
    Checks,
    as_labels,
    check_listed,
    check_loss,
    check_mixed,
    check_one_label,
    check_targets,
    check_unchanged,
    one_hot,
)
from retarget.pskd.form import Form, divisor
from retarget.pskd.functional import SparseRows, cross_entropy, pskd_loss, soften, sparse_pskd_losses, widen
from retarget.pskd.past.base import Past, Store, past_of
from retarget.pskd.past.in_table import PastInTable
from retarget.pskd.schedule import Schedule, refuse_bad_run


class PSKD(Form):
    """Softens hard targets with the model's own past predictions.

    Call ``set_epoch(epoch)`` in each epoch and ``loss(logits, targets, index)`` in each step: it softens the targets
    with the past and remembers the present. If the loss is computed elsewhere, call ``soften`` before it and
    ``remember`` after it.

    Args:
        num_samples: N, number of training samples, so that indices lie in [0, N); None with ``PreviousModel``.
        num_classes: number of classes, C.
        total_epochs: length of the run, over which the weight of the past grows to ``alpha_T``.
        alpha_T: weight in the last epoch, in [0, 1]; 0.8 in every official configuration. 0 trains exactly as
            cross-entropy does.
        store: ``"dense"`` | ``Dense(dtype)`` | ``TopK(k)`` | ``MemoryMapped(path)`` | ``PreviousModel(model)``;
            or a :class:`~retarget.pskd.past.base.Past`.
        schedule: ``"linear"`` as in the paper, or ``"constant"`` (alpha_T from the second epoch on), an ablation.
        ignore_index: label of samples that have no loss and no row.
        device: where the table lives; by default where the first logits are. A table on another device is read and
            written through pinned memory: then pass a CPU index, to avoid a synchronisation per step.

    Epoch 0 is plain cross-entropy. A sample without a row from an earlier epoch keeps its hard label and is counted
    in ``fallbacks``. Under torch.distributed ``set_epoch`` and ``save`` are collective.
    """

    def __init__(
        self,
        num_samples: int | None,
        num_classes: int,
        total_epochs: int,
        alpha_T: float = 0.8,
        *,
        store: Store | Past = "dense",
        schedule: Literal["linear", "constant"] = "linear",
        ignore_index: int = -100,
        device: torch.device | str | None = None,
    ) -> None:
        refuse_bad_run(1 if num_samples is None else num_samples, num_classes, total_epochs)
        past = past_of(store, num_samples, num_classes, device)
        self._members = num_samples  # number of training samples, if a row is a sample
        num_samples = past.num_rows if num_samples is None else num_samples
        plan = Schedule(total_epochs, alpha_T, schedule)
        super().__init__(plan, past, Checks(past.name), num_samples, num_classes, ignore_index)

    def loss(
        self,
        logits: Float[Tensor, "batch classes"],
        targets: Integer[Tensor, "batch"] | Float[Tensor, "batch classes"],
        index: Integer[Tensor, "batch"] | None = None,
        *,
        inputs: Any = None,
        smoothing: float = 0.0,
        denominator: float | Tensor | None = None,
        mixed: Float[Tensor, "batch others"] | None = None,
        remember: bool = True,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy against the softened targets; remembers the present prediction.

        Args:
            logits: [B, C], finite; bfloat16 and float16 are widened to float32 first.
            targets: labels [B] in [0, C) or ``ignore_index``; or probabilities [B, C] (smoothed labels, say).
            index: [B], each sample's index in the training set, in [0, N); not needed with ``PreviousModel``.
            inputs: the model's input, for ``PreviousModel`` only.
            smoothing: label smoothing of the hard targets before they are softened, in [0, 1].
            denominator: divides the sum of the losses; by default the number of samples that are not ignored. With
                gradient accumulation, pass their number in all batches of the update.
            mixed: for Mixup and CutMix, the share of each sample in each input, [B, B], each row summing to 1. Any
                library's mixing returns it if you pass the samples' positions as labels and B as the number of
                classes: ``x, mixed = mix(x, torch.arange(len(x)))``. The target is the same mixture of softened
                targets; the prediction for a mixed input belongs to no sample and is not remembered.
            remember: pass False to store nothing of a batch whose inputs are not the samples themselves.

        Raises:
            UserError: naming the sample, the row and the value, for an index or label out of range, one index with
                two labels (of probabilities, with another class above a half), probabilities that do not sum to 1, or
                logits that are not finite.
        """
        if not 0 <= smoothing <= 1:
            raise UserError(f"smoothing is a share of the target, in [0, 1]: got {smoothing}")
        if remember and not torch.is_grad_enabled():
            warnings.warn(
                "PSKD.loss() without gradients remembers these predictions as those of training samples: in validation "
                "pass remember=False, or use the plain cross-entropy",
                stacklevel=2,
            )
        targets = as_labels(targets)
        keys, labels, counted = self._check(logits, targets, index, some=denominator is None)
        if remember and mixed is None:
            self._refuse_changed(targets, labels, keys)
        log_norm, keep = None, counted
        if mixed is not None:
            loss, own = self._mixed_loss(logits, targets, labels, keys, counted, mixed, inputs, smoothing, denominator)
            keep = own if counted is None else own & counted
        elif self.alpha == 0:
            if targets.is_floating_point():
                hard = targets
            else:  # labels made safe: on an accelerator a bad one would kill the process before the error can name it
                hard = labels.masked_fill(targets == self.ignore_index, self.ignore_index)
            reduction = "mean" if denominator is None else "sum"
            loss = cross_entropy(logits, hard, self.ignore_index, smoothing, reduction)
            loss = loss if denominator is None else loss / self._divisor(denominator, counted)
        else:
            past, alpha = self._past(keys, logits.device, targets, labels, inputs)
            losses, log_norm = self._soft_losses(logits, targets, labels, past, alpha, smoothing)
            losses = losses if counted is None else losses * counted
            count = len(losses) if counted is None else counted.sum()
            loss = losses.sum() / (count if denominator is None else self._divisor(denominator, counted))
        check_loss(self.checks, loss, logits, keys)
        if remember:
            if mixed is None:
                self._count_two_classed(targets)
            self._write(logits, labels, keys, keep, log_norm)
        else:
            self.schedule.count(len(keys), self._members)
        return loss

    def soften(
        self,
        targets: Integer[Tensor, "batch"] | Float[Tensor, "batch classes"],
        index: Integer[Tensor, "batch"] | None = None,
        *,
        inputs: Any = None,
    ) -> Float[Tensor, "batch classes"]:
        """The softened targets as dense rows, float32 [B, C]: hard ones in epoch 0, zeros for ignored labels."""
        return self.soften_by(targets, index, inputs=inputs)[0]

    def soften_by(
        self,
        targets: Integer[Tensor, "batch"] | Float[Tensor, "batch classes"],
        index: Integer[Tensor, "batch"] | None = None,
        *,
        inputs: Any = None,
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch"]]:
        """:meth:`soften`, and the weight of the past in each row: 0 for a sample without one."""
        targets = as_labels(targets)
        keys, labels, counted = self._check(None, targets, index)
        if targets.is_floating_point():
            hard = targets.float()
        else:
            hard = one_hot(targets, self.num_classes, self.ignore_index)
        if self.alpha == 0:
            return hard, hard.new_zeros(len(hard))
        past, alpha = self._past(keys, labels.device, targets, labels, inputs)
        soft = soften(hard, self._dense(past), alpha)
        return soft if counted is None else soft * counted[:, None], alpha

    def remember(
        self,
        logits: Float[Tensor, "batch classes"],
        targets: Integer[Tensor, "batch"] | Float[Tensor, "batch classes"],
        index: Integer[Tensor, "batch"] | None = None,
    ) -> None:
        """Store the present prediction. Do not call it for inputs that are not the sample itself (CutMix, Mixup)."""
        keys, labels, counted = self._check(logits, as_labels(targets), index)
        self._refuse_changed(targets, labels, keys)
        check_loss(self.checks, torch.logsumexp(widen(logits.detach()), 1).sum(), logits, keys)
        self._count_two_classed(targets)
        self._write(logits, labels, keys, counted)

    # -- inside: check, read, loss, write

    def _count_two_classed(self, targets: Tensor) -> None:
        """Count targets that two classes share, as those of mixed images, whose predictions belong to no sample."""
        if targets.is_floating_point() and self.past.num_rows is not None:
            if self.num_classes == 2:
                self.schedule.count_two(targets)
                return
            self.schedule.two_classed += _two_classed(targets).sum()

    def _refuse_changed(self, targets: Tensor, labels: Tensor, keys: Tensor) -> None:
        """Refuse probabilities whose likeliest class is another one than its sample had before, or has in this batch.

        Only a class with more than a half is compared, and none of targets that two classes share, as mixing makes
        them, which :meth:`Schedule.warn` tells of.
        """
        if not targets.is_floating_point() or not isinstance(self.past, PastInTable):
            return  # labels are compared by _check
        keys = keys.to(labels.device, non_blocking=True)
        counted = (targets.amax(1) > 0.5) & ~_two_classed(targets)
        check_one_label(self.checks, labels, keys, counted)
        hint = ". If inputs are mixed, pass mixed=shares or remember=False"
        self.past.compare(
            labels.int(), keys, counted, lambda same: check_unchanged(self.checks, same, labels, keys, hint)
        )

    @staticmethod
    def _divisor(denominator: float | Tensor, counted: Tensor | None) -> float | Tensor:
        return denominator if counted is None else divisor(denominator, counted)

    def _check(
        self, logits: Tensor | None, targets: Tensor, index: Tensor | None, some: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Refuse a bad batch.

        Args:
            some: refuse a batch whose labels are all ignored.

        Returns:
            Keys [B] on the past's device and labels [B] on the targets', both safe to gather with; and which samples
            are not ignored, [B] bool, None if none is.
        """
        keys, counted = self._keys(logits, targets, index), None
        labels = check_targets(self.checks, targets, keys, self.num_classes, self.ignore_index, some)
        if not targets.is_floating_point():
            counted = targets != self.ignore_index
            self.past.check_labels(self.checks, labels, keys, counted)
        return self.past.locate(keys, labels.device), labels, counted

    def _past(
        self, keys: Tensor, device: torch.device, targets: Tensor, labels: Tensor, inputs: Any
    ) -> tuple[Tensor | SparseRows, Tensor]:
        """Past rows, and the weight of each, [B]; refuses a row that was written for another label."""
        counted = None if targets.is_floating_point() else targets != self.ignore_index
        past, alpha = self._read(keys, device, inputs, counted)
        if isinstance(past, SparseRows) and counted is not None:
            check_listed(self.checks, past.classes, labels, keys, (alpha > 0) & counted)
        return past, alpha

    def _soft_losses(
        self,
        logits: Tensor,
        targets: Tensor,
        labels: Tensor,
        past: Tensor | SparseRows,
        alpha: Tensor,
        smoothing: float,
    ) -> tuple[Tensor, Tensor | None]:
        """Loss of each sample, [B], and the logits' logsumexp if it was computed."""
        spread = smoothing / self.num_classes
        if targets.is_floating_point():
            hard = targets.float() * (1 - smoothing) + spread
            return pskd_loss(logits, soften(hard, self._dense(past), alpha), reduction="none"), None
        if isinstance(past, SparseRows):
            return sparse_pskd_losses(logits, labels, past, alpha, smoothing)
        # soften(smoothed one_hot, past, alpha), without allocating the one-hot rows
        soft = past.mul_(alpha[:, None])  # a copy of the rows, made for this step
        if smoothing:
            soft += ((1 - alpha) * spread)[:, None]
        soft.scatter_add_(1, labels[:, None], ((1 - alpha) * (1 - smoothing))[:, None])
        return pskd_loss(logits, soft, reduction="none"), None

    def _mixed_loss(
        self,
        logits: Tensor,
        targets: Tensor,
        labels: Tensor,
        keys: Tensor,
        counted: Tensor | None,
        mixed: Tensor,
        inputs: Any,
        smoothing: float,
        denominator: float | Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The loss of mixed inputs, and which inputs are the samples themselves, [B]."""
        mixed = check_mixed(self.checks, mixed, keys).to(labels.device, torch.float32)
        spread = smoothing / self.num_classes
        if targets.is_floating_point():
            hard, counts = targets.float(), targets.new_ones(len(targets), dtype=torch.float32)
        else:
            hard, counts = one_hot(targets, self.num_classes, self.ignore_index), counted.float()  # type: ignore[union-attr]
        hard = (hard * (1 - smoothing) + spread) * counts[:, None]
        if self.alpha == 0:
            soft = _mix(mixed, hard)
        else:
            past, alpha = self._past(keys, logits.device, targets, labels, inputs)
            past = self._dense(past)
            if self.past.num_rows is None:  # the previous model's prediction for the mixed input itself
                soft = soften(_mix(mixed, hard), past * _mix(mixed, counts)[:, None], alpha)
            else:
                soft = _mix(mixed, soften(hard, past, alpha) * counts[:, None])
        losses = pskd_loss(logits, soft, reduction="none")
        count = _mix(mixed, counts).sum() if denominator is None else self._divisor(denominator, counted)
        return losses.sum() / count, mixed.diagonal() >= 1 - 1e-6

    def _write(
        self, logits: Tensor, labels: Tensor, keys: Tensor, counted: Tensor | None, log_norm: Tensor | None = None
    ) -> None:
        self.schedule.count(len(keys), self._members)
        self.past.write(logits, labels, keys, counted, log_norm)


def _two_classed(targets: Tensor) -> Tensor:
    """Which probabilities [B, C] two classes share, [B]; of two classes, all that are not one-hot."""
    least = targets.amin(1, keepdim=True) if targets.shape[1] > 2 else 0
    return (targets > least + 1e-4).sum(1) == 2


def _mix(mixed: Tensor, rows: Tensor) -> Tensor:
    """``mixed @ rows``, also under autocast, which would round targets and counts to 16 bits."""
    with torch.autocast(mixed.device.type, enabled=False):
        return mixed @ rows
