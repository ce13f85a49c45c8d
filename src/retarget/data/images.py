"""The reader of labelled images for every study: notation, layouts and checks of a dataset."""

import inspect
import logging
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from retarget.data.folders import parts_among, read_folder, warn_of_unused
from retarget.data.labels import class_labels
from retarget.data.names import parse
from retarget.data.parts import Part, Source
from retarget.data.pictures import Picture, decode, decode_all, header, one_size
from retarget.errors import UserError
from retarget.extras import require
from retarget.files import is_there
from retarget.own import called

_LOG = logging.getLogger(__name__)

DARKEST = 31
"""If no pixel of a part is brighter, its values were not made to be read as 0 to 255: sklearn's digits go to 16."""


def read(spec: str, root: str = "data", extra: str = "vision") -> Source:
    """Read a dataset by its name.

    Args:
        spec: ``digits`` (scikit-learn's, 8×8, embedded) | ``torchvision:NAME`` | ``npz:FILE`` with uint8 images
            [N, H, W] or [N, H, W, C] and labels under ``x_train``, ``y_train`` (and ``x_test``, ``y_test``, and
            ``x_val``, ``y_val``) or ``images``, ``labels`` | ``folder:DIR`` with one folder of images per class, or
            with ``train``, ``test`` and ``val`` (``valid``, ...) that have these | ``hf:DIR``, a dataset that
            ``datasets.save_to_disk`` wrote, with ``image`` or ``img`` and ``label``, and splits of the same names |
            ``module:function``, a function without arguments that returns such arrays by name, the pair of images and
            labels, or a :class:`Source`. Of two parts, the second is the test part, whatever its name.
        root: folder of torchvision's datasets; missing ones are downloaded.
        extra: the extra of this package to name if a library is missing.

    Raises:
        UserError: the source does not exist or has another layout; the message tells what was found.
    """
    kind, name = parse(spec)
    if kind == "digits":
        digits = require("sklearn.datasets", extra).load_digits()
        pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
        return Source(tuple("0123456789"), _from_arrays(pixels, digits.target, spec))
    if kind == "torchvision":
        return _torchvision(name, root, extra)
    if kind == "own":
        return _own(spec)
    if not is_there(name):
        raise UserError(f"dataset {spec!r}: {name} does not exist")
    return _READERS[kind](Path(name))


def shape_of(parts: Sequence[Part], size: int | None = None) -> tuple[int, int, int]:
    """Channels (for files 1 if every image is grey, else 3), height and width of all images.

    Args:
        parts: parts of one dataset; files are opened one after the other, but their pixels are not decoded.
        size: side of the square that images are resized to.

    Raises:
        UserError: the images differ in size and none is given, the parts differ, or a file is not an image.
    """
    pictures = [picture for part in parts for picture in part.pictures]
    shapes = {tuple(part.pixels.shape[1:]) for part in parts if part.pixels is not None}
    if pictures:
        headers = [header(picture) for picture in pictures]
        side = one_size(pictures, headers) if size is None else (size, size)
        shapes.add((1 if all(one.grey for one in headers) else 3, *side))
    if len({shape if size is None else shape[0] for shape in shapes}) > 1:
        raise UserError(f"the parts have images of different shapes: {' and '.join(map(str, sorted(shapes)))}")
    channels, height, width = shapes.pop()
    return (channels, height, width) if size is None else (channels, size, size)


def pixels_of(
    part: Part, channels: int, size: int | None = None, crop: bool = False
) -> UInt8[Tensor, "count channels height width"]:
    """All images of a part in memory; files are decoded.

    Args:
        part: images of one shape, or of any if ``size`` is given.
        channels: for files, 1 or 3.
        size: side of the square to resize them to; None keeps their size.
        crop: resize the middle square instead of stretching the whole image.

    Raises:
        UserError: a file is damaged, or of another size than the first, or all 16-bit files use only 12 bits or fewer.
    """
    if part.pixels is not None:
        pixels = part.pixels
        if size is not None:
            pixels = resized(_middle(pixels) if crop else pixels, size)
        return pixels
    first = decode(part.pictures[0], channels, size, crop)
    pixels = torch.empty(len(part), *first.shape, dtype=torch.uint8)
    for row, one in enumerate(decode_all(part.pictures, channels, size, crop)):
        if one.shape != first.shape:
            pair = (part.pictures[0], part.pictures[row])
            one_size(pair, (header(pair[0]), header(pair[1])))
        pixels[row] = torch.from_numpy(one)
    return pixels


