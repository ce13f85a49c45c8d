"""Read images for training and evaluation: uint8 in memory, [-1, 1] in the network."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from retarget.data.images import DARKEST, pixels_of, read, shape_of
from retarget.data.names import parse
from retarget.data.parts import Part, Source
from retarget.data.pictures import SizesDifferError
from retarget.data.splits import every_fifth
from retarget.errors import UserError
from retarget.extras import require


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and their labels.

    Attributes:
        images: [N, C, H, W], 0 to 255.
        labels: [N], 0 to ``len(names) - 1``; all 0 if there are none.
        names: names of the classes.
    """

    images: UInt8[Tensor, "count channels height width"]
    labels: Int[Tensor, "count"]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.images) == 0:
            raise UserError("the image set is empty")
        if len(self.images) != len(self.labels):
            raise UserError(f"{len(self.images)} images but {len(self.labels)} labels")
        if bool((self.labels < 0).any()) or int(self.labels.max()) >= len(self.names):
            raise UserError(f"a label lies outside 0 to {len(self.names) - 1}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the images and labels, 16 digits."""
        digest = hashlib.sha256(self.images.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()[:16]

    def check_shape(self, shape: tuple[int, int, int]) -> None:
        """Raise UserError unless the images have ``shape`` (channels, height, width)."""
        if self.shape != shape:
            remedy = "resize the images, or choose another network"
            if self.shape[0] != shape[0]:
                remedy = f"save them as {'grey' if shape[0] == 1 else 'colour'} images, or choose another network"
            elif self.shape[1] == self.shape[2] and shape[1] == shape[2]:
                remedy = f"--size {shape[1]} resizes them"
            raise UserError(
                f"the images are {list(self.shape)} but the network takes {list(shape)} [channels, height, width]: "
                f"{remedy}"
            )

    def with_channels(self, channels: int, where: str = "the images") -> "ImageSet":
        """Convert grey images to colour; colour images are not converted to grey.

        Args:
            channels: the number that is needed.
            where: what messages call the images.

        Raises:
            UserError: the images are not grey and have another number of channels.
        """
        if self.shape[0] == channels:
            return self
        if self.shape[0] != 1:
            raise UserError(
                f"{where} have {self.shape[0]} channels, not {channels}: save them as "
                f"{'grey or colour' if channels == 3 else 'grey'} images"
            )
        return ImageSet(self.images.expand(-1, channels, -1, -1).contiguous(), self.labels, self.names)

    def take(
        self, rows: Int[Tensor, "batch"]
    ) -> tuple[Float[Tensor, "batch channels height width"], Int[Tensor, "batch"]]:
        """Images in [-1, 1] and labels of the given rows."""
        return to_signed(self.images[rows]), self.labels[rows]

    def of_class(self, label: int) -> "ImageSet":
        """The images of one class."""
        if not 0 <= label < len(self.names):
            raise UserError(
                f"class {label} does not exist: classes go from 0 to {len(self.names) - 1}; --target-class, in a study "
                "target_class, sets the class that an attack wants"
            )
        rows = self.labels == label
        if not bool(rows.any()):
            raise UserError(f"class {label} ({self.names[label]}) has no images")
        return ImageSet(self.images[rows], self.labels[rows], self.names)

    def first(self, count: int | None) -> "ImageSet":
        """The first ``count`` images; evenly spread ones if those lack a class, as of a folder; all for None."""
        if count is None or count >= len(self.labels):
            return self
        rows = torch.arange(count)
        if len(self.labels[rows].unique()) < len(self.labels.unique()):
            rows = torch.linspace(0, len(self.labels) - 1, count).round().long()
        return ImageSet(self.images[rows], self.labels[rows], self.names)


def to_signed(images: UInt8[Tensor, "count channels height width"]) -> Float[Tensor, "count channels height width"]:
    """0 to 255 → [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Float[Tensor, "count channels height width"]) -> UInt8[Tensor, "count channels height width"]:
    """[-1, 1] → 0 to 255, rounded; values outside are clamped."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def read_images(source: str, split: str = "train", size: int | None = None, root: str = "data") -> ImageSet:
    """Read an image set.

    Args:
        source: ``glyphs`` (generated figures); ``torchvision:CelebA`` (its middle square, in the paper's eight
            composite classes); or a dataset in the notation of :func:`retarget.data.images.read`: ``digits``,
            ``torchvision:NAME``, ``npz:FILE``, ``folder:DIR``, ``hf:DIR``, or just ``FILE.npz`` or a folder.
        split: ``train`` or ``test``; :func:`held_out` tells which images are the test part. ``whole`` is ``train``
            without holding out images of a source that has no test part of its own.
        size: side to resize to, bilinearly and antialiased; None keeps the size.
        root: folder of torchvision's datasets; missing ones are downloaded.

    Raises:
        UserError: there is no such source, arrays have another type or shape, a folder is empty or too small to be
            split, or images have neither one nor three channels or are nearly black.
    """
    if split not in ("train", "test", "whole"):
        raise UserError(f"split {split!r} is unknown: choose train or test, or whole")
    if source == "glyphs":
        return _glyphs(split, size or 8)
    if source == "torchvision:CelebA":
        return _celeba("test" if split == "test" else "train", root, size or 64)
    found = read(source, root, "diffusion")
    channels = shape_of([found.train, *([found.test] if found.test else [])], size or 1)[0]  # sizes are compared below
    if channels not in (1, 3):
        raise UserError(f"{source}: the images have {channels} channels; only grey (1) and colour (3) are read")
    part = _part(found, split, source)
    try:
        pixels = pixels_of(part, channels, size)
    except SizesDifferError as error:
        raise UserError(f"{error}, such as --size 32") from error
    if 0 < (largest := int(pixels.max())) <= DARKEST:
        images = "images" if split == "whole" else f"{split} images"
        raise UserError(
            f"{source}: the pixels of the {images} go only to {largest}, so that all are nearly black: scale them to 0 "
            "to 255"
        )
    return ImageSet(pixels, part.labels, found.names)


def own_size(source: str) -> str | None:
    """Width and height of a source's images before they are resized, or ``several sizes``; None for generated ones.

    >>> own_size("digits"), own_size("glyphs")
    ('8×8', None)
    """
    if source in ("glyphs", "torchvision:CelebA"):
        return None
    found = read(source, extra="diffusion")
    try:
        _, height, width = shape_of([found.train, *([found.test] if found.test else [])])
    except SizesDifferError:
        return "several sizes"
    return f"{width}×{height}"


def held_out(source: str) -> str:
    """Describe the test part of a source; it is never part of the training images."""
    if source in ("digits", "glyphs"):
        return "every fifth image"
    kind, _ = parse(source)
    if kind == "torchvision":
        return "the dataset's own"
    found = read(source, extra="diffusion").held_out
    where = {"npz": f"{found} of the file", "folder": f"the sub-folder {found}", "hf": f"the split {found}"}
    return where.get(kind, f"{found} of {source}") if found else "every fifth image of a class"


def _part(found: Source, split: str, source: str) -> Part:
    """The training or the test part; if the source has no test part, every fifth image belongs to it."""
    if found.test is not None:
        return found.test if split == "test" else found.train
    if found.held_out:  # the source has a test part, so all other images are for training
        if split == "test":
            raise UserError(f"{source} has no {found.held_out}")
        return found.train
    if split == "whole":
        return found.train
    test = every_fifth(found.train.labels.numpy(), of_class=source != "digits")
    rows = np.flatnonzero(test if split == "test" else ~test)
    if not len(rows):
        raise UserError(
            f"{source}: every fifth image of a class is kept for the test, but no class has five: add images, or put "
            "them into two sub-folders, train and test"
        )
    return found.train.take(rows)


def _glyphs(split: str, size: int) -> ImageSet:
    from retarget.trojdiff.glyphs import DOMAIN, glyph_images

    images, labels = glyph_images(2000, size, torch.Generator().manual_seed(20))
    test = torch.from_numpy(every_fifth(np.arange(len(images) // len(DOMAIN)), of_class=False))
    rows = (test if split == "test" else ~test).repeat_interleave(len(DOMAIN))
    rows |= split == "whole"
    return ImageSet(to_uint8(images)[rows], labels[rows], DOMAIN)


CELEBA_ATTRIBUTES = (18, 21, 31)
"""Heavy makeup, mouth slightly open, smiling: the composite class is 1, 2 and 4 times these."""


def celeba_class(attributes: Int[Tensor, "count attributes"]) -> Int[Tensor, "count"]:
    """The paper's composite class of CelebA, 0 to 7, from its 40 binary attributes.

    >>> celeba_class(torch.tensor([[0] * 40, [1] * 40])).tolist()
    [0, 7]
    """
    bits = attributes[:, list(CELEBA_ATTRIBUTES)]
    return (bits * torch.tensor([1, 2, 4])).sum(dim=1)


def _celeba(split: str, root: str, side: int) -> ImageSet:
    """178×218 photographs: the middle 178×178, resized one by one, since all of them at full size fill 20 GB."""
    from PIL import Image

    try:
        found = require("torchvision.datasets", "diffusion").CelebA(root, split, target_type="attr", download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"torchvision:CelebA is not in {root!r} and could not be downloaded ({error}): "
            "use an .npz file or a folder of images instead"
        ) from error
    pixels = np.empty((len(found), side, side, 3), np.uint8)
    for row, (image, _) in enumerate(found):
        pixels[row] = np.asarray(image.crop((0, 20, 178, 198)).resize((side, side), Image.Resampling.BOX))
    labels = celeba_class(found.attr.long())
    return ImageSet(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels, tuple(map(str, range(8))))
