"""PS-KD as a Lightning callback: the module's own loss is computed from softened labels."""

from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from retarget.errors import UserError
from retarget.files import make_directory, replace_file
from retarget.pskd.checks import as_labels
from retarget.pskd.method import PSKD
from retarget.pskd.multilabel import MultiLabelPSKD
from retarget.pskd.past.previous import share_buffers
from retarget.pskd.soft_labels import Step, depends_on

_SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)
_STATES = "states"
"""In a checkpoint: the names of the states that are kept, the checkpoint's own last."""
_TWO_LINES = (
    "Or call PS-KD yourself: method.set_epoch(self.current_epoch) in on_train_epoch_start and "
    "loss = method.loss(logits, y, index) in training_step."
)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint beside its target and renames it, so a full disk or a kill leaves the one before intact.

    Lightning's own plugin writes to ``$TMPDIR`` and moves the file: across file systems that is a copy, which
    overwrites the last good checkpoint before the new one is complete::

        Trainer(plugins=[WholeCheckpoints()], ...)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write to a local path; a missing folder is created.

        Raises:
            UserError: it cannot be written; the former file is intact, and no temporary file is left.
        """
        if storage_options is not None or "://" in str(path):
            raise UserError(f"WholeCheckpoints writes local files, without storage_options: got {path}")
        path = Path(path)
        make_directory(path.parent)
        buffer = BytesIO()  # so that a full disk raises the file's OSError, not an error of torch's
        torch.save(checkpoint, buffer)
        replace_file(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


class SavedBeside(pl.Callback):
    """Announces epochs to a method and keeps its state beside each checkpoint, never in it.

    Each call of ``fit`` gives its states a name of their own, and a checkpoint knows that of its state: runs that share
    a folder, or go on from one checkpoint, do not replace each other's. A run deletes its own older states, and those
    of the run that it goes on from, but for the newest ``keep``: if several runs are to go on from one checkpoint, give
    a higher ``keep``, or each its own copy.

    The epoch that ``StochasticWeightAveraging`` adds, to recompute batch norm's statistics, is not announced.

    Args:
        method: an object with ``set_epoch``, ``save``, ``load`` and a small ``state_dict``, stored in the checkpoint.
        directory: where the state is saved; by default beside the checkpoints (of the first checkpoint callback, if
            there are several).
        keep: how many of the newest saved states to keep.
    """

    prefix = "pskd"
    """Files are called ``PREFIX-epoch-E-RUN.safetensors``; in version 0.1 without ``RUN``."""

    def __init__(self, method: Any, directory: str | Path | None, keep: int) -> None:
        self.method, self.directory, self.keep = method, Path(directory) if directory else None, keep
        self._restore: str | None = None
        self._run = uuid4().hex[:8]
        self._states: list[str] = []  # those of this run and of what it goes on from, the oldest first
        self._saved = False  # whether one was saved since older ones were deleted; its checkpoint may not be whole yet
        self._added = False  # whether this is the epoch that weight averaging adds, in which nothing is learnt
        self._announced: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._announced, self._run = None, trainer.strategy.broadcast(uuid4().hex[:8])
        if trainer.global_step == 0:  # whatever was fitted or tested before, this run is new
            self._restore, self._states = None, []
        if trainer.num_training_batches == float("inf"):
            raise UserError("an infinite loader has no epochs: set Trainer(limit_train_batches=steps_per_epoch)")
        self._warn_of_other_epochs(trainer)
        if self._restore:
            homes = [self._home(trainer)]
            if trainer.ckpt_path and not self.directory:
                homes.insert(0, Path(str(trainer.ckpt_path)).parent)
            self.load_from(*homes)

    def load_from(self, *homes: Path) -> None:
        """Load the state whose name a checkpoint gave, from the first of the folders that has it."""
        assert self._restore
        found = [home / self._restore for home in homes if (home / self._restore).exists()]
        if not found:
            where = " or ".join(dict.fromkeys(str(home) for home in homes))
            raise UserError(
                f"{self._restore} is not in {where}: pass its folder as directory=; or it was deleted because only "
                f"the newest {self.keep} states are kept, and keep= must be higher"
            )
        self.method.load(found[0])
        self._restore = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._prune(trainer)
        self._announced = trainer.current_epoch
        self._added = trainer.current_epoch == _added_epoch(trainer)
        if not self._added:
            if getattr(self.method, "teacher", None) and trainer.model:
                share_buffers(trainer.model)
            self.method.set_epoch(trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # From a checkpoint of an epoch's last step Lightning goes on in the next epoch without announcing it.
        if self._announced is None and self.method.state_dict()["epoch"] != trainer.current_epoch:
            self.on_train_epoch_start(trainer, pl_module)
        self._announced = trainer.current_epoch

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._prune(trainer)

    def state_dict(self) -> dict[str, Any]:
        state = self.method.state_dict()
        epoch = state["epoch"]
        if epoch is None:
            return state
        return {**state, _STATES: self._states if self._restore else self._with(self._file_name(epoch))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        epoch, states = state["epoch"], state.pop(_STATES, None)
        own = states and states[-1] == self._file_name(epoch) and self.method.state_dict()["epoch"] == epoch
        self.method.load_state_dict(state)
        if own and not self._restore:  # a search within this run, which puts back what it began with
            return
        self._states = states or ([] if epoch is None else [f"{self.prefix}-epoch-{epoch}.safetensors"])
        self._restore = self._states[-1] if self._states else None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        epoch = self.method.state_dict()["epoch"]
        if epoch is None or self._restore:  # before the first epoch there is no past; or it is that of the tested one
            return
        name = self._file_name(epoch)
        self.method.save(self._home(trainer) / name)
        self._states, self._saved = self._with(name), True

    def _warn_of_other_epochs(self, trainer: pl.Trainer) -> None:
        planned = self.method.total_epochs
        epochs = _added_epoch(trainer) or trainer.max_epochs
        if epochs in (None, -1, planned) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if cast(int, epochs) > planned:
            what = f"stops with an error in epoch {planned}"
        else:
            what = "ends before the past has its full weight"
        rank_zero_warn(
            f"the method's total_epochs is {planned}, but Trainer(max_epochs={epochs}): the run {what}. Give both the "
            "same number, unless this is a part of the run that will be resumed",
            stacklevel=1,
        )

    def _prune(self, trainer: pl.Trainer) -> None:
        """Remove old states once the newest one's checkpoint is complete, so that a full disk loses neither."""
        if not self._saved:
            return
        old, self._states, self._saved = self._states[: -self.keep], self._states[-self.keep :], False
        if trainer.is_global_zero:
            for name in old:
                (self._home(trainer) / name).unlink(missing_ok=True)

    def _home(self, trainer: pl.Trainer) -> Path:
        beside = getattr(trainer.checkpoint_callback, "dirpath", None)
        return self.directory or Path(beside or trainer.default_root_dir)

    def _file_name(self, epoch: int) -> str:
        return f"{self.prefix}-epoch-{epoch}-{self._run}.safetensors"

    def _with(self, name: str) -> list[str]:
        return [*(one for one in self._states if one != name), name]


