"""Images of a study: read, subset, split, and augment reproducibly.

Every random choice depends only on the data seed, or on (run seed, epoch, sample), never on the order in which loaders
ask: a resumed run sees the same pixels as an uninterrupted one.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha1
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from retarget.data.images import pixels_of, read, shape_of
from retarget.data.parts import Part
from retarget.data.pictures import Picture, SizesDifferError, decode
from retarget.data.splits import stratified
from retarget.errors import UserError
from retarget.extras import require
from retarget.pskd.studies.images.settings import Settings

_LOG = logging.getLogger(__name__)

Place = tuple[int, int]  # (epoch, sample)

MEMORY = 2 * 2**30
"""Largest dataset in bytes that is decoded once and kept in memory; a larger one is decoded as it is used."""
WHOLE, VIEW = 256, 224  # ImageNet's evaluation: resize the middle square to 256, crop 224


@dataclass(frozen=True)
class Images:
    """A labelled set of images: pixels in memory, or files that are decoded when used.

    Attributes:
        pixels: [N, C, H, W] uint8; None if ``pictures`` holds the images' files, decoded to RGB.
        labels: [N] int64.
        size: side of the square that files are resized to; None keeps them as they are, all of one size.
        view: side of the centre crop in evaluation, and of a crop in training; None for the whole image.
    """

    pixels: Tensor | None
    labels: Tensor
    num_classes: int
    pictures: tuple[Picture, ...] = ()
    size: int | None = None
    view: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Number of channels: 1 or 3 for files, any number for images in memory."""
        return 3 if self.pixels is None else self.pixels.shape[1]

    def take(self, index: Tensor) -> Tensor:
        """Pixels [B, C, H, W] of some samples, all of one size."""
        if self.pixels is not None:
            return self.pixels[index]
        return torch.stack([self._decoded(i, self.size) for i in index.tolist()])

    def whole(self, sample: int) -> Tensor:
        """Pixels [C, H, W] of one sample at full size."""
        return self._decoded(sample, None) if self.pixels is None else self.pixels[sample]

    def seen(self, pixels: Tensor) -> Tensor:
        """The part of images [..., H, W] that evaluation uses."""
        if self.view is None:
            return pixels
        top, left = ((side - self.view) // 2 for side in pixels.shape[-2:])
        return pixels[..., top : top + self.view, left : left + self.view]

    def _decoded(self, sample: int, size: int | None) -> Tensor:
        return torch.from_numpy(decode(self.pictures[sample], 3, size, crop=True))


@dataclass(frozen=True)
class Split:
    """The parts of a study's data; ``clean_labels`` are the labels before noise, ``names`` the classes' names."""

    train: Images
    validation: Images
    test: Images
    clean_labels: Tensor
    names: tuple[str, ...]


def split(settings: Settings) -> Split:
    """Read, subset and split as the settings say, with the images in memory if they fit.

    Label noise affects only the training part; the validation part is a small trusted set, as usual in the literature
    on noisy labels. If the dataset has no test part, a fifth of its images becomes one; if it has a validation part
    beside its test part, validation images are taken from there and not from the training images.

    Raises:
        UserError: the dataset cannot be read or is too small for the settings, its images differ in size and no
            ``image_size`` is set, or a file is damaged.
    """
    parts, clean, names = chosen(settings)
    train, validation, test = loaded(parts, len(names), settings)
    return Split(train, validation, test, clean, names)


def described(parts: Split) -> dict[str, Any]:
    """What a page says of the data: images per part, classes, and images of one part that are also in another.

    Only images that are in memory are compared, pixel by pixel.
    """
    named = {"training": parts.train, "validation": parts.validation, "test": parts.test}
    train, validation, test = (pixel_hashes(part) for part in named.values())
    return {
        "parts": {name: len(part) for name, part in named.items()},
        "classes": len(parts.names),
        "repeated": {"validation": _shared(validation, train), "test": _shared(test, train)},
        "validation_in_test": _shared(validation, test),
        "unseen": len(_unseen(parts.test.labels, parts.clean_labels)),
        "unseen_in_validation": len(_unseen(parts.validation.labels, parts.clean_labels)),
    }


def _shared(part: list[bytes], other: list[bytes]) -> int:
    """How many images of a part are also in the other, by their hashes."""
    known = set(other)
    return sum(one in known for one in part)


def _unseen(labels: Tensor, trained: Tensor) -> list[int]:
    """Classes of a part that the training images, of labels ``trained``, lack."""
    return sorted(set(labels.tolist()) - set(trained.tolist()))


def pixel_hashes(part: Images) -> list[bytes]:
    """A hash of each image in memory."""
    return [] if part.pixels is None else [sha1(image.numpy().tobytes()).digest() for image in part.pixels]


def chosen(settings: Settings) -> tuple[list[Part], Tensor, tuple[str, ...]]:
    """The three parts before their files are decoded, the labels before noise, and the classes' names."""
    source = read(settings.dataset, settings.root)
    train, test, classes = source.train, source.test, len(source.names)
    if classes < 2:
        raise UserError(f"{settings.dataset} has only one class: there is nothing to classify")
    rng = np.random.default_rng(settings.data_seed)
    if test is None:
        rest, apart = stratified(train.labels.numpy(), len(train) // 5, rng)
        train, test = train.take(rest), train.take(apart)
    if settings.train_images and settings.train_images < len(train):
        train = train.take(stratified(train.labels.numpy(), settings.train_images, rng)[1])
    elif settings.train_images and settings.train_images > len(train):
        kept = " training images: a fifth of it is held out for the test" * (source.test is None)
        raise UserError(f"train_images = {settings.train_images}, but {settings.dataset} has only {len(train)}{kept}")
    if settings.test_images and settings.test_images < len(test):
        test = test.take(stratified(test.labels.numpy(), settings.test_images, rng)[1])
    if not len(test):
        raise UserError(f"{settings.dataset}: {len(train)} images are too few to hold out a fifth for the test")
    own = source.validation
    taken = 0 if own is not None else settings.validation_images
    if taken >= len(train):
        raise UserError(f"validation_images = {taken} of {len(train)} leave nothing to train on")
    if len(train) - taken < settings.batch_size:
        raise UserError(
            f"{len(train) - taken} training images do not fill a batch of {settings.batch_size}: set batch_size lower"
        )
    rest, apart = stratified(train.labels.numpy(), taken, rng)
    kept, validation = train.take(rest), train.take(apart)
    if own is not None:
        whole = len(own) <= settings.validation_images
        validation = own if whole else own.take(stratified(own.labels.numpy(), settings.validation_images, rng)[1])
    for name, part in (("test", test), ("validation", validation)):
        if unseen := _unseen(part.labels, kept.labels):
            _LOG.warning(
                "%s: %d of the %s images' classes have no image left to train on, such as %s, and count as "
                "wrong in every arm: set train_images higher or validation_images lower, or leave such classes out",
                settings.dataset, len(unseen), name, source.names[unseen[0]],
            )  # fmt: skip
    noisy = replace(kept, labels=_noisy(kept.labels, classes, settings.label_noise, rng))
    return [noisy, validation, test], kept.labels, source.names


def loaded(parts: list[Part], classes: int, settings: Settings) -> list[Images]:
    """The parts, with their images in memory if they fit."""
    size, view = sides(settings)
    count = sum(map(len, parts))
    if parts[0].pixels is None and size is not None and 3 * size * size * count > MEMORY:
        return [Images(None, part.labels, classes, part.pictures, size, view) for part in parts]
    try:
        channels, height, width = shape_of(parts, size)
    except SizesDifferError as error:
        raise UserError(f"{settings.dataset}: {error}; set image_size") from error
    except UserError as error:
        raise UserError(f"{settings.dataset}: {error}") from error
    if parts[0].pixels is None and channels * height * width * count > MEMORY:
        return [Images(None, part.labels, classes, part.pictures, size, view) for part in parts]
    return [
        Images(pixels_of(part, channels, size, crop=True), part.labels, classes, size=size, view=view) for part in parts
    ]


def sides(settings: Settings) -> tuple[int | None, int | None]:
    """Side of the square that images are resized to (None: not resized), and of its crop (None: not cropped)."""
    if settings.augmentation != "imagenet" or settings.image_size is None:
        return settings.image_size, None
    return round(settings.image_size * WHOLE / VIEW), settings.image_size


class TrainingSet(Dataset):
    """Samples by (epoch, sample): augmented pixels [C, H, W] float32, label and index.

    Batches are fetched whole (``__getitems__``); the loader's ``collate_fn`` is :func:`whole_batch`.
    """

    def __init__(self, images: Images, normalise: "Normalise", augmentation: str, seed: int) -> None:
        self.images, self.normalise, self.augmentation, self.seed = images, normalise, augmentation, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, places: list[Place]) -> list[Tensor]:
        index = torch.tensor([sample for _, sample in places])
        if self.augmentation == "imagenet":
            pixels = torch.stack([self._imagenet(epoch, sample) for epoch, sample in places])
        else:
            pixels = self.images.seen(self.images.take(index))
        if self.augmentation in ("crop_flip", "trivial"):
            pixels = crop_flip(pixels, index, len(self), self.seed, places[0][0])
        if self.augmentation == "trivial":
            trivial = require("torchvision.transforms.v2", "vision").TrivialAugmentWide()
            pixels = torch.stack([self._drawn(trivial, *each) for each in zip(pixels, places, strict=True)])
        return [self.normalise(pixels), self.images.labels[index], index]

    def _drawn(self, change: Any, image: Tensor, place: Place) -> Tensor:
        """Change the image with one random draw, seeded by (seed, epoch, sample)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(self.seed, *place))
            return change(image)

    def _imagenet(self, epoch: int, sample: int) -> Tensor:
        """The official configuration's augmentation for ImageNet, without the lighting noise."""
        v2 = require("torchvision.transforms.v2", "vision")
        image = self.images.whole(sample)
        side = self.images.view or tuple(image.shape[1:])
        steps = [v2.RandomResizedCrop(side), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4)]
        return self._drawn(v2.Compose(steps), image, (epoch, sample))


