"""Images in folders: one per class, alone or in a training part and held-out parts."""

import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from retarget.data.parts import Part, Source
from retarget.data.pictures import FORMATS, Picture, find, is_picture
from retarget.errors import UserError

_LOG = logging.getLogger(__name__)

_HIDDEN = (".", "__MACOSX")
_TRAIN = ("train", "training")
_HELD_OUT = ("test", "testing", "val", "valid", "validation", "eval", "dev")
"""Names of parts, in any case: the first that exists is the test part, the second is for validation."""
_WORD = r"(?:tests?|testing|val|valid|validation|eval|evaluation|dev|development|(?:hold|held)[-_ ]?out|unlabell?ed)"
_MORE = rf"(?:{_WORD}|sets?|data|images?|imgs?|pictures?|photos?|part|split|stage|stg|public|private|final|[\W\d_])*"
_PART_NAME = re.compile(rf"{_MORE}{_WORD}{_MORE}", re.IGNORECASE)
"""Other names of held-out parts: test1, val2017, test_images, but not a class's such as testudo or test_tube."""
_PART_WORD = re.compile(rf"(?<![^\W\d_]){_WORD}(?![^\W\d_])", re.IGNORECASE)


def parts_among(names: Iterable[str]) -> tuple[str, list[str]]:
    """The training part's name among these (empty if there is none), and the held-out parts', the test part's first.

    >>> parts_among(["Train", "val", "test", "notes"])
    ('Train', ['test', 'val'])
    """
    found = {name.lower(): name for name in names}
    train = next((found[name] for name in _TRAIN if name in found), "")
    return train, [found[name] for name in _HELD_OUT if name in found]


def warn_of_unused(where: Path, names: Iterable[str], used: Iterable[str]) -> None:
    """Log which folders or splits beside a training part are left out."""
    if unused := sorted(set(names) - set(used)):
        _LOG.warning(
            "%s: not used: %s; beside the training part there is at most one for the test and one for validation, "
            "called one of %s",
            where, ", ".join(unused), ", ".join(_HELD_OUT),
        )  # fmt: skip


def read_folder(path: Path) -> Source:
    """The dataset in a folder, by the names of its sub-folders.

    Raises:
        UserError: it is a file, its folders seem to be parts of unknown names, a folder of a class has no image, or
            none that can be read, or a held-out part has no folder of a class, or one of a class of its own.
    """
    if not path.is_dir():
        raise UserError(f"{path} is a file, not a folder of images")
    folders = _classes(path)
    train, others = parts_among(folders)
    # A class may be called train: a folder "train" is the training part only if it has folders and none is beside it.
    alone = len(folders) == 1 and bool(train and _classes(path / train))
    if not train or not (others or alone):
        _refuse_parts_as_classes(path, folders)
        if train and len(folders) > 1:
            _refuse_training_part_as_class(path, train, [name for name in folders if name != train])
        names = _classes(path) or (".",)
        return Source(names, _folder_part(path, names))
    names = _classes(path / train) or (".",)
    if alone:
        return Source(names, _folder_part(path / train, names), held_out="test")
    parts = [_held_out_folder(path / other, names) for other in others[:2]]
    warn_of_unused(path, folders, [train, *others[:2]])
    return Source.of(names, _folder_part(path / train, names), parts, others[0])


