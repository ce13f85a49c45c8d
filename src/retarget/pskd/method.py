"""PS-KD for a plain training loop: one object, two calls."""

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.checks import (
    Checks,
    check_index,
    check_labels,
    check_listed,
    check_loss,
    check_probabilities,
    one_hot,
)
from retarget.pskd.exchange import WriteLog, exchange, world_size
from retarget.pskd.functional import SparseRows, alpha_at, pskd_loss, soften, sparse_pskd_losses, widen
from retarget.pskd.rows import RowFormat
from retarget.pskd.state import read_state, refuse_other_run, restore, write_state
from retarget.pskd.store import MemoryMapped, Table, row_format
from retarget.pskd.teacher import PreviousModel

Store = Literal["dense"] | RowFormat | MemoryMapped | PreviousModel

_STATE = "retarget.pskd"


class PSKD:
    """Softens hard targets with the model's own past predictions.

    Each epoch, ``set_epoch(epoch)``; each step, ``loss(logits, targets, index)``, which softens with the past and
    remembers the present. Where the loss is computed elsewhere, call ``soften`` before it and ``remember`` after.

    Args:
        num_samples: N, length of the training set that gives the indices.
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

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        total_epochs: int,
        alpha_T: float = 0.8,
        *,
        store: Store = "dense",
        schedule: Literal["linear", "constant"] = "linear",
        ignore_index: int = -100,
        device: torch.device | str | None = None,
    ) -> None:
        if num_samples < 1 or num_classes < 2:
            raise UserError(f"need num_samples >= 1 and num_classes >= 2: got {num_samples} and {num_classes}")
        if total_epochs < 1:
            raise UserError(f"need total_epochs >= 1: got {total_epochs}")
        if not 0.0 <= alpha_T <= 1.0:
            raise UserError(f"alpha_T must lie in [0, 1]: got {alpha_T}")
        if schedule not in ("linear", "constant"):
            raise UserError(f"schedule is 'linear' or 'constant': got {schedule!r}")
        self.num_samples, self.num_classes = num_samples, num_classes
        self.total_epochs, self.alpha_T, self.schedule = total_epochs, float(alpha_T), schedule
        self.ignore_index, self.store = ignore_index, store
        self.teacher = store if isinstance(store, PreviousModel) else None
        self._rows = None if isinstance(store, PreviousModel) else row_format(store)
        if self._rows:
            self._rows.fields(num_classes)  # refuses a format that does not fit
        self._device = device
        self._table: Table | None = None
        self._epoch: int | None = None
        self._checks, self._log = Checks(), WriteLog()
        self._fallbacks: Tensor | int = 0
        self._placed = False  # a table that was loaded before the first batch goes where the logits are

    # -- the schedule

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch (counted from 0), or begin it again after a crash or a resume.

        Raises:
            UserError: epoch outside [0, total_epochs), or one whose past rows have been overwritten.
        """
        if not 0 <= epoch < self.total_epochs:
            raise UserError(f"epoch {epoch} lies outside [0, total_epochs = {self.total_epochs})")
        if self._epoch is not None and 0 < epoch < self._epoch:
            raise UserError(
                f"the table has been through epoch {self._epoch}: what epoch {epoch} would read is overwritten; "
                "load the state saved at that time"
            )
        self.end_epoch()
        if isinstance(self.store, MemoryMapped) and not self._table:
            self._make_table(torch.device("cpu"))  # now that the processes know their rank
        if self.teacher:
            if epoch != self._epoch:
                self.teacher.begin(epoch)
        else:
            if epoch > 0 and self._epoch is None and self.alpha_T > 0:
                warnings.warn(
                    f"set_epoch({epoch}) without rows of an earlier epoch: samples keep their hard labels until they "
                    "have been seen; load() the saved state to resume",
                    stacklevel=2,
                )
            if self._table:
                self._table.begin(epoch)
        self._epoch, self._fallbacks = epoch, 0

    def end_epoch(self) -> None:
        """Finish an epoch: raise what was found bad in it and exchange its rows between ranks.

        ``set_epoch`` and ``save`` do this themselves. Collective under torch.distributed.
        """
        self._checks.poll(wait=True)
        if self._table:
            exchange(self._table, self._log)

    @property
    def epoch(self) -> int:
        """The epoch under way."""
        if self._epoch is None:
            raise UserError("call set_epoch(epoch) before the first step of every epoch")
        return self._epoch

    @property
    def alpha(self) -> float:
        """Weight of the past in this epoch; 0 in epoch 0, which has no past."""
        if self.epoch == 0:
            return 0.0
        return self.alpha_T if self.schedule == "constant" else alpha_at(self.epoch, self.total_epochs, self.alpha_T)

    @property
    def fallbacks(self) -> int:
        """Samples of this epoch that had no past row and kept their hard label (reading it waits for the device)."""
        return int(self._fallbacks)

    @property
    def num_bytes(self) -> int:
        """Bytes of the table in memory or on disk; 0 for ``PreviousModel``."""
        if self._rows is None:
            return 0
        row = sum(width * dtype.itemsize for width, dtype in self._rows.fields(self.num_classes).values()) + 4
        return 2 * (self.num_samples + 1) * row

    # -- a step

    def loss(
        self,
        logits: Float[Tensor, "batch classes"],
        targets: Integer[Tensor, "batch"] | Float[Tensor, "batch classes"],
        index: Integer[Tensor, "batch"],
        *,
        inputs: Any = None,
        smoothing: float = 0.0,
        denominator: float | Tensor | None = None,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy against the softened targets; remembers the present prediction.

        Args:
            logits: [B, C], finite; bfloat16 and float16 are widened to float32 first.
            targets: labels [B] in [0, C) or ``ignore_index``; or probabilities [B, C] (smoothed labels, say).
            index: [B], each sample's place in the training set, in [0, N).
            inputs: the model's input, for ``PreviousModel`` only.
            smoothing: label smoothing of the hard targets before they are softened, in [0, 1].
            denominator: what the sum of the losses is divided by, in place of the number of samples that count. With
                gradient accumulation: the number in all batches of the update.

        Raises:
            UserError: naming the sample, the row and the value, for an index or label out of range, one index with
                two labels, probabilities that do not sum to 1, or logits that are not finite.
        """
        at, labels = self._check(logits, targets, index)
        log_norm = None
        if self.alpha == 0:
            if targets.is_floating_point():
                hard = targets
            else:  # safe labels: on an accelerator a bad one would end the process before it can be named
                hard = labels.masked_fill(targets == self.ignore_index, self.ignore_index)
            loss = F.cross_entropy(
                widen(logits),
                hard,
                ignore_index=self.ignore_index,
                label_smoothing=smoothing,
                reduction="mean" if denominator is None else "sum",
            )
            loss = loss if denominator is None else loss / denominator
        else:
            losses, log_norm = self._soft_losses(logits, targets, labels, at, inputs, smoothing)
            counted = self._counted(targets, losses)
            loss = (losses * counted).sum() / (counted.sum() if denominator is None else denominator)
        check_loss(self._checks, loss, logits, index)
        self._write(logits, targets, labels, at, log_norm)
        return loss

    def soften(
        self,
        targets: Integer[Tensor, "batch"] | Float[Tensor, "batch classes"],
        index: Integer[Tensor, "batch"],
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
        dense = past.dense(self.num_classes) if isinstance(past, SparseRows) else past
        soft = soften(hard, dense, alpha)
        return soft if targets.is_floating_point() else soft * (targets != self.ignore_index)[:, None]

    def past_probs(
        self, index: Integer[Tensor, "batch"], *, inputs: Any = None
    ) -> tuple[Float[Tensor, "batch classes"], Bool[Tensor, "batch"]]:
        """The past predictions of samples as dense rows [B, C], and which samples have one; to look at."""
        index = check_index(self._checks, index.long(), self.num_samples)
        if self.alpha == 0 or (self._rows and not self._table):
            raise UserError("no past prediction is in use in this epoch: it is the first one, or alpha is 0")
        counted = self._fallbacks
        past, alpha = self._past(index.to(self._table.device) if self._table else index, index.device, inputs)
        self._fallbacks = counted
        return past.dense(self.num_classes) if isinstance(past, SparseRows) else past, alpha > 0

    def remember(
        self,
        logits: Float[Tensor, "batch classes"],
        targets: Integer[Tensor, "batch"] | Float[Tensor, "batch classes"],
        index: Integer[Tensor, "batch"],
    ) -> None:
        """Store the present prediction. Leave it out for inputs that are not the sample itself (CutMix, Mixup)."""
        at, labels = self._check(logits, targets, index)
        check_loss(self._checks, torch.logsumexp(widen(logits.detach()), 1).sum(), logits, index)
        self._write(logits, targets, labels, at)

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must agree on, and the epoch: small, for the trainer's own checkpoint."""
        kind = "PreviousModel" if self._rows is None else repr(self._rows)
        return {
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "total_epochs": self.total_epochs,
            "alpha_T": self.alpha_T,
            "schedule": self.schedule,
            "rows": kind,
            "epoch": self._epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved epoch; refuses another dataset, schedule or row format with both values named."""
        mine = self.state_dict()
        if set(state) != set(mine):
            raise UserError(f"not a PS-KD state: it has {sorted(state)}, expected {sorted(mine)}")
        refuse_other_run(state, {key: value for key, value in mine.items() if key != "epoch"})
        self._epoch = state["epoch"]

    def save(self, path: str | Path) -> None:
        """Write the table and the state to a safetensors file beside the model's checkpoint, atomically.

        A memory-mapped table stays where it is; only the state is written. Collective: every rank calls it, rank 0
        writes.
        """
        self.end_epoch()
        if world_size() > 1 and torch.distributed.get_rank() != 0:
            return
        tensors = {}
        if self._table and self._table.path:
            self._table.persist()
        elif self._table:
            tensors = self._table.tensors()
        write_state(path, _STATE, self.state_dict(), tensors)

    def load(self, path: str | Path) -> None:
        """Read what :meth:`save` wrote, then ``set_epoch`` with the epoch to go on from."""
        state, saved = read_state(path, _STATE, "PS-KD state")
        self.load_state_dict(state)
        if not saved:  # a memory-mapped table is where it was, and PreviousModel has none
            if isinstance(self.store, MemoryMapped):
                self._rejoin(Path(path))
            return
        table = self._table or self._make_table(torch.device(self._device or "cpu"))
        restore(path, table.tensors(), saved)
        if self._epoch is not None:
            table.epoch = self._epoch

    # -- inside

    def _rejoin(self, path: Path) -> None:
        """Open the files that a saved state goes with, and see that they hold what its next epoch reads."""
        table = self._table or self._make_table(torch.device("cpu"))
        table.flush()
        newest, saved = table.newest, self._epoch if self._epoch is not None else -1
        if newest < 0 <= saved:
            raise UserError(f"{path} goes with a memory-mapped table, and the one at {table.path} is empty")
        if newest > saved + 1:
            raise UserError(
                f"{path} was saved in epoch {saved}, and the table at {table.path} has been through epoch {newest}: "
                "its past is overwritten; resume from a later state"
            )
        table.epoch = max(saved, 0)

    def _make_table(self, device: torch.device) -> Table:
        assert self._rows is not None
        path = None
        if isinstance(self.store, MemoryMapped):
            path = Path(self.store.path)
            path = path / f"rank-{torch.distributed.get_rank()}" if world_size() > 1 else path
        self._table = Table(self._rows, self.num_samples, self.num_classes, device, path)
        self._table.epoch = self._epoch or 0
        return self._table

    def _check(self, logits: Tensor | None, targets: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes and values; the safe index where the table lives, and safe labels where the targets are."""
        self._checks.poll()
        if index.dtype.is_floating_point or index.dtype == torch.bool or index.ndim != 1:
            raise UserError(f"index holds whole numbers [B]: got {index.dtype} {list(index.shape)}")
        shape = (len(index), self.num_classes)
        if logits is not None and tuple(logits.shape) != shape:
            raise UserError(f"logits are [B, C] = {list(shape)}: got {list(logits.shape)}")
        if tuple(targets.shape) != (shape if targets.is_floating_point() else shape[:1]):
            raise UserError(
                f"targets are labels [{shape[0]}] or probabilities {list(shape)}: got {list(targets.shape)}"
            )
        index = check_index(self._checks, index.long(), self.num_samples)
        if targets.is_floating_point():
            check_probabilities(self._checks, targets, index)
            labels = targets.argmax(1)
        else:
            near = index.to(targets.device, non_blocking=True)
            labels = check_labels(self._checks, targets.long(), near, self.num_classes, self.ignore_index)
        if self._rows and not self._placed:
            self._place(labels.device if self._device is None else torch.device(self._device))
        return index.to(self._table.device, non_blocking=True) if self._table else index, labels

    def _place(self, device: torch.device) -> None:
        """Make the table, or bring a loaded one, where it belongs; files stay with the CPU."""
        if not self._table:
            self._make_table(device)
        elif not self._table.path and self._table.device != device:
            self._table.move(device)
        self._placed = True

    def _past(self, at: Tensor, device: torch.device, inputs: Any) -> tuple[Tensor | SparseRows, Tensor]:
        """Past rows and the weight of each, [B]: 0 where there is no row."""
        if self.teacher:
            past = self.teacher.probs(inputs)
            return past, torch.full((len(past),), self.alpha, device=past.device)
        assert self._table is not None
        assert self._rows is not None
        fields, written = self._table.gather(at)
        self._fallbacks = self._fallbacks + (~written).sum()
        if device != self._table.device:
            pin = device.type == "cuda" and self._table.device.type == "cpu"
            fields = {n: (f.pin_memory() if pin else f).to(device, non_blocking=True) for n, f in fields.items()}
            written = (written.pin_memory() if pin else written).to(device, non_blocking=True)
        return self._rows.decode(fields, self.num_classes), written * self.alpha

    def _soft_losses(
        self, logits: Tensor, targets: Tensor, labels: Tensor, at: Tensor, inputs: Any, smoothing: float
    ) -> tuple[Tensor, Tensor | None]:
        """Loss of each sample, [B], and the logits' logsumexp where it was needed."""
        past, alpha = self._past(at, logits.device, inputs)
        spread = smoothing / self.num_classes
        if targets.is_floating_point():
            dense = past.dense(self.num_classes) if isinstance(past, SparseRows) else past
            hard = targets.float() * (1 - smoothing) + spread
            return pskd_loss(logits, soften(hard, dense, alpha), reduction="none"), None
        if isinstance(past, SparseRows):
            counted = (alpha > 0) & (targets != self.ignore_index)
            check_listed(self._checks, past.classes, labels, at, counted)
            return sparse_pskd_losses(logits, labels, past, alpha, smoothing)
        # soften(smoothed one_hot, past, alpha) without making the one-hot rows
        soft = past.mul_(alpha[:, None])  # a copy of the rows, made for this step
        if smoothing:
            soft += ((1 - alpha) * spread)[:, None]
        soft.scatter_add_(1, labels[:, None], ((1 - alpha) * (1 - smoothing))[:, None])
        return pskd_loss(logits, soft, reduction="none"), None

    def _counted(self, targets: Tensor, losses: Tensor) -> Tensor:
        """1 for a sample that has a loss, 0 for an ignored one, [B]."""
        if targets.is_floating_point():
            return torch.ones_like(losses)
        return (targets != self.ignore_index).to(losses.dtype)

    def _write(
        self, logits: Tensor, targets: Tensor, labels: Tensor, at: Tensor, log_norm: Tensor | None = None
    ) -> None:
        if not self._table or not self._rows:
            return
        with torch.no_grad():
            fields = self._rows.encode(logits.detach(), labels, log_norm)
        if targets.is_floating_point():
            keep = torch.ones_like(labels, dtype=torch.bool)
        else:
            keep = targets != self.ignore_index
        self._table.write(at, fields, keep)
        self._log.add(at, keep)
