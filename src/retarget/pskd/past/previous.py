"""The past without a table: last epoch's weights, forwarded on the current input."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from types import CellType, FunctionType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from retarget.errors import UserError
from retarget.pskd.functional import widen
from retarget.pskd.past.state import restore


def bare(model: nn.Module) -> nn.Module:
    """The network inside PyTorch's data-parallel wrappers."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) else model


def share_buffers(model: nn.Module | None) -> None:
    """Give every rank's model the buffers of rank 0, such as batch norm's statistics, as DDP does before it forwards.

    Between two steps each rank has its own, and so would have the copies. Models that are not in DDP, or in DDP with
    ``broadcast_buffers=False``, are left as they are.
    """
    model = getattr(model, "_orig_mod", model)  # inside torch.compile's wrapper
    if isinstance(model, nn.parallel.DistributedDataParallel) and model.broadcast_buffers and model.modules_buffers:
        model._sync_buffers()


class PreviousModel:
    """A copy of the model as it was when the epoch began, used instead of a table.

    It stores no rows and needs no index, and the teacher sees the same view of the input as the student. It costs one
    forward pass per step and one more copy of the weights, which ``save`` writes instead of a table.

    Args:
        model: the network being trained, not a copy of it. It maps ``inputs`` to logits: a tensor, a mapping with
            ``"logits"`` or ``"out"`` (torchvision's segmentation), an object with ``logits``, or a tuple that begins
            with them. With the Hugging Face trainer it may be left out.
        mode: ``"eval"`` (running statistics, no dropout) or ``"train"``.
        first_past: the past of epoch 0: ``"labels"``, which is plain training as in the paper; or ``"pretrained"``,
            the model before training, for fine-tuning in one epoch or a few.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        mode: Literal["eval", "train"] = "eval",
        first_past: Literal["labels", "pretrained"] = "labels",
    ) -> None:
        if mode not in ("eval", "train"):
            raise UserError(f"mode must be 'eval' or 'train': got {mode!r}")
        if first_past not in ("labels", "pretrained"):
            raise UserError(f"first_past must be 'labels' or 'pretrained': got {first_past!r}")
        self.model = model
        self.mode: Literal["eval", "train"] = mode
        self.first_past: Literal["labels", "pretrained"] = first_past
        self.past: tuple[int, nn.Module | None] | None = None
        """The current epoch and the weights it began with; None in epoch 0, unless first_past is "pretrained"."""

    def __repr__(self) -> str:
        return f"PreviousModel(mode={self.mode!r}, first_past={self.first_past!r})"

    @property
    def pretrained(self) -> bool:
        """Whether the pretrained model is the past of epoch 0."""
        return self.first_past == "pretrained"

    @property
    def num_bytes(self) -> int:
        """Size of the copied weights in bytes."""
        return sum(t.numel() * t.element_size() for t in self._bare().state_dict().values())

    def begin(self, epoch: int) -> None:
        """Copy the present model as the past of this epoch, unless it has begun already.

        The copy is new in each epoch and has all that the model has: parameters, buffers, whether or not a checkpoint
        has them, and attributes. That of a compiled model runs the code that was compiled for the former copy. In DDP
        the ranks' copies have the buffers of rank 0, and this is collective; see :func:`share_buffers`.
        """
        if epoch == 0 and not self.pretrained:
            self.past = (0, None)
        elif self.past is None or self.past[0] != epoch:
            share_buffers(self.model)
            self.past = None  # frees the former copy
            self.past = (epoch, self._copy())

    @torch.no_grad()
    def logits(self, inputs: Any) -> Tensor:
        """The past weights' output for this input.

        Args:
            inputs: a tensor, or the positional (sequence) or keyword (mapping) arguments of the model.
        """
        if self.past is None or self.past[1] is None:
            raise UserError("the previous model has no weights yet: call set_epoch before the first step")
        if inputs is None:
            raise UserError("PreviousModel forwards the input: pass it as loss(logits, targets, index, inputs=x)")
        model = self.past[1]
        if isinstance(inputs, Mapping):
            outputs = model(**inputs)
        else:
            outputs = model(inputs) if isinstance(inputs, Tensor) else model(*inputs)
        return _logits_in(outputs, model)

    def tensors(self) -> dict[str, Tensor]:
        """The past weights, by name; none in epoch 0."""
        model = self.past[1] if self.past else None
        return {} if model is None else {n: t.detach().clone() for n, t in model.state_dict().items()}  # some are tied

    def restore(self, path: str | Path, epoch: int, saved: dict[str, Tensor]) -> None:
        """Use saved weights as the past of this epoch.

        What a checkpoint does not have, such as attributes and non-persistent buffers, is as it is in the model now. If
        training changes it, give the model the values that it had when this epoch began before the state is loaded.

        Raises:
            UserError: they belong to another network.
        """
        model = self._copy() if epoch or self.pretrained else None
        restore(path, {} if model is None else dict(model.state_dict()), saved)
        self.past = (epoch, model)

    def _bare(self) -> nn.Module:
        if self.model is None:
            raise UserError("PreviousModel() has no model: pass the one being trained, PreviousModel(model)")
        return bare(self.model)

    def _copy(self) -> nn.Module:
        """A copy. Activations that a module keeps, and weights that it computes (weight_norm), have no graph in it."""
        model = self._bare()
        _refuse_replaced_forward(model)
        kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
        memo = {id(value): value.detach() for value in kept if not value.is_leaf}
        try:
            return deepcopy(model, memo).requires_grad_(False).train(self.mode == "train")
        except RuntimeError as error:
            raise UserError(
                f"{type(model).__name__} cannot be copied, as PreviousModel does in every epoch "
                f"({str(error)[:100]}...). Do not keep tensors of a forward pass in it, or use TopK(k)"
            ) from error


def _logits_in(outputs: Any, model: nn.Module) -> Tensor:
    """The logits in a network's output, in one of the forms that :class:`PreviousModel` lists."""
    found, what = outputs, f"a {type(outputs).__name__}"
    if isinstance(outputs, Mapping):
        found, what = outputs.get("logits", outputs.get("out")), f"a mapping of {', '.join(map(str, outputs))}"
    elif not isinstance(outputs, Tensor):
        found = getattr(outputs, "logits", outputs[0] if isinstance(outputs, list | tuple) and outputs else None)
    if not isinstance(found, Tensor):
        raise UserError(
            f"PreviousModel finds no logits in what {type(model).__name__} returns, {what}: return a tensor, a mapping "
            'with "logits" or "out", an object with the attribute logits, or a tuple that begins with them'
        )
    return found


