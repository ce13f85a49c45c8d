"""Images of a study: read, subset, split, and augment reproducibly.

Every random choice is a function of (data seed) or of (run seed, epoch, sample), never of the order in which loaders
happen to ask: a resumed run sees the same pixels as an uninterrupted one.
"""

import inspect
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from retarget.errors import UserError
from retarget.extras import require
from retarget.pskd.studies.images.networks import build
from retarget.pskd.studies.images.settings import Settings
from retarget.settings import resolve_settings
from retarget.study.config import StudyPlan

Place = tuple[int, int]  # (epoch, sample)


@dataclass(frozen=True)
class Images:
    """A labelled set: pixels in memory, or files that are read when asked for.

    Attributes:
        pixels: [N, C, H, W] uint8, or None where ``files`` gives the images.
        labels: [N] int64.
        files: a torchvision ``ImageFolder``-like data set without transform.
    """

    pixels: Tensor | None
    labels: Tensor
    num_classes: int
    files: Any = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: np.ndarray) -> "Images":
        """These samples, in this order."""
        at = torch.from_numpy(np.asarray(index, dtype=np.int64))
        files = None if self.files is None else torch.utils.data.Subset(self.files, at.tolist())
        return replace(
            self, pixels=None if self.pixels is None else self.pixels[at], labels=self.labels[at], files=files
        )


def read(spec: str, root: str) -> tuple[Images, Images | None]:
    """Training and test images of a data set.

    Args:
        spec: ``digits`` (scikit-learn's, embedded) | ``torchvision:NAME`` | ``folder:DIR`` with ``train/`` and
            ``test/`` or ``val/`` of class folders | ``npz:FILE`` with uint8 images [N, H, W(, C)] and labels under
            ``x_train``, ``y_train``, ``x_test``, ``y_test`` or ``images``, ``labels`` | ``hf:DIR``, a data set that
            ``datasets.save_to_disk`` wrote, with features ``image`` or ``img`` and ``label``.
        root: where torchvision keeps its data.

    Returns:
        The test set is None where the source has none; then a fifth of the images is set apart for it.

    Raises:
        UserError: the source does not exist or is not laid out as said; names it and what was found.
    """
    kind, _, name = spec.partition(":")
    readers = {"npz": _npz, "folder": _folder, "hf": _hf}
    if spec == "digits":
        digits = require("sklearn.datasets", "vision").load_digits()
        return _from_arrays(np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target, spec), None
    if kind == "torchvision" and name:
        return _torchvision(name, root)
    if kind in readers and name:
        if not Path(name).exists():
            raise UserError(f"dataset {spec!r}: {name} does not exist")
        return readers[kind](Path(name))
    raise UserError(f"dataset {spec!r} is none of digits, torchvision:NAME, folder:DIR, npz:FILE, hf:DIR")


@dataclass(frozen=True)
class Split:
    """The parts of a study's data; ``clean_labels`` are the training labels before noise."""

    train: Images
    validation: Images
    test: Images
    clean_labels: Tensor