def _middle(
    pixels: UInt8[Tensor, "count channels height width"],
) -> UInt8[Tensor, "count channels side side"]:
    height, width = pixels.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[:, :, top : top + side, left : left + side]


def resized(
    pixels: UInt8[Tensor, "count channels height width"], size: int
) -> UInt8[Tensor, "count channels {size} {size}"]:
    """Resize images in memory to a square by antialiased interpolation."""
    if pixels.shape[2:] == (size, size):
        return pixels
    interpolate = torch.nn.functional.interpolate
    out = torch.empty(*pixels.shape[:2], size, size, dtype=torch.uint8)
    for rows in torch.arange(len(pixels)).split(4096):  # all of them as floats may not fit in memory
        one = interpolate(pixels[rows].float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
        out[rows] = one.round().clamp(0, 255).to(torch.uint8)
    return out


def _from_arrays(pixels: np.ndarray, labels: Any, where: str, classes: int | None = None) -> Part:
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        remedy = _as_bytes(pixels) if pixels.ndim in (3, 4) else ""
        raise UserError(f"{where}: images are uint8 [N, H, W] or [N, H, W, C]: got {pixels.dtype} "
                        f"{list(pixels.shape)}{remedy}")  # fmt: skip
    if pixels.ndim == 4 and pixels.shape[1] in (1, 3) and pixels.shape[3] > 4:
        raise UserError(f"{where}: images of shape {list(pixels.shape)} have their channels first; give [N, H, W, C]")
    if pixels.ndim == 4 and pixels.shape[2] == pixels.shape[3] != pixels.shape[1]:
        raise UserError(
            f"{where}: images of shape {list(pixels.shape)} seem to have their channels first; give [N, H, W, C], or "
            "read them with module:function"
        )
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    labels = class_labels(labels, where, classes)
    if len(pixels) != len(labels):
        raise UserError(
            f"{where}: {len(pixels)} images {list(pixels.shape)} and {len(labels)} labels; give one label per image"
        )
    if 0 in pixels.shape:
        raise UserError(f"{where}: images of shape {list(pixels.shape)} have no pixel")
    return Part(torch.from_numpy(labels), torch.from_numpy(np.ascontiguousarray(pixels)))


def _as_bytes(pixels: np.ndarray) -> str:
    """How to make pixels of another type uint8, as far as their values tell; empty if they do not."""
    if pixels.dtype.kind not in "fiub" or pixels.size == 0 or not np.isfinite(pixels).all() or pixels.min() < 0:
        return ""
    largest = float(pixels.max())
    scaled = {"f": largest <= 1, "b": True}.get(pixels.dtype.kind, False)
    factor = "255 * x" if scaled else "x" if DARKEST < largest <= 255 else f"255 / {largest:g} * x" if largest else "x"
    kind = {"f": "floats", "b": "truth values"}.get(pixels.dtype.kind, "integers")
    return f"; from {kind} up to {largest:g}: numpy.round({factor}).astype('uint8')"


def _numbered(part: Part) -> tuple[str, ...]:
    return tuple(str(label) for label in range(int(part.labels.max()) + 1))


def _npz(path: Path) -> Source:
    try:
        with zipfile.ZipFile(path):
            pass  # numpy recognises a pickle or a single array by content, whatever the file's name
        with np.load(path, allow_pickle=False) as file:
            parts = _npz_parts(path, file.files)
            arrays = [[file[name] for name in part] for part in parts]
    except UserError:
        raise
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, KeyError, NotImplementedError, RuntimeError,
            MemoryError) as error:  # fmt: skip
        raise UserError(f"{path} is not an .npz file of plain arrays ({error}); pickles are never read") from error
    return _from_parts(path, parts, arrays)


def _from_parts(where: Path | str, parts: list[tuple[str, str]], arrays: list[list[np.ndarray]]) -> Source:
    """Make a source from the arrays (images, labels) of a training part and of the others that there are."""
    train = _from_arrays(arrays[0][0], arrays[0][1], f"{where}, {' and '.join(parts[0])}")
    names = _numbered(train)
    others = [
        _from_arrays(one[0], one[1], f"{where}, {' and '.join(part)}", len(names))
        for part, one in zip(parts[1:], arrays[1:], strict=True)
    ]
    held_out = (parts[1][0] if len(parts) > 1 else "x_test") if parts[0][0] == "x_train" else ""
    return Source.of(names, train, others, held_out)


