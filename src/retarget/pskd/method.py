"""PS-KD for a plain training loop: one object, two calls."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from retarget.pskd.checks import (
    check_labels,
    check_listed,
    check_loss,
    check_probabilities,
    check_unchanged,
    one_hot,
)
from retarget.pskd.functional import SparseRows, cross_entropy, pskd_loss, soften, sparse_pskd_losses, widen
from retarget.pskd.memory import Memory
from retarget.pskd.past.rows import Dense


class PSKD(Memory):
    """Softens hard targets with the model's own past predictions.

    Each epoch, ``set_epoch(epoch)``; each step, ``loss(logits, targets, index)``, which softens with the past and
    remembers the present. Where the loss is computed elsewhere, call ``soften`` before it and ``remember`` after.

    Args:
        num_samples: N, length of the training set that gives the indices; None is enough for ``PreviousModel``.
        num_classes: C.
        total_epochs: length of the run; the weight of the past grows to ``alpha_T`` over it.
        alpha_T: weight in the last epoch, in [0, 1]; 0.8 for CIFAR-100, 0.3 for ImageNet (official configurations).
            0 trains exactly as cross-entropy does.
        store: ``"dense"`` | ``Dense(dtype)`` | ``TopK(k)`` | ``MemoryMapped(path)`` | ``PreviousModel(model)``.
        schedule: ``"linear"`` as in the paper, or ``"constant"`` (alpha_T from the second epoch on), an ablation.
        ignore_index: label of samples that have no loss and no row.
        device: where the table lives; by default where the first logits are. A table elsewhere is read and written
            through pinned memory; give a CPU index then, or each step waits for it.

    Epoch 0 is plain cross-entropy. A sample without a row from an earlier epoch keeps its hard label and is counted
    in ``fallbacks``. Under torch.distributed ``set_epoch`` and ``save`` are collective.
    """

    _known: Tensor | None = None  # [N + 1], the label that each sample was last seen with; -1: not yet

    def set_epoch(self, epoch: int) -> None:
        if epoch in (0, self._epoch):  # begun again: what was seen in it is forgotten
            self._known = None
        super().set_epoch(epoch)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._known = None

    def loss(
        self,
        logits: Float[Tensor, "batch classes"],
        targets: Integer[Tensor, "batch"] | Float[Tensor, "batch classes"],
        index: Integer[Tensor, "batch"] | None = None,
        *,
        inputs: Any = None,
        smoothing: float = 0.0,
        denominator: float | Tensor | None = None,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy against the softened targets; remembers the present prediction.

        Args:
            logits: [B, C], finite; bfloat16 and float16 are widened to float32 first.
            targets: labels [B] in [0, C) or ``ignore_index``; or probabilities [B, C] (smoothed labels, say).
            index: [B], each sample's place in the training set, in [0, N); ``PreviousModel`` needs none.
            inputs: the model's input, for ``PreviousModel`` only.
            smoothing: label smoothing of the hard targets before they are softened, in [0, 1].
            denominator: what the sum of the losses is divided by, in place of the number of samples that count. With
                gradient accumulation: the number in all batches of the update.

        Raises:
            UserError: naming the sample, the row and the value, for an index or label out of range, one index with
                two labels, probabilities that do not sum to 1, or logits that are not finite.
        """
        at, labels = self._check(logits, targets, index, some=denominator is None)
        log_norm = None
        if self.alpha == 0:
            if targets.is_floating_point():
                hard = targets
            else:  # safe labels: on an accelerator a bad one would end the process before it can be named
                hard = labels.masked_fill(targets == self.ignore_index, self.ignore_index)
            reduction = "mean" if denominator is None else "sum"
            loss = cross_entropy(logits, hard, self.ignore_index, smoothing, reduction)
            loss = loss if denominator is None else loss / denominator
        else:
            losses, log_norm = self._soft_losses(logits, targets, labels, at, inputs, smoothing)
            counted = self._counted(targets)
            losses = losses if counted is None else losses * counted
            count = len(losses) if counted is None else counted.sum()
            loss = losses.sum() / (count if denominator is None else denominator)
        check_loss(self._checks, loss, logits, at)
        self._write(logits, labels, at, self._counted(targets), log_norm)
        return loss

    def soften(
        self,
        targets: Integer[Tensor, "batch"] | Float[Tensor, "batch classes"],
        index: Integer[Tensor, "batch"] | None = None,
        *,
        inputs: Any = None,
    ) -> Float[Tensor, "batch classes"]:
        """The softened targets as dense rows, [B, C] float32; in epoch 0 the hard ones. Ignored labels give zeros."""
        at, labels = self._check(None, targets, index)
        if targets.is_floating_point():
            hard = targets.float()
        else:
            hard = one_hot(targets, self.num_classes, self.ignore_index)
        if self.alpha == 0:
            return hard
        past, alpha = self._past(at, labels.device, inputs)
        self._check_past(past, alpha, targets, labels, at)
        soft = soften(hard, self._dense(past), alpha)
        counted = self._counted(targets)
        return soft if counted is None else soft * counted[:, None]

    def remember(
        self,
        logits: Float[Tensor, "batch classes"],
        targets: Integer[Tensor, "batch"] | Float[Tensor, "batch classes"],
        index: Integer[Tensor, "batch"] | None = None,
    ) -> None:
        """Store the present prediction. Leave it out for inputs that are not the sample itself (CutMix, Mixup)."""
        at, labels = self._check(logits, targets, index)
        check_loss(self._checks, torch.logsumexp(widen(logits.detach()), 1).sum(), logits, at)
        self._write(logits, labels, at, self._counted(targets))

    # -- inside

    def _check_targets(self, targets: Tensor, index: Tensor) -> Tensor:
        if targets.is_floating_point():
            check_probabilities(self._checks, targets, index)
            return targets.argmax(1)
        near = index.to(targets.device, non_blocking=True)
        labels = check_labels(self._checks, targets.long(), near, self.num_classes, self.ignore_index)
        if isinstance(self._rows, Dense):
            self._check_known(labels, near, targets != self.ignore_index)
        return labels

    def _check_known(self, labels: Tensor, index: Tensor, counted: Tensor) -> None:
        """A dense row does not say which label its sample had: this does, in this process and since it began."""
        if self._known is None:
            self._known = torch.full(((self.num_samples or 0) + 1,), -1, dtype=torch.int32)
        known = self._known = self._known.to(labels.device)
        before = known[index]
        check_unchanged(self._checks, (before < 0) | (before == labels) | ~counted, labels, index)
        kept = index.masked_fill(~counted, len(known) - 1)  # the last is no sample's
        known[kept] = labels.to(known.dtype)

    def _check_past(
        self, past: Tensor | SparseRows, alpha: Tensor, targets: Tensor, labels: Tensor, at: Tensor
    ) -> None:
        if isinstance(past, SparseRows) and not targets.is_floating_point():
            check_listed(self._checks, past.classes, labels, at, (alpha > 0) & (targets != self.ignore_index))

    def _teacher_rows(self, logits: Tensor) -> Tensor:
        return F.softmax(logits, dim=1)

    def _counted(self, targets: Tensor) -> Tensor | None:
        """[B] bool, false for ignored samples; None where all count."""
        return None if targets.is_floating_point() else targets != self.ignore_index

    def _soft_losses(
        self, logits: Tensor, targets: Tensor, labels: Tensor, at: Tensor, inputs: Any, smoothing: float
    ) -> tuple[Tensor, Tensor | None]:
        """Loss of each sample, [B], and the logits' logsumexp where it was needed."""
        past, alpha = self._past(at, logits.device, inputs)
        self._check_past(past, alpha, targets, labels, at)
        spread = smoothing / self.num_classes
        if targets.is_floating_point():
            hard = targets.float() * (1 - smoothing) + spread
            return pskd_loss(logits, soften(hard, self._dense(past), alpha), reduction="none"), None
        if isinstance(past, SparseRows):
            return sparse_pskd_losses(logits, labels, past, alpha, smoothing)
        # soften(smoothed one_hot, past, alpha) without making the one-hot rows
        soft = past.mul_(alpha[:, None])  # a copy of the rows, made for this step
        if smoothing:
            soft += ((1 - alpha) * spread)[:, None]
        soft.scatter_add_(1, labels[:, None], ((1 - alpha) * (1 - smoothing))[:, None])
        return pskd_loss(logits, soft, reduction="none"), None
