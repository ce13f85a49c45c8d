"""What remembers: the schedule of alpha, the source of past predictions, and the state of both.

Which loss the past softens is left to the classes that build on it: softmax in ``method.py``, sigmoid in
``multilabel.py``.
"""

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.checks import Checks, check_index, check_some
from retarget.pskd.functional import SparseRows, alpha_at, widen
from retarget.pskd.past.exchange import WriteLog, communication_device, exchange, world_size
from retarget.pskd.past.previous import PreviousModel
from retarget.pskd.past.rows import RowFormat
from retarget.pskd.past.state import read_state, refuse_other_run, restore, write_state
from retarget.pskd.past.table import MemoryMapped, Table, row_format, table_bytes

Store = Literal["dense"] | RowFormat | MemoryMapped | PreviousModel

MOST_PASSES = 20
"""Samples of an epoch, in training sets, from which the epoch has no end: more than any repeated augmentation."""

_STATE = "retarget.pskd"


class Memory:
    """The past predictions of a training run; see :class:`~retarget.pskd.method.PSKD` for the arguments."""

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
        self.teacher = store if isinstance(store, PreviousModel) else None
        if num_samples is None and not self.teacher:
            raise UserError(f"{store!r} keeps a row a sample: give num_samples; only PreviousModel goes without")
        refuse_bad_run(1 if num_samples is None else num_samples, num_classes, total_epochs)
        if not 0.0 <= alpha_T <= 1.0:
            raise UserError(f"alpha_T must lie in [0, 1]: got {alpha_T}")
        if schedule not in ("linear", "constant"):
            raise UserError(f"schedule is 'linear' or 'constant': got {schedule!r}")
        self.num_samples, self.num_classes = num_samples, num_classes
        self.total_epochs, self.alpha_T, self.schedule = total_epochs, float(alpha_T), schedule
        self.ignore_index, self.store = ignore_index, store
        self._rows = None if isinstance(store, PreviousModel) else self._row_format(store)
        if self._rows:
            self._rows.fields(num_classes)  # refuses a format that does not fit
        self._device = device
        self._table: Table | None = None
        self._epoch: int | None = None
        self._checks, self._log = Checks("place {} of the batch".format if self.teacher else None), WriteLog()
        self._fallbacks: Tensor | int = 0
        self._members = num_samples  # of the training set
        self._seen = 0  # of them in this epoch
        self._placed = False  # a table that was loaded before the first batch goes where the logits are

    # -- the schedule

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch (counted from 0), or begin it again after a crash or a resume.

        Raises:
            UserError: epoch outside [0, total_epochs), or one whose past rows have been overwritten.
        """
        refuse_bad_epoch(epoch, self.total_epochs)
        if self._epoch is not None and 0 < epoch < self._epoch:
            raise UserError(
                f"the table has been through epoch {self._epoch}: what epoch {epoch} would read is overwritten; "
                "load the state saved at that time"
            )
        self.end_epoch()
        if isinstance(self.store, MemoryMapped) and not self._table:
            self._make_table(torch.device("cpu"))  # now that the processes know their rank
        if self.teacher:
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
        self._epoch, self._fallbacks, self._seen = epoch, 0, 0

    def end_epoch(self) -> None:
        """Finish an epoch: raise what was found bad in it and exchange its rows between ranks.

        ``set_epoch`` and ``save`` do this themselves. Collective under torch.distributed.
        """
        self._checks.poll(wait=True)
        if self._rows and not self._table and self._epoch is not None and world_size() > 1:
            self._make_table(torch.device(self._device or communication_device()))  # the exchange waits for every rank
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
        """Bytes of the table in memory or on disk, or of ``PreviousModel``'s copy of the weights."""
        if self._rows is None:
            assert self.teacher is not None
            return self.teacher.num_bytes
        return table_bytes(self.num_samples or 0, self.num_classes, self._rows)

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
        return self._dense(past), alpha > 0

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must agree on, and the epoch: small, for the trainer's own checkpoint."""
        return {
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "total_epochs": self.total_epochs,
            "alpha_T": self.alpha_T,
            "schedule": self.schedule,
            "rows": "PreviousModel" if self._rows is None else repr(self._rows),
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

        With ``PreviousModel`` the past weights stand in the table's place. A memory-mapped table stays where it is;
        only the state is written. Collective: every rank calls it, rank 0 writes.
        """
        self.end_epoch()
        if self._table and self._table.path:
            self._table.persist()  # each rank has files of its own
        if world_size() > 1 and torch.distributed.get_rank() != 0:
            return
        tensors = {}
        if self.teacher:
            tensors = self.teacher.tensors()
        elif self._table and not self._table.path:
            tensors = self._table.tensors()
        write_state(path, _STATE, self.state_dict(), tensors)

    def load(self, path: str | Path) -> None:
        """Read what :meth:`save` wrote, then ``set_epoch`` with the epoch to go on from."""
        state, saved = read_state(path, _STATE, "PS-KD state")
        self.load_state_dict(state)
        if self.teacher:
            if self._epoch is not None:
                self.teacher.restore(path, self._epoch, saved)
        elif saved:
            table = self._table or self._make_table(torch.device(self._device or "cpu"))
            restore(path, table.tensors(), saved)
            table.epoch = self._epoch or 0
        elif isinstance(self.store, MemoryMapped):  # the table is where it was
            self._rejoin(Path(path))

    # -- for the classes that build on it

    def _row_format(self, store: Any) -> RowFormat:
        """How a row is written down."""
        return row_format(store)

    def _check_targets(self, targets: Tensor, index: Tensor) -> Tensor:
        """Refuse bad targets; returns labels [B] that are safe to gather with."""
        raise NotImplementedError

    def _teacher_rows(self, logits: Tensor) -> Float[Tensor, "batch classes"]:
        """Rows of probabilities from what the previous model gave."""
        raise NotImplementedError

    def _check(
        self, logits: Tensor | None, targets: Tensor, index: Tensor | None, some: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Shapes and values; the safe index where the table lives, and safe labels where the targets are.

        With ``some``, a batch whose labels are all ignored is refused.
        """
        self._checks.poll()
        if self.teacher:
            index = torch.arange(len(targets), device=targets.device)  # for messages alone
        elif index is None:
            raise UserError("the index is missing: a row of the past belongs to a sample, loss(logits, y, index)")
        if index.dtype.is_floating_point or index.dtype == torch.bool or index.ndim != 1:
            raise UserError(f"index holds whole numbers [B]: got {index.dtype} {list(index.shape)}")
        shape = (len(index), self.num_classes)
        if logits is not None and tuple(logits.shape) != shape:
            raise UserError(f"logits are [B, C] = {list(shape)}: got {list(logits.shape)}")
        if tuple(targets.shape) != (shape if targets.is_floating_point() else shape[:1]):
            raise UserError(
                f"targets are labels [{shape[0]}] or probabilities {list(shape)}: got {list(targets.shape)}"
            )
        index = index.long() if self.teacher else check_index(self._checks, index.long(), self.num_samples)
        if some and not targets.is_floating_point():
            check_some(self._checks, targets, self.ignore_index)
        labels = self._check_targets(targets, index)
        if self._rows and not self._placed:
            self._place(labels.device if self._device is None else torch.device(self._device))
        return index.to(self._table.device, non_blocking=True) if self._table else index, labels

    def _past(self, at: Tensor, device: torch.device, inputs: Any) -> tuple[Tensor | SparseRows, Tensor]:
        """Past rows and the weight of each, [B]: 0 where there is no row."""
        if self.teacher:
            past = self._teacher_rows(widen(self.teacher.logits(inputs)))
            if past.shape != (len(at), self.num_classes):
                raise UserError(
                    f"the previous model gives rows {list(past.shape)} for these inputs, and the targets are "
                    f"{[len(at), self.num_classes]}: inputs must be those that gave the logits"
                )
            return past, past.new_full((len(past),), self.alpha)
        assert self._table is not None
        assert self._rows is not None
        fields, written = self._table.gather(at)
        self._fallbacks = self._fallbacks + (~written).sum()
        if device != self._table.device:
            pin = device.type == "cuda" and self._table.device.type == "cpu"
            fields = {n: (f.pin_memory() if pin else f).to(device, non_blocking=True) for n, f in fields.items()}
            written = (written.pin_memory() if pin else written).to(device, non_blocking=True)
        return self._rows.decode(fields, self.num_classes), written.float() * self.alpha

    def _samples_of(self, at: Tensor) -> int:
        """How many samples a batch of rows is."""
        return len(at)

    def _dense(self, past: Tensor | SparseRows) -> Float[Tensor, "batch classes"]:
        return past.dense(self.num_classes) if isinstance(past, SparseRows) else past

    def _write(
        self, logits: Tensor, labels: Tensor, at: Tensor, keep: Tensor | None = None, log_norm: Tensor | None = None
    ) -> None:
        """Store the present rows, where ``keep`` [B] is true."""
        self._seen += self._samples_of(at)
        if self._members and self._seen > MOST_PASSES * self._members:
            raise UserError(
                f"{self._seen:,} samples since set_epoch({self.epoch}), and the training set has {self._members:,}: "
                "set_epoch begins every epoch; an infinite sampler has none, so count steps, "
                "set_epoch(step // steps_per_epoch)"
            )
        if not self._table or not self._rows:
            return
        with torch.no_grad():
            fields = self._rows.encode(logits.detach(), labels, log_norm)
        if keep is None:
            keep = torch.ones_like(labels, dtype=torch.bool)
        self._table.write(at, fields, keep)
        self._log.add(at, keep)

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
        assert self.num_samples is not None
        path = None
        if isinstance(self.store, MemoryMapped):
            path = Path(self.store.path)
            path = path / f"rank-{torch.distributed.get_rank()}" if world_size() > 1 else path
        self._table = Table(self._rows, self.num_samples, self.num_classes, device, path)
        self._table.epoch = self._epoch or 0
        return self._table

    def _place(self, device: torch.device) -> None:
        """Make the table, or bring a loaded one, where it belongs; files stay with the CPU."""
        if not self._table:
            self._make_table(device)
        elif not self._table.path and self._table.device != device:
            self._table.move(device)
        self._placed = True


def refuse_bad_run(num_samples: int, num_classes: int, total_epochs: int) -> None:
    """Raise unless the sizes of a training run make sense."""
    if num_samples < 1 or num_classes < 2:
        raise UserError(f"need num_samples >= 1 and num_classes >= 2: got {num_samples} and {num_classes}")
    if total_epochs < 1:
        raise UserError(f"need total_epochs >= 1: got {total_epochs}")


def refuse_bad_epoch(epoch: int, total_epochs: int) -> None:
    """Raise unless the epoch is one of the run's."""
    if not 0 <= epoch < total_epochs:
        raise UserError(f"epoch {epoch} lies outside [0, total_epochs = {total_epochs})")
