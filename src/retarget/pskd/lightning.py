"""PS-KD as a Lightning callback: it replaces the label, the module stays as it is."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.functional import pskd_loss, widen
from retarget.pskd.method import PSKD
from retarget.pskd.multilabel import MultiLabelPSKD

_SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)
_TWO_LINES = (
    "In a module like this call PS-KD yourself: method.set_epoch(self.current_epoch) in on_train_epoch_start and "
    "loss = method.loss(logits, y, index) in training_step."
)


class SavedBeside(pl.Callback):
    """Announces epochs to a method and keeps its state beside each checkpoint, never in it.

    Args:
        method: what has ``set_epoch``, ``save``, ``load`` and a small ``state_dict``, which the checkpoint holds.
        directory: where the state is saved; by default beside the checkpoints (the first callback's, where several
            save them).
        keep: saved states to keep, the newest.
    """

    prefix = "pskd"
    """Files are called ``PREFIX-epoch-E.safetensors``."""

    def __init__(self, method: Any, directory: str | Path | None, keep: int) -> None:
        self.method, self.directory, self.keep = method, Path(directory) if directory else None, keep
        self._restore: str | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.num_training_batches == float("inf"):
            raise UserError("an infinite loader has no epochs: Trainer(limit_train_batches=steps_per_epoch) makes some")
        if self._restore:
            homes = [self._home(trainer)]
            if trainer.ckpt_path and not self.directory:
                homes.insert(0, Path(str(trainer.ckpt_path)).parent)
            found = [home / self._restore for home in homes if (home / self._restore).exists()]
            if not found:
                where = " or ".join(dict.fromkeys(str(home) for home in homes))
                raise UserError(
                    f"{self._restore} is not in {where}: name its folder, directory=...; or only the newest "
                    f"{self.keep} states were kept, and keep= must be higher"
                )
            self.method.load(found[0])
            self._restore = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.method.set_epoch(trainer.current_epoch)

    def state_dict(self) -> dict[str, Any]:
        return self.method.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.method.load_state_dict(state_dict)
        epoch = state_dict["epoch"]
        self._restore = None if epoch is None else self._file_name(epoch)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        home, epoch = self._home(trainer), self.method.state_dict()["epoch"]
        if epoch is None:  # saved before the first epoch, as by a search for a learning rate: there is no past yet
            return
        self.method.save(home / self._file_name(epoch))
        if trainer.is_global_zero:  # states of later epochs belong to another run in this folder
            saved = {int(path.stem.rpartition("-")[2]): path for path in home.glob(self._file_name("*"))}
            for old in sorted(one for one in saved if one <= epoch)[: -self.keep]:
                saved[old].unlink()

    def _home(self, trainer: pl.Trainer) -> Path:
        beside = getattr(trainer.checkpoint_callback, "dirpath", None)
        return self.directory or Path(beside or trainer.default_root_dir)

    def _file_name(self, epoch: int | str) -> str:
        return f"{self.prefix}-epoch-{epoch}.safetensors"


class PSKDCallback(SavedBeside):
    """Softens the labels of each training batch and remembers the predictions.

    The batch must be a list or dict that holds input, labels [B] and index [B] (see
    :class:`~retarget.pskd.index.with_index`), and ``training_step`` must hand its labels to a loss that takes
    probabilities, such as ``F.cross_entropy``. From epoch 1 on it finds dense softened rows [B, C] in place of the
    labels; with alpha 0 the batch is left alone. The logits are what the module (or the submodule ``logits_from``)
    returns in its one forward pass of the step. Where this is seen not to be so, the run is stopped with the two-line
    way named; a loss of the hard labels with another term added to it is not seen.

    With ``PreviousModel`` the past weights forward the batch's input in the trainer's precision.

    The table, or the past weights, are saved beside each checkpoint as ``pskd-epoch-E.safetensors`` (the newest
    ``keep`` stay) and read back when the trainer resumes; resume at epoch ends.

    Args:
        method: the PS-KD object.
        label, index: their keys in the batch; ``PreviousModel`` needs no index.
        input: key of what ``PreviousModel`` forwards.
        logits_from: name of the submodule whose output is the logits; by default the module itself.
        directory: where the table is saved; by default beside the checkpoints.
        keep: saved tables to keep.
    """

    def __init__(
        self,
        method: PSKD | MultiLabelPSKD,
        *,
        label: int | str = 1,
        index: int | str = 2,
        input: int | str = 0,
        logits_from: str | None = None,
        directory: str | Path | None = None,
        keep: int = 2,
    ) -> None:
        super().__init__(method, directory, keep)
        self.label, self.index, self.input, self.logits_from = label, index, input, logits_from
        self._logits: list[Tensor] = []
        self._labels: Tensor | None = None
        self._sample: Tensor | None = None
        self._remember, self._verified = True, False
        self._hook: Any = None
        self._soft = torch.empty(0)

    def do_not_remember(self) -> None:
        """Do not store this batch's predictions: its inputs are no longer the samples (CutMix, Mixup)."""
        self._remember = False

    # -- hooks of the trainer

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        teacher = self.method.teacher
        if teacher and not any(teacher.model is module for module in pl_module.modules()):
            raise UserError("PreviousModel must be given the network that the module trains, itself and no copy")
        if teacher and isinstance(trainer.strategy, _SHARDED):
            raise UserError(
                "PreviousModel copies whole weights, and this strategy spreads them over processes; use TopK(k) or "
                "MemoryMapped(path, rows)"
            )
        source = pl_module.get_submodule(self.logits_from) if self.logits_from else pl_module
        self._hook = source.register_forward_hook(lambda module, args, output: self._see(output))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.on_fit_end(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not isinstance(batch, list | dict):
            raise UserError(f"the batch is a {type(batch).__name__}, in which a label cannot be replaced. {_TWO_LINES}")
        fields: Any = batch  # a list by position or a dict by name
        teacher = self.method.teacher
        try:
            labels, sample = fields[self.label], None if teacher else fields[self.index]
            inputs = fields[self.input] if teacher else None
        except (IndexError, KeyError) as error:
            holds = sorted(fields) if isinstance(fields, dict) else f"{len(fields)} entries"
            other, do = f"index={self.index!r}", "wrap the dataset in with_index, or name the keys"
            if teacher:
                other, do = f"input={self.input!r}", "name the keys"
            raise UserError(
                f"the batch holds {holds}, and the callback looks for label={self.label!r} and {other}: {do}, "
                f"PSKDCallback(method, label=..., {other.partition('=')[0]}=...)"
            ) from error
        self._labels, self._sample, self._logits, self._remember = labels, sample, [], True
        if self.method.alpha > 0:
            with trainer.precision_plugin.forward_context() if teacher else nullcontext():
                soft = self.method.soften(labels, sample, inputs=inputs)
            if not labels.is_floating_point():
                # An ignored label is a row of zeros, and a mean over the batch counts it: make up for that.
                soft = soft * (len(labels) / (labels != self.method.ignore_index).sum())
            fields[self.label] = self._soft = soft

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        labels, sample = self._labels, self._sample
        assert labels is not None
        if not self._remember:
            return
        if len(self._logits) != 1:
            source = self.logits_from or "the module itself"
            raise UserError(
                f"training_step called {source} {len(self._logits)} times with logits [B, C] as output; once is "
                f"needed, so name the submodule that gives the logits with logits_from. {_TWO_LINES}"
            )
        logits = self._logits.pop()
        if self.method.alpha > 0 and not self._verified:
            self._verify(outputs, logits, labels, trainer.accumulate_grad_batches)
        self.method.remember(logits, labels, sample)

    # -- inside

    def _see(self, output: Any) -> None:
        expected = (len(self._labels), self.method.num_classes) if self._labels is not None else None
        if torch.is_grad_enabled() and isinstance(output, Tensor) and tuple(output.shape) == expected:
            self._logits.append(output.detach())

    def _verify(self, outputs: Any, logits: Tensor, labels: Tensor, accumulated: int) -> None:
        """Once, on the first softened batch: the module's loss must not be the one of the hard labels."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor) or labels.is_floating_point():
            return
        loss = loss.detach() * accumulated  # the trainer has divided it
        hard = F.cross_entropy(widen(logits), labels, ignore_index=self.method.ignore_index)
        soft = pskd_loss(logits, self._soft)
        if (soft - hard).abs() > 1e-3 and (loss - hard).abs() < 1e-5:
            raise UserError(
                f"training_step's loss is that of the hard labels: it takes them from elsewhere. {_TWO_LINES}"
            )
        self._verified = bool((soft - hard).abs() > 1e-3)
