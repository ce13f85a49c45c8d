"""The sample's index through the loader: what PS-KD keys its rows by."""

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from retarget.errors import UserError


class with_index(Dataset):
    """A dataset that also gives each sample's index.

    ``(image, label)`` becomes ``(image, label, index)``; a mapping gains the key ``"index"``. The index is the place
    in the wrapped dataset: wrap before a sampler, not after a shuffle that changes from epoch to epoch.

    timm's ``ImageDataset`` gives another sample where it cannot read the one that was asked for; the index is then of
    the sample that it gave. Its loader must be made with ``use_prefetcher=False``, which keeps what follows the label.

    >>> with_index([("image", 3)])[0]
    ('image', 3, 0)
    """

    def __init__(self, dataset: Any) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise UserError("an iterable dataset has no stable sample index; give the index yourself, or PreviousModel")
        self._reads_index = hasattr(dataset, "reader") and hasattr(dataset, "additional_features")  # timm
        if self._reads_index:
            dataset = copy(dataset)
            dataset.reader = _IndexingReader(dataset.reader)
            dataset.additional_features = (*(dataset.additional_features or ()), "index")
        self.dataset = dataset

    @property
    def transform(self) -> Any:
        """The wrapped dataset's, which loaders such as timm's set from outside."""
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
        """A whole batch, fetched at once where the dataset can (Hugging Face ``datasets``, ``Subset``)."""
        if self._reads_index or not hasattr(self.dataset, "__getitems__"):
            return [self[index] for index in indices]
        items = self.dataset.__getitems__(indices)
        return [_indexed(item, index) for item, index in zip(items, indices, strict=True)]


def _indexed(item: Any, index: int) -> Any:
    if isinstance(item, Mapping):
        if "index" in item:
            raise UserError('the samples already have a key "index"; rename it, or use it as it is')
        return {**item, "index": index}
    if isinstance(item, tuple | list):
        return (*item, index)
    raise UserError(f"a sample is a tuple or a mapping: got {type(item).__name__} for index {index}")


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
    """The caller's collator, around which the index is carried."""

    def __init__(self, collator: Callable) -> None:
        self.collator = collator

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        index = torch.tensor([feature["index"] for feature in features])
        rest = [{name: value for name, value in one.items() if name != "index"} for one in features]
        batch = self.collator(rest)
        if "labels" not in batch:
            raise UserError(f"a training batch needs labels: the collator made {', '.join(batch)}")
        if len(batch["labels"]) != len(index):
            raise UserError(
                f"the collator made {len(batch['labels'])} rows of {len(index)} samples: packing leaves no sample "
                "whose targets could be remembered; store=PreviousModel() remembers none"
            )
        batch["index"] = index
        return batch
