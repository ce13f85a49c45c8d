"""What every form of PS-KD shares: schedule, past, checks, epochs and state. Each form adds its own loss."""

import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.checks import Checks, as_index, check_index, check_shapes
from retarget.pskd.functional import SparseRows
from retarget.pskd.past.base import Past
from retarget.pskd.past.exchange import in_one_place
from retarget.pskd.past.in_table import PastInTable
from retarget.pskd.past.previous import PastFromModel, PreviousModel
from retarget.pskd.past.state import read_state, refuse_other_state, write_state
from retarget.pskd.schedule import Schedule

_STATE = "retarget.pskd"


class Form:
    """A form of PS-KD; see :class:`~retarget.pskd.method.PSKD`. A form that wraps another shares its parts.

    Args:
        schedule, past, checks: the parts.
        num_samples: number of samples in the training set, or of rows in the table; None if the past has no rows.
        num_classes: number of classes, C.
        ignore_index: label that has no loss and no row.
        agreed: what else a resumed run must agree on, by name.
    """

    def __init__(
        self,
        schedule: Schedule,
        past: Past,
        checks: Checks,
        num_samples: int | None,
        num_classes: int,
        ignore_index: int,
        **agreed: Any,
    ) -> None:
        self.schedule, self.past, self.checks = schedule, past, checks
        self.num_samples, self.num_classes, self.ignore_index = num_samples, num_classes, ignore_index
        self._agreed = agreed
        schedule.pretrained = self.teacher is not None and self.teacher.pretrained

    @property
    def agreed(self) -> dict[str, Any]:
        """What a resumed run must agree on, by name."""
        return {
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "total_epochs": self.schedule.total_epochs,
            "alpha_T": self.schedule.alpha_T,
            "schedule": self.schedule.growth,
            "rows": self.past.kind,
            **self._agreed,
        }

    @property
    def alpha_T(self) -> float:
        """Weight of the past in the last epoch, in [0, 1]; a new value takes effect in the next step."""
        return self.schedule.alpha_T

    @alpha_T.setter
    def alpha_T(self, alpha_T: float) -> None:
        self.schedule.alpha_T = alpha_T

    @property
    def total_epochs(self) -> int:
        """Length of the run."""
        return self.schedule.total_epochs

    # -- epochs

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch (counted from 0), or begin it again after a crash or a resume.

        Raises:
            UserError: epoch outside [0, total_epochs), or one whose past rows have been overwritten.
        """
        self.schedule.refuse(epoch)
        if epoch and not (self.teacher and epoch != self.schedule.lacking):  # it begins with the weights of today
            self._refuse_lacking()
        self.end_epoch()
        if epoch > 0 and self.schedule.began is None and self.schedule.alpha_T > 0 and not self.teacher:
            found = self.past.found() if isinstance(self.past, PastInTable) else None
            now = "no earlier epoch has stored rows: each sample keeps its hard label until an epoch has seen it"
            if found:
                now = f"no saved state was loaded: the rows in {found} are used, whatever run they are of"
            warnings.warn(f"set_epoch({epoch}), but {now}. To resume a run, load() its saved state first", stacklevel=2)
        if self.schedule.total_epochs == 1 and self.schedule.alpha_T > 0 and not self.schedule.pretrained:
            warnings.warn(
                "total_epochs = 1 is plain training: the first epoch has no past. Train for several epochs, or let the "
                'pretrained model be the past of the first: store=PreviousModel(model, first_past="pretrained")',
                stacklevel=2,
            )
        self.past.begin(epoch)
        self.schedule.begin(epoch)

    def end_epoch(self) -> None:
        """Finish an epoch: raise the errors found in it and exchange its rows between ranks.

        ``set_epoch`` and ``save`` do this themselves. Collective under torch.distributed.
        """
        self.checks.poll(wait=True)
        self.schedule.warn(stacklevel=3)
        self.past.end()

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return self.schedule.epoch

    @property
    def alpha(self) -> float:
        """Weight of the past in this epoch; 0 in epoch 0, unless its past is the pretrained model."""
        return self.schedule.alpha

    @property
    def fallbacks(self) -> int:
        """Number of samples that this process has asked for in this epoch and that had no past row, so that they kept
        their hard label; reading it synchronises.

        Samples whose label is ignored have none to keep and are not counted. A batch given to both ``soften`` and
        ``loss`` counts twice.
        """
        return int(self.schedule.fallbacks)

    @property
    def num_bytes(self) -> int:
        """Bytes of the table in memory or on disk, or of ``PreviousModel``'s copy of the weights."""
        return self.past.num_bytes

    @property
    def teacher(self) -> PreviousModel | None:
        """The previous model, if it is the past; else None."""
        return self.past.teacher if isinstance(self.past, PastFromModel) else None

    def past_probs(
        self, index: Integer[Tensor, "batch"], *, inputs: Any = None
    ) -> tuple[Float[Tensor, "batch classes"], Bool[Tensor, "batch"]]:
        """The past predictions of samples as dense rows [B, C], and which samples have one; for inspection."""
        index = check_index(self.checks, index.long(), self.num_samples)
        if self.alpha == 0:
            raise UserError("this epoch uses no past predictions: it is the first one, or alpha is 0")
        self._refuse_lacking()
        past, written = self.past.read(index, index.device, inputs)
        return self._dense(past), written > 0

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and the settings that a resumed run must share; small enough for the trainer's own checkpoint."""
        return {**self.agreed, "epoch": self.schedule.began}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved epoch. Another dataset, schedule or row format is an error that names both values.

        The table, or the past weights, are not in the state: :meth:`load` restores both.
        """
        refuse_other_state(state, self.agreed, ["epoch"], "PS-KD state")
        if self.schedule.lacking is not None or state["epoch"] != self.schedule.began:
            self.schedule.lacking = state["epoch"]
        self.schedule.began = state["epoch"]

    def save(self, path: str | Path, *, writes: bool | None = None) -> None:
        """Write the table and the state to a safetensors file beside the model's checkpoint, atomically.

        With ``PreviousModel`` the past weights are written instead of a table. A memory-mapped table stays where it is;
        only the state is written. Collective: every rank calls it, rank 0 writes, and none returns before the file is
        there.

        Args:
            writes: whether this process writes; for nodes without a common disk, True in one process of each.
        """
        self._refuse_lacking()
        self.end_epoch()
        tensors = self.past.save()
        weights = self.teacher.model.parameters() if self.teacher and self.teacher.model else ()
        near = next((one.device for one in (*tensors.values(), *weights)), None)
        in_one_place(lambda: write_state(path, _STATE, self.state_dict(), tensors), writes, near=near)

    def load(self, path: str | Path) -> None:
        """Read what :meth:`save` wrote; then call ``set_epoch`` with the epoch to continue from.

        To continue in the middle of an epoch, skip the batches that were done and do not call ``set_epoch`` before the
        next epoch: it forgets the rows that this one has written.
        """
        state, saved = read_state(path, _STATE, "PS-KD state")
        self.load_state_dict(state)
        self.past.load(Path(path), self.schedule.began, saved)
        self.schedule.lacking = None

    # -- for the losses

    def _keys(self, logits: Tensor | None, targets: Tensor, index: Tensor | None) -> Integer[Tensor, "batch"]:
        """Check a batch's shapes and return its keys, safe to gather with; 0, 1, 2, … if the past keeps no rows."""
        self.checks.poll()
        if self.past.num_rows is None:
            index = torch.arange(len(targets), device=targets.device)  # only for messages
        elif index is None:
            raise UserError("the index is missing: rows are stored per sample, so call loss(logits, y, index)")
        else:
            index = as_index(index, self.past.num_rows, targets.device)
        check_shapes(logits, targets, index, self.num_classes)
        return check_index(self.checks, index.long(), self.past.num_rows)

    def _read(
        self, keys: Tensor, device: torch.device, inputs: Any, counted: Tensor | None
    ) -> tuple[Tensor | SparseRows, Tensor]:
        """Past rows, and the weight of each, [B]; 0 for a sample without a row.

        Args:
            counted: which samples' labels are not ignored, [B] bool; None if none is.
        """
        self._refuse_lacking()
        past, written = self.past.read(keys, device, inputs)
        lacking = written == 0
        self.schedule.fallbacks += (lacking if counted is None else lacking & counted).sum()
        self.schedule.asked += len(keys) if counted is None else counted.sum()
        return past, written * self.alpha

    def _refuse_lacking(self) -> None:
        """Raise if a state was restored without its table, or its past weights: its samples would lack their past."""
        if self.schedule.lacking is not None and self.schedule.alpha_T > 0:
            raise UserError(
                f"load_state_dict() has restored epoch {self.schedule.lacking} alone, and the past "
                f"{'weights' if self.teacher else 'predictions'} are not those of that epoch: call load() with the "
                "file that save() wrote beside the checkpoint. accelerate's register_for_checkpointing() saves "
                "state_dict() alone, so call save() after save_state() and load() after load_state()"
            )

    def _dense(self, past: Tensor | SparseRows) -> Float[Tensor, "batch classes"]:
        return past.dense(self.num_classes) if isinstance(past, SparseRows) else past


def divisor(denominator: float | Tensor, counted: Tensor) -> float | Tensor:
    """What the sum of the losses is divided by: the denominator, or 1 if that is 0 because no target is counted.

    An update whose labels are all ignored has the loss 0, and not 0 / 0.
    """
    if not isinstance(denominator, Tensor):
        return denominator if denominator else counted.any().logical_not().float()
    return torch.where((denominator == 0) & ~counted.any().to(denominator.device), 1, denominator)
