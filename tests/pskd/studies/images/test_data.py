"""Reading, splitting and augmenting: every source, every refusal, and independence of order."""

import numpy as np
import pytest
import torch
from PIL import Image

from retarget.errors import UserError
from retarget.pskd.studies.images.data import EpochSampler, Normalise, TrainingSet, crop_flip, prepare, read, split
from retarget.pskd.studies.images.settings import Settings
from retarget.pskd.study import plan


def demo(**more):
    return Settings.model_validate({**plan("demo").settings, **more})


def test_the_split_is_stratified_disjoint_and_the_same_every_time():
    one, two = split(demo(dataset="digits")), split(demo(dataset="digits"))
    assert torch.equal(one.train.pixels, two.train.pixels)
    assert (len(one.train), len(one.validation), len(one.test)) == (500, 200, 359)
    rows = [
        {tuple(image.flatten().tolist()) for image in part.pixels} for part in (one.train, one.validation, one.test)
    ]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert np.ptp(np.bincount(one.train.labels.numpy())) <= 4


def test_label_noise_strikes_the_training_part_alone_and_always_changes_the_class():
    noisy = split(demo(label_noise=0.2))
    assert (noisy.train.labels != noisy.clean_labels).sum() == 100
    assert torch.equal(noisy.validation.labels, split(demo()).validation.labels)


def test_a_subset_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match="train_images = 5000, but digits has 1438"):
        split(demo(train_images=5000))
    with pytest.raises(UserError, match="validation_images = 700 of 700 leave nothing"):
        split(demo(validation_images=700))


def test_npz_in_both_layouts(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
    labels = np.arange(20) % 4
    np.savez(tmp_path / "one.npz", images=images, labels=labels)
    np.savez(tmp_path / "two.npz", x_train=images, y_train=labels, x_test=images[:8], y_test=labels[:8])
    train, test = read(f"npz:{tmp_path}/one.npz", "")
    assert (tuple(train.pixels.shape), train.num_classes, test) == ((20, 3, 6, 5), 4, None)
    assert np.array_equal(train.pixels.permute(0, 2, 3, 1).numpy(), images)
    assert len(read(f"npz:{tmp_path}/two.npz", "")[1]) == 8


def test_a_file_that_only_looks_like_npz_and_a_network_that_is_not_there_are_said_before_any_run(tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"no archive at all")
    with pytest.raises(UserError, match=r"broken\.npz is not an \.npz file of plain arrays"):
        prepare(plan("demo", {"dataset": f"npz:{tmp_path}/broken.npz"}))
    np.savez(
        tmp_path / "pickled.npz", images=np.zeros((3, 4, 4), np.uint8), labels=np.array([{}, {}, {}], dtype=object)
    )
    with pytest.raises(UserError, match="pickles are never read"):
        prepare(plan("demo", {"dataset": f"npz:{tmp_path}/pickled.npz"}))
    with pytest.raises(UserError, match="no network 'resnet19'"):
        prepare(plan("demo", {"network": "resnet19"}))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(x=np.zeros(3)), r"has \['x'\]; it needs images and labels"),
        (dict(images=np.zeros((3, 4, 4)), labels=np.zeros(3)), "images are uint8 .*got float64"),
        (dict(images=np.zeros((3, 4, 4), np.uint8), labels=np.zeros(2)), r"got uint8 \[3, 4, 4\] and 2 labels"),
        (dict(images=np.zeros((3, 4, 4), np.uint8), labels=np.array([0, -1, 2])), "a label is negative"),
    ],
)
def test_npz_that_cannot_be_used(arrays, message, tmp_path):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read(f"npz:{tmp_path}/bad.npz", "")


