"""PS-KD for multi-label classification, in which every class is a yes-or-no question of its own.

The equations are the paper's with a sigmoid instead of the softmax: ``t_ic = (1 - a_t) y_ic + a_t P_{t-1}(c | x_i)``,
and the loss is the binary cross-entropy against t, averaged over samples and classes.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.checks import Checks, check_loss, check_one_answer, check_some, fingerprints
from retarget.pskd.form import Form, divisor
from retarget.pskd.functional import soften, widen
from retarget.pskd.past.base import Store, past_of
from retarget.pskd.past.in_table import PastInTable
from retarget.pskd.past.rows import Dense, Independent, RowFormat
from retarget.pskd.schedule import Schedule, refuse_bad_run


class MultiLabelPSKD(Form):
    """Softens yes-or-no targets [B, C] with the model's own past predictions.

    Use it as :class:`~retarget.pskd.method.PSKD`, whose arguments it takes, with these differences: targets are floats
    in [0, 1]; a target of ``ignore_index`` has no loss; and a row is always dense, since the probabilities of the
    unlisted classes do not sum to a known rest from which they could be reconstructed.

    >>> method = MultiLabelPSKD(num_samples=10, num_classes=3, total_epochs=5)
    >>> method.set_epoch(0)
    >>> round(method.loss(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([4])).item(), 4)
    0.6931

    Raises:
        UserError: the store is ``TopK``.
    """

    def __init__(
        self,
        num_samples: int | None,
        num_classes: int,
        total_epochs: int,
        alpha_T: float = 0.8,
        *,
        store: Store = "dense",
        schedule: Literal["linear", "constant"] = "linear",
        ignore_index: int = -100,
        device: torch.device | str | None = None,
    ) -> None:
        refuse_bad_run(1 if num_samples is None else num_samples, num_classes, total_epochs, fewest=1)
        past = past_of(store, num_samples, num_classes, device, to_probs=torch.sigmoid, written=_independent)
        plan = Schedule(total_epochs, alpha_T, schedule)
        super().__init__(plan, past, Checks(past.name), num_samples, num_classes, ignore_index)
        draw = torch.Generator().manual_seed(0)
        self._multipliers = torch.randint(2**62, (num_classes,), generator=draw) | 1

    def loss(
        self,
        logits: Float[Tensor, "batch classes"],
        targets: Float[Tensor, "batch classes"],
        index: Tensor | None = None,
        *,
        inputs: Any = None,
        denominator: float | Tensor | None = None,
        remember: bool = True,
    ) -> Float[Tensor, ""]:
        """Mean binary cross-entropy against the softened targets; remembers the present prediction.

        Args:
            logits: [B, C], finite; bfloat16 and float16 are widened to float32 first.
            targets: [B, C], floating point in [0, 1], or ``ignore_index``.
            index: [B], each sample's index in the training set, in [0, N); not needed with ``PreviousModel``.
            inputs: the model's input, for ``PreviousModel`` only.
            denominator: divides the sum of the losses; by default the number of targets that are not ignored.
            remember: pass False to store nothing of a batch whose inputs are not the samples themselves.

        Raises:
            UserError: naming the sample, the row and the value, for an index out of range, a target outside [0, 1],
                logits that are not finite, or (unless ``remember`` is False) a sample of which a target lay on the
                other side of a half when it was last seen.
        """
        keys = self._check(logits, targets, index)
        if remember:
            self._refuse_changed(targets, keys)
        if denominator is None:
            check_some(self.checks, targets, self.ignore_index)
        soft = self._soft(targets, keys, inputs)
        soft = (targets if soft is None else soft).to(widen(logits).dtype)
        counted = targets != self.ignore_index
        share = counted.numel() / (counted.sum() if denominator is None else divisor(denominator, counted))
        loss = F.binary_cross_entropy_with_logits(
            widen(logits), soft.masked_fill(~counted, 0), weight=(counted * share).to(soft.dtype)
        )
        check_loss(self.checks, loss, logits, keys)
        if remember:
            self._write(logits, keys)
        else:
            self.schedule.count(len(keys), self.num_samples)
        return loss

    def soften(
        self, targets: Float[Tensor, "batch classes"], index: Tensor | None = None, *, inputs: Any = None
    ) -> Float[Tensor, "batch classes"]:
        """The softened targets, float32 [B, C]: hard ones in epoch 0; ignored targets stay ``ignore_index``."""
        soft = self._soft(targets, self._check(None, targets, index), inputs)
        hard = targets.float()
        return hard if soft is None else torch.where(targets == self.ignore_index, hard, soft)

    def remember(
        self, logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"], index: Tensor
    ) -> None:
        """Store the present prediction."""
        keys = self._check(logits, targets, index)
        self._refuse_changed(targets, keys)
        check_loss(self.checks, widen(logits.detach()).sum(), logits, keys)
        self._write(logits, keys)

    # -- inside

    def _check(self, logits: Tensor | None, targets: Tensor, index: Tensor | None) -> Tensor:
        """Refuse a bad batch; returns its keys on the past's device."""
        if not targets.is_floating_point():
            raise UserError(f"multi-label targets must be floats [B, C]: got {targets.dtype} {list(targets.shape)}")
        keys = self._keys(logits, targets, index)
        within = ((targets >= 0) & (targets <= 1)) | (targets == self.ignore_index)

        def describe(row: int) -> str:
            place = int((~within[row]).nonzero()[0, 0])
            return (
                f"target {float(targets[row, place]):.6g} for class {place} of "
                f"{self.checks.place(int(keys[row]), row)} lies outside [0, 1]"
            )

        self.checks.require(within.all(1), describe)
        return self.past.locate(keys, targets.device)

    def _refuse_changed(self, targets: Tensor, keys: Tensor) -> None:
        """Refuse samples that have other answers than they had before, or two in this batch."""
        if not isinstance(self.past, PastInTable):
            return
        counted = targets != self.ignore_index
        self._multipliers = self._multipliers.to(targets.device)
        answers = fingerprints(targets, counted, self._multipliers)
        keys = keys.to(targets.device, non_blocking=True)
        check_one_answer(self.checks, answers, keys)
        self.past.compare(
            answers, keys, torch.ones_like(answers, dtype=torch.bool),
            lambda same: self.checks.require(
                same,
                lambda row: (
                    f"the targets of {self.checks.place(int(keys[row]), row)} are not those that it had when it was "
                    "last seen: the index must mean the same sample, with the same targets, in every epoch. If inputs "
                    "are mixed, pass remember=False"
                ),
            ),
        )  # fmt: skip

    def _soft(self, targets: Tensor, keys: Tensor, inputs: Any) -> Tensor | None:
        """The softened targets; None if the hard ones are in use."""
        if self.alpha == 0:
            return None
        past, alpha = self._read(keys, targets.device, inputs, (targets != self.ignore_index).any(1))
        return soften(targets.float(), self._dense(past), alpha)

    def _write(self, logits: Tensor, keys: Tensor) -> None:
        self.schedule.count(len(keys), self.num_samples)
        self.past.write(logits, keys.new_zeros(len(keys)), keys)  # a dense row needs no label


def _independent(rows: RowFormat) -> RowFormat:
    if not isinstance(rows, Dense):
        raise UserError(f"a multi-label row is dense, but {rows} keeps only the likeliest classes: use Dense(dtype)")
    return Independent(rows.dtype)