def _refuse_parts_as_classes(path: Path, folders: tuple[str, ...]) -> None:
    """Raise UserError for folders that would be read as classes, and are parts by their names and sub-folders."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name in folders:
        if inside := _classes(path / name):
            alike.setdefault(inside, []).append(name)
    for inside, names in alike.items():
        if len(names) > 1 and any(part in name.lower() for name in names for part in ("train", "test", "valid")):
            raise UserError(
                f"{path}: its folders {', '.join(names)} have the same sub-folders ({_listed(inside)}), so they look "
                "like parts of the data and not like classes: call them train and test (and val)"
            )


def _refuse_training_part_as_class(path: Path, train: str, beside: list[str]) -> None:
    """Raise UserError if the folder "train" has folders like those of classes, or stands beside a part by its name.

    A class may be called train, such as CIFAR-100's: it has images, and beside it are classes.
    """
    inside = _classes(path / train)
    loose = any(is_picture(one) for one in (path / train).iterdir())
    named = [name for name in beside if _PART_NAME.fullmatch(name)]
    if not named and all(_PART_WORD.search(name) for name in beside):
        named = beside
    if named:
        found = f"{_listed(named)} beside it {'are' if len(named) > 1 else 'is'} named like a held-out part"
    elif inside and not loose and all(set(_classes(path / name)) <= set(inside) for name in beside):
        found = f"it has sub-folders ({_listed(inside)}), and {_listed(beside)} beside it none or only some of them"
    else:
        return
    raise UserError(
        f"{path}: its folder {train} looks like the training part and not like a class: {found}. Call the parts train "
        "and test (and val), each with one folder per class, and move images without a class out of "
        f"{path.name or path}; if {train} is a class, give its folder another name, and its images no sub-folders"
    )


def _listed(names: Sequence[str]) -> str:
    """The first four of the names."""
    return ", ".join(names[:4]) + ", ..." * (len(names) > 4)


def _held_out_folder(path: Path, names: tuple[str, ...]) -> Part:
    """The images of a test or validation part, which may lack classes."""
    if unknown := sorted(set(_classes(path)) - set(names)):
        plain = {unicodedata.normalize("NFC", name): name for name in names}
        if (twin := plain.get(unicodedata.normalize("NFC", unknown[0]))) is not None:
            raise UserError(
                f"{path / unknown[0]}: its name is that of the training images' class {twin} in another Unicode form "
                f"({unknown[0]!a}, not {twin!a}): rename the folder to the same form"
            )
        raise UserError(
            f"{path / unknown[0]}: the training images have no class of this name, only {', '.join(names)}; rename the "
            "folder, or remove it"
        )
    present = [name for name in names if (path / name).is_dir()]
    if not present:
        files = sorted(one.name for one in path.iterdir() if not one.name.startswith("."))
        there = f"only {f'{len(files)} files such as ' * (len(files) > 1)}{files[0]}" if files else "and is empty"
        classes = ", ".join(names[:8]) + f", … ({len(names)} classes)" * (len(names) > 8)
        raise UserError(f"{path} has no folder of a class, {there}: sort its images into {classes}, or remove it")
    return _folder_part(path, names, present)


def _classes(folder: Path) -> tuple[str, ...]:
    """The names of the folders in a folder, without hidden ones and what macOS adds to archives."""
    return tuple(sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith(_HIDDEN)))


def _folder_part(home: Path, names: tuple[str, ...], present: list[str] | None = None) -> Part:
    """The images from one folder per class; ``present`` lists the classes that exist, by default all."""
    pictures: list[Picture] = []
    labels: list[int] = []
    folders: dict[str, list[str]] = {}
    loose = sorted(one for one in home.iterdir() if is_picture(one) and one.is_file()) if names != (".",) else []
    if loose:
        _LOG.warning("%s: %d images beside the folders of classes are not used, such as %s",
                     home, len(loose), loose[0].name)  # fmt: skip
    for label, name in enumerate(names):
        if present is not None and name not in present:
            continue
        found = find(home / name)
        if not found:
            raise UserError(
                f"{home / name}: no PNG or JPEG file in it, nor one of {', '.join(FORMATS[2:])}; add images, or remove "
                "the folder if it is no class"
            )
        pictures += found
        labels += [label] * len(found)
        folders[name] = sorted(at.relative_to(home).as_posix() for at in {Path(one.name).parent for one in found})
    _warn_of_merged(home, folders)
    return Part(torch.tensor(labels), None, tuple(pictures))


def _warn_of_merged(home: Path, folders: dict[str, list[str]]) -> None:
    """Log the classes whose images come from several folders: these may be the classes, or masks or thumbnails."""
    several = {name: some for name, some in folders.items() if len(some) > 1}
    if not several:
        return
    merged = [one for some in several.values() for one in some]
    _LOG.warning(
        "%s: %d folders (%s) are merged into %d class%s (%s): if they are the classes, move them up one level; if some "
        "hold masks or thumbnails, move these out",
        home, len(merged), _listed(merged), len(several), "es" * (len(several) > 1), _listed(list(several)),
    )  # fmt: skip