def split(settings: Settings) -> Split:
    """Read, subset and split as the settings say. Label noise strikes the training part alone; the validation part
    is a small trusted one, as the literature on noisy labels has it."""
    train, test = read(settings.dataset, settings.root)
    rng = np.random.default_rng(settings.data_seed)
    if test is None:
        rest, apart = _stratified(train.labels.numpy(), len(train) // 5, rng)
        train, test = train.subset(rest), train.subset(apart)
    if settings.train_images and settings.train_images < len(train):
        train = train.subset(_stratified(train.labels.numpy(), settings.train_images, rng)[1])
    elif settings.train_images and settings.train_images > len(train):
        raise UserError(f"train_images = {settings.train_images}, but {settings.dataset} has {len(train)}")
    if settings.test_images and settings.test_images < len(test):
        test = test.subset(_stratified(test.labels.numpy(), settings.test_images, rng)[1])
    if settings.validation_images >= len(train):
        raise UserError(f"validation_images = {settings.validation_images} of {len(train)} leave nothing to train on")
    if len(train) - settings.validation_images < settings.batch_size:
        raise UserError(
            f"{len(train) - settings.validation_images} training images do not fill a batch of "
            f"{settings.batch_size}: set batch_size lower"
        )
    if len(test) and int(test.labels.max()) >= train.num_classes:
        raise UserError(
            f"{settings.dataset}: the test set has the label {int(test.labels.max())}, and the training set only "
            f"the labels 0 to {train.num_classes - 1}"
        )
    rest, apart = _stratified(train.labels.numpy(), settings.validation_images, rng)
    kept, validation = train.subset(rest), train.subset(apart)
    clean = kept.labels
    return Split(
        replace(kept, labels=_noisy(clean, train.num_classes, settings.label_noise, rng)), validation, test, clean
    )


def prepare(plan: StudyPlan) -> None:
    """Read the data once before any run starts, so that a data set that cannot be used is said once and at once."""
    for module in ("lightning.pytorch", "torchvision"):
        require(module, "vision")
    model = cast(type[Settings], plan.settings_model)
    for condition in plan.conditions:
        settings = resolve_settings(model, {**plan.settings, **condition.settings})
        parts = split(settings)
        channels = 3 if parts.train.pixels is None else parts.train.pixels.shape[1]
        build(settings.network, parts.train.num_classes, channels)


class TrainingSet(Dataset):
    """Samples by place (epoch, sample): augmented pixels [C, H, W] float32, label and index.

    Whole batches are fetched at once (``__getitems__``); the loader's ``collate_fn`` is :func:`whole_batch`.
    """

    def __init__(self, images: Images, normalise: "Normalise", augmentation: str, seed: int) -> None:
        self.images, self.normalise, self.augmentation, self.seed = images, normalise, augmentation, seed
        if images.pixels is None and augmentation in ("crop_flip", "trivial"):
            raise UserError(f"augmentation {augmentation} is for images in memory; images from files take 'imagenet'")

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, places: list[Place]) -> list[Tensor]:
        index = torch.tensor([sample for _, sample in places])
        if self.images.pixels is None:
            pixels = torch.stack([self._file(epoch, sample) for epoch, sample in places])
        else:
            pixels = self.images.pixels[index]
            if self.augmentation in ("crop_flip", "trivial"):
                pixels = crop_flip(pixels, index, len(self), self.seed, places[0][0])
            if self.augmentation == "trivial":
                pixels = self._trivial(pixels, places)
        return [self.normalise(pixels), self.images.labels[index], index]

    def _trivial(self, pixels: Tensor, places: list[Place]) -> Tensor:
        """TrivialAugmentWide, one draw a sample from (seed, epoch, sample)."""
        change = require("torchvision.transforms.v2", "vision").TrivialAugmentWide()
        changed = []
        with torch.random.fork_rng(devices=[]):
            for image, (epoch, sample) in zip(pixels, places, strict=True):
                torch.manual_seed(stream(self.seed, epoch, sample))
                changed.append(change(image))
        return torch.stack(changed)

    def _file(self, epoch: int, sample: int) -> Tensor:
        image, _ = self.images.files[sample]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(self.seed, epoch, sample))
            return _file_transform(self.augmentation == "imagenet")(image)


class Normalise:
    """uint8 pixels [N, C, H, W] to float32 with the training set's channel means and deviations."""

    def __init__(self, images: Images) -> None:
        if images.pixels is None:  # ImageNet's, for images from files
            self.mean, self.std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        else:
            self.std, self.mean = torch.std_mean(images.pixels.float() / 255, dim=(0, 2, 3))
        self.scale = (1 / (255 * self.std))[:, None, None]
        self.shift = (-self.mean / self.std)[:, None, None]

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.float() * self.scale + self.shift


class EpochSampler(DistributedSampler):
    """A shuffle that depends on (seed, epoch) alone and tells the data set the epoch."""

    def __iter__(self) -> Iterator[Place]:  # type: ignore[override]
        for sample in super().__iter__():
            yield self.epoch, sample