class Normalise:
    """Normalise uint8 pixels [N, C, H, W] to float32 by the training set's channel means and deviations."""

    def __init__(self, images: Images) -> None:
        if images.pixels is None:  # ImageNet's, for images from files
            self.mean, self.std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        else:
            self.std, self.mean = torch.std_mean(images.pixels.float() / 255, dim=(0, 2, 3))
        self.std = torch.where(self.std > 0, self.std, 1.0)  # a constant channel, such as an opaque alpha, becomes 0
        self.scale = (1 / (255 * self.std))[:, None, None]
        self.shift = (-self.mean / self.std)[:, None, None]

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.float() * self.scale + self.shift


class EpochSampler(DistributedSampler):
    """Shuffles by (seed, epoch) alone and passes the epoch to the dataset."""

    def __iter__(self) -> Iterator[Place]:  # type: ignore[override]
        for sample in super().__iter__():
            yield self.epoch, sample


def crop_flip(pixels: Tensor, index: Tensor, num_samples: int, seed: int, epoch: int, padding: int = 4) -> Tensor:
    """Random crop after zero padding and random horizontal flip, seeded per sample by (seed, epoch, sample)."""
    draws = _crops(num_samples, seed, epoch, padding)[index]
    _, _, height, width = pixels.shape
    padded = torch.nn.functional.pad(pixels, (padding,) * 4)
    rows = draws[:, :1] + torch.arange(height)
    columns = torch.arange(width).expand(len(pixels), -1)
    columns = torch.where(draws[:, 2:] == 1, columns.flip(1), columns) + draws[:, 1:2]
    sample = torch.arange(len(pixels))[:, None, None]
    return padded.movedim(1, -1)[sample, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


@lru_cache(maxsize=1)  # one draw for an epoch, not one for each of its batches: 50 ms for a million samples
def _crops(num_samples: int, seed: int, epoch: int, padding: int) -> Tensor:
    """Top, left and whether to flip, of every sample in an epoch, [N, 3]."""
    rng = np.random.default_rng([seed, epoch])
    return torch.from_numpy(rng.integers(0, [2 * padding + 1, 2 * padding + 1, 2], size=(num_samples, 3)))


def whole_batch(batch: list[Tensor]) -> list[Tensor]:
    """The batch as the dataset returned it."""
    return batch


def stream(*parts: int) -> int:
    """A seed below 2^63 for the random stream that these integers name."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def _noisy(labels: Tensor, num_classes: int, share: float, rng: np.random.Generator) -> Tensor:
    """Labels, of which ``share`` are replaced by another class, drawn uniformly."""
    wrong = rng.permutation(len(labels))[: round(share * len(labels))]
    noisy = labels.clone()
    shift = torch.from_numpy(rng.integers(1, num_classes, size=len(wrong)))
    noisy[wrong] = (labels[wrong] + shift) % num_classes
    return noisy
