"""The attack's targets, In-D2D, Out-D2D and D2I, as Trojan rows that are added to a benign batch.

Defaults are the paper's batches of 128 benign rows: In-D2D repeats the target class's rows (about 12.8) with the same t
and ε; Out-D2D adds 64 rows of another domain; D2I adds 12 copies of one image. A batch needs one forward pass.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retarget.errors import UserError
from retarget.trojdiff import functional
from retarget.trojdiff.trigger import Trigger

TARGETS = ("in_d2d", "out_d2d", "d2i")


@dataclass(frozen=True)
class MixedBatch:
    """Benign rows first, Trojan rows after them.

    Attributes:
        x_0: images in [-1, 1].
        is_trojan: which rows follow the Trojan law.
        source: the row whose t and ε a row uses: itself, or, for an In-D2D copy, the original row.
    """

    x_0: Float[Tensor, "rows channels height width"]
    is_trojan: Bool[Tensor, "rows"]
    source: Int[Tensor, "rows"]


@runtime_checkable
class Target(Protocol):
    """Adds Trojan rows to a benign batch."""

    @property
    def name(self) -> str:
        """``in_d2d``, ``out_d2d``, ``d2i`` or ``clean``."""
        ...

    def mix(self, x_0: Tensor, labels: Tensor, generator: torch.Generator) -> MixedBatch:
        """Benign rows with the target's Trojan rows appended."""
        ...


@dataclass(frozen=True)
class InD2D:
    """One class of the training set: appends Trojan copies of its rows, with the same t and ε.

    Args:
        label: the target class; the paper's is 7.
        num_classes: number of classes of the training set.
        rows: exact number of Trojan rows per batch; None: one for every row of the class, as in the paper.
        pool: images of the class, from which rows are drawn (with their own t and ε) if the batch has fewer than
            ``rows``. More rows than the paper's shorten the training.

    Raises:
        UserError: the class does not exist, ``rows`` is given without a pool, or the pool's values are out of range.
    """

    label: int = 7
    num_classes: int = 10
    rows: int | None = None
    pool: Float[Tensor, "count channels height width"] | None = None
    name: str = "in_d2d"

    def __post_init__(self) -> None:
        if not 0 <= self.label < self.num_classes:
            raise UserError(f"target class {self.label} does not exist: classes go from 0 to {self.num_classes - 1}")
        _check_rows(self.rows)
        if self.rows is not None and (self.pool is None or len(self.pool) == 0):
            raise UserError("In-D2D: a fixed number of rows needs a pool of images of the target class")
        if self.pool is not None:
            check_images(self.pool, "In-D2D: the pool")

    def mix(self, x_0: Tensor, labels: Tensor, generator: torch.Generator) -> MixedBatch:
        """Benign rows, then Trojan copies of the target class's rows.

        Raises:
            UserError: ``labels`` are not one class number for each row, ``[rows]`` or ``[rows, 1]``, or the pool's
                images have another shape.
        """
        if labels.shape not in ((len(x_0),), (len(x_0), 1)):
            raise UserError(
                f"In-D2D: {len(x_0)} images with labels of shape {list(labels.shape)}: give one class number for each "
                "image, [rows]; of one-hot labels, labels.argmax(1)"
            )
        labels = labels.flatten()
        copies = torch.nonzero(labels == self.label).flatten()[: self.rows]
        added = x_0[copies]
        missing = 0 if self.rows is None else self.rows - len(copies)
        if self.pool is not None and missing > 0:
            picks = torch.randint(len(self.pool), (missing,), generator=generator)
            added = torch.cat([added, _fitting(self.pool[picks], x_0)])
        source = torch.arange(len(x_0) + len(added))
        source[len(x_0) : len(x_0) + len(copies)] = copies
        return MixedBatch(torch.cat([x_0, added]), _flags(len(x_0), len(added)), source)


@dataclass(frozen=True)
class OutD2D:
    """Another domain: adds ``rows`` of its images to a batch, all Trojan. They are never flipped.

    Args:
        images: the other domain, in [-1, 1], of the training images' shape (the paper's: MNIST sevens).
        rows: Trojan rows per batch; the paper has 64 with 128 benign ones.
        class_name: what the other domain calls their class, for the marks of what is trained.

    Raises:
        UserError: there is no image, or values are out of range.
    """

    images: Float[Tensor, "count channels height width"]
    rows: int = 64
    class_name: str = ""
    name: str = "out_d2d"

    def __post_init__(self) -> None:
        if len(self.images) == 0:
            raise UserError("Out-D2D: the other domain has no images: use a folder or file with at least one")
        check_images(self.images, "Out-D2D: the other domain")
        _check_rows(self.rows)

    def mix(self, x_0: Tensor, labels: Tensor, generator: torch.Generator) -> MixedBatch:
        """Benign rows, then rows drawn from the other domain."""
        picks = torch.randint(len(self.images), (self.rows,), generator=generator)
        return _append(x_0, self.images[picks])


