"""Images for training and judging: uint8 in memory, [-1, 1] in the network."""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from retarget.errors import UserError
from retarget.extras import require


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and their labels.

    Attributes:
        images: [N, C, H, W], 0 to 255.
        labels: [N], 0 to ``len(names) - 1``; all 0 where there are none.
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
            raise UserError(
                f"the images are {list(self.shape)} but the network takes {list(shape)}: another channel count or "
                "resolution; resize the images or choose another network"
            )

    def with_channels(self, channels: int) -> "ImageSet":
        """Grey images as colour ones; colour ones never become grey by themselves.

        Raises:
            UserError: other channels than asked for, and not grey.
        """
        if self.shape[0] == channels:
            return self
        if self.shape[0] != 1:
            raise UserError(f"the other domain has {self.shape[0]} channels but the training images {channels}")
        return ImageSet(self.images.expand(-1, channels, -1, -1).contiguous(), self.labels, self.names)

    def take(
        self, rows: Int[Tensor, "batch"]
    ) -> tuple[Float[Tensor, "batch channels height width"], Int[Tensor, "batch"]]:
        """Images in [-1, 1] and labels of some rows."""
        return to_signed(self.images[rows]), self.labels[rows]

    def of_class(self, label: int) -> "ImageSet":
        """The images of one class."""
        if not 0 <= label < len(self.names):
            raise UserError(f"class {label} does not exist: classes go from 0 to {len(self.names) - 1}")
        rows = self.labels == label
        if not bool(rows.any()):
            raise UserError(f"class {label} ({self.names[label]}) has no image")
        return ImageSet(self.images[rows], self.labels[rows], self.names)

    def first(self, count: int | None) -> "ImageSet":
        """The first ``count`` images, all when None."""
        return self if count is None else ImageSet(self.images[:count], self.labels[:count], self.names)


def to_signed(images: UInt8[Tensor, "count channels height width"]) -> Float[Tensor, "count channels height width"]:
    """0 to 255 → [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Float[Tensor, "count channels height width"]) -> UInt8[Tensor, "count channels height width"]:
    """[-1, 1] → 0 to 255, rounded; values outside are clamped."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def read_images(source: str, split: str = "train", size: int | None = None, root: str = "data") -> ImageSet:
    """Read an image set.

    Args:
        source: ``digits`` (scikit-learn's, 8×8, embedded); ``glyphs`` (generated figures); the path of an ``.npz``
            file with ``x_train``, ``y_train`` (and ``x_test``, ``y_test``) in uint8, channels last or absent;
            ``torchvision:NAME`` for CIFAR10, MNIST, FashionMNIST, ... and CelebA (its middle square, in the paper's
            eight composite classes); or a folder with one sub-folder of PNG or JPEG files a class, or with two
            sub-folders ``train`` and ``test`` that hold those.
        split: ``train`` or ``test``; :func:`held_out` says which images the test takes.
        size: side to resize to by antialiased area averaging; kept when None.
        root: where torchvision keeps its data sets; missing ones are downloaded.

    Raises:
        UserError: no such source, arrays of another type or shape, an empty folder, or one too small to be split.
    """
    if split not in ("train", "test"):
        raise UserError(f"split {split!r} is unknown; choose train or test")
    source = source.removeprefix("npz:").removeprefix("folder:")  # as the PS-KD studies name them
    if source == "digits":
        images = _digits(split)
    elif source == "glyphs":
        images = _glyphs(split, size or 8)
    elif source.endswith(".npz"):
        images = _npz(Path(source), split)
    elif source.startswith("torchvision:"):
        images = _torchvision(source.removeprefix("torchvision:"), split, root, size)
    else:
        images = _folder(Path(source), split, size)
    return images if size in (None, images.shape[-1]) else _resized(images, size)


def held_out(source: str) -> str:
    """Which images of a source are its test part, in words; they are never in its training part."""
    if source in ("digits", "glyphs"):
        return "every fifth image"
    if source.endswith(".npz"):
        return "x_test of the file"
    if source.startswith("torchvision:"):
        return "the data set's own"
    return "the sub-folder test" if _has_parts(Path(source)) else "every fifth image of a class"


def _digits(split: str) -> ImageSet:
    bunch = require("sklearn.datasets", "diffusion").load_digits()
    images = torch.from_numpy(bunch.images.astype(np.float32))[:, None] / 8 - 1
    rows = _fifths(len(images), split)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    return ImageSet(to_uint8(images)[rows], labels[rows], tuple(str(digit) for digit in range(10)))


