"""The base class of every peer: PS-KD's calls and checks, and a state that is saved beside the checkpoint."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from retarget.errors import UserError
from retarget.pskd.checks import (
    Checks,
    as_index,
    as_labels,
    check_index,
    check_loss,
    check_shapes,
    check_targets,
    one_hot,
)
from retarget.pskd.functional import cross_entropy, pskd_loss, widen
from retarget.pskd.past.exchange import in_one_place
from retarget.pskd.past.state import read_state, refuse_other_state, restore, write_state
from retarget.pskd.schedule import refuse_bad_epoch, refuse_bad_run

_STATE = "retarget.pskd.peer"


@dataclass(frozen=True)
class Needs:
    """What a method needs from the training run, as data.

    Attributes:
        sampler: ``"same_class_pairs"``: batches are [x_1 … x_B, x'_1 … x'_B], x'_i of x_i's class
            (:class:`~retarget.pskd.peers.batches.SameClassPairs`). ``"last_batch"``: batches are [new samples, those
            of the batch before] (:class:`~retarget.pskd.peers.batches.LastBatch`).
        network: ``"trained_teacher"``: a network that was trained before. ``"average"``: a running average of the
            weights, which the method keeps.
        forwards: number of forward passes per new training sample; 1 for cross-entropy.
        inputs: whether ``loss`` must be given ``inputs=``.
        mix: whether to call ``inputs, targets = method.mix(inputs, targets)`` before the forward pass.
        after_step: whether to call ``method.after_step()`` after every optimizer step.
    """

    sampler: Literal["none", "same_class_pairs", "last_batch"] = "none"
    network: Literal["none", "trained_teacher", "average"] = "none"
    forwards: float = 1.0
    inputs: bool = False
    mix: bool = False
    after_step: bool = False


def share(default: float) -> Any:
    """A setting in [0, 1]."""
    return _setting(default, lambda value: 0.0 <= value <= 1.0, "lie in [0, 1]")


def share_below_1(default: float) -> Any:
    """A setting in [0, 1)."""
    return _setting(default, lambda value: 0.0 <= value < 1.0, "lie in [0, 1)")


def positive(default: float) -> Any:
    """A setting above 0."""
    return _setting(default, lambda value: value > 0, "be above 0")


def not_negative(default: float) -> Any:
    """A setting of 0 or above."""
    return _setting(default, lambda value: value >= 0, "not be negative")


def _setting(default: float, allowed: Callable[[float], bool], must: str) -> Any:
    return field(default=default, metadata={"allowed": allowed, "must": must})


@dataclass(eq=False, repr=False)
class Peer:
    """A training method with the call shape of :class:`~retarget.pskd.method.PSKD`.

    Call ``set_epoch(epoch)`` in each epoch, ``loss(logits, targets, index)`` in each step, and whatever ``needs`` asks.
    A method is a dataclass that declares its settings with :func:`share`, :func:`share_below_1`, :func:`positive` and
    :func:`not_negative`.
    The first of them is its own weight. A resumed run must have the same settings.

    Args:
        num_samples: N, number of training samples, so that indices lie in [0, N).
        num_classes: number of classes, C.
        total_epochs: length of the run.
        ignore_index: label of samples that have no loss.

    Attributes:
        settings: the method's settings by name.
        strength: the method's own weight, or 1 if it has no settings; at 0 the method is exactly cross-entropy and
            needs nothing.
    """

    num_samples: int
    num_classes: int
    total_epochs: int
    _: KW_ONLY
    ignore_index: int = -100

    wanted: ClassVar[Needs] = Needs()
    """What it needs unless the strength is 0."""
    labels_only: ClassVar[bool] = False
    """Whether the equation needs a sample's class, so that probability targets are refused."""

    def __post_init__(self) -> None:
        refuse_bad_run(self.num_samples, self.num_classes, self.total_epochs)
        declared = [one for one in fields(self) if "allowed" in one.metadata]
        self.settings = {one.name: float(getattr(self, one.name)) for one in declared}
        for one in declared:
            if not one.metadata["allowed"](self.settings[one.name]):
                raise UserError(f"{one.name} must {one.metadata['must']}: got {self.settings[one.name]:g}")
        self.strength = next(iter(self.settings.values()), 1.0)
        self._epoch: int | None = None
        self._checks = Checks()
        self._pending: tuple[Any, ...] | None = None  # what _loss keeps for _remember

    @property
    def needs(self) -> Needs:
        """What the run must provide."""
        return self.wanted if self.strength > 0 else Needs()

    @property
    def evaluated(self) -> nn.Module | None:
        """The network to evaluate instead of the trained one, if the method keeps one."""
        return None

    @property
    def num_bytes(self) -> int:
        """Bytes that the method needs besides the trained model: tables, averages, teachers."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def to(self, device: torch.device | str) -> None:
        """Move the method's own networks; tables follow the first logits."""

    # -- the schedule

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch (counted from 0), or begin it again after a crash or a resume.

        Raises:
            UserError: epoch outside [0, total_epochs), or one from 1 on that is before the epoch under way.
        """
        refuse_bad_epoch(epoch, self.total_epochs)
        if self._epoch is not None and 0 < epoch < self._epoch:
            raise UserError(
                f"the method has been through epoch {self._epoch}: to go back to epoch {epoch}, load the state "
                "that was saved before it"
            )
        self.end_epoch()
        self._begin(epoch)
        self._epoch = epoch

    def end_epoch(self) -> None:
        """Finish an epoch: raise the errors found in it. ``set_epoch`` and ``save`` do this themselves."""
        self._checks.poll(wait=True)

    @property
    def epoch(self) -> int:
        """The current epoch."""
        if self._epoch is None:
            raise UserError("call set_epoch(epoch) before the first step of every epoch")
        return self._epoch

    # -- a step

    def mix(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets to train on; most methods return them unchanged."""
        return inputs, targets

    def loss(
        self,
        logits: Float[Tensor, "batch classes"],
        targets: Integer[Tensor, "batch"] | Float[Tensor, "batch classes"],
        index: Integer[Tensor, "batch"],
        *,
        inputs: Any = None,
    ) -> Float[Tensor, ""]:
        """The method's loss, a mean over the samples that are not ignored.

        Args:
            logits: [B, C], finite; bfloat16 and float16 are widened to float32 first.
            targets: labels [B] in [0, C) or ``ignore_index``; or, if the method accepts them, probabilities [B, C].
            index: [B], each sample's index in the training set, in [0, N).
            inputs: the model's input, for methods whose ``needs.inputs`` is True.

        Raises:
            UserError: as for PS-KD, naming the sample, the row and the value; or no epoch was set, or ``inputs``
                is missing.
        """
        _ = self.epoch
        targets = as_labels(targets)
        index = as_index(index, self.num_samples, targets.device)
        labels = self._check(logits, targets, index)
        if self.strength == 0:
            loss = self._hard(logits, targets)
        else:
            if self.needs.inputs and inputs is None:
                raise UserError(f"{type(self).__name__} forwards the input: call loss(logits, y, index, inputs=x)")
            self._pending = None
            loss = self._loss(logits, targets, labels, index, inputs)
        check_loss(self._checks, loss, logits, index)
        if self._pending is not None:
            self._remember(*self._pending)
            self._pending = None
        return loss

    def after_step(self) -> None:
        """Update the method after an optimizer step; most methods do nothing."""

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """How far the run is, and the settings that a resumed run must share; small, for the trainer's checkpoint."""
        return {**self._identity(), "epoch": self._epoch, **self._progress()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved epoch. Another method, dataset or setting is an error that names both values."""
        what = f"state of {type(self).__name__}"
        refuse_other_state(state, self._identity(), ["epoch", *self._progress()], what)
        self._epoch = state["epoch"]
        self._resume({key: state[key] for key in self._progress()})

    def tensors(self) -> dict[str, Tensor]:
        """The method's own tensors by name, which :meth:`save` writes."""
        return {}

    def save(self, path: str | Path) -> None:
        """Write tensors and state to a safetensors file beside the model's checkpoint, atomically.

        Collective under torch.distributed: every rank calls it, rank 0 writes, and none returns before the file
        is there.
        """
        self.end_epoch()
        tensors = self.tensors()

        def write() -> None:
            copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}  # some share memory
            write_state(path, _STATE, self.state_dict(), copies)

        in_one_place(write, near=next((one.device for one in tensors.values()), None))

    def load(self, path: str | Path) -> None:
        """Read what :meth:`save` wrote; then call ``set_epoch`` with the epoch to continue from."""
        state, saved = read_state(path, _STATE, f"state of {type(self).__name__}")
        self.load_state_dict(state)
        self._take(Path(path), saved)

    # -- for the methods

    def _begin(self, epoch: int) -> None:
        """Prepare for an epoch; ``self._epoch`` is still the one before."""

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        raise NotImplementedError

    def _remember(self, *pending: Any) -> None:
        """Store what ``_loss`` kept in ``_pending``, once the loss has passed its checks."""

    def _progress(self) -> dict[str, Any]:
        """Further values for the state dict."""
        return {}

    def _resume(self, progress: dict[str, Any]) -> None:
        """Restore what ``_progress`` returned."""

    def _take(self, path: Path, saved: dict[str, Tensor]) -> None:
        """Restore saved tensors; the epoch in which they were saved is set already."""
        restore(path, self.tensors(), saved)

    # -- inside

    def _identity(self) -> dict[str, Any]:
        return {
            "method": type(self).__name__,
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "total_epochs": self.total_epochs,
            **self.settings,
        }

    def _check(self, logits: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        """Refuse bad shapes and values; returns labels made safe to gather with."""
        self._checks.poll()
        check_shapes(logits, targets, index, self.num_classes)
        index = check_index(self._checks, index.long(), self.num_samples)
        if targets.is_floating_point() and self.labels_only and self.strength > 0:
            raise UserError(f"{type(self).__name__} needs each sample's class: pass labels [B], not probabilities")
        return check_targets(self._checks, targets, index, self.num_classes, self.ignore_index)

    def _counted(self, targets: Tensor) -> Tensor:
        """[B] float32: 0 for ignored samples."""
        if targets.is_floating_point():
            return torch.ones(len(targets), device=targets.device)
        return (targets != self.ignore_index).float()

    def _mean(self, losses: Tensor, targets: Tensor) -> Tensor:
        counted = self._counted(targets)
        return (losses * counted).sum() / counted.sum()

    def _hard(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy against the targets as they are."""
        return cross_entropy(logits, targets, self.ignore_index)

    def _soft(self, logits: Tensor, probs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy against rows of probabilities."""
        return self._mean(pskd_loss(logits, probs.to(widen(logits).dtype), reduction="none"), targets)

    def _probs(self, targets: Tensor) -> Tensor:
        """Targets as probability rows, [B, C] float32."""
        return targets.float() if targets.is_floating_point() else one_hot(targets, self.num_classes, self.ignore_index)