def test_image_folders(tmp_path):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (300, 280), (i * 20, 30, 40)).save(tmp_path / part / name / f"{i}.png")
    train, test = read(f"folder:{tmp_path}", "")
    assert (len(train), len(test), train.num_classes) == (6, 6, 2)
    data = TrainingSet(train, Normalise(train), "imagenet", seed=0)
    a, b = data.__getitems__([(0, 1), (0, 2)])[0], data.__getitems__([(0, 2), (0, 1)])[0]
    assert a.shape == (2, 3, 224, 224)
    assert torch.equal(a[0], b[1]), "augmentation depends on the order of asking"
    assert not torch.equal(data.__getitems__([(1, 1)])[0][0], a[0]), "another epoch, another view"
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / "bird")
    with pytest.raises(UserError, match=r"train has the classes \['cat', 'dog'\], test \['bird', 'dog'\]"):
        read(f"folder:{tmp_path}", "")


def test_a_data_set_saved_by_the_datasets_library(tmp_path):
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"img": [Image.new("L", (8, 8), i) for i in range(4)], "label": [0, 1, 0, 1]}
    part = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=part, test=part).save_to_disk(str(tmp_path / "saved"))
    train, test = read(f"hf:{tmp_path}/saved", "")
    assert tuple(train.pixels.shape) == (4, 1, 8, 8)
    assert test.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "is none of digits, torchvision:NAME"),
        ("npz:/nowhere.npz", "/nowhere.npz does not exist"),
        ("torchvision:MINST", "torchvision has no data set 'MINST'"),
    ],
)
def test_sources_that_do_not_exist(spec, message):
    with pytest.raises(UserError, match=message):
        read(spec, "data")


def test_torchvision_without_its_files_names_the_local_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name a local copy: dataset = 'npz:FILE'"):
        read("torchvision:CIFAR100", str(tmp_path / "file"))


def test_crop_and_flip_equal_a_slow_loop_and_depend_on_seed_epoch_and_sample_alone():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 6, 7), dtype=np.uint8))
    index = torch.tensor([4, 0, 2, 2, 1])
    out = crop_flip(pixels[index], index, 5, seed=3, epoch=2, padding=2)
    draws = np.random.default_rng([3, 2]).integers(0, [5, 5, 2], size=(5, 3))
    padded = np.pad(pixels.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    for row, sample in enumerate(index.tolist()):
        top, left, flip = draws[sample]
        expected = padded[sample, :, top : top + 6, left : left + 7]
        np.testing.assert_array_equal(out[row].numpy(), expected[:, :, ::-1] if flip else expected)


def test_the_order_depends_on_seed_and_epoch_and_names_the_epoch():
    sampler = EpochSampler(range(10), num_replicas=1, rank=0, seed=5)
    sampler.set_epoch(3)
    first = list(sampler)
    assert [epoch for epoch, _ in first] == [3] * 10
    assert sorted(sample for _, sample in first) == list(range(10))
    again = EpochSampler(range(10), num_replicas=1, rank=0, seed=5)
    again.set_epoch(3)
    assert list(again) == first


def test_what_cannot_be_trained_on_is_said_before_any_run(tmp_path):
    images = np.zeros((60, 4, 4), np.uint8)
    labels = np.arange(60) % 3
    np.savez(tmp_path / "few.npz", images=images, labels=labels)
    few = plan("demo", {"dataset": f"npz:{tmp_path}/few.npz", "validation_images": 10})
    with pytest.raises(UserError, match="38 training images do not fill a batch of 50"):
        prepare(few)
    np.savez(tmp_path / "more.npz", x_train=images, y_train=labels, x_test=images, y_test=labels + 2)
    more = plan("demo", {"dataset": f"npz:{tmp_path}/more.npz", "validation_images": 10, "batch_size": 5})
    with pytest.raises(UserError, match="the test set has the label 4, and the training set only the labels 0 to 2"):
        prepare(more)


@pytest.mark.parametrize("name", ["FakeData", "Food101", "EMNIST"])
def test_torchvision_sets_of_another_form_are_refused_with_a_way_out(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="'folder:DIR'"):
        read(f"torchvision:{name}", str(tmp_path / "file"))


def test_trivial_augment_draws_by_epoch_and_sample_alone():
    parts = split(demo())
    data = TrainingSet(parts.train, Normalise(parts.train), "trivial", seed=3)
    together, alone = data.__getitems__([(1, 4), (1, 9)])[0], data.__getitems__([(1, 9)])[0]
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(alone, data.__getitems__([(2, 9)])[0])
