"""The other source of past predictions: last epoch's weights, forwarded on the current input."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from retarget.errors import UserError
from retarget.pskd.functional import widen


class PreviousModel:
    """A copy of the model as it was when the epoch began, in place of a table.

    No row is kept, and the teacher sees the same view of the input as the student, at the cost of one forward pass
    a step and one more copy of the weights. There is nothing to save: the checkpoint that ends an epoch *is* the
    previous model of the next one.

    Args:
        model: the network that maps ``inputs`` to logits [B, C]; the one that is being trained, not a copy.
        mode: ``"eval"`` (running statistics, no dropout) or ``"train"``.
    """

    def __init__(self, model: nn.Module, mode: Literal["eval", "train"] = "eval") -> None:
        if mode not in ("eval", "train"):
            raise UserError(f"mode is 'eval' or 'train': got {mode!r}")
        self.model, self.mode = model, mode
        self._past: nn.Module | None = None

    def begin(self, epoch: int) -> None:
        """Take the present weights as the past of this epoch; epoch 0 has none."""
        model = getattr(self.model, "module", self.model)  # DDP and DataParallel wrap it
        if epoch == 0:
            self._past = None
        elif self._past is None:
            self._past = deepcopy(model).requires_grad_(False).train(self.mode == "train")
        else:
            self._past.load_state_dict(model.state_dict())

    @torch.no_grad()
    def probs(self, inputs: Any) -> Float[Tensor, "batch classes"]:
        """Past predictions for this input, [B, C].

        Args:
            inputs: a tensor, or the positional (sequence) or keyword (mapping) arguments of the model.
        """
        if self._past is None:
            raise UserError("the previous model has no weights yet: call set_epoch before the first step")
        if inputs is None:
            raise UserError("PreviousModel forwards the current input: pass it, loss(logits, targets, index, inputs=x)")
        if isinstance(inputs, Mapping):
            logits = self._past(**inputs)
        elif isinstance(inputs, Tensor):
            logits = self._past(inputs)
        else:
            logits = self._past(*inputs)
        return F.softmax(widen(logits), dim=1)
