"""Images with boxes: VOC and COCO from local paths, or digits composed into scenes; checked and augmented reproducibly.

Boxes are x1, y1, x2, y2 in pixels, read from VOC's files unchanged (as in torchvision). Classes count from 1;
0 is the background. Every random choice is a function of the data seed, or of (run seed, epoch, image).
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as v2f

from retarget.data.pictures import Picture, header
from retarget.data.splits import stratified
from retarget.errors import UserError
from retarget.pskd.studies.detection.annotations import Described, read_coco, read_voc, refuse_repeated
from retarget.pskd.studies.detection.settings import Settings
from retarget.pskd.studies.images.data import Place, stream

_LOG = logging.getLogger(__name__)

DIGIT_SHARES = (0.6, 0.15, 0.25)  # of the digits, for training, validation and test scenes


@dataclass(frozen=True)
class Scene:
    """One image with its objects.

    Attributes:
        name: the file that describes it, for messages.
        image: uint8 [3, H, W], or the file to read it from.
        size: (H, W) in pixels.
        boxes: [n, 4] float32, inside the image and of positive area.
        labels: [n] int64, from 1.
        ignored: [n] bool, VOC's difficult and COCO's crowd objects: not trained on, and neither a hit nor a miss.
    """

    name: str
    image: Tensor | Path
    size: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    ignored: Tensor

    def pixels(self) -> Tensor:
        """The image, uint8 [3, H, W]. A photograph is turned as its EXIF data say, unless its annotation's size is that
        of the photograph as it was stored.

        Raises:
            UserError: the file cannot be read, or its size differs from its annotation.
        """
        if isinstance(self.image, Tensor):
            return self.image
        try:
            pixels = decode_image(str(self.image), ImageReadMode.RGB, apply_exif_orientation=True)
            if tuple(pixels.shape[1:]) != self.size:
                pixels = decode_image(str(self.image), ImageReadMode.RGB)
        except RuntimeError as error:
            raise UserError(f"{self.image} cannot be read as an image: {error}") from error
        if pixels.dtype == torch.uint16:
            pixels = (pixels.int() // 257).to(torch.uint8)
        if tuple(pixels.shape[1:]) != self.size:
            raise UserError(f"{self.image} is {list(pixels.shape[1:])} pixels (height, width), but {self.name} says "
                            f"{list(self.size)}")  # fmt: skip
        return pixels


@dataclass(frozen=True)
class Parts:
    """The parts of a study's data.

    Attributes:
        classes: names of the classes 1, 2, ...
        dropped: one message per box that was left out or clipped, with its file.
        others: how many objects each class has that the setting ``classes`` leaves out.
    """

    classes: tuple[str, ...]
    train: list[Scene]
    validation: list[Scene]
    test: list[Scene]
    dropped: tuple[str, ...] = ()
    others: dict[str, int] = field(default_factory=dict)


def scenes(settings: Settings) -> Parts:
    """The data that the settings name.

    Args:
        settings: ``dataset`` is ``digits`` | ``voc:DIR`` (or ``voc:DIR+DIR``) with JPEGImages, Annotations and
            ImageSets/Main/SPLIT.txt | ``coco:DIR`` with annotations/instances_SPLIT.json and the images in SPLIT.

    Raises:
        UserError: a file is missing or damaged, an image is in two parts or twice in one, no training image has a class
            of another part and ``classes`` is not set, or (``bad_boxes = "refuse"``) a box has no area or lies outside
            its image; the message names the files.
    """
    kind, _, where = settings.dataset.partition(":")
    if kind == "digits":
        return _digit_parts(settings)
    roots = [Path(one) for one in where.split("+")]
    for root in roots:
        if not root.is_dir():
            raise UserError(f"dataset {settings.dataset!r}: {root} is not a directory; set dataset=voc:DIR or coco:DIR")
    read = read_voc if kind == "voc" else read_coco
    splits = ("train_split", "validation_split", "test_split")
    names = [settings.train_split, settings.validation_split, settings.test_split]
    described = [[one for root in roots for one in read(root, name)] if name else [] for name in names]
    for name, part in zip(names, described, strict=True):
        if name and not part:
            raise UserError(
                f"{settings.dataset} has no split {name!r}: set train_split, validation_split or test_split"
            )
    refuse_repeated([(f"{split} = {name!r}", part) for split, name, part in zip(splits, names, described, strict=True)])
    classes = tuple(settings.classes or sorted({label for one in described[0] for label, _, _ in one.objects}))
    others = _left_out([one for part in described for one in part], classes, bool(settings.classes))
    notes: list[str] = []
    refuse = settings.bad_boxes == "refuse"
    train, validation, test = ([_checked(one, classes, notes) for one in part] for part in described)
    if refuse and notes:
        more = f" and {len(notes) - 5} more" if len(notes) > 5 else ""
        raise UserError(f"{'; '.join(notes[:5])}{more}: correct the files, or set bad_boxes = 'drop'")
    rng = np.random.default_rng(settings.data_seed)
    if not names[1]:
        held_out = settings.validation_images or 0
        if not 0 < held_out < len(train):
            raise UserError(
                f"validation_images = {settings.validation_images}, but there are {len(train)} training images: "
                "without a validation_split these are held out of the training images, and some must remain"
            )
        apart = set(rng.permutation(len(train))[:held_out].tolist())
        validation = [one for i, one in enumerate(train) if i in apart]
        train = [one for i, one in enumerate(train) if i not in apart]
    wanted = (settings.train_images, settings.validation_images, settings.test_images)
    chosen = [_some(part, number, rng) for part, number in zip((train, validation, test), wanted, strict=True)]
    return Parts(classes, *chosen, dropped=tuple(notes), others=others)


def check_sizes(parts: Parts) -> None:
    """Raise UserError if an image file has another size than its annotation says, as shown or as stored."""
    for scene in (*parts.train, *parts.validation, *parts.test):
        if isinstance(scene.image, Path):
            _check_size(scene.image, scene.size, scene.name)


def _check_size(image: Path, size: tuple[int, int], name: str) -> None:
    found = header(Picture(str(image), image))
    height, width = found.height, found.width
    if size != (height, width) and not (found.turned and size == (width, height)):
        swapped = ": its width and height are swapped" if size == (width, height) else ""
        raise UserError(f"{image} is {width}×{height} pixels, but {name} says {size[1]}×{size[0]}{swapped}")


def check(settings: Settings) -> Parts:
    """The data, which are read once to report unusable ones before any run starts."""
    parts = scenes(settings)
    if parts.dropped:
        _LOG.warning("%s: %d boxes are left out or cut to their image, the first: %s",
                     settings.dataset, len(parts.dropped), parts.dropped[0])  # fmt: skip
    if parts.others:
        most, number = next(iter(parts.others.items()))
        _LOG.warning("%s: %d objects of other classes than those in classes are left out, %d of them %s",
                     settings.dataset, sum(parts.others.values()), number, most)  # fmt: skip
    for name, part in (("training", parts.train), ("validation", parts.validation), ("test", parts.test)):
        if not any((~one.ignored).any() for one in part):
            raise UserError(f"{settings.dataset}: the {name} part has no objects")
    if len(parts.train) < settings.batch_size:
        raise UserError(f"{len(parts.train)} training images do not fill a batch of {settings.batch_size}")
    seen = {int(label) for one in parts.train for label in one.labels[~one.ignored]}
    if missing := [name for label, name in enumerate(parts.classes, 1) if label not in seen]:
        kept = json.dumps([name for name in parts.classes if name not in missing], ensure_ascii=False)
        raise UserError(
            f"{settings.dataset}: no training image has an object of the class {missing[0]} (difficult and crowd "
            f"objects do not count): add some, or leave the class out with classes={kept}"
        )
    return parts


def check_crops(settings: Settings, parts: Parts) -> None:
    """Raise UserError if crops of the training objects cannot train the classifier with these settings."""
    chosen, objects = settings.pretrain, sum(int((~one.ignored).sum()) for one in parts.train)
    if len(parts.classes) < 2:
        raise UserError(
            f"a classifier of crops needs two classes, but there is only {', '.join(parts.classes)}: set "
            "pretrain.dataset to other images, or run the arm no_pretraining alone"
        )
    if chosen.images and chosen.images > objects:
        raise UserError(
            f"pretrain.images = {chosen.images}, but there are only {objects} training objects to crop: set "
            "pretrain.images=null, or lower"
        )
    crops = chosen.images or objects
    left = crops - chosen.validation_images
    if left < chosen.batch_size:
        advice, fewer = [], max(crops // 5, 1)
        if fewer < chosen.validation_images:
            advice.append(f"pretrain.validation_images={fewer}")
        if (most := max(left, crops - fewer)) < chosen.batch_size:
            advice.append(f"pretrain.batch_size={most}, or lower")
        raise UserError(
            f"pretrain.validation_images = {chosen.validation_images} of {crops} crops of training objects leave "
            f"{max(left, 0)} to train the classifier on, which do not fill a batch (pretrain.batch_size = "
            f"{chosen.batch_size}): set {' and '.join(advice)}"
        )


class DetectionSet(Dataset):
    """Images by (epoch, image): float32 [3, H, W] in [0, 1], and torchvision's target with the keys that PS-KD needs.

    A target has ``boxes`` [n, 4], ``labels`` [n], ``image_id`` (the index in the dataset), ``object_id`` [n] (each
    object's index in the image, which does not change when an augmentation drops others) and ``ignored`` [n]. A
    training target has no ignored objects.
    """

    def __init__(self, scenes: list[Scene], settings: Settings, seed: int | None = None) -> None:
        """With ``seed`` images are augmented and ignored objects left out; without it both are unchanged."""
        self.scenes, self.seed = scenes, seed
        shortest, longest = settings.min_size, settings.max_size
        resize = v2.Resize(shortest if shortest < longest else None, max_size=longest)
        flip = [v2.RandomHorizontalFlip()] if seed is not None and settings.augmentation == "flip" else []
        self.transform = v2.Compose([resize, *flip, v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()])

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def objects(self) -> list[int]:
        """Number of training objects in each image, which have rows in PS-KD's table."""
        return [int((~one.ignored).sum()) for one in self.scenes]

    def __getitem__(self, place: Place) -> tuple[Tensor, dict[str, Tensor]]:
        epoch, sample = place
        scene = self.scenes[sample]
        keep = torch.ones_like(scene.ignored) if self.seed is None else ~scene.ignored
        boxes: Any = tv_tensors.BoundingBoxes(scene.boxes[keep], format="XYXY", canvas_size=scene.size)  # type: ignore[call-overload]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(self.seed or 0, epoch, sample))
            image, boxes = self.transform(tv_tensors.Image(scene.pixels()), boxes)
        target = {
            "boxes": boxes, "labels": scene.labels[keep], "ignored": scene.ignored[keep],
            "image_id": torch.tensor(sample), "object_id": torch.arange(int(keep.sum())),
        }  # fmt: skip
        return image, target


def collate(batch: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images and targets as lists, as torchvision's detectors take them."""
    return [image for image, _ in batch], [target for _, target in batch]


def crops(scenes: Iterable[Scene], size: int, margin: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Every object that is not ignored, cut out with a margin on each side and resized to a square.

    Returns:
        uint8 [N, size, size, 3] and labels [N] from 0, as ``npz:FILE`` of a classification study holds them.
    """
    images, labels = [], []
    for scene in scenes:
        pixels = scene.pixels()
        for box, label in zip(scene.boxes[~scene.ignored], scene.labels[~scene.ignored], strict=True):
            side = box[2:] - box[:2]
            grown = torch.cat([box[:2] - margin * side, box[2:] + margin * side]).round().int().tolist()
            left, top = max(grown[0], 0), max(grown[1], 0)
            right, bottom = min(max(grown[2], left + 1), scene.size[1]), min(max(grown[3], top + 1), scene.size[0])
            cut = v2f.resized_crop(pixels, top, left, bottom - top, right - left, [size, size], antialias=True)
            images.append(cut.permute(1, 2, 0).numpy())
            labels.append(int(label) - 1)
    return np.stack(images), np.asarray(labels)


# -- digits composed into scenes


def _digit_parts(settings: Settings) -> Parts:
    """Scenes of scikit-learn's digits; the digits are split first, so none appears in two parts."""
    digits: Any = load_digits()
    images, labels = torch.from_numpy(digits.images).float() / 16, digits.target
    rng = np.random.default_rng(settings.data_seed)
    rest, of_test = stratified(labels, round(DIGIT_SHARES[2] * len(labels)), rng)
    of_train, of_validation = stratified(labels[rest], round(DIGIT_SHARES[1] * len(labels)), rng)
    parts = []
    for name, chosen, number in (
        ("train", rest[of_train], settings.train_images),
        ("validation", rest[of_validation], settings.validation_images),
        ("test", of_test, settings.test_images),
    ):
        made = compose(images[chosen], labels[chosen], number or 100, settings.min_size, rng)
        parts.append([replace(scene, name=f"{name} scene {i}") for i, scene in enumerate(made)])
    return Parts(tuple("0123456789"), *parts)


def compose(images: Tensor, labels: np.ndarray, number: int, size: int, rng: np.random.Generator) -> Iterator[Scene]:
    """Scenes of 2 to 5 coloured digits on an uneven, noisy background.

    Args:
        images: [N, 8, 8], ink in [0, 1].
        labels: [N] from 0.
        number: how many scenes to make.
        size: side of a scene in pixels; a digit takes a fifth to two fifths of it.
    """
    for _ in range(number):
        coarse = torch.from_numpy(rng.normal(rng.uniform(0.2, 0.8), 0.12, (1, 3, 4, 4))).float()
        canvas = F.interpolate(coarse, (size, size), mode="bilinear", align_corners=True)[0]
        boxes: list[list[int]] = []
        chosen: list[int] = []
        for at in rng.integers(len(images), size=rng.integers(2, 6)).tolist():
            side = int(rng.integers(size // 5, 2 * size // 5 + 1))
            ink = F.interpolate(images[at][None, None], (side, side), mode="bilinear", align_corners=True)[0, 0]
            rows, columns = (torch.nonzero((ink > 0.25).any(axis))[:, 0] for axis in (1, 0))
            ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            height, width = ink.shape
            for _ in range(20):
                left, top = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
                if all(left >= b[2] or top >= b[3] or left + width <= b[0] or top + height <= b[1] for b in boxes):
                    break
            else:
                continue  # no room
            under = canvas[:, top : top + height, left : left + width]
            shade = 0.0 if under.mean() > 0.5 else 0.7
            colour = torch.from_numpy(rng.uniform(shade, shade + 0.3, 3)).float()[:, None, None]
            under.copy_(under * (1 - ink) + colour * ink)
            boxes.append([left, top, left + width, top + height])
            chosen.append(at)
        canvas += 0.06 * torch.from_numpy(rng.standard_normal((3, size, size))).float()
        found = torch.tensor(boxes, dtype=torch.float32)
        classes = torch.from_numpy(labels[chosen]).long() + 1
        pixels = (255 * canvas.clamp(0, 1)).round().to(torch.uint8)
        yield Scene("scene", pixels, (size, size), found, classes, torch.zeros(len(classes), dtype=torch.bool))


# -- images in files


def _left_out(described: Iterable[Described], classes: tuple[str, ...], chosen: bool) -> dict[str, int]:
    """How many objects each other class has, the most frequent first; an error unless the user chose the classes."""
    found: Counter[str] = Counter()
    for one in described:
        for place, (label, _, _) in enumerate(one.objects):
            if label in classes:
                continue
            if not chosen:
                raise UserError(
                    f"{one.name}: object {place} has the class {label!r}, which is not one of {', '.join(classes)}, "
                    "those of the training part: to leave such objects out, set "
                    f"classes={json.dumps(classes, ensure_ascii=False)}"
                )
            found[label] += 1
    return dict(found.most_common())


def _checked(described: Described, classes: tuple[str, ...], notes: list[str]) -> Scene:
    """Clip boxes to the image and leave out those without an area; each gets a note. Other classes are left out.

    Raises:
        UserError: a coordinate is not finite, or a box is bad because the image file has another size than described.
    """
    name, size = described.name, described.size
    places = [place for place, (label, _, _) in enumerate(described.objects) if label in classes]
    objects = [described.objects[place] for place in places]
    labels = [classes.index(label) + 1 for label, _, _ in objects]
    raw = torch.tensor([list(box) for _, box, _ in objects], dtype=torch.float32).reshape(-1, 4)
    if not raw.isfinite().all():
        raise UserError(f"{name}: a box has a coordinate that is not finite: {raw[~raw.isfinite().all(1)][0].tolist()}")
    clamped: Any = v2f.clamp_bounding_boxes(tv_tensors.BoundingBoxes(raw, format="XYXY", canvas_size=size))  # type: ignore[call-overload]
    boxes = clamped.as_subclass(Tensor)
    valid = (boxes[:, 2:] > boxes[:, :2]).all(1)  # however thin
    cut = valid & (boxes != raw).any(1)
    if cut.any() or not valid.all():
        _check_size(described.image, size, name)
    for row in (~valid).nonzero()[:, 0].tolist():
        turned = bool((raw[row, 2:] <= raw[row, :2]).any())
        what = "has no area" if turned else "lies outside the image"
        notes.append(f"{name}: box {places[row]}, {raw[row].tolist()}, {what}")
    for row in cut.nonzero()[:, 0].tolist():
        notes.append(f"{name}: box {places[row]}, {raw[row].tolist()}, reaches beyond the image of {list(size)}")
    ignored = torch.tensor([flag for _, _, flag in objects], dtype=torch.bool)
    return Scene(
        name, described.image, size, boxes[valid], torch.tensor(labels, dtype=torch.long)[valid], ignored[valid]
    )


def _some(part: list[Scene], number: int | None, rng: np.random.Generator) -> list[Scene]:
    """At most ``number`` of the images, drawn at random, in their order."""
    if number is None or number >= len(part):
        return part
    return [part[i] for i in np.sort(rng.permutation(len(part))[:number]).tolist()]