def _own(spec: str) -> Source:
    """Read what a user's function returns."""
    where = f"dataset = {spec!r}"
    found = called(spec, "dataset")
    if isinstance(found, Source):
        return found
    if isinstance(found, tuple) and len(found) == 2:
        found = {"images": found[0], "labels": found[1]}
    if not isinstance(found, Mapping):
        raise UserError(
            f"{where} gave a {type(found).__name__}: it gives arrays by name (images and labels; or x_train, y_train, "
            "x_test and y_test), the pair of images and labels, or a retarget.data.parts.Source"
        )
    parts = _npz_parts(where, [str(name) for name in found])
    return _from_parts(where, parts, [[_array(where, name, found[name]) for name in part] for part in parts])


def _array(where: str, name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # images of several sizes, a tensor on a GPU
        raise UserError(
            f"{where} gave {name} that make no array ({error}): give images of one size, and one number per label"
        ) from error


_OTHERS = (("x_test", "y_test"), ("x_val", "y_val"))
_HELD_OUT = {"x_test": "test|eval|holdout", "x_val": "val|valid|validation|dev"}
"""How the names of arrays call the other parts: a word of its own, or at an end next to x, y, images, labels."""


def _says(name: str, part: str) -> bool:
    """Whether an array's name says that it belongs to a held-out part.

    >>> [_says(name, "x_test") for name in ("y_test_coarse", "Xtest", "testX", "is_test", "contest", "latest_id")]
    [True, True, True, True, False, False]
    """
    of = "x|y|images?|labels?"
    return bool(re.search(rf"(?:^|_)(?:{of})?(?:{_HELD_OUT[part]})(?:{of})?(?:_|$)", name.lower()))


def _npz_parts(path: Path | str, names: list[str]) -> list[tuple[str, str]]:
    """Names of the arrays (images, labels) of the training part and, if there are any, of test and validation."""
    holds = f"it holds {', '.join(sorted(names)) or 'nothing'}"
    for images, labels in (("x_train", "y_train"), *_OTHERS, ("images", "labels")):
        if (images in names) != (labels in names):
            there, missing = (images, labels) if images in names else (labels, images)
            remedy = ": add them, all 0 if there are no classes" if missing == labels else ""
            raise UserError(f"{path} has {there} and no {missing}{remedy}; {holds}")
    parts: list[tuple[str, str]] = []
    if "x_train" in names:
        parts = [("x_train", "y_train"), *(part for part in _OTHERS if part[0] in names)]
    elif "images" in names:
        parts = [("images", "labels")]
    unused = sorted(set(names) - {name for part in parts for name in part})
    unread = set(_HELD_OUT).difference(*parts) if parts else ()
    if like := [name for name in unused if parts and (name == "split" or any(_says(name, one) for one in unread))]:
        raise UserError(
            f"{path}: {', '.join(like)} would not be used: call the parts x_train, y_train, x_test, y_test, x_val and "
            "y_val, or leave these out"
        )
    if parts and unused:
        _LOG.warning("%s: not used: %s", path, ", ".join(unused))
    if parts:
        return parts
    raise UserError(
        f"{path} needs images and labels, or x_train and y_train (and x_test and y_test, and x_val and y_val); {holds}"
    )


def _torchvision(name: str, root: str, extra: str) -> Source:
    datasets = require("torchvision.datasets", extra)
    kind = getattr(datasets, name, None)
    if not isinstance(kind, type):
        raise UserError(f"torchvision has no data set {name!r}")
    parts: list[Part] = []
    names: tuple[str, ...] = ()
    for train in (True, False):
        try:
            found = _torchvision_part(kind, root, train)
        except UserError:
            raise
        except (ValueError, TypeError) as error:
            raise UserError(f"torchvision's {name} cannot be read here ({error}): give it as 'folder:DIR'") from error
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"torchvision could not give {name} from {root!r} ({error}). Without a network put its files there, "
                "or name a local copy: dataset = 'npz:FILE', 'folder:DIR' or 'hf:DIR'"
            ) from error
        labels, pixels = getattr(found, "targets", getattr(found, "labels", None)), getattr(found, "data", None)
        if labels is None or pixels is None:
            raise UserError(f"torchvision's {name} does not hold its images in memory: give them as 'folder:DIR'")
        pixels = np.asarray(pixels)
        if pixels.ndim == 4 and pixels.shape[1] in (1, 3) and pixels.shape[3] not in (1, 3):
            pixels = pixels.transpose(0, 2, 3, 1)  # SVHN and STL10 hold channels first
        parts.append(_from_arrays(pixels, np.asarray(labels), name, len(names) or None))
        if train:
            names = _numbered(parts[0])
            own = tuple(getattr(found, "classes", ()))
            names = own if len(own) == len(names) else names
    return Source(names, parts[0], parts[1], "test")


