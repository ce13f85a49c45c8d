"""Read the annotations of VOC and COCO from local paths: images with their objects, as the files describe them."""

import glob
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from retarget.data.pictures import Picture, header
from retarget.errors import UserError
from retarget.identity import content

_MARKED = re.compile(r"(.+?)\s+(?:-1|0|1)$")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
_TRUTH = {"0": False, "false": False, "unspecified": False, "": False, "1": True, "true": True}
"""How annotation tools write VOC's flags; ``Unspecified`` is VOC's own word for what nobody looked at."""


@dataclass(frozen=True)
class Described:
    """An image as its annotation describes it, before any check; ``objects`` are (class, box, ignored)."""

    name: str
    image: Path
    size: tuple[int, int]
    objects: Sequence[tuple[str, Sequence[float], bool]]


def read_voc(root: Path, split: str) -> list[Described]:
    """The images of ImageSets/Main/SPLIT.txt; none if there is no such file."""
    listed = root / "ImageSets" / "Main" / f"{split}.txt"
    if not listed.parent.is_dir():
        raise UserError(f"{root} is not in VOC's layout: it has no ImageSets/Main")
    if not listed.is_file():
        return []
    found = []
    for line in (line.strip() for line in listed.read_text(encoding="utf-8-sig").splitlines() if line.strip()):
        name = line
        described = root / "Annotations" / f"{name}.xml"
        if not described.is_file() and (marked := _MARKED.match(line)):  # the list of one class: NAME -1
            name = marked[1]
            described = root / "Annotations" / f"{name}.xml"
        if not described.is_file():
            raise UserError(f"{described} is missing, but {listed} lists {name}")
        image = _image_file(root / "JPEGImages", [f"{name}{suffix}" for suffix in _SUFFIXES], listed)
        try:
            tree = ElementTree.parse(described).getroot()
            _refuse_other_tags(tree)
            objects = [
                (
                    _text(one, "name"),
                    [float(_text(one, f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")],
                    _flag(one, "difficult"),
                )
                for one in tree.iter("object")
            ]
            height, width = (_whole(tree.findtext(f"size/{side}") or "0") for side in ("height", "width"))
        except (ElementTree.ParseError, ValueError) as error:
            raise UserError(f"{described} is damaged: {error}") from error
        if not (height and width):
            height, width = header(Picture(str(image), image))[:2]
        found.append(Described(str(described), image, (height, width), objects))
    _refuse_shares(
        listed,
        [box for one in found for _, box, _ in one.objects],
        "VOC's are xmin, ymin, xmax and ymax in pixels; multiply xmin and xmax by the image's width, ymin and ymax",
    )
    _refuse_sides(listed, found)
    return found


def read_coco(root: Path, split: str) -> list[Described]:
    """The images of annotations/instances_SPLIT.json."""
    described = root / "annotations" / f"instances_{split}.json"
    if not described.parent.is_dir():
        raise UserError(f"{root} is not in COCO's layout: it has no annotations/instances_SPLIT.json")
    if not described.is_file():
        return []
    try:
        held = json.loads(described.read_text(encoding="utf-8-sig"))
        if missing := [key for key in ("images", "annotations", "categories") if key not in held]:
            raise UserError(
                f"{described} has no `{missing[0]}`: every split needs images, annotations and categories; files "
                "called image_info list images without their boxes, so name a split that has boxes"
            )
        names = _category_names(described, held["categories"])
        sizes: dict[Any, tuple[int, int]] = {}
        for one in held["images"]:
            if one["id"] in sizes:
                raise UserError(f"{described}: two images have the id {one['id']}, one of them {one['file_name']}")
            sizes[one["id"]] = _size(described, one)
        objects: dict[Any, list[tuple[str, Sequence[float], bool]]] = {name: [] for name in sizes}
        given: list[tuple[Sequence[float], tuple[int, int]]] = []
        for number, one in enumerate(held["annotations"]):
            where = f"{described}: annotation {one.get('id', f'number {number}')}"
            if one.get("image_id") not in sizes:
                raise UserError(f"{where} belongs to image {one.get('image_id')}, which `images` does not list")
            category = one.get("category_id")
            if not isinstance(category, int | str) or category not in names:
                raise UserError(
                    f"{where} has category {category!r}, which `categories` does not list: its ids are "
                    f"{', '.join(map(repr, list(names)[:8]))}{', ...' * (len(names) > 8)}"
                )
            try:
                x, y, width, height = map(float, one["bbox"] if isinstance(one.get("bbox"), list) else ())
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"{where} has the bbox {one.get('bbox')}: it is [x, y, width, height], in pixels"
                ) from error
            crowd = one.get("iscrowd", 0)
            if crowd not in (0, 1, "0", "1"):
                raise UserError(f"{where} has the iscrowd {crowd!r}: it is 0 or 1")
            given.append(((x, y, width, height), sizes[one["image_id"]]))
            box = (x, y, x + width, y + height)
            objects[one["image_id"]].append((names[category], box, bool(int(crowd))))
        _refuse_shares(
            described,
            [box for found in objects.values() for _, box, _ in found],
            "COCO's are x, y, width and height in pixels; multiply x and width by the image's width, y and height",
        )
        _refuse_corners(described, given)
        return [
            Described(
                f"{described}, image {one['file_name']}",
                _image_file(root / split, (one["file_name"],), described),
                sizes[one["id"]],
                objects[one["id"]],
            )
            for one in held["images"]
        ]
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{described} is damaged: {type(error).__name__} {error}") from error


def refuse_repeated(parts: Sequence[tuple[str, Sequence[Described]]]) -> None:
    """Raise if an image file is in two parts, also as a copy, or twice in one.

    Args:
        parts: (the setting that names the split, the images of the split) of each part.

    Raises:
        UserError: names the first such file, both splits, and what to do.
    """

    def apart(first: str, second: str) -> str:
        hold_out = ", or set validation_split=null and validation_images=N to hold out N training images"
        return "name splits that share no image" + (hold_out if "validation_split" in first + second else "")

    seen: dict[Path, str] = {}
    for split, part in parts:
        for one in part:
            file = one.image.resolve()
            if seen.get(file) == split:
                raise UserError(
                    f"{one.image} is twice in {split}: list each image once, and name each directory once in dataset"
                )
            if first := seen.get(file):
                raise UserError(f"{one.image} is both in {first} and in {split}: {apart(first, split)}")
            seen[file] = split
    if found := next(_copies(seen), None):
        (one, first), (copy, split) = found
        raise UserError(f"{copy} in {split} is a copy of {one} in {first}: {apart(first, split)}")


def _copies(files: Mapping[Path, str]) -> Iterator[tuple[tuple[Path, str], tuple[Path, str]]]:
    """Pairs of files of two splits that have the same bytes; only files of one size are read."""
    by_size: dict[int, list[tuple[Path, str]]] = {}
    for file, split in files.items():
        by_size.setdefault(file.stat().st_size, []).append((file, split))
    for some in by_size.values():
        if len({split for _, split in some}) < 2:
            continue
        known: dict[str, tuple[Path, str]] = {}
        for file, split in some:
            first = known.setdefault(content(file), (file, split))
            if first[1] != split:
                yield first, (file, split)


def _category_names(described: Path, categories: Sequence[dict[str, Any]]) -> dict[Any, str]:
    """The name of each category by its id; raises if two share an id or a name."""
    names: dict[Any, str] = {}
    ids: dict[str, Any] = {}
    for one in categories:
        number, name = one["id"], str(one["name"])
        if number in names:
            raise UserError(f"{described}: the categories {names[number]!r} and {name!r} have one id, {number}")
        if name in ids:
            raise UserError(
                f"{described}: the categories {ids[name]} and {number} have one name, {name!r}: rename one, or give "
                "the annotations of both one category_id and leave the other out of categories"
            )
        names[number], ids[name] = name, number
    return names


def _refuse_shares(described: Path, boxes: Sequence[Sequence[float]], pixels: str) -> None:
    """Raise if all boxes lie within the first pixel, so that they must be shares of the image.

    Args:
        pixels: what the format's boxes are, and how to get them, up to "by its height".
    """
    if boxes and all(0 <= edge <= 1 for box in boxes for edge in box):
        raise UserError(
            f"{described}: all {len(boxes):,} boxes lie between 0 and 1, so they are shares of the image: {pixels} "
            "by its height"
        )


_ILL_FITTING = 0.2
"""Share of the boxes from which on they are taken for those of the other format, if so many do not fit as this one's
and all would as the other's."""


def _refuse_sides(listed: Path, found: Sequence[Described]) -> None:
    """Raise if many boxes end before they begin, and all would lie within their images as x, y, width, height."""
    given = [(box, one.size) for one in found for _, box, _ in one.objects]
    reversed_ = sum(right <= x or below <= y for (x, y, right, below), _ in given)
    sides = all(w > 0 < h and x + w <= of[1] and y + h <= of[0] for (x, y, w, h), of in given)
    if sides and reversed_ > _ILL_FITTING * len(given):
        raise UserError(
            f"{listed}: {reversed_:,} of {len(given):,} boxes end before they begin, and all would fit as x, y, width, "
            "height: VOC's are xmin, ymin, xmax and ymax; add xmin and ymin to xmax and ymax"
        )


def _refuse_corners(described: Path, given: Sequence[tuple[Sequence[float], tuple[int, int]]]) -> None:
    """Raise if many boxes reach beyond their images, and all would lie within them as x1, y1, x2, y2."""
    beyond = sum(x + width > of[1] or y + height > of[0] for (x, y, width, height), of in given)
    corners = all(x < right <= of[1] and y < below <= of[0] for (x, y, right, below), of in given)
    if corners and beyond > _ILL_FITTING * len(given):
        raise UserError(
            f"{described}: {beyond:,} of {len(given):,} boxes reach beyond their images, and all would fit as x1, y1, "
            "x2, y2: COCO's are x, y, width and height; subtract x1 and y1 from x2 and y2"
        )


def _image_file(folder: Path, names: Sequence[str], listed: Path) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    first = folder / names[0]
    if (folder.parent / names[0]).is_file():
        raise UserError(
            f"{first} is missing, but {listed} lists {names[0]}, and there is {folder.parent / names[0]}: image files "
            f"are named from {folder} on, so leave out what repeats it"
        )
    if others := sorted(one.name for one in first.parent.glob(f"{glob.escape(first.stem)}.*")):
        raise UserError(
            f"{first} is missing, but {listed} lists it; there is {others[0]}: convert the images to JPEG or PNG"
        )
    raise UserError(f"{first} is missing, but {listed} lists it")


def _size(described: Path, image: dict[str, Any]) -> tuple[int, int]:
    """Height and width that COCO gives for an image."""
    try:
        return int(image["height"]), int(image["width"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{described}: the image {image.get('file_name')} has the height {image.get('height')} and the width "
            f"{image.get('width')}: give both, in pixels"
        ) from error


def _whole(text: str) -> int:
    """A whole number, also as ``80.0``; 0 for an empty text."""
    number = float(text.strip() or "0")
    if not number.is_integer():
        raise ValueError(f"{text.strip()} is no whole number of pixels")
    return int(number)


def _text(element: ElementTree.Element, path: str) -> str:
    found = (element.findtext(path) or "").strip()
    if not found:
        raise ValueError(f"an object has no {path}")
    return found


def _flag(element: ElementTree.Element, path: str) -> bool:
    """A flag as annotation tools write it; False if it is missing."""
    said = element.findtext(path, "0").strip()
    word = said.lower().removesuffix(".0")
    if word not in _TRUTH:
        raise ValueError(f"an object has the {path} {said!r}: it is 0 or 1")
    return _TRUTH[word]


def _refuse_other_tags(tree: ElementTree.Element) -> None:
    """Raise ValueError for elements that VOC would call ``object``, but for a namespace or capital letters."""
    for one in tree.iter():
        if one.tag != "object" and one.tag.rsplit("}")[-1].lower() == "object":
            raise ValueError(f"it has the element {one.tag}: VOC's is called object, without a namespace")