def crop_flip(pixels: Tensor, index: Tensor, num_samples: int, seed: int, epoch: int, padding: int = 4) -> Tensor:
    """Random crop after zero padding and random horizontal flip, one draw a sample from (seed, epoch, sample)."""
    rng = np.random.default_rng([seed, epoch])
    draws = torch.from_numpy(rng.integers(0, [2 * padding + 1, 2 * padding + 1, 2], size=(num_samples, 3)))[index]
    _, _, height, width = pixels.shape
    padded = torch.nn.functional.pad(pixels, (padding,) * 4)
    rows = draws[:, :1] + torch.arange(height)
    columns = torch.arange(width).expand(len(pixels), -1)
    columns = torch.where(draws[:, 2:] == 1, columns.flip(1), columns) + draws[:, 1:2]
    sample = torch.arange(len(pixels))[:, None, None]
    return padded.movedim(1, -1)[sample, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def whole_batch(batch: list[Tensor]) -> list[Tensor]:
    """The batch as the data set made it."""
    return batch


def stream(*parts: int) -> int:
    """A seed below 2^63 for a random stream named by whole numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def _stratified(labels: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Positions split into (the others, ``count`` of them with each class in proportion), each sorted."""
    order = rng.permutation(len(labels))
    rank_in_class = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank_in_class[members] = (np.arange(len(members)) + rng.random()) / len(members)
    by_rank = np.argsort(rank_in_class, kind="stable")
    return np.sort(by_rank[count:]), np.sort(by_rank[:count])


def _noisy(labels: Tensor, num_classes: int, share: float, rng: np.random.Generator) -> Tensor:
    """Labels of which ``share`` are replaced by another class, uniformly."""
    wrong = rng.permutation(len(labels))[: round(share * len(labels))]
    noisy = labels.clone()
    shift = torch.from_numpy(rng.integers(1, num_classes, size=len(wrong)))
    noisy[wrong] = (labels[wrong] + shift) % num_classes
    return noisy


def _from_arrays(pixels: np.ndarray, labels: np.ndarray, where: str, num_classes: int | None = None) -> Images:
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or len(pixels) != len(labels):
        raise UserError(f"{where}: images are uint8 [N, H, W] or [N, H, W, C], one label each: got {pixels.dtype} "
                        f"{list(pixels.shape)} and {len(labels)} labels")  # fmt: skip
    labels = np.asarray(labels).astype(np.int64)
    if len(labels) == 0 or labels.min() < 0:
        raise UserError(f"{where}: there are no images, or a label is negative")
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    return Images(tensor, torch.from_numpy(labels), num_classes or int(labels.max()) + 1)


def _npz(path: Path) -> tuple[Images, Images | None]:
    try:
        with zipfile.ZipFile(path):
            pass  # numpy would take a pickle or a single array for what they are, whatever their name
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise UserError(f"{path} is not an .npz file of plain arrays ({error}); pickles are never read") from error
    if {"x_train", "y_train", "x_test", "y_test"} <= set(arrays):
        train = _from_arrays(arrays["x_train"], arrays["y_train"], str(path))
        return train, _from_arrays(arrays["x_test"], arrays["y_test"], str(path), train.num_classes)
    if {"images", "labels"} <= set(arrays):
        return _from_arrays(arrays["images"], arrays["labels"], str(path)), None
    raise UserError(f"{path} has {sorted(arrays)}; it needs images and labels, or x_train, y_train, x_test, y_test")


def _torchvision(name: str, root: str) -> tuple[Images, Images | None]:
    datasets = require("torchvision.datasets", "vision")
    if not hasattr(datasets, name):
        raise UserError(f"torchvision has no data set {name!r}")
    parts = []
    for train in (True, False):
        try:
            part = _part(getattr(datasets, name), root, train)
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"torchvision could not give {name} from {root!r} ({error}). Without a network put its files there, "
                "or name a local copy: dataset = 'npz:FILE', 'folder:DIR' or 'hf:DIR'"
            ) from error
        labels, pixels = getattr(part, "targets", getattr(part, "labels", None)), getattr(part, "data", None)
        if labels is None or pixels is None:
            raise UserError(f"torchvision's {name} does not hold its images in memory: give them as 'folder:DIR'")
        pixels = np.asarray(pixels)
        if pixels.ndim == 4 and pixels.shape[1] in (1, 3) and pixels.shape[3] not in (1, 3):
            pixels = pixels.transpose(0, 2, 3, 1)  # SVHN and STL10 hold channels first
        parts.append(_from_arrays(pixels, np.asarray(labels), name))
    return parts[0], parts[1]


def _part(kind: Any, root: str, train: bool) -> Any:
    """A torchvision data set's training or test part: some take ``train``, others ``split``."""
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


def _folder(path: Path) -> tuple[Images, Images | None]:
    datasets = require("torchvision.datasets", "vision")
    held_out = next((path / part for part in ("test", "val") if (path / part).is_dir()), None)
    if not (path / "train").is_dir() or held_out is None:
        raise UserError(f"{path} needs the folders train and test (or val), with a folder a class in each")
    found = [datasets.ImageFolder(part) for part in (path / "train", held_out)]
    if found[0].classes != found[1].classes:
        raise UserError(f"{path}: train has the classes {found[0].classes}, {held_out.name} {found[1].classes}")
    parts = [Images(None, torch.tensor(one.targets), len(one.classes), one) for one in found]
    return parts[0], parts[1]


def _hf(path: Path) -> tuple[Images, Images | None]:
    loaded = require("datasets", "text").load_from_disk(str(path))
    parts = loaded if isinstance(loaded, dict) else {"train": loaded}
    if "train" not in parts:
        raise UserError(f"{path} has the splits {sorted(parts)}, and no train")
    held_out = next((name for name in ("test", "validation") if name in parts), None)
    images = {}
    for name in ("train", held_out) if held_out else ("train",):
        part = parts[name]
        key = next((k for k in ("image", "img") if k in part.column_names), None)
        if key is None or "label" not in part.column_names:
            raise UserError(f"{path}: split {name} has {part.column_names}; it needs image or img, and label")
        pixels = np.stack([np.asarray(image) for image in part[key]])
        images[name] = _from_arrays(pixels, np.asarray(part["label"]), f"{path}, split {name}")
    return images["train"], images[held_out] if held_out else None


def _file_transform(train: bool) -> Any:
    """ImageNet's transforms of the official configuration, to uint8; the lighting noise is left out."""
    v2 = require("torchvision.transforms.v2", "vision")
    if train:
        steps = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4)]
    else:
        steps = [v2.Resize(256), v2.CenterCrop(224)]
    return v2.Compose([v2.RGB(), v2.PILToTensor(), *steps])