def _torchvision_part(kind: Any, root: str, train: bool) -> Any:
    """A torchvision dataset's training or test part: some classes take ``train``, others ``split``."""
    parameters = inspect.signature(kind).parameters
    if "train" in parameters:
        which: dict[str, Any] = {"train": train}
    elif "split" in parameters:
        which = {"split": "train" if train else "test"}
    else:
        raise UserError(f"torchvision's {kind.__name__} has no training and test part: give the images as 'folder:DIR'")
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if set(needed) - {"root", "train", "split"}:
        raise UserError(f"torchvision's {kind.__name__} needs {', '.join(needed)}: give the images as 'folder:DIR'")
    return kind(root, download=True, **which)


def _hf(path: Path) -> Source:
    datasets = require("datasets", "text")
    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, IndexError) as error:
        states = [*path.glob("state.json"), *path.glob("*/state.json")] if isinstance(error, IndexError) else []
        for empty in sorted(file.parent for file in states if not list(file.parent.glob("*.arrow"))):
            # datasets writes a split without rows, and cannot read it
            raise UserError(f"{empty} has no images: add some, or save the data set without this split") from error
        raise UserError(f"{path} is not a data set that datasets.save_to_disk wrote: {error}") from error
    parts = loaded if isinstance(loaded, dict) else {"train": loaded}
    first, others = parts_among(parts)
    if not first:
        raise UserError(f"{path} has the splits {', '.join(sorted(parts))}, and no train: rename one to train")
    others = others[:2]
    warn_of_unused(path, parts, [first, *others])
    train = _hf_part(parts[first], f"{path}, split {first}")
    names = _numbered(train)
    own = _hf_names(parts[first])
    held_out = [_hf_held_out(parts[name], own, len(names), f"{path}, split {name}") for name in others]
    return Source.of(own if len(own) == len(names) else names, train, held_out, others[0] if others else "")


def _hf_names(part: Any) -> tuple[str, ...]:
    return tuple(getattr(part.features["label"], "names", None) or ())


def _hf_held_out(part: Any, own: tuple[str, ...], classes: int, where: str) -> Part:
    """A test or validation split, with the classes numbered as in the training split, whose names are ``own``."""
    theirs = _hf_names(part) if "label" in part.column_names else ()
    if own and theirs and theirs != own:
        return _named_alike(_hf_part(part, where, len(theirs)), theirs, own, where)
    return _hf_part(part, where, classes)


def _named_alike(part: Part, theirs: Sequence[str], own: Sequence[str], where: str) -> Part:
    """The part with the classes numbered as in the training split, which names the same ones in another order."""
    used = [theirs[label] for label in sorted(set(part.labels.tolist()))]
    unknown = [name for name in used if name not in own]
    if unknown:
        raise UserError(
            f"{where} has images of the class {unknown[0]}, which is none of the training split's: {', '.join(own)}"
        )
    numbers = torch.tensor([own.index(name) if name in own else -1 for name in theirs])
    return replace(part, labels=numbers[part.labels])


def _hf_part(part: Any, where: str, classes: int | None = None) -> Part:
    image = require("datasets", "text").Image
    key = next((name for name in ("image", "img") if name in part.column_names), None)
    if key is None or "label" not in part.column_names:
        raise UserError(f"{where} has {', '.join(part.column_names)}; it needs image or img, and label")
    if not isinstance(part.features[key], image):
        return _from_arrays(np.asarray(part.with_format("numpy")[:][key]), part["label"][:], where, classes)
    rows = part.cast_column(key, image(decode=False))[key]  # decoded here, to name damaged images
    if (lost := next((row for row, one in enumerate(rows) if one is None), None)) is not None:
        raise UserError(f"{where}, row {lost} has no image: leave such rows out")
    pictures = tuple(
        Picture(f"{where}, row {row}", one["bytes"] if one["bytes"] is not None else Path(one["path"]))
        for row, one in enumerate(rows)
    )
    return Part(torch.from_numpy(class_labels(part["label"][:], where, classes)), None, pictures)


_READERS: dict[str, Callable[..., Source]] = {
    "torchvision": _torchvision,
    "npz": _npz,
    "folder": read_folder,
    "hf": _hf,
}
