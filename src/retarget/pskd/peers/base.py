"""What every peer shares: PS-KD's call shape, its checks, and a state that is saved beside the checkpoint."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from retarget.errors import UserError
from retarget.pskd.checks import Checks, check_index, check_loss, check_shapes, check_targets, one_hot
from retarget.pskd.functional import cross_entropy, pskd_loss, widen
from retarget.pskd.past.exchange import world_size
from retarget.pskd.past.state import read_state, refuse_other_state, restore, write_state
from retarget.pskd.schedule import refuse_bad_epoch, refuse_bad_run

_STATE = "retarget.pskd.peer"


@dataclass(frozen=True)
class Needs:
    """What a method asks of the training run, as data.

    Attributes:
        sampler: ``"same_class_pairs"``: batches are [x_1 … x_B, x'_1 … x'_B], x'_i of x_i's class
            (:class:`~retarget.pskd.peers.batches.SameClassPairs`). ``"last_batch"``: batches are [new, those of the
            batch before] (:class:`~retarget.pskd.peers.batches.LastBatch`).
        network: ``"trained_teacher"``: a network that was trained before. ``"average"``: a running average of the
            weights, kept by the method.
        forwards: forward passes of a network for each new training sample; cross-entropy has 1.
        inputs: ``loss`` must be given ``inputs=``.
        mix: call ``inputs, targets = method.mix(inputs, targets)`` before the forward pass.
        after_step: call ``method.after_step()`` after every optimizer step.
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

    Each epoch ``set_epoch(epoch)``; each step ``loss(logits, targets, index)``; and what ``needs`` says beyond that.
    A method is a dataclass: it names its settings with :func:`share`, :func:`positive` and :func:`not_negative`, the
    first of them its own weight, and a resumed run must agree on them.

    Args:
        num_samples: N, length of the training set that gives the indices.
        num_classes: number of classes, C.
        total_epochs: length of the run.
        ignore_index: label of samples that have no loss.

    Attributes:
        settings: the method's settings by name.
        strength: the method's own weight, 1 where it has no settings; at 0 it is cross-entropy bit for bit and needs
            nothing.
    """

    num_samples: int
    num_classes: int
    total_epochs: int
    _: KW_ONLY
    ignore_index: int = -100

    wanted: ClassVar[Needs] = Needs()
    """Needs at any strength but 0."""
    labels_only: ClassVar[bool] = False
    """Whether the equation speaks of a sample's class, so that probability targets are refused."""

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
        self._pending: tuple[Any, ...] | None = None  # what _loss sets aside for _remember

    @property
    def needs(self) -> Needs:
        """What the run must provide."""
        return self.wanted if self.strength > 0 else Needs()

    @property
    def evaluated(self) -> nn.Module | None:
        """The network to evaluate in place of the trained one, where the method keeps one."""
        return None

    @property
    def num_bytes(self) -> int:
        """Bytes that the method keeps beyond the trained model: tables, averages, teachers."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def to(self, device: torch.device | str) -> None:
        """Move the method's own networks; tables follow the first logits."""

    # -- the schedule

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch (counted from 0), or begin it again after a crash or a resume.

        Raises:
            UserError: epoch outside [0, total_epochs), or one before the epoch under way.
        """
        refuse_bad_epoch(epoch, self.total_epochs)
        if self._epoch is not None and 0 < epoch < self._epoch:
            raise UserError(
                f"the method has been through epoch {self._epoch}; to go back to epoch {epoch}, load the state "
                "saved at that time"
            )
        self.end_epoch()
        self._begin(epoch)
        self._epoch = epoch

    def end_epoch(self) -> None:
        """Finish an epoch: raise what was found bad in it. ``set_epoch`` and ``save`` do this themselves."""
        self._checks.poll(wait=True)

    @property
    def epoch(self) -> int:
        """The epoch under way."""
        if self._epoch is None:
            raise UserError("call set_epoch(epoch) before the first step of every epoch")
        return self._epoch

    # -- a step

    def mix(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets to train on; most methods leave them alone."""
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
            targets: labels [B] in [0, C) or ``ignore_index``; or, where the method has a use for them,
                probabilities [B, C].
            index: [B], each sample's place in the training set, in [0, N).
            inputs: the model's input, for methods that say so in ``needs``.

        Raises:
            UserError: as for PS-KD, naming the sample, the row and the value; or no epoch was set, or ``inputs``
                are missing.
        """
        _ = self.epoch
        labels = self._check(logits, targets, index)
        if self.strength == 0:
            loss = self._hard(logits, targets)
        else:
            if self.needs.inputs and inputs is None:
                raise UserError(f"{type(self).__name__} forwards the input itself: loss(logits, y, index, inputs=x)")
            self._pending = None
            loss = self._loss(logits, targets, labels, index, inputs)
        check_loss(self._checks, loss, logits, index)
        if self._pending is not None:
            self._remember(*self._pending)
            self._pending = None
        return loss

    def after_step(self) -> None:
        """What follows an optimizer step; most methods do nothing."""

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must agree on, and how far it is: small, for the trainer's own checkpoint."""
        return {**self._identity(), "epoch": self._epoch, **self._progress()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved epoch; refuses the state of another method, data set or setting, both values named."""
        what = f"state of {type(self).__name__}"
        refuse_other_state(state, self._identity(), ["epoch", *self._progress()], what)
        self._epoch = state["epoch"]
        self._resume({key: state[key] for key in self._progress()})

    def tensors(self) -> dict[str, Tensor]:
        """The method's own tensors by name: what :meth:`save` writes."""
        return {}

    def save(self, path: str | Path) -> None:
        """Write tensors and state to a safetensors file beside the model's checkpoint, atomically.

        Collective under torch.distributed: every rank calls it, rank 0 writes.
        """
        self.end_epoch()
        if world_size() == 1 or torch.distributed.get_rank() == 0:
            tensors = {name: tensor.detach().clone() for name, tensor in self.tensors().items()}  # some share memory
            write_state(path, _STATE, self.state_dict(), tensors)

    def load(self, path: str | Path) -> None:
        """Read what :meth:`save` wrote, then ``set_epoch`` with the epoch to go on from."""
        state, saved = read_state(path, _STATE, f"state of {type(self).__name__}")
        self.load_state_dict(state)
        self._take(Path(path), saved)

    # -- for the methods

    def _begin(self, epoch: int) -> None:
        """What an epoch's begin changes; ``self._epoch`` is still the one before."""

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        raise NotImplementedError

    def _remember(self, *pending: Any) -> None:
        """Store what ``_loss`` set aside, once the loss is known to be good."""

    def _progress(self) -> dict[str, Any]:
        """What else the small state holds."""
        return {}

    def _resume(self, progress: dict[str, Any]) -> None:
        """Take ``_progress`` back."""

    def _take(self, path: Path, saved: dict[str, Tensor]) -> None:
        """Take saved tensors back; the epoch that they were saved in is set already."""
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
        """Shapes and values; labels made safe to gather with."""
        self._checks.poll()
        check_shapes(logits, targets, index, self.num_classes)
        index = check_index(self._checks, index.long(), self.num_samples)
        if targets.is_floating_point() and self.labels_only and self.strength > 0:
            raise UserError(f"{type(self).__name__} speaks of a sample's class: give labels [B], not probabilities")
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
        """Mean cross-entropy against the given targets."""
        return cross_entropy(logits, targets, self.ignore_index)

    def _soft(self, logits: Tensor, probs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy against rows of probabilities."""
        return self._mean(pskd_loss(logits, probs.to(widen(logits).dtype), reduction="none"), targets)

    def _probs(self, targets: Tensor) -> Tensor:
        """Targets as probability rows, [B, C] float32."""
        return targets.float() if targets.is_floating_point() else one_hot(targets, self.num_classes, self.ignore_index)
