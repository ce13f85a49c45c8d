"""Find, measure and decode image files, in formats that need no other program."""

import logging
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retarget.errors import UserError
from retarget.extras import require

_LOG = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that Pillow may detect by content, and AVIF where it can; others would start programs such as Ghostscript."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_OTHER_SUFFIXES = (".avif", ".heic", ".heif", ".jp2", ".jxl", ".dcm", ".svg")
TWELVE_BITS = 4095
"""If the 16-bit images of a part have no larger value, they were not made to be scaled as 16 bits."""

_ORIENTATION = 0x0112
_GREY = ("1", "L", "LA", "La", "I", "F")
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError,
           RuntimeError, struct.error, zlib.error)  # fmt: skip


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
    wide: bool = False
    """Its pixels have 16 or 32 bits."""
    turned: bool = False
    """Its EXIF data turn it by 90 degrees: as stored it is ``width`` pixels high."""


def find(folder: Path) -> list[Picture]:
    """The image files below a folder, by suffix, in the order of their names; hidden ones are skipped.

    Files without a suffix are not read, and logged.

    Raises:
        UserError: there are images of formats that cannot be read here.
    """
    shown = [
        path
        for path in _below(folder)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts) and path.is_file()
    ]
    files = sorted(path for path in shown if is_picture(path))
    if plain := sorted(path for path in shown if not path.suffix):
        _LOG.warning("%s: %d files have no suffix such as .png and are not read, such as %s",
                     folder, len(plain), plain[0].name)  # fmt: skip
    unread = [path for path in files if path.suffix.lower() not in SUFFIXES]
    if unread and _avif():
        unread = [path for path in unread if path.suffix.lower() != ".avif"]
    if unread:
        suffixes = ", ".join(sorted({path.suffix for path in unread}))
        raise UserError(
            f"{unread[0]}: images of this format are not read, and {len(unread)} of the {len(files)} images in "
            f"{folder} have such a format ({suffixes}): convert them to PNG, or move them out of the folder"
        )
    return [Picture(str(path), path) for path in files]


def is_picture(path: Path) -> bool:
    """Whether a file is an image by its suffix, and not hidden."""
    return path.suffix.lower() in (*SUFFIXES, *_OTHER_SUFFIXES) and not path.name.startswith(".")


@cache
def _avif() -> bool:
    """Whether the installed Pillow reads AVIF: from 11.3 on, if it was built with it."""
    features = require("PIL.features", "vision")
    return "avif" in features.modules and bool(features.check("avif"))


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
        wide = _is_wide(image)
        grey = image.mode in _GREY or wide
        # Pillow has already turned the size of a TIFF file.
        lying = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
        height, width = (image.width, image.height) if lying else (image.height, image.width)
        return Header(height, width, grey, wide, lying)


def decode(picture: Picture, channels: int, size: int | None = None, crop: bool = False) -> np.ndarray:
    """The pixels of one image, uint8 [channels, H, W].

    A photograph is rotated as its EXIF data say. Transparency is dropped, CMYK and palettes become RGB, 16 bits become
    8 (65535 becomes 255, in every image), and of an animation the first frame is used.

    Args:
        picture: the encoded image.
        channels: 1 (grey) or 3 (RGB).
        size: side of the square to resize it to, bilinearly and antialiased, as arrays are; None keeps its size.
        crop: resize the middle square instead of stretching the whole image.

    Raises:
        UserError: it is not an image, is damaged, or has more pixels than Pillow allows, or floating-point pixels, or
            values that do not fit 16 bits, or only one colour apart from its transparency.
    """
    return _decoded(picture, channels, size, crop)[0]


