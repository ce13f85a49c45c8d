"""The formats of a stored row: every class (``Dense``), the k likeliest (``TopK``), or independent probabilities for
multi-label (``Independent``)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.functional import SparseRows, widen

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Dense:
    """Stores every class, C values per row.

    Args:
        dtype: ``"float32"`` (4 bytes per class), ``"float16"`` or ``"bfloat16"`` (2 bytes).
    """

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"the dtype of a dense row must be one of {', '.join(DTYPES)}: got {self.dtype!r}")

    def fields(self, num_classes: int) -> dict[str, tuple[int, torch.dtype]]:
        """Name, width and type of what one row is made of."""
        return {"probs": (num_classes, DTYPES[self.dtype])}

    def encode(
        self,
        logits: Float[Tensor, "batch classes"],
        labels: Integer[Tensor, "batch"],
        log_norm: Float[Tensor, "batch"] | None = None,
    ) -> dict[str, Tensor]:
        """The softmax of the logits, rounded to the stored type."""
        return {"probs": F.softmax(widen(logits), dim=1).to(DTYPES[self.dtype])}

    def decode(self, fields: dict[str, Tensor], num_classes: int) -> Float[Tensor, "batch classes"]:
        """Stored values as probabilities, [B, C] float32; rows rounded to 16 bits are scaled back to sum to 1."""
        probs = fields["probs"].float()
        return probs if self.dtype == "float32" else probs / probs.sum(1, keepdim=True).clamp_min(1e-12)


@dataclass(frozen=True)
class TopK:
    """Stores the k likeliest classes of a row, always including the true class.

    A class takes 16 bits (32 above 65,536 classes) and its probability a float16: 4k bytes per row.

    Args:
        k: number of classes stored, at least 1.
        residual: what happens to the probability of the other classes: ``"uniform"`` spreads it evenly over them;
            ``"renormalise"`` drops it and scales the stored ones to sum to 1, which is a biased estimate of the row
            and sharpens it.
    """

    k: int
    residual: Literal["uniform", "renormalise"] = "uniform"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"k of TopK must be at least 1: got k = {self.k}")
        if self.residual not in ("uniform", "renormalise"):
            raise UserError(f"residual must be 'uniform' or 'renormalise': got {self.residual!r}")

    def fields(self, num_classes: int) -> dict[str, tuple[int, torch.dtype]]:
        """Name, width and type of what one row is made of."""
        if self.k > num_classes:
            raise UserError(f"TopK({self.k}) is more than the {num_classes} classes there are: use store='dense'")
        # torch.uint16 does not support indexing: the 16 bits are stored as int16 and masked when read.
        class_type = torch.int16 if num_classes <= 1 << 16 else torch.int32
        return {"values": (self.k, torch.float16), "classes": (self.k, class_type)}

    def encode(
        self,
        logits: Float[Tensor, "batch classes"],
        labels: Integer[Tensor, "batch"],
        log_norm: Float[Tensor, "batch"] | None = None,
    ) -> dict[str, Tensor]:
        """The k largest logits and their softmax; the true class replaces the last of them if it is not among them.

        ``log_norm`` is the logits' logsumexp, if it is known already.
        """
        z = widen(logits)
        if log_norm is None:
            log_norm = torch.logsumexp(z, dim=1)
        top, classes = largest(z, self.k)
        label = labels[:, None]
        absent = (classes != label).all(1)
        classes[:, -1] = torch.where(absent, label[:, 0], classes[:, -1])
        top[:, -1] = torch.where(absent, z.gather(1, label)[:, 0], top[:, -1])
        class_type = self.fields(z.shape[1])["classes"][1]
        # 2^-24 is float16's smallest value: a listed class is never zero, so a row can always be renormalised.
        values = torch.exp(top - log_norm[:, None]).clamp_min(2**-24).to(torch.float16)
        return {"values": values, "classes": classes.to(class_type)}

    def decode(self, fields: dict[str, Tensor], num_classes: int) -> SparseRows:
        """Stored values as sparse rows that sum to 1."""
        values, classes = fields["values"].float(), fields["classes"].long()
        if num_classes <= 1 << 16:
            classes = classes & 0xFFFF
        listed = values.sum(1)
        unlisted = num_classes - self.k
        if self.residual == "renormalise" or unlisted == 0:
            return SparseRows(classes, values / listed[:, None].clamp_min(1e-12), torch.zeros_like(listed))
        # Rounding to 16 bits can raise the listed sum above 1; then nothing is left to spread.
        values = values / listed.clamp_min(1.0)[:, None]
        return SparseRows(classes, values, (1 - listed).clamp_min(0) / unlisted)


@dataclass(frozen=True)
class Independent(Dense):
    """Stores an independent probability for each class, for multi-label: ``Dense`` with a sigmoid, not a softmax."""

    def encode(
        self,
        logits: Float[Tensor, "batch classes"],
        labels: Integer[Tensor, "batch"],
        log_norm: Float[Tensor, "batch"] | None = None,
    ) -> dict[str, Tensor]:
        """The sigmoid of the logits, rounded to the stored type."""
        return {"probs": torch.sigmoid(widen(logits)).to(DTYPES[self.dtype])}

    def decode(self, fields: dict[str, Tensor], num_classes: int) -> Float[Tensor, "batch classes"]:
        """Stored values as float32, [B, C]; a row need not sum to 1."""
        return fields["probs"].float()


RowFormat = Dense | TopK


def largest(z: Float[Tensor, "batch classes"], k: int) -> tuple[Float[Tensor, "batch k"], Integer[Tensor, "batch k"]]:
    """``z.topk(k, dim=1)``, for wide rows in two steps: the k largest lie in the k groups with the largest maxima.

    >>> largest(torch.arange(10_000.0)[None], 2)
    (tensor([[9999., 9998.]]), tensor([[9999, 9998]]))
    """
    size, classes = 64, z.shape[1]
    groups = classes // size
    if groups < 4 * k:
        values, places = z.topk(k, dim=1)
        return values, places
    whole = groups * size
    best = z[:, :whole].unflatten(1, (groups, size)).amax(2).topk(k, dim=1, sorted=False).indices
    within = torch.arange(size, device=z.device)
    tail = torch.arange(whole, classes, device=z.device).expand(len(z), -1)
    columns = torch.cat([(best[:, :, None] * size + within).flatten(1), tail], dim=1)
    values, places = z.gather(1, columns).topk(k, dim=1)
    return values, columns.gather(1, places)