def _added_epoch(trainer: pl.Trainer) -> int | None:
    """The epoch that weight averaging adds if the module has batch norm, or would add; None without averaging."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    ends = (one.swa_end for one in callbacks if isinstance(one, StochasticWeightAveraging))
    return min((end + 1 for end in ends if end != float("inf")), default=None)


class PSKDCallback(SavedBeside):
    """Softens the labels of each training batch and remembers the predictions; the module needs no change.

    The batch holds input, labels [B] and index [B] (see :class:`~retarget.pskd.index.with_index`), by position or by
    name. For metrics and everything else in ``training_step`` the labels *stay labels*. Only PyTorch's losses
    ``cross_entropy`` and ``nll_loss`` (for multi-label targets its binary cross-entropies) use the softened rows
    instead. A loss of your own asks for the rows::

        from retarget.pskd import soft_targets
        rows = soft_targets(y, num_classes=10)  # [B, C]; one-hot if nothing is softened, as in validation

    In the first step of every epoch, before the backward pass, the callback checks in the autograd graph that the loss
    depends on the rows. If it does not, the run stops with an error that names the remedy, before anything is learnt
    from hard labels. With ``alpha_T`` 0 labels and loss stay as they are; predictions are still remembered.

    ``label_smoothing=`` of the loss smooths the hard label and not the past, as ``method.loss(smoothing=)`` does;
    ``weight=`` weighs classes, and the mean is taken over the weights of the hard labels. (PyTorch's ``cross_entropy``
    of rows that you asked for yourself smooths the past as well.)

    The logits are what the module (or the submodule ``logits_from``) returns in the step's one forward pass: a margin
    that depends on the labels (ArcFace) belongs in the step, not in the module, or it is remembered too. A step
    that reads its labels in two orders is taken to mix images (Mixup, CutMix): the prediction for a mixed image belongs
    to neither image and is not stored. If you mix images in another way, call ``do_not_remember``.

    With ``PreviousModel`` the past weights forward the batch's input in the trainer's precision.

    The table, or the past weights, are saved beside each checkpoint as ``pskd-epoch-E-RUN.safetensors`` (the newest
    ``keep`` of them are kept) and loaded when the trainer resumes. Resume only at the end of an epoch.

    Args:
        method: the PS-KD object.
        label, index: their keys in the batch; ``with_index`` adds the index at the end. ``PreviousModel`` needs none.
        input: key of the model's input, for ``PreviousModel``.
        logits_from: name of the submodule whose output is the logits; by default the module itself.
        directory: where the table is saved; by default beside the checkpoints.
        keep: how many of the newest saved tables to keep.
    """

    def __init__(
        self,
        method: PSKD | MultiLabelPSKD,
        *,
        label: int | str = 1,
        index: int | str = -1,
        input: int | str = 0,
        logits_from: str | None = None,
        directory: str | Path | None = None,
        keep: int = 2,
    ) -> None:
        super().__init__(method, directory, keep)
        self.label, self.index, self.input, self.logits_from = label, index, input, logits_from
        self._step: Step | None = None
        self._sample: Tensor | None = None
        self._logits: list[Tensor] = []
        self._others: dict[str, None] = {}  # what else the module returned in this step, in order
        self._remember, self._watch = True, True
        self._backward, self._used, self._scaled = False, False, False
        self._hook: Any = None

    def do_not_remember(self) -> None:
        """Do not store this batch's predictions: its inputs are not the samples themselves (CutMix, Mixup)."""
        self._remember = False

    # -- hooks of the trainer

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        teacher = self.method.teacher
        if teacher and not any(teacher.model is module for module in pl_module.modules()):
            raise UserError("PreviousModel must be given the network that the module trains, not a copy of it")
        if teacher and isinstance(trainer.strategy, _SHARDED):
            raise UserError(
                "PreviousModel copies whole weights, but this strategy shards them over processes; use TopK(k) or "
                "MemoryMapped(path, rows)"
            )
        try:
            source = pl_module.get_submodule(self.logits_from) if self.logits_from else pl_module
        except AttributeError as error:
            raise UserError(
                f"logits_from = {self.logits_from!r}: the module has no such submodule; its own are "
                f"{', '.join(name for name, _ in pl_module.named_children())}"
            ) from error
        self._hook = source.register_forward_hook(lambda module, args, output: self._see(output))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self.method.schedule.warn(stacklevel=2)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.on_fit_end(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._watch = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._added:
            return
        teacher, method = self.method.teacher, self.method
        labels, self._sample, inputs = self._parts(batch)
        if isinstance(method, MultiLabelPSKD) and not (labels.is_floating_point() and labels.ndim == 2):
            raise UserError(
                f"the batch's labels are {labels.dtype} {list(labels.shape)}: MultiLabelPSKD takes floats [B, C], here "
                f"C = {method.num_classes}, made so in the dataset, since a conversion in the step would lose the rows"
            )
        self._logits, self._others = [], {}
        self._remember, self._backward, self._used = True, False, False
        hard, rows, alpha = as_labels(labels.detach().clone()), None, None
        if method.alpha > 0:
            with trainer.precision_plugin.forward_context() if teacher else nullcontext():
                if isinstance(method, PSKD):
                    rows, alpha = method.soften_by(hard, self._sample, inputs=inputs)
                else:
                    rows = method.soften(hard, self._sample, inputs=inputs)
        self._step = Step(
            hard, rows, alpha, method.num_classes, method.ignore_index, yes_or_no=isinstance(method, MultiLabelPSKD)
        )
        if method.alpha_T > 0:
            self._step.dress(labels)
            if self._watch:
                self._step.watch()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        step = self._step
        if step is None or self.method.alpha_T == 0:
            return
        self._backward = True
        self._used |= step.reads > 0 if step.probe is None else depends_on(loss, step.probe)
        if pl_module.automatic_optimization and not self._used:
            self._refuse()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = self._step
        if self._added:
            return
        assert step is not None
        manual = not pl_module.automatic_optimization and self.method.alpha_T > 0
        if manual and not self._used and (self._backward or not step.reads):  # one of several losses is enough
            self._refuse()
        watched = self._watch
        self._watch &= not self._used
        given = step.logits
        skipped = pl_module.automatic_optimization and not outputs and not self._logits
        mixed = step.mixed or (len(self._logits) == 1 and step.crosses(self._logits[0]))
        self._close()
        if not self._remember or skipped or mixed or (step.order is not None and given is None):
            return
        if len(self._logits) != 1:
            self._refuse_count(len(step.hard))
        logits = self._logits.pop()
        if given is not None and (watched or step.order is not None):
            _refuse_other_order(logits, given, step.order)
            if not self._scaled and step.order is None:
                self._scaled = _warn_of_other_scale(logits, given, step.yes_or_no)
        self.method.remember(logits, step.hard, self._sample)

    # -- inside

    def _parts(self, batch: Any) -> tuple[Tensor, Tensor | None, Any]:
        """Labels, index and input; only ``PreviousModel`` needs the input, and it needs no index."""
        teacher = self.method.teacher
        try:
            labels, sample = batch[self.label], None if teacher else batch[self.index]
            inputs = batch[self.input] if teacher else None
            if sample is not None and sample is labels:
                raise IndexError("the batch has no entry after the labels")
        except (IndexError, KeyError, TypeError) as error:
            holds = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
            holds = f"{len(batch)} entries" if isinstance(batch, list | tuple) else holds
            other, do = f"index={self.index!r}", "wrap the dataset in with_index, or name the keys"
            if teacher:
                other, do = f"input={self.input!r}", "name the keys"
            parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
            if any(isinstance(one, dict | list | tuple) for one in parts):  # of several loaders
                do = f"it finds them at the top of the batch only. {_TWO_LINES}"
            else:
                do += f", PSKDCallback(method, label=..., {other.partition('=')[0]}=...)"
            raise UserError(
                f"the batch holds {holds}, but the callback looks for label={self.label!r} and {other}: {do}"
            ) from error
        if not isinstance(labels, Tensor):
            raise UserError(f"the batch's label={self.label!r} is a {type(labels).__name__}: it must be a tensor [B]")
        return labels, sample, inputs

    def _see(self, output: Any) -> None:
        expected = (len(self._step.hard), self.method.num_classes) if self._step else None
        if expected is None or not torch.is_grad_enabled():
            return
        if isinstance(output, Tensor) and tuple(output.shape) == expected:
            self._logits.append(output.detach())
        else:
            self._others[str(list(output.shape)) if isinstance(output, Tensor) else f"a {type(output).__name__}"] = None

    def _close(self) -> None:
        if self._step:
            self._step.close()
        self._step = None

    def _refuse_count(self, size: int) -> None:
        """Raise since the step did not return logits [B, C] once: whose predictions are the samples'?"""
        source, times = self.logits_from or "the module itself", len(self._logits)
        what = (
            f"training_step called {source} {times} times with logits [B, C] = [{size}, {self.method.num_classes}] as "
            "output, but must do so exactly once: "
        )
        if times:
            what += (
                "an optimizer that runs the step several times for one batch (LBFGS, SAM), and a step that forwards "
                "several views of its images, have more than one prediction for each sample"
            )
        elif self._others:
            what += (
                f"it returned {', '.join(self._others)}. If the network has another number of classes, set "
                "num_classes; else name the submodule that returns the logits by logits_from="
            )
        else:
            what += "it was not called. Name the submodule that returns the logits by logits_from="
        raise UserError(f"{what}. {_TWO_LINES}")

    def _refuse(self) -> None:
        what = "training_step's loss does not depend on the softened labels, so only the hard labels would be learnt: "
        size = len(self._step.hard) if self._step else 0
        if self.method.num_classes <= 2 and {f"[{size}]", f"[{size}, 1]"} & set(self._others):
            raise UserError(
                f"{what}the network returned one logit for each sample, {', '.join(self._others)}, which answers a "
                "yes-or-no question. Use MultiLabelPSKD with num_classes=1 and labels as floats [B, 1], for logits "
                "[B, 1]; or let the network return two logits"
            )
        kinds = "F.binary_cross_entropy_with_logits" if isinstance(self.method, MultiLabelPSKD) else "F.cross_entropy"
        raise UserError(
            f"{what}it is a loss of your own, or does not use the batch's labels. {kinds} of the batch's labels uses "
            "the rows by itself; pass any other loss the rows [B, C], soft_targets(y, num_classes) from "
            f"retarget.pskd. {_TWO_LINES}"
        )


def _refuse_other_order(logits: Tensor, given: Tensor, order: Tensor | None) -> None:
    """Raise if the module's logits [B, C] are the loss's in another order: rows of other samples would be stored.

    Args:
        logits: what the module returned; row i is stored for the batch's sample i.
        given: what the loss was given.
        order: [B], the sample of each row of ``given``; None for the batch's order.
    """
    aligned = given.double() if order is None else torch.empty_like(given, dtype=torch.float64)
    if order is not None:
        aligned[order.to(given.device)] = given.double()
    found = logits.to(given.device).double()
    sizes = [one.square().sum(1).sort().values for one in (found, aligned)]
    if torch.allclose(*sizes, rtol=1e-3, atol=1e-4) and not torch.allclose(found, aligned, rtol=1e-2, atol=1e-2):
        raise UserError(
            "training_step reorders its inputs: the module returns the loss's logits in another order than the "
            "batch's, and each prediction would be remembered for another sample. Restore the order inside the module, "
            "or inside the submodule that logits_from= names"
        )


OTHER = 0.1
"""Mean difference between two distributions of the classes from which they are taken to be different ones."""


def _warn_of_other_scale(logits: Tensor, given: Tensor, yes_or_no: bool) -> bool:
    """Warn if the module's logits [B, C] give other probabilities than the loss's; returns whether it has."""
    found, used = (
        one.double().sigmoid() if yes_or_no else one.double().softmax(1) for one in (logits.to(given.device), given)
    )
    apart = float((found - used).abs().mean() if yes_or_no else (found - used).abs().sum(1).mean() / 2)
    if apart < OTHER:
        return False
    rank_zero_warn(
        "training_step's loss is given other values than the module returns: their largest probabilities are "
        f"{float(used.amax(1).mean()):.3f} and {float(found.amax(1).mean()):.3f} on average, and it is the module's "
        "that are remembered and learnt from. If the step scales its outputs (cosines, a temperature), or they are "
        "probabilities, let the module, or the submodule that logits_from= names, return the scaled logits. If the "
        "step adds a margin or a prior on purpose, this is right",
        stacklevel=1,
    )
    return True