def decode_all(
    pictures: Sequence[Picture], channels: int, size: int | None = None, crop: bool = False
) -> Iterator[np.ndarray]:
    """As :func:`decode`, for each image of one part of a dataset, whose images have one scale.

    Raises:
        UserError: also after the last image, if those of 16 or 32 bits use only a part of 16 bits: as 12-bit images in
            16-bit files do, they would become almost black.
    """
    largest, where = 0, ""
    for picture in pictures:
        pixels, value = _decoded(picture, channels, size, crop)
        if value > largest:
            largest, where = value, picture.name
        yield pixels
    if 0 < largest <= TWELVE_BITS:
        raise UserError(
            f"{where}: its pixels have 16 or 32 bits but go only to {largest}, and no such image beside it goes "
            "further: save the images with 8 bits per channel, from 0 to 255"
        )


def _decoded(picture: Picture, channels: int, size: int | None, crop: bool) -> tuple[np.ndarray, int]:
    """The pixels of one image, and its largest value before it became 8 bits; 0 if it had at most 8."""
    with _opened(picture) as image:
        colour_of_16 = not _is_wide(image) and any(";16" in str(tile) for tile in image.tile)
        image = require("PIL.ImageOps", "vision").exif_transpose(image)
        image, largest = _eight_bits(image, picture.name)
        if colour_of_16:  # Pillow keeps the upper eight bits; an opaque alpha is no bright colour
            colours = image.convert("RGB") if "A" in image.getbands() else image
            if kept := int(np.asarray(colours).max()):
                largest = kept << 8 | 255
        image = _opaque(image, picture.name).convert("RGB" if channels == 3 else "L")
        if size is not None:
            if crop:
                side = min(image.size)
                left, top = ((length - side) // 2 for length in image.size)
                image = image.crop((left, top, left + side, top + side))
            image = image.resize((size, size), require("PIL.Image", "vision").Resampling.BILINEAR)
        pixels = np.array(image)
    return (pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)), largest


def _opaque(image: Any, name: str) -> Any:
    """The image, unless it shows one colour without its transparency, which is dropped."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    *colours, alpha = image.convert("RGBA").getextrema()
    if alpha[0] < alpha[1] and all(low == high for low, high in colours):
        raise UserError(
            f"{name}: it shows something only by its transparency, which is dropped: save it on a background"
        )
    return image


class SizesDifferError(UserError):
    """Images differ in size, and none was given that all are brought to; ``what`` says which two differ."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: give the size that all images are brought to")
        self.what = what

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.what,)


def one_size(pictures: Sequence[Picture], headers: Sequence[Header]) -> tuple[int, int]:
    """Height and width that all images share.

    Raises:
        SizesDifferError: they differ; names two of them.
    """
    height, width = headers[0].height, headers[0].width
    for picture, one in zip(pictures, headers, strict=True):
        if (one.height, one.width) != (height, width):
            raise SizesDifferError(
                f"{picture.name} is {one.width}×{one.height} pixels and {pictures[0].name} {width}×{height}"
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
            with pillow.open(content, formats=(*FORMATS, "AVIF") if _avif() else FORMATS) as image:
                yield image
    except UserError:
        raise
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise UserError(f"{picture.name}: too large an image: {error}") from error
    except _DAMAGE as error:
        raise UserError(f"{picture.name}: not an image, or a damaged one ({error})") from error


def _is_wide(image: Any) -> bool:
    return image.mode == "I" or image.mode.startswith("I;16")


def _eight_bits(image: Any, name: str) -> tuple[Any, int]:
    """The image with at most 8 bits per channel, and its largest value if it had more; Pillow would clip it to white.

    The scale does not depend on the values: images of one dataset stay comparable.
    """
    if image.mode == "F":
        raise UserError(f"{name}: its pixels are floating-point numbers; save it with 8 or 16 bits")
    if not _is_wide(image):
        return image, 0
    pixels = np.asarray(image).astype(np.int64)
    largest = int(pixels.max())
    if pixels.min() < 0 or largest > 65535:
        raise UserError(f"{name}: its pixels go from {pixels.min()} to {largest}; save it with 8 or 16 bits")
    return require("PIL.Image", "vision").fromarray(((pixels + 128) // 257).astype(np.uint8)), largest
