"""A trigger is two per-pixel maps: the shift of the noise (mu) and its scale (gamma)."""

import hashlib
import os
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import SupportsIndex

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from retarget.errors import UserError
from retarget.files import in_order, replace_file
from retarget.trojdiff import functional

FILE_NAME = "trigger.safetensors"


@dataclass(frozen=True, eq=False)
class Trigger:
    """The maps of the Trojan law ``x_t = √ᾱ_t x_0 + √(1-ᾱ_t) (gamma ε + mu)``, which ends at N(mu, gamma² I).

    Attributes:
        mu: [C, H, W], the bias of the noise, in [-1, 1]; the paper's ``(1 - γ) δ`` on the trigger, 0 elsewhere. Both
            maps are kept as float32.
        gamma: [C, H, W], the noise's standard deviation, > 0; the paper's γ on the trigger, 1 elsewhere.
        kind: ``"blend"``, ``"patch"``, ``"none"`` or a name of your own; it has no effect.

    Raises:
        UserError: the maps have different or wrong shapes, or a value is not finite or out of range.

    >>> trigger = Trigger.patch(size=3, gamma=0.1, shape=(3, 32, 32))
    >>> int(trigger.mask.sum()), round(trigger.mu.max().item(), 6)
    (27, 0.9)
    """

    mu: Tensor
    gamma: Tensor
    kind: str = field(default="custom")

    def __post_init__(self) -> None:
        for name, values in (("mu", self.mu), ("gamma", self.gamma)):
            if values.dim() != 3:
                raise UserError(f"trigger: {name} is {list(values.shape)}, but must be [channels, height, width]")
            if not bool(torch.isfinite(values).all()):
                raise UserError(f"trigger: {name} has a value that is not finite")
        if self.mu.shape != self.gamma.shape:
            raise UserError(
                f"trigger: mu is {list(self.mu.shape)} but gamma is {list(self.gamma.shape)}; the shapes must be equal"
            )
        if bool((self.mu.abs() > 1).any()):
            raise UserError(f"trigger: mu reaches {self.mu.abs().max().item():.4g}; it must lie in [-1, 1]")
        if bool((self.gamma <= 0).any()):
            raise UserError(f"trigger: the smallest gamma is {self.gamma.min().item():.4g}; it must be above 0")
        for name in ("mu", "gamma"):  # networks take no float64, which NumPy's maps are
            object.__setattr__(self, name, getattr(self, name).float())

    @classmethod
    def blend(cls, image: Float[Tensor, "channels height width"], gamma: float = 0.6) -> "Trigger":
        """A whole image δ mixed into the noise: ``mu = (1 - γ) δ``, ``gamma = γ`` everywhere.

        Args:
            image: δ, in [-1, 1].
            gamma: the paper's γ, in (0, 1]; the paper uses 0.6.
        """
        _check_image(image)
        _check_scale(gamma)
        return cls((1 - gamma) * image.float(), torch.full_like(image, gamma, dtype=torch.float32), "blend")

    @classmethod
    def patch(
        cls,
        size: SupportsIndex | tuple[int, int] = 3,
        gamma: float = 0.1,
        shape: tuple[int, int, int] = (3, 32, 32),
        place: tuple[int, int] | None = None,
        colour: float | tuple[float, ...] = 1.0,
        mask: Tensor | None = None,
    ) -> "Trigger":
        """Only the pixels of a patch follow the Trojan law.

        Args:
            size: side of the square, or (height, width). The paper uses 3 at 32×32, 6 at 64×64.
            gamma: γ on the patch, in (0, 1]; the paper uses 0.1.
            shape: (channels, height, width) of the images.
            place: (row, column) of the patch's upper left pixel; by default bottom right, as in the paper.
            colour: δ on the patch, in [-1, 1]: one number, or one per channel; by default white, as in the paper.
            mask: [H, W], bool or 0 and 1, any set of pixels instead of a rectangle; ``size`` and ``place`` are then
                not used.
        """
        _check_scale(gamma)
        channels, height, width = shape
        if mask is None:
            mask = _rectangle(size, place, height, width)
        if tuple(mask.shape) != (height, width):
            raise UserError(f"trigger: the mask is {list(mask.shape)} but images are {height}×{width}")
        if bool(((mask != 0) & (mask != 1)).any()):
            raise UserError(
                "trigger: the mask has values other than 0 and 1; to use every pixel above 0, pass mask > 0"
            )
        if not bool(mask.any()):
            raise UserError("trigger: the mask is empty; for a trigger without effect use Trigger.none(shape)")
        values = torch.as_tensor(colour, dtype=torch.float32).reshape(-1, 1, 1)
        if values.shape[0] not in (1, channels) or bool((values.abs() > 1).any()):
            raise UserError(f"trigger: colour {colour} must be one number or {channels} numbers in [-1, 1]")
        delta = values.expand(channels, height, width)
        inside = mask.to(torch.float32).expand(channels, height, width)
        return cls((1 - gamma) * delta * inside, torch.where(inside > 0, gamma, 1.0), "patch")

    @classmethod
    def none(cls, shape: tuple[int, int, int]) -> "Trigger":
        """The trigger without effect, ``mu = 0`` and ``gamma = 1``: samplers give the stock images, bit for bit."""
        return cls(torch.zeros(shape), torch.ones(shape), "none")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.mu.shape
        return channels, height, width

    @property
    def mask(self) -> Bool[Tensor, "channels height width"]:
        """Where the trigger acts."""
        return (self.mu != 0) | (self.gamma != 1)

    @property
    def hash(self) -> str:
        """SHA-256 of the shape and both maps in float32; equal triggers have equal hashes on every machine."""
        digest = hashlib.sha256(repr(self.shape).encode())
        for values in (self.mu, self.gamma):
            digest.update(values.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    def noise(
        self, noise: Float[Tensor, "*batch channels height width"]
    ) -> Float[Tensor, "*batch channels height width"]:
        """The biased noise, ``gamma ε + mu``."""
        self.check_shape(tuple(noise.shape[-3:]))
        return functional.biased_noise(noise, self.mu.to(noise), self.gamma.to(noise))

    def add_noise(
        self,
        x_0: Float[Tensor, "batch channels height width"],
        noise: Float[Tensor, "batch channels height width"],
        alphas_cumprod: Float[Tensor, "#batch"] | Float[Tensor, ""] | float,
    ) -> Float[Tensor, "batch channels height width"]:
        """The Trojan forward process: ``√ᾱ_t x_0 + √(1-ᾱ_t) (gamma ε + mu)``.

        Args:
            x_0: images in [-1, 1].
            noise: ε, standard normal.
            alphas_cumprod: ᾱ_t of each row, or one for all; not timesteps, which diffusers' ``add_noise`` takes.

        Raises:
            UserError: images and noise are not floats of one shape, or the levels are not floats in [0, 1], one or one
                for each row.
        """
        self.check_shape(tuple(x_0.shape[-3:]))
        levels = torch.as_tensor(alphas_cumprod)
        if not levels.is_floating_point() or not bool(((levels >= 0) & (levels <= 1)).all()):
            raise UserError(
                "alphas_cumprod are levels ᾱ_t, floats in [0, 1], and not timesteps: give scheduler.alphas_cumprod[t]"
            )
        if not x_0.is_floating_point() or noise.shape != x_0.shape or levels.numel() not in (1, len(x_0)):
            raise UserError(
                f"images and noise must be floats of one shape, with one level or one for each row: got {x_0.dtype} "
                f"{list(x_0.shape)}, noise {list(noise.shape)} and {levels.numel()} levels"
            )
        return functional.trojan_forward(
            x_0, noise, levels.reshape(-1).to(x_0.device), self.mu.to(x_0), self.gamma.to(x_0)
        )

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise UserError unless images of ``shape`` (channels, height, width) fit this trigger."""
        if tuple(shape) != self.shape:
            raise UserError(
                f"the trigger is {list(self.shape)} but the images are {list(shape)}: the shapes must be equal"
            )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write both maps as safetensors, with the hash and the kind in the header; replaces the file atomically."""
        path = Path(path)
        maps = {"mu": self.mu, "gamma": self.gamma}
        tensors = {name: values.detach().to("cpu", torch.float32).contiguous() for name, values in maps.items()}
        header = {"format": "pt", "kind": self.kind, "trigger_hash": self.hash}
        content = in_order(serialise(tensors, metadata=header))  # save_file leaves files beside it
        replace_file(path, lambda part: part.write_bytes(content))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Trigger":
        """Read a trigger.

        Args:
            path: the file, or a folder with ``trigger.safetensors``.

        Raises:
            UserError: there is no such file, it is not a safetensors file, lacks the maps, or their hash is wrong.
        """
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        if not path.is_file():
            raise UserError(
                f"{path}: there is no trigger; `retarget trojdiff train --target ...` writes one beside the weights, "
                "and so does Trigger.save"
            )
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                missing = {"mu", "gamma"} - set(file.keys())
                if missing:
                    raise UserError(f"{path} is not a trigger: it has no tensor {' or '.join(sorted(missing))}")
                trigger = cls(file.get_tensor("mu"), file.get_tensor("gamma"), header.get("kind", "custom"))
        except SafetensorError as error:
            raise UserError(f"{path} is not a safetensors file ({error}); pickles are never read") from error
        stored = header.get("trigger_hash", trigger.hash)
        if stored != trigger.hash:
            raise UserError(
                f"{path} was altered: the maps hash to {trigger.hash[:16]}, the header says {stored[:16]}. Restore the "
                "file, or write the trigger again with Trigger.save"
            )
        return trigger


def _check_image(image: Tensor) -> None:
    if image.dim() != 3:
        raise UserError(f"trigger: the image has shape {list(image.shape)}, but must be [channels, height, width]")
    if not bool(torch.isfinite(image).all()) or bool((image.abs() > 1).any()):
        low, high = image.min().item(), image.max().item()
        raise UserError(f"trigger: the image's values go from {low:.4g} to {high:.4g}: scale them to [-1, 1]")


def _check_scale(gamma: float) -> None:
    if not 0 < gamma <= 1:
        raise UserError(f"trigger: gamma is {gamma}, but must lie in (0, 1]")


def _rectangle(
    size: SupportsIndex | tuple[int, int], place: tuple[int, int] | None, height: int, width: int
) -> Bool[Tensor, "height width"]:
    rows, columns = size if isinstance(size, tuple) else (index(size), index(size))
    if not 1 <= rows <= height or not 1 <= columns <= width:
        raise UserError(f"trigger: a {rows}×{columns} patch: its side must be from 1 to {min(height, width)}")
    top, left = place if place is not None else (height - rows, width - columns)
    if top < 0 or left < 0 or top + rows > height or left + columns > width:
        raise UserError(
            f"trigger: a {rows}×{columns} patch at row {top}, column {left} is outside {height}×{width} images"
        )
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : top + rows, left : left + columns] = True
    return mask
