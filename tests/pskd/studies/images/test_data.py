"""Reading, splitting and augmenting: every source, every refusal, and independence of order."""

import numpy as np
import pytest
import torch
from PIL import Image

from retarget.errors import UserError
from retarget.pskd.studies.images import data
from retarget.pskd.studies.images import prepare as prepare_module
from retarget.pskd.studies.images.data import EpochSampler, Normalise, TrainingSet, crop_flip, split
from retarget.pskd.studies.images.prepare import check, prepare
from retarget.pskd.studies.images.settings import Settings
from retarget.pskd.study import plan
from retarget.study.runner import survey


def demo(**more):
    return Settings.model_validate({**plan("demo").settings, **more})


def test_a_constant_channel_becomes_zero(tmp_path):
    """The alpha of images without transparency; divided by its deviation, every run would have diverged."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    labels = np.arange(60) % 3
    np.savez(tmp_path / "rgba.npz", x_train=pixels, y_train=labels, x_test=pixels[:9], y_test=labels[:9])
    train = split(
        demo(dataset=f"npz:{tmp_path / 'rgba.npz'}", train_images=30, validation_images=15, batch_size=5)
    ).train
    found = Normalise(train)(train.pixels)
    assert found.isfinite().all()
    assert found[:, 3].abs().max() < 1e-6
    assert found[:, 0].std() > 0.9


def test_classes_that_have_no_image_to_train_on_are_named(tmp_path, caplog):
    labels = np.arange(60)
    np.savez(tmp_path / "rare.npz", x_train=np.zeros((60, 8, 8), np.uint8), y_train=labels,
             x_test=np.zeros((60, 8, 8), np.uint8), y_test=labels)  # fmt: skip
    split(demo(dataset=f"npz:{tmp_path / 'rare.npz'}", train_images=None, validation_images=15, batch_size=5))
    assert "15 of the test images' classes have no image left to train on" in caplog.text
    assert "15 of the validation images' classes have no image left to train on" in caplog.text


def test_classes_of_which_only_validation_has_an_image_are_named(tmp_path, caplog):
    labels = np.r_[np.arange(40) % 2, np.arange(2, 22)]  # two classes of 20 images, and 20 classes of one
    np.savez(tmp_path / "rare.npz", x_train=np.zeros((60, 8, 8), np.uint8), y_train=labels,
             x_test=np.zeros((9, 8, 8), np.uint8), y_test=labels[:9])  # fmt: skip
    parts = split(demo(dataset=f"npz:{tmp_path / 'rare.npz'}", train_images=None, validation_images=15, batch_size=5))
    lost = {label for label in parts.validation.labels.tolist() if label > 1}
    assert lost
    said = f"{len(lost)} of the validation images' classes have no image left to train on, such as {min(lost)}, and"
    assert said in caplog.text
    assert "test images' classes" not in caplog.text
    found = data.described(parts)
    assert (found["unseen"], found["unseen_in_validation"]) == (0, len(lost))


def test_images_that_are_also_training_images_are_counted(tmp_path):
    pixels, labels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "twice.npz", x_train=pixels, y_train=labels, x_test=np.r_[pixels[:4], 255 - pixels[:5]],
             y_test=labels[:9], x_val=255 - pixels[9:20], y_val=labels[9:20])  # fmt: skip
    parts = split(demo(dataset=f"npz:{tmp_path / 'twice.npz'}", train_images=None, validation_images=15, batch_size=5))
    assert data.described(parts) == {
        "parts": {"training": 60, "validation": 11, "test": 9}, "classes": 3,
        "repeated": {"validation": 0, "test": 4}, "validation_in_test": 0,
        "unseen": 0, "unseen_in_validation": 0,
    }  # fmt: skip


def test_validation_images_that_are_also_test_images_are_counted(tmp_path):
    pixels, labels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "copy.npz", x_train=pixels[:40], y_train=labels[:40], x_test=pixels[40:], y_test=labels[40:],
             x_val=np.r_[pixels[45:], pixels[:2]], y_val=np.r_[labels[45:], labels[:2]])  # fmt: skip
    found = data.described(
        split(demo(dataset=f"npz:{tmp_path / 'copy.npz'}", train_images=None, validation_images=20, batch_size=5))
    )
    assert (found["validation_in_test"], found["repeated"]) == (15, {"validation": 2, "test": 0})


@pytest.mark.parametrize(("change", "message"), [
    ({"data_seed": -5}, "data_seed must be at least 0, not -5"), ({"store": "topk:0:uniform"}, "topk:K"),
    ({"store": "topk:500:uniform"}, "keeps 500 classes of 10"), ({"accelerator": "tpux"}, "'auto', 'cpu'"),
    ({"drops": [2.0, -1]}, "drops number 1 must be below 1, not 2.0"),
])  # fmt: skip
def test_settings_that_no_run_could_use_are_refused_before_the_first(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        check(plan("demo", change, arms=["cross_entropy", "pskd"]))


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


@pytest.mark.parametrize(("asked", "used"), [(6, 6), (50, 9)])
def test_a_validation_part_of_its_own_is_used_and_leaves_all_training_images(asked, used, tmp_path):
    pixels, labels = np.zeros((60, 8, 8), np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "own.npz", x_train=pixels, y_train=labels, x_val=pixels[:9] + 7, y_val=labels[:9],
             x_test=pixels[:12], y_test=labels[:12])  # fmt: skip
    parts = split(demo(dataset=f"npz:{tmp_path / 'own.npz'}", train_images=None, validation_images=asked, batch_size=5))
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (60, used, 12)
    assert parts.validation.pixels.unique().tolist() == [7]
    assert parts.validation.labels.bincount().tolist() == [used // 3] * 3


def test_label_noise_strikes_the_training_part_alone_and_always_changes_the_class():
    noisy = split(demo(label_noise=0.2))
    assert (noisy.train.labels != noisy.clean_labels).sum() == 100
    assert torch.equal(noisy.validation.labels, split(demo()).validation.labels)


def test_a_subset_larger_than_the_data_is_refused():
    with pytest.raises(
        UserError, match="train_images = 5000, but digits has only 1438 training images: a fifth of it is held out"
    ):
        split(demo(train_images=5000))
    with pytest.raises(UserError, match="validation_images = 700 of 700 leave nothing"):
        split(demo(validation_images=700))


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


def faces(folder, sides=(30, 40), count=12, parts=("",)):
    """Colour photographs of two classes, of the given heights by turns."""
    rng = np.random.default_rng(0)
    for part in parts:
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (sides[i % len(sides)], 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i:02d}.png")
    return f"folder:{folder}"


def folder_settings(dataset, **more):
    return {"dataset": dataset, "train_images": None, "validation_images": 4, "batch_size": 4, **more}


@pytest.mark.parametrize("memory", [data.MEMORY, 0], ids=["in_memory", "from_files"])
@pytest.mark.parametrize("augmentation", ["none", "crop_flip", "trivial", "imagenet"])
def test_every_augmentation_works_on_folders_by_epoch_and_sample_alone(augmentation, memory, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MEMORY", memory)
    chosen = demo(**folder_settings(faces(tmp_path), image_size=16, augmentation=augmentation))
    train = split(chosen).train
    assert (train.pixels is None) == (memory == 0)
    views = TrainingSet(train, Normalise(train), augmentation, seed=0)
    a, b = views.__getitems__([(0, 1), (0, 2)])[0], views.__getitems__([(0, 2), (0, 1)])[0]
    assert a.shape == (2, 3, 16, 16)
    assert torch.equal(a[0], b[1]), "augmentation depends on the order of asking"
    other = views.__getitems__([(1, 1)])[0][0]
    assert torch.equal(other, a[0]) == (augmentation == "none"), "another epoch, another view"
    plain = TrainingSet(train, Normalise(train), "none", seed=0).__getitems__([(0, 1)])[0][0]
    assert plain.shape == (3, 16, 16)


def test_images_from_files_and_in_memory_are_the_same_pixels(tmp_path, monkeypatch):
    chosen = demo(**folder_settings(faces(tmp_path), image_size=16))
    kept = split(chosen)
    monkeypatch.setattr(data, "MEMORY", 0)
    read = split(chosen)
    index = torch.arange(len(kept.train))
    assert torch.equal(kept.train.take(index), read.train.take(index))
    assert torch.equal(kept.test.labels, read.test.labels)


def test_no_image_is_resized_unless_asked_for(tmp_path):
    dataset = faces(tmp_path, sides=(36,), parts=("train", "test"))
    for augmentation in ("none", "imagenet"):
        train = split(demo(**folder_settings(dataset, augmentation=augmentation))).train
        views = TrainingSet(train, Normalise(train), augmentation, seed=0)
        assert views.__getitems__([(0, 1)])[0].shape == (1, 3, 36, 36)
    assert split(demo(image_size=12)).train.pixels.shape[1:] == (1, 12, 12)


@pytest.mark.parametrize("look", [prepare, check], ids=["prepare", "dry_run"])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, r"\.png is 36×\d0 pixels and .*\.png 36×\d0: give the size .*; set image_size"),
        (
            {"image_size": 16, "network": "timm:vit_tiny_patch16_224"},
            "does not accept images of 3 channels, 16×16",
        ),
        ({"image_size": 16, "network": "resnet19"}, "no network 'resnet19'"),
        ({"image_size": 16, "train_images": 900}, "train_images = 900, but folder:"),
        ({"image_size": 16, "batch_size": 100}, "do not fill a batch of 100"),
    ],
)
def test_folders_that_cannot_be_used_are_refused_before_any_run_and_by_a_dry_run(look, more, message, tmp_path):
    chosen = plan("demo", folder_settings(faces(tmp_path), **more))
    with pytest.raises(UserError, match=message):
        look(chosen)


@pytest.mark.parametrize("memory", [data.MEMORY, 0], ids=["in_memory", "from_files"])
def test_a_damaged_image_is_named_before_any_run(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MEMORY", memory)
    chosen = plan("small", folder_settings(faces(tmp_path, sides=(36,)), image_size=32))
    prepare(chosen)
    file = tmp_path / "dog" / "07.png"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match=r"dog/07\.png: not an image, or a damaged one"):
        prepare(chosen)
    with pytest.raises(UserError, match=r"dog/07\.png: not an image") as found:
        prepare(plan("small", folder_settings(f"folder:{tmp_path}")))
    assert "set image_size" not in str(found.value), "a wrong remedy"


@pytest.mark.parametrize(("memory", "decoded"), [(data.MEMORY, 9), (0, 99), (0, 9)], ids=["kept", "files", "headers"])
def test_twelve_bits_in_files_of_16_are_refused_before_any_run(memory, decoded, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MEMORY", memory)
    monkeypatch.setattr(prepare_module, "DECODED", decoded)
    faces(tmp_path, sides=(36,))
    chosen = plan("small", folder_settings(f"folder:{tmp_path}", image_size=32))
    prepare(chosen)
    for file in tmp_path.rglob("*.png"):
        Image.fromarray(np.full((36, 36), 4095, np.uint16)).save(file)
    with pytest.raises(UserError, match=r"\.png: its pixels have 16 or 32 bits but go only to 4095"):
        prepare(chosen)


def test_channels_that_an_augmentation_cannot_take_and_one_class_are_refused(tmp_path):
    images = np.zeros((60, 4, 4, 2), np.uint8)
    np.savez(tmp_path / "two.npz", images=images, labels=np.arange(60) % 3)
    chosen = folder_settings(f"npz:{tmp_path}/two.npz", augmentation="trivial")
    with pytest.raises(UserError, match="augmentation = 'trivial' needs grey or RGB images, not 2 channels"):
        check(plan("demo", chosen))
    np.savez(tmp_path / "one.npz", images=images, labels=np.zeros(60))
    with pytest.raises(UserError, match="has only one class"):
        prepare(plan("demo", folder_settings(f"npz:{tmp_path}/one.npz")))


@pytest.mark.parametrize("config", [{}, {"peers": True}, {"question": "confidence"}])
def test_a_dry_run_refuses_what_a_run_would(config, tmp_path):
    chosen = plan("demo", {**folder_settings(faces(tmp_path / "faces")), **config})
    assert "set image_size" in survey(chosen, tmp_path / "study")["problem"]
    assert not (tmp_path / "study").exists()


def test_a_dry_run_downloads_nothing(tmp_path):
    check(plan("small", {"root": str(tmp_path / "nothing")}))
    assert not (tmp_path / "nothing").exists()


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
    with pytest.raises(UserError, match="there is the label 3, 4, but the training set has only the labels 0 to 2"):
        prepare(more)


def test_trivial_augment_draws_by_epoch_and_sample_alone():
    parts = split(demo())
    data = TrainingSet(parts.train, Normalise(parts.train), "trivial", seed=3)
    together, alone = data.__getitems__([(1, 4), (1, 9)])[0], data.__getitems__([(1, 9)])[0]
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(alone, data.__getitems__([(2, 9)])[0])


def test_an_epochs_crops_are_drawn_once(monkeypatch):
    """They were drawn for all samples in each batch: 50 ms of a million samples, longer than a step."""
    drawn, draw = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or draw(seed))
    pixels = torch.randint(256, (3, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for epoch in (7, 8):
        found = [crop_flip(pixels, torch.tensor(chosen), 3, seed=41, epoch=epoch) for chosen in ([0, 1, 2], [2, 1, 0])]
        assert torch.equal(found[0][1], found[1][1])
    assert drawn == [[41, 7], [41, 8]]
