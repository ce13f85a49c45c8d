"""Find, measure and decode image files, in formats that need no other program."""

import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retarget.errors import UserError
from retarget.extras import require

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that Pillow may detect by content; others would start programs such as Ghostscript."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

_ORIENTATION = 0x0112
_GREY = ("1", "L", "LA", "La", "I", "F")
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError,
           struct.error, zlib.error)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """An encoded image: a file, or its bytes with a name for messages."""

    name: str
    content: Path | bytes


class Header(NamedTuple):
    """What an image's header says, without decoding pixels."""

    height: int
    width: int
    grey: bool


def find(folder: Path) -> list[Picture]:
    """The image files below a folder, by suffix, in the order of their names; hidden ones are skipped."""
    files = sorted(path for path in _below(folder) if path.suffix.lower() in SUFFIXES and path.is_file())
    return [
        Picture(str(path), path)
        for path in files
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _below(folder: Path) -> Iterator[Path]:
    """Everything in a folder, in linked folders too, but not in a link that leads back up."""
    for at, folders, names in os.walk(folder, followlinks=True):
        here = Path(at).resolve()
        folders[:] = [name for name in folders if Path(at, name).resolve() not in (here, *here.parents)]
        yield from (Path(at, name) for name in names)


def header(picture: Picture) -> Header:
    """Size and kind of an image.

    Raises:
        UserError: it is not an image, or has more pixels than Pillow allows.
    """
    with _opened(picture) as image:
        grey = image.mode in _GREY or image.mode.startswith("I;16")
        # Pillow has already turned the size of a TIFF file.
        lying = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
        return Header(image.width, image.height, grey) if lying else Header(image.height, image.width, grey)


def decode(picture: Picture, channels: int, size: int | None = None, crop: bool = False) -> np.ndarray:
    """The pixels of one image, uint8 [channels, H, W].

    A photograph is rotated as its EXIF data say. Transparency is dropped, CMYK and palettes become RGB, 16 bits become
    8, and of an animation the first frame is used.

    Args:
        picture: the encoded image.
        channels: 1 (grey) or 3 (RGB).
        size: side of the square to resize it to, by area averaging; None keeps its size.
        crop: resize the middle square instead of stretching the whole image.

    Raises:
        UserError: it is not an image, is damaged, or has more pixels than Pillow allows, or floating-point pixels.
    """
    with _opened(picture) as image:
        image = require("PIL.ImageOps", "vision").exif_transpose(image)
        image = _eight_bits(image, picture.name).convert("RGB" if channels == 3 else "L")
        if size is not None:
            box = require("PIL.Image", "vision").Resampling.BOX
            fit = require("PIL.ImageOps", "vision").fit
            image = fit(image, (size, size), box) if crop else image.resize((size, size), box)
        pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


class SizesDifferError(UserError):
    """Images differ in size, and none was given that all are brought to."""


def one_size(pictures: Sequence[Picture], headers: Sequence[Header]) -> tuple[int, int]:
    """Height and width that all images share.

    Raises:
        SizesDifferError: they differ; names two of them.
    """
    height, width, _ = headers[0]
    for picture, one in zip(pictures, headers, strict=True):
        if (one.height, one.width) != (height, width):
            raise SizesDifferError(
                f"{picture.name} is {one.width}×{one.height} pixels and {pictures[0].name} {width}×{height}: give the "
                "size that all images are brought to"
            )
    return height, width


@contextmanager
def _opened(picture: Picture) -> Iterator[Any]:
    """Open an image; any of Pillow's exceptions for a damaged image becomes one error that names it."""
    pillow = require("PIL.Image", "vision")
    content = picture.content if isinstance(picture.content, Path) else BytesIO(picture.content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, but not about size:
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(content, formats=FORMATS) as image:
                yield image
    except UserError:
        raise
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise UserError(f"{picture.name}: too large an image: {error}") from error
    except _DAMAGE as error:
        raise UserError(f"{picture.name}: not an image, or a damaged one ({error})") from error


def _eight_bits(image: Any, name: str) -> Any:
    """The image with at most 8 bits per channel; Pillow itself would clip 16 bits to white."""
    if image.mode == "F":
        raise UserError(f"{name}: its pixels are floating-point numbers; save it with 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise UserError(f"{name}: its pixels go from {pixels.min()} to {pixels.max()}; save it with 8 or 16 bits")
    if image.mode == "I" and pixels.max() <= 255:  # 8 bits in a 32-bit file
        return require("PIL.Image", "vision").fromarray(pixels.astype(np.uint8))
    return require("PIL.Image", "vision").fromarray(((pixels + 128) // 257).astype(np.uint8))
