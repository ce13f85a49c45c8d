"""The sample's index through the loader: what PS-KD keys its rows by."""

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from retarget.errors import UserError


class with_index(Dataset):
    """A dataset that also gives each sample's index.

    ``(image, label)`` becomes ``(image, label, index)``; a mapping gains the key ``"index"``. The index is the place
    in the wrapped dataset: wrap before a sampler, not after a shuffle that changes from epoch to epoch.

    >>> with_index([("image", 3)])[0]
    ('image', 3, 0)
    """

    def __init__(self, dataset: Any) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise UserError("an iterable dataset has no stable sample index; give the index yourself, or PreviousModel")
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return _indexed(self.dataset[index], index)

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """A whole batch, fetched at once where the dataset can (Hugging Face ``datasets``, ``Subset``)."""
        if hasattr(self.dataset, "__getitems__"):
            items = self.dataset.__getitems__(indices)
        else:
            items = [self.dataset[index] for index in indices]
        return [_indexed(item, index) for item, index in zip(items, indices, strict=True)]


def _indexed(item: Any, index: int) -> Any:
    if isinstance(item, Mapping):
        if "index" in item:
            raise UserError('the samples already have a key "index"; rename it, or use it as it is')
        return {**item, "index": index}
    if isinstance(item, tuple | list):
        return (*item, index)
    raise UserError(f"a sample is a tuple or a mapping: got {type(item).__name__} for index {index}")
