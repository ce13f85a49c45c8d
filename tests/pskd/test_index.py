"""The index through datasets of every kind."""

from typing import NamedTuple

import datasets
import pytest
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from torch.utils.data import DataLoader, Subset, TensorDataset

from retarget.errors import UserError
from retarget.pskd import with_index
from retarget.pskd.index import KeepIndex


def test_the_index_is_the_place_in_the_wrapped_dataset():
    subset = Subset(TensorDataset(torch.arange(10) * 10), [7, 2, 5])
    (x, index), *_ = DataLoader(with_index(subset), batch_size=3)
    assert x.tolist() == [70, 20, 50]
    assert index.tolist() == [0, 1, 2]


class Sample(NamedTuple):
    image: torch.Tensor
    label: int


@pytest.mark.parametrize("workers", [0, 1])
def test_a_named_tuple_keeps_its_names(workers):
    data = with_index([Sample(torch.ones(2) * i, i % 2) for i in range(4)])
    for batch in DataLoader(data, batch_size=4, num_workers=workers):
        assert batch.image[:, 0].tolist() == [0, 1, 2, 3]
        assert (batch.label.tolist(), batch.index.tolist()) == ([0, 1, 0, 1], [0, 1, 2, 3])
        assert batch[-1] is batch.index
    with pytest.raises(UserError, match='already have a key "index"'):
        with_index([data[0]])[0]


def test_a_batch_is_fetched_at_once_where_the_dataset_can():
    calls = []

    class Table:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            raise AssertionError("one by one")

        def __getitems__(self, indices):
            calls.append(indices)
            return [{"x": 10 * i} for i in indices]

    (batch,) = DataLoader(with_index(Table()), batch_size=4)
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert len(calls) == 1
    hub = with_index(datasets.Dataset.from_dict({"x": [5, 6, 7]}))
    assert hub.__getitems__([2, 0]) == [{"x": 7, "index": 2}, {"x": 5, "index": 0}]


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        path = tmp_path / str(i % 2) / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(path)
    (tmp_path / "0" / "2.png").write_bytes(b"damaged")
    return tmp_path


def test_timms_substitute_for_an_unreadable_image_comes_with_its_own_index(folder):
    plain = create_dataset("folder", str(folder))
    wrapped = with_index(plain)
    damaged = next(i for i in range(6) if plain.filename(i).endswith("2.png"))
    image, label, index = wrapped[damaged]
    assert index == damaged + 1
    assert label == plain[damaged + 1][1]
    assert image.getpixel((0, 0)) == plain[damaged + 1][0].getpixel((0, 0))
    assert len(plain[0]) == 2, "the caller's dataset is left as it was"


def test_timms_loader_hands_the_index_on_and_its_transform_reaches_the_images(folder):
    loader = create_loader(
        with_index(create_dataset("folder", str(folder))), input_size=(3, 8, 8), batch_size=2, is_training=True,
        no_aug=True, use_prefetcher=False, num_workers=0, persistent_workers=False, device=torch.device("cpu"),
    )  # fmt: skip
    batches = list(loader)
    assert all(x.shape[1:] == (3, 8, 8) and len(y) == len(index) for x, y, index in batches)
    assert set(torch.cat([index for _, _, index in batches]).tolist()) == {0, 2, 3, 4, 5}


def test_an_index_of_the_samples_own_is_not_overwritten():
    with pytest.raises(UserError, match="already have a key"):
        with_index([{"index": 3}])[0]


def test_with_index_keeps_the_sample_and_adds_its_place():
    pairs = with_index([("a", 0), ("b", 1)])
    assert (len(pairs), pairs[1]) == (2, ("b", 1, 1))
    assert with_index([{"text": "a"}])[0] == {"text": "a", "index": 0}
    with pytest.raises(UserError, match='already have a key "index"'):
        with_index([{"index": 3}])[0]
    with pytest.raises(UserError, match="a sample must be a tuple or a mapping: sample 0 is a int"):
        with_index([5])[0]
    with pytest.raises(UserError, match="no stable index"):
        with_index(iter([1]))


@pytest.mark.parametrize(
    ("collator", "given"),
    [(lambda rows: (torch.zeros(2),), "a tuple"), (lambda rows: {"input_ids": rows}, "input_ids")],
)
def test_a_batch_without_labels_is_told_by_what_the_collator_returned(collator, given):
    with pytest.raises(UserError, match=f"needs labels: the collator returned only {given}$"):
        KeepIndex(collator)([{"x": 1, "index": 0}, {"x": 2, "index": 1}])
