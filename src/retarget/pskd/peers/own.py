"""A user's own loss, a function of logits and labels, as a peer."""

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
    """``function(logits, labels)`` maps logits [B, C] float32 and labels [B] to a scalar, or to losses [B], which are
    averaged over the samples that are not ignored.

    Args:
        function: the loss.
        name: what messages call it.
        given: its settings, which a resumed run must share.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    _: KW_ONLY
    name: str = "the loss"
    given: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settings = {"loss": self.name, **self.given}
        if isinstance(self.function, nn.Module) and any(True for _ in self.function.parameters()):
            raise UserError(f"{self.name} has trainable parameters, which a study does not train: make them constants")

    def to(self, device: Any) -> None:
        if isinstance(self.function, nn.Module):
            self.function.to(device)

    def _loss(self, logits: Tensor, targets: Tensor, labels: Tensor, index: Tensor, inputs: Any) -> Tensor:
        loss = self.function(widen(logits), targets)
        if not isinstance(loss, Tensor) or loss.shape not in ((), (len(logits),)):
            shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise UserError(
                f"{self.name} returned {shape} for logits {list(logits.shape)}: it must return a scalar, or losses [B]"
            )
        return self._mean(loss, targets) if loss.ndim else loss


def own_peer(path: str, num_samples: int, num_classes: int, epochs: int, **given: Any) -> Peer:
    """A user's loss: a subclass of :class:`~retarget.pskd.peers.base.Peer`, another class (a ``torch.nn.Module``, say)
    whose objects are called with logits and labels, or a function of them.

    Args:
        path: its import path.
        given: its settings, for a class.

    Raises:
        UserError: it cannot be imported or constructed, or does not accept these settings.
    """
    kind: Any = part(path, "loss")
    if isinstance(kind, type) and issubclass(kind, Peer):
        return called(path, "loss", num_samples, num_classes, epochs, **given)
    if isinstance(kind, type):
        function = called(path, "loss", **given)
        if not callable(function):
            raise UserError(f"loss = {path!r}: {kind.__name__} objects cannot be called with logits and labels")
    elif given:
        raise UserError(f"loss = {path!r} is a function and takes no settings ({', '.join(given)}): make it a class")
    else:
        function = kind
    loss = cast("Callable[[Tensor, Tensor], Tensor]", function)  # its first call checks what it returns
    return OwnLoss(num_samples, num_classes, epochs, loss, name=path, given=given)