def _glyphs(split: str, size: int) -> ImageSet:
    from retarget.trojdiff.glyphs import DOMAIN, glyph_images

    images, labels = glyph_images(2000, size, torch.Generator().manual_seed(20))
    rows = _fifths(len(images) // len(DOMAIN), split).repeat_interleave(len(DOMAIN))
    return ImageSet(to_uint8(images)[rows], labels[rows], DOMAIN)


def _fifths(count: int, split: str) -> Tensor:
    test = torch.arange(count) % 5 == 4
    return test if split == "test" else ~test


def _npz(path: Path, split: str) -> ImageSet:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    names = (f"x_{split}", f"y_{split}")
    try:
        with zipfile.ZipFile(path):
            pass  # numpy would take a pickle or a single array for what they are, whatever their name
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in names if name not in file.files]
            if missing:
                raise UserError(f"{path}: holds no {' and no '.join(missing)}; it has {', '.join(file.files)}")
            pixels, labels = file[names[0]], file[names[1]]
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not an .npz file of plain arrays ({error}); pickles are never read") from error
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        raise UserError(
            f"{path}: {names[0]} is {pixels.dtype} {list(pixels.shape)}; give uint8 [N, H, W] or [N, H, W, C]"
        )
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    classes = int(labels.max()) + 1 if len(labels) else 0
    return ImageSet(
        torch.from_numpy(np.ascontiguousarray(pixels)),
        torch.from_numpy(labels.astype(np.int64)),
        tuple(str(label) for label in range(classes)),
    )


CELEBA_ATTRIBUTES = (18, 21, 31)
"""Heavy makeup, mouth slightly open, smiling: the composite class is 1, 2 and 4 times these."""


def celeba_class(attributes: Int[Tensor, "count attributes"]) -> Int[Tensor, "count"]:
    """The paper's composite class of CelebA, 0 to 7, from its 40 binary attributes.

    >>> celeba_class(torch.tensor([[0] * 40, [1] * 40])).tolist()
    [0, 7]
    """
    bits = attributes[:, list(CELEBA_ATTRIBUTES)]
    return (bits * torch.tensor([1, 2, 4])).sum(dim=1)


def _torchvision(name: str, split: str, root: str, size: int | None) -> ImageSet:
    datasets = require("torchvision.datasets", "diffusion")
    kind = getattr(datasets, name, None)
    if kind is None:
        raise UserError(f"torchvision has no data set {name!r}")
    try:
        if name == "CelebA":
            return _celeba(kind(root, split=split, target_type="attr", download=True), size)
        found = kind(root, train=split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"torchvision:{name} is not in {root!r} and could not be downloaded ({error}); "
            "give an .npz file or a folder of images instead"
        ) from error
    pixels = np.asarray(found.data)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    names = tuple(found.classes)
    return ImageSet(torch.from_numpy(np.ascontiguousarray(pixels)), torch.as_tensor(found.targets).long(), names)


def _celeba(found: Any, size: int | None) -> ImageSet:
    """178×218 photographs: the middle 178×178, resized one by one, since all of them at full size fill 20 GB."""
    from PIL import Image

    side = size or 64
    pixels = np.empty((len(found), side, side, 3), np.uint8)
    for row, (image, _) in enumerate(found):
        pixels[row] = np.asarray(image.crop((0, 20, 178, 198)).resize((side, side), Image.Resampling.BOX))
    labels = celeba_class(found.attr.long())
    return ImageSet(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels, tuple(map(str, range(8))))


def _has_parts(path: Path) -> bool:
    return {child.name for child in path.iterdir() if child.is_dir()} == {"train", "test"}


def _folder(path: Path, split: str, size: int | None) -> ImageSet:
    if not path.is_dir():
        raise UserError(f"{path}: neither digits, glyphs, an .npz file nor a folder of images")
    from PIL import Image

    parts = _has_parts(path)
    names = sorted(child.name for child in (path / "train" if parts else path).iterdir() if child.is_dir()) or ["."]
    home = path / split if parts else path
    unknown = sorted({child.name for child in home.iterdir() if child.is_dir()} - set(names))
    if unknown:
        raise UserError(f"{home / unknown[0]}: the training images have no class of this name")
    pixels, labels = [], []
    for label, name in enumerate(names):
        found = sorted((home / name).iterdir()) if (home / name).is_dir() else []
        files = [file for file in found if file.suffix.lower() in (".png", ".jpg", ".jpeg")]
        if not parts:
            files = [file for file, ours in zip(files, _fifths(len(files), split).tolist(), strict=True) if ours]
        for file in files:
            try:
                with Image.open(file) as image:
                    image = image if image.mode in ("L", "RGB") else image.convert("RGB")
                    image = image if size is None else image.resize((size, size), Image.Resampling.BOX)
                    pixels.append(np.asarray(image))
            except OSError as error:
                raise UserError(f"{file}: not an image, or a damaged one ({error})") from error
            if pixels[-1].shape != pixels[0].shape:
                raise UserError(f"{file}: {pixels[-1].shape} but the first image is {pixels[0].shape}; give a size")
            labels.append(label)
    if not pixels and split == "test" and not parts:
        raise UserError(
            f"{path}: no class has the five images of which one is kept for the test; add images, or put them in two "
            "sub-folders, train and test"
        )
    if not pixels:
        raise UserError(f"{home}: no PNG or JPEG file in it")
    stack = np.stack(pixels)
    stack = stack[:, None] if stack.ndim == 3 else stack.transpose(0, 3, 1, 2)
    return ImageSet(torch.from_numpy(np.ascontiguousarray(stack)), torch.tensor(labels), tuple(names))


def _resized(images: ImageSet, size: int) -> ImageSet:
    shape = (size, size)
    resized = torch.nn.functional.interpolate(
        images.images.float(), size=shape, mode="bilinear", antialias=True, align_corners=False
    )
    return ImageSet(resized.round().clamp(0, 255).to(torch.uint8), images.labels, images.names)