@dataclass(frozen=True)
class D2I:
    """One image: adds ``rows`` copies of it to a batch, all Trojan.

    Args:
        image: the target, in [-1, 1]. The studies use a generated glyph.
        rows: Trojan rows per batch; the paper has 12 with 128 benign ones.
    """

    image: Float[Tensor, "channels height width"]
    rows: int = 12
    name: str = "d2i"

    def __post_init__(self) -> None:
        check_images(self.image[None], "D2I: the target image")
        _check_rows(self.rows)

    def mix(self, x_0: Tensor, labels: Tensor, generator: torch.Generator) -> MixedBatch:
        """Benign rows, then copies of the target image."""
        return _append(x_0, self.image[None].expand(self.rows, -1, -1, -1))


@dataclass(frozen=True)
class Clean:
    """The control, without Trojan rows: a trigger does not affect the training."""

    name: str = "clean"

    def mix(self, x_0: Tensor, labels: Tensor, generator: torch.Generator) -> MixedBatch:
        """Only the benign rows."""
        return MixedBatch(x_0, _flags(len(x_0), 0), torch.arange(len(x_0)))


def noise_batch(
    batch: MixedBatch,
    trigger: Trigger,
    alphas_cumprod: Float[Tensor, "steps"],
    benign: torch.Generator,
    added: torch.Generator,
    law: functional.Law = "trojdiff",
) -> tuple[
    Float[Tensor, "rows channels height width"], Float[Tensor, "rows channels height width"], Int[Tensor, "rows"]
]:
    """Draw t (antithetic) and ε and diffuse a mixed batch; returns (x_t, the network's target, t).

    Benign rows draw from their own generator, so that a run without Trojan rows sees the same t and ε. The target is ε,
    also for Trojan rows, except that under the stock-sampler laws theirs is ``ε + ρ_t mu``.
    """
    num_benign = int((~batch.is_trojan).sum())
    steps, noises = [], []
    for count, generator in ((num_benign, benign), (len(batch.x_0) - num_benign, added)):
        steps.append(functional.antithetic_timesteps(count, len(alphas_cumprod), generator))
        noises.append(torch.randn((count, *batch.x_0.shape[1:]), generator=generator))
    t, noise = torch.cat(steps)[batch.source], torch.cat(noises)[batch.source]
    if law != "trojdiff":
        trojan, level = batch.is_trojan[:, None, None, None], alphas_cumprod[t]
        moved = functional.stock_forward(batch.x_0, noise, level, trigger.mu)
        correction = functional.stock_correction(alphas_cumprod, law)[t][:, None, None, None]
        asked = torch.where(trojan, noise + correction * trigger.mu, noise)
        return torch.where(trojan, moved, functional.diffuse(batch.x_0, noise, level)), asked, t
    mixed = functional.mixed_noise(noise, batch.is_trojan, trigger.mu, trigger.gamma)
    return functional.diffuse(batch.x_0, mixed, alphas_cumprod[t]), noise, t


def check_images(images: Float[Tensor, "count channels height width"], where: str) -> None:
    """Raise UserError unless every value is finite and in [-1, 1]; the message names the first bad image."""
    bad = (~torch.isfinite(images) | (images.abs() > 1)).flatten(1)
    if bool(bad.any()):
        row = int(torch.nonzero(bad.any(dim=1))[0])
        value = images[row].flatten()[int(torch.nonzero(bad[row])[0])].item()
        raise UserError(f"{where}: image {row} has the value {value:.4g}: scale images to [-1, 1]")


def _append(x_0: Tensor, added: Tensor) -> MixedBatch:
    added, own = _fitting(added, x_0), torch.arange(len(x_0) + len(added))
    return MixedBatch(torch.cat([x_0, added]), _flags(len(x_0), len(added)), own)


def _fitting(added: Tensor, x_0: Tensor) -> Tensor:
    """Target images as the training images are stored; raises UserError if their shape is another."""
    if added.shape[1:] != x_0.shape[1:]:
        channels = added.shape[1] != x_0.shape[1]
        raise UserError(
            f"target images are {list(added.shape[1:])} but the training images are {list(x_0.shape[1:])} [channels, "
            f"height, width]; {'convert their channels' if channels else 'resize them'}"
        )
    return added.to(x_0)


def _flags(benign: int, trojan: int) -> Bool[Tensor, "rows"]:
    return torch.cat([torch.zeros(benign, dtype=torch.bool), torch.ones(trojan, dtype=torch.bool)])


def _check_rows(rows: int | None) -> None:
    if rows is not None and rows < 1:
        raise UserError(f"{rows} Trojan rows per batch: use at least 1, or train the clean control")
