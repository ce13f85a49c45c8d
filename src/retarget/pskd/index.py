"""Carry each sample's index through the loader: PS-KD stores its rows by it."""

from collections import namedtuple
from collections.abc import Callable, Mapping
from copy import copy
from functools import cache
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from retarget.errors import UserError


class with_index(Dataset):
    """A dataset that also gives each sample's index.

    ``(image, label)`` becomes ``(image, label, index)``; a mapping gains the key ``"index"``, a named tuple a field of
    this name. The index counts samples of the wrapped dataset: wrap the dataset itself, not one that is shuffled
    differently in each epoch. To train on several datasets wrap them together, ``with_index(ConcatDataset([a, b]))``:
    if each is wrapped alone, their indices coincide, and a sample of one shares its row with a sample of the other.

    If timm's ``ImageDataset`` cannot read a sample it returns another one; the index is then that of the sample
    returned. Make timm's loader with ``use_prefetcher=False``: its prefetcher drops whatever follows the label.

    >>> with_index([("image", 3)])[0]
    ('image', 3, 0)
    """

    def __init__(self, dataset: Any) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise UserError("an iterable dataset has no stable index: pass one yourself, or use PreviousModel(model)")
        self._reads_index = hasattr(dataset, "reader") and hasattr(dataset, "additional_features")  # timm
        if self._reads_index:
            dataset = copy(dataset)
            dataset.reader = _IndexingReader(dataset.reader)
            dataset.additional_features = (*(dataset.additional_features or ()), "index")
        self.dataset = dataset

    @property
    def transform(self) -> Any:
        """The wrapped dataset's transform, which loaders such as timm's set from outside."""
        return getattr(self.dataset, "transform", None)

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.dataset.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        return item if self._reads_index else _indexed(item, index)

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """A whole batch, fetched at once if the dataset can do so (Hugging Face ``datasets``, ``Subset``)."""
        if self._reads_index or not hasattr(self.dataset, "__getitems__"):
            return [self[index] for index in indices]
        items = self.dataset.__getitems__(indices)
        return [_indexed(item, index) for item, index in zip(items, indices, strict=True)]


@cache
def _named(name: str, fields: tuple[str, ...]) -> Any:
    """A type of named tuples with one more field, which loaders and their processes can make again."""
    made = namedtuple(name, (*fields, "index"))
    made.__reduce__ = lambda self: (_renamed, (name, fields, *self))
    return made


def _renamed(name: str, fields: tuple[str, ...], *values: Any) -> Any:
    return _named(name, fields)(*values)


def _indexed(item: Any, index: int) -> Any:
    fields: Any = getattr(item, "_fields", None)
    if isinstance(item, Mapping) or fields:
        if "index" in (fields or item):
            raise UserError(
                'the samples already have a key "index", which with_index and the trainers add: rename it; if it is '
                "the sample's number, a loop of your own can use it without with_index"
            )
        return _named(type(item).__name__, fields)(*item, index) if fields else {**item, "index": index}
    if isinstance(item, tuple | list):
        return (*item, index)
    raise UserError(f"a sample must be a tuple or a mapping: sample {index} is a {type(item).__name__}")


def indexed(dataset: Any, without_columns: Callable[[Any], Any]) -> with_index:
    """The Hugging Face trainer's dataset with an index.

    Args:
        without_columns: removes the columns that the model does not take, so that they are not decoded.

    Raises:
        UserError: it has no stable index.
    """
    if isinstance(dataset, with_index):
        return dataset
    if dataset is None:
        raise UserError("the trainer has no train_dataset: pass one to train on")
    if isinstance(dataset, IterableDataset):
        raise UserError(
            "an iterable dataset has neither stable indices nor countable epochs: pass one with __getitem__, or "
            "use store=PreviousModel(), which needs neither"
        )
    if hasattr(dataset, "column_names") and hasattr(dataset, "remove_columns"):
        dataset = without_columns(dataset)
    return with_index(dataset)


class _IndexingReader:
    """A timm reader that gives each sample's index as its last feature."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Any:
        return (*self.reader[index], index)

    def filename(self, *args: Any, **kwargs: Any) -> str:
        return self.reader.filename(*args, **kwargs)

    def filenames(self, *args: Any, **kwargs: Any) -> list[str]:
        return self.reader.filenames(*args, **kwargs)


class KeepIndex:
    """Wraps the caller's collator and carries the index past it."""

    def __init__(self, collator: Callable) -> None:
        self.collator = collator

    def __call__(self, features: list[Any]) -> Any:
        if features and isinstance(features[0], tuple):
            index, rest = [one[-1] for one in features], [one[:-1] for one in features]
        else:
            index = [feature["index"] for feature in features]
            rest = [{name: value for name, value in one.items() if name != "index"} for one in features]
        index = torch.tensor(index)
        batch = self.collator(rest)
        if "labels" not in batch:
            _refuse_texts(rest)
            names = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
            raise UserError(f"a training batch needs labels: the collator returned only {names}")
        if len(batch["labels"]) != len(index):
            raise UserError(
                f"the collator made {len(batch['labels'])} rows of {len(index)} samples, so the targets cannot be "
                "stored per sample: if it leaves samples out, filter the dataset instead; if it packs them, use "
                "store=PreviousModel(), which stores none"
            )
        batch["index"] = index
        return batch


def _refuse_texts(features: list[Any]) -> None:
    """Raise if the labels are texts, which the library's collator leaves out without a word."""
    for feature in features:
        label = next((feature[name] for name in ("label", "labels") if name in feature), None)
        if isinstance(label, str):
            raise UserError(f"a training batch needs labels that are class numbers: one is the text {label!r}")
