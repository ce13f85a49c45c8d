"""A loss of a user's own, a function of logits and labels, in the peers' call shape."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from retarget.errors import UserError
from retarget.own import called, part
from retarget.pskd.functional import widen
from retarget.pskd.peers.base import Peer


@dataclass(eq=False, repr=False)
class OwnLoss(Peer):
    """``function(logits, labels)``: logits [B, C] float32 and labels [B] to a scalar, or to losses [B], whose mean over
    the samples that are not ignored is taken.

    Args:
        function: the loss.
        name: names it in errors.
        given: its settings, which a resumed run must agree on.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    _: KW_ONLY
    name: str = "the loss"
    given: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settings = {"loss": self.name, **self.given}
        if isinstance(self.function, nn.Module) and any(True for _ in self.function.parameters()):
            raise UserError(f"{self.name} has parameters of its own, which a study does not train: keep them fixed")

    def to(self, device: Any) -> None:
        if isinstance(self.function, nn.Module):
            self.function.to(device)

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        loss = self.function(widen(logits), targets)
        if not isinstance(loss, Tensor) or loss.shape not in ((), (len(logits),)):
            shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise UserError(
                f"{self.name} gave {shape} for logits {list(logits.shape)}: it gives a scalar, or losses [B]"
            )
        return self._mean(loss, targets) if loss.ndim else loss


def own_peer(path: str, num_samples: int, num_classes: int, epochs: int, **given: Any) -> Peer:
    """A user's loss: a class that derives from :class:`~retarget.pskd.peers.base.Peer`, another class (a
    ``torch.nn.Module``, say) that is called with logits and labels, or a function of them.

    Args:
        path: its import path.
        given: its settings; a function has none.

    Raises:
        UserError: it cannot be imported or made, or does not take these settings.
    """
    kind: Any = part(path, "loss")
    if isinstance(kind, type) and issubclass(kind, Peer):
        return called(path, "loss", num_samples, num_classes, epochs, **given)
    if isinstance(kind, type):
        function = called(path, "loss", **given)
        if not callable(function):
            raise UserError(f"loss = {path!r}: a {kind.__name__} cannot be called with logits and labels")
    elif given:
        raise UserError(f"loss = {path!r} is a function and has no settings: {', '.join(given)}; make it a class")
    else:
        function = kind
    loss = cast("Callable[[Tensor, Tensor], Tensor]", function)  # its first call checks what it gives
    return OwnLoss(num_samples, num_classes, epochs, loss, name=path, given=given)