def _refuse_replaced_forward(model: nn.Module) -> None:
    """Raise if a module's ``forward`` was replaced by a function that holds a module of the model.

    A copy of the module keeps the function, unlike a method or a partial, and it would forward the present weights.
    """
    modules = {id(one) for one in model.modules()}
    for module in model.modules():
        if hasattr(module, "_orig_mod"):  # torch.compile's wrapper makes the forward of its copy itself
            continue
        waiting, seen = [vars(module).get("forward")], set[int]()
        while waiting:
            one = waiting.pop()
            seen.add(id(one))
            inside: list[Any] = [getattr(one, "__wrapped__", None)]
            held: list[Any] = []
            if isinstance(one, FunctionType):
                inside += [cell.cell_contents for cell in one.__closure__ or () if cell != CellType()]
                named = [one.__globals__.get(name) for name in one.__code__.co_names]
                held = [getattr(part, "__self__", part) for part in (*inside, *(one.__defaults__ or ()), *named)]
            if not modules.isdisjoint(map(id, held)):
                raise UserError(
                    f"{type(module).__name__}.forward was replaced by a function that calls the model itself, so a "
                    "copy would forward the present weights, not the past ones. Compile with torch.compile(model) or "
                    "model.compile(), put what the function does into a module, or use TopK(k)"
                )
            waiting += [part for part in inside if callable(part) and id(part) not in seen]


class PastFromModel:
    """A :class:`~retarget.pskd.past.base.Past` without rows: the previous model forwards each batch.

    Args:
        teacher: the previous model.
        num_classes: number of classes, C.
        to_probs: converts the model's output, float32 or wider, to rows [B, C].
    """

    def __init__(self, teacher: PreviousModel, num_classes: int, to_probs: Callable[[Tensor], Tensor]) -> None:
        self.teacher, self.num_classes, self.to_probs = teacher, num_classes, to_probs
        self.kind = "PreviousModel, pretrained" if teacher.pretrained else "PreviousModel"

    @property
    def num_rows(self) -> None:
        return None

    @property
    def num_bytes(self) -> int:
        return self.teacher.num_bytes

    def begin(self, epoch: int) -> None:
        self.teacher.begin(epoch)

    def name(self, key: int) -> str:
        return f"item {key} of the batch"

    def end(self) -> None:
        """Nothing to exchange: every rank has the weights, and in DDP the same buffers when the next copy is taken."""

    def locate(self, keys: Tensor, device: torch.device) -> Tensor:
        return keys

    def check_labels(self, checks: Any, labels: Tensor, keys: Tensor, counted: Tensor) -> None:
        """Nothing to check: no row, so no earlier label."""

    def read(self, keys: Tensor, device: torch.device, inputs: Any = None) -> tuple[Tensor, Tensor]:
        rows = self.to_probs(widen(self.teacher.logits(inputs)))
        if rows.shape != (len(keys), self.num_classes):
            raise UserError(
                f"the previous model returns rows {list(rows.shape)} for these inputs, but the targets are "
                f"{[len(keys), self.num_classes]}: inputs must be the ones that the logits were computed from"
            )
        return rows, rows.new_ones(len(rows))

    def write(self, logits: Tensor, labels: Tensor, keys: Tensor, keep: Any = None, log_norm: Any = None) -> None:
        """Nothing to write: the weights are copied when the next epoch begins."""

    def save(self) -> dict[str, Tensor]:
        return self.teacher.tensors()

    def load(self, path: Path, epoch: int | None, saved: dict[str, Tensor]) -> None:
        if epoch is not None:
            self.teacher.restore(path, epoch, saved)
