"""Data sets by name: every source, every layout, every refusal."""

import importlib

import numpy as np
import pytest
import torch
from PIL import Image

from retarget.data.images import pixels_of, read, resized, shape_of
from retarget.data.names import data_paths, parse
from retarget.data.splits import every_fifth
from retarget.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(20) % 4


def folder_of(path, classes, shape=(4, 4)):
    """One PNG per value, in one sub-folder per class."""
    for name, values in classes.items():
        (path / name).mkdir(parents=True)
        for number, value in enumerate(values):
            Image.fromarray(np.full(shape, value, np.uint8)).save(path / name / f"{number:02d}.png")


def saved_split(values):
    """A split of the datasets library, of two classes in turn, with one image per value."""
    datasets = pytest.importorskip("datasets", reason="the extra `text` is not installed")
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    images = [Image.new("L", (4, 4), value) for value in values]
    return datasets.Dataset.from_dict({"image": images, "label": [at % 2 for at in range(len(images))]}, features=kinds)


def save_splits(path, **splits):
    pytest.importorskip("datasets").DatasetDict(**splits).save_to_disk(str(path))


def test_the_old_words_of_every_study_are_understood(tmp_path):
    assert parse("npz:a.npz") == parse("a.npz") == ("npz", "a.npz")
    assert parse(f"folder:{tmp_path}") == parse(str(tmp_path)) == ("folder", str(tmp_path))
    assert data_paths("a.npz") == data_paths("npz:a.npz") == ("a.npz",)
    assert data_paths("hf:d/e") == ("d/e",)
    assert data_paths(str(tmp_path)) == data_paths(f"folder:{tmp_path}") == (str(tmp_path),)
    assert data_paths("glyphs") == data_paths("digits") == data_paths("torchvision:MNIST") == ()


def test_npz_in_every_layout(tmp_path, caplog):
    np.savez(tmp_path / "one.npz", images=IMAGES, labels=LABELS)
    np.savez(tmp_path / "two.npz", x_train=IMAGES, y_train=LABELS[:, None], x_test=IMAGES[:8], y_test=LABELS[:8])
    np.savez(tmp_path / "three.npz", x_train=IMAGES[..., 0], y_train=LABELS, notes=np.array({}, dtype=object))
    with caplog.at_level("WARNING"):
        read(f"npz:{tmp_path}/three.npz")
    assert "three.npz: not used: notes" in caplog.text
    one, two, three = (read(f"npz:{tmp_path}/{name}.npz") for name in ("one", "two", "three"))
    assert np.array_equal(one.train.pixels.permute(0, 2, 3, 1).numpy(), IMAGES)
    assert (one.names, one.test, one.held_out) == (("0", "1", "2", "3"), None, "")
    assert torch.equal(two.train.labels, one.train.labels), "Keras keeps labels as a column"
    assert (len(two.test.labels), two.held_out) == (8, "x_test")
    assert (shape_of([three.train]), three.test) == ((1, 6, 5), None)
    np.savez(tmp_path / "val.npz", x_train=IMAGES, y_train=LABELS, x_val=IMAGES[:3], y_val=LABELS[:3])
    val = read(f"npz:{tmp_path}/val.npz")
    assert (len(val.test), val.held_out, val.validation) == (3, "x_val", None), (
        "of two parts the second is for the test"
    )


def test_what_a_file_says_more_of_its_parts_is_no_part(tmp_path, caplog):
    more = dict(file_train=LABELS, y_train_coarse=LABELS, file_test=LABELS[:8], y_test_coarse=LABELS[:8])
    np.savez(tmp_path / "more.npz", x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:8], y_test=LABELS[:8], **more)
    with caplog.at_level("WARNING"):
        assert read(f"npz:{tmp_path}/more.npz").held_out == "x_test"
    assert "more.npz: not used: file_test, file_train, y_test_coarse, y_train_coarse" in caplog.text


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(x=np.zeros(3)), "needs images and labels, or x_train and y_train .*; it holds x$"),
        ({}, "it holds nothing"),
        (dict(x_train=IMAGES), "has x_train and no y_train: add them, all 0 if there are no classes; it holds x_train"),
        (dict(x_train=IMAGES, y_train=LABELS, y_test=LABELS), "has y_test and no x_test"),
        (dict(images=IMAGES, labels=LABELS, test_images=IMAGES), "test_images would not be used: call the parts x_tr"),
        (dict(x_train=IMAGES, y_train=LABELS, x_valid=IMAGES, y_valid=LABELS), "x_valid, y_valid would not be used"),
        (dict(x_train=IMAGES, y_train=LABELS, Xtest=IMAGES, ytest=LABELS), "Xtest, ytest would not be used"),
        (dict(x_train=IMAGES, y_train=LABELS, testX=IMAGES, x_eval=IMAGES), "testX, x_eval would not be used"),
        (dict(images=IMAGES, labels=LABELS, x_test=IMAGES, y_test=LABELS), "x_test, y_test would not be used"),
        (dict(images=IMAGES, labels=LABELS, split=np.array(["train"] * 20)), "split would not be used"),
        (
            dict(images=IMAGES / 255, labels=LABELS),
            r"images are uint8 .*got float64 \[20, 6, 5, 3\]; from floats up to 1: numpy.round\(255 \* x\)",
        ),
        (dict(images=IMAGES.astype(float), labels=LABELS), r"got float64 .*; from floats up to \d+: numpy.round\(x\)"),
        (
            dict(images=(IMAGES // 16).astype(int), labels=LABELS),
            r"from integers up to 15: numpy.round\(255 / 15 \* x\)",
        ),
        (dict(images=IMAGES > 99, labels=LABELS), r"from truth values up to 1: numpy.round\(255 \* x\)"),
        (dict(images=IMAGES, labels=LABELS[:2] % 1), r"20 images .* and 2 labels"),
        (dict(images=IMAGES, labels=np.eye(4)[LABELS]), "one-hot"),
        (dict(images=IMAGES, labels=np.array([4_000_000_000] * 20)), "labels are 4000000000"),
        (dict(images=np.zeros((9, 3, 32, 32), np.uint8), labels=np.zeros(9)), "channels first; give"),
        (dict(images=np.zeros((9, 0, 32), np.uint8), labels=np.zeros(9)), "have no pixel"),
        (
            dict(x_train=IMAGES, y_train=LABELS, x_test=IMAGES, y_test=LABELS + 1),
            "x_test and y_test: there is the label 4",
        ),
        (dict(images=IMAGES, labels=np.array([{}] * 20, dtype=object)), "pickles are never read"),
    ],
)
def test_npz_that_cannot_be_used(arrays, message, tmp_path):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=rf"bad\.npz.*{message}"):
        read(f"npz:{tmp_path}/bad.npz")


def test_a_damaged_npz_is_named_wherever_it_is_damaged(tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", images=IMAGES, labels=LABELS)
    whole, broken = (tmp_path / "whole.npz").read_bytes(), tmp_path / "broken.npz"
    for length in range(0, len(whole), 97):
        broken.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"broken\.npz is not an \.npz file of plain arrays"):
            read(str(broken))
    rng, errors = np.random.default_rng(2), []
    for _ in range(100):
        hit = bytearray(whole)
        hit[rng.integers(len(hit))] ^= 0xFF
        broken.write_bytes(hit)
        try:
            read(str(broken))
        except UserError as error:
            errors.append(str(error))
    assert len(errors) > 50
    assert all("broken.npz" in error for error in errors)


def test_folders_with_and_without_a_test_part(tmp_path):
    folder_of(tmp_path / "flat", {"dog": range(3), "cat": range(100, 102)})
    (tmp_path / "flat" / "__MACOSX" / "dog").mkdir(parents=True)
    (tmp_path / "flat" / "__MACOSX" / "dog" / "._0.png").write_bytes(b"Mac OS X")
    flat = read(f"folder:{tmp_path}/flat")
    assert (flat.names, flat.train.labels.tolist(), flat.test) == (("cat", "dog"), [0, 0, 1, 1, 1], None)
    assert pixels_of(flat.train, 1)[:, 0, 0, 0].tolist() == [100, 101, 0, 1, 2]
    folder_of(tmp_path / "parts" / "train", {"dog": range(3), "cat": range(2)})
    folder_of(tmp_path / "parts" / "val", {"dog": [9]})
    parts = read(str(tmp_path / "parts"))
    assert (parts.names, parts.test.labels.tolist(), parts.held_out) == (("cat", "dog"), [1], "val")
    folder_of(tmp_path / "parts" / "val", {"bird": [9]})
    with pytest.raises(UserError, match=r"val/bird: the training images have no class of this name, only cat, dog"):
        read(str(tmp_path / "parts"))


@pytest.mark.parametrize(("train", "held"), [("Train", "Test"), ("training", "testing"), ("train", "valid")])
def test_parts_by_the_names_that_people_give_them(train, held, tmp_path):
    """They must not be taken for two classes, as the folders of a set without parts are."""
    folder_of(tmp_path / train, {"cat": [1, 2], "dog": [3]})
    alone = read(f"folder:{tmp_path}")
    assert (alone.names, alone.test, len(alone.train)) == (("cat", "dog"), None, 3)
    folder_of(tmp_path / held, {"dog": [9]})
    both = read(f"folder:{tmp_path}")
    assert (both.names, both.test.labels.tolist(), both.held_out) == (("cat", "dog"), [1], held)


def test_a_validation_part_beside_a_test_part_is_no_test_part(tmp_path):
    folder_of(tmp_path / "folder" / "train", {"cat": [1, 2], "dog": [3]})
    folder_of(tmp_path / "folder" / "Val", {"cat": [5, 6]})
    folder_of(tmp_path / "folder" / "test", {"dog": [9]})
    parts = {"x_train": IMAGES, "x_val": IMAGES[:2], "x_test": IMAGES[:1]}
    labels = {"y_train": LABELS, "y_val": LABELS[:2], "y_test": LABELS[:1]}
    np.savez(tmp_path / "file.npz", **parts, **labels)
    for name, held_out in (("folder", "test"), ("file.npz", "x_test")):
        source = read(str(tmp_path / name) if name == "folder" else f"npz:{tmp_path / name}")
        assert (len(source.test), source.held_out, len(source.validation)) == (1, held_out, 2)
    (tmp_path / "folder" / "Val" / "bird").mkdir()
    with pytest.raises(UserError, match=r"Val/bird: the training images have no class of this name"):
        read(str(tmp_path / "folder"))


def test_a_class_may_be_called_train(tmp_path):
    folder_of(tmp_path, {"bus": [1, 2], "train": [3]})
    assert read(f"folder:{tmp_path}").names == ("bus", "train")


def test_an_empty_class_folder_and_a_damaged_image_are_named(tmp_path):
    folder_of(tmp_path, {"cat": range(3), "dog": range(3)})
    (tmp_path / ".cache").mkdir()
    read(str(tmp_path))
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox" / "notes.txt").write_text("none yet")
    with pytest.raises(UserError, match="fox: no PNG or JPEG file in it, nor one of WEBP, BMP"):
        read(str(tmp_path))
    (tmp_path / "fox" / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"fox/a\.png: not an image"):
        shape_of([read(str(tmp_path)).train])


def test_a_set_with_one_colour_image_is_a_set_of_colour_images(tmp_path):
    folder_of(tmp_path, {"cat": range(3), "dog": range(3)})
    assert shape_of([read(str(tmp_path)).train]) == (1, 4, 4)
    Image.fromarray(IMAGES[0, :4, :4]).save(tmp_path / "dog" / "02.png")
    source = read(str(tmp_path))
    assert shape_of([source.train]) == (3, 4, 4)
    assert pixels_of(source.train, 3)[4].unique().tolist() == [1]
    Image.fromarray(IMAGES[0]).save(tmp_path / "dog" / "02.png")
    with pytest.raises(UserError, match=r"02\.png is 5×6 pixels and .*00\.png 4×4"):
        pixels_of(read(str(tmp_path)).train, 3)
    assert pixels_of(read(str(tmp_path)).train, 3, size=8).shape == (6, 3, 8, 8)


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_part_without_folders_of_classes_is_named(part, tmp_path):
    for name in ("train", "test", "val"):
        if name != part:
            folder_of(tmp_path / name, {"a": [1, 2], "b": [3]})
    (tmp_path / part).mkdir()
    (tmp_path / part / ".DS_Store").write_bytes(b"")
    with pytest.raises(
        UserError, match=rf"/{part} has no folder of a class, and is empty: sort .* into a, b, or remove"
    ):
        read(str(tmp_path))
    for number, there in enumerate((r"0\.png", r"2 files such as 0\.png")):
        Image.new("L", (4, 4)).save(tmp_path / part / f"{number}.png")
        with pytest.raises(
            UserError, match=rf"/{part} has no folder of a class, only {there}: sort its images into a, b"
        ):
            read(str(tmp_path))


def test_folders_and_splits_that_no_part_uses_are_named(tmp_path, caplog):
    for name in ("train", "test", "val", "Dev", "notes"):
        folder_of(tmp_path / "folder" / name, {"a": [1, 2], "b": [3]})
    source = read(str(tmp_path / "folder"))
    assert (source.held_out, len(source.validation)) == ("test", 3)
    assert f"{tmp_path}/folder: not used: Dev, notes; beside the training part" in caplog.text
    caplog.clear()
    splits = {name: saved_split([number] * 2) for number, name in enumerate(("train", "valid", "test", "dev", "more"))}
    save_splits(tmp_path / "hf", **splits)
    source = read(f"hf:{tmp_path}/hf")
    values = [pixels_of(part, 1)[:, 0, 0, 0].tolist() for part in (source.train, source.validation, source.test)]
    assert (source.held_out, values) == ("test", [[0, 0], [1, 1], [2, 2]])
    assert f"{tmp_path}/hf: not used: dev, more; beside the training part" in caplog.text
    caplog.clear()
    save_splits(tmp_path / "two", training=splits["train"], val=splits["dev"])
    source = read(f"hf:{tmp_path}/two")
    assert (source.held_out, len(source.test), source.validation, caplog.text) == ("val", 2, None, "")


def test_an_empty_split_is_named(tmp_path):
    save_splits(tmp_path / "hf", train=saved_split([1, 2]), test=saved_split([]))
    with pytest.raises(UserError, match="hf/test has no images"):
        read(f"hf:{tmp_path}/hf")
    saved_split([]).save_to_disk(str(tmp_path / "alone"))
    with pytest.raises(UserError, match="alone has no images"):
        read(f"hf:{tmp_path}/alone")


def test_deep_images_are_judged_by_part_and_small_numbers_in_them_refused(tmp_path):
    for part, top in (("train", 50_000), ("test", 4_000)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(3):
                pixels = np.full((4, 4), top if name == "dog" else 100, np.uint16)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    source = read(str(tmp_path))
    assert pixels_of(source.train, 1)[:, 0, 0, 0].tolist() == [0, 0, 0, 195, 195, 195]
    with pytest.raises(UserError, match=r"test/dog/0\.png: its pixels have 16 or 32 bits but go only to 4000"):
        pixels_of(source.test, 1)


def test_a_data_set_saved_by_the_datasets_library(tmp_path):
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"img": [Image.new("L", (8, 8), i) for i in range(4)], "label": [0, 1, 0, 1]}
    part = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=part, test=part).save_to_disk(str(tmp_path / "saved"))
    source = read(f"hf:{tmp_path}/saved")
    assert (source.names, source.held_out, source.test.labels.tolist()) == (("a", "b"), "test", [0, 1, 0, 1])
    assert shape_of([source.train, source.test]) == (1, 8, 8)
    assert pixels_of(source.train, 1)[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    other = part.cast_column("label", datasets.ClassLabel(names=["b", "a"]))  # the same numbers are now other classes
    datasets.DatasetDict(train=part, test=part, validation=other).save_to_disk(str(tmp_path / "three"))
    assert read(f"hf:{tmp_path}/three").validation.labels.tolist() == [1, 0, 1, 0]
    broken = datasets.Dataset.from_dict(
        {"img": [{"bytes": b"no image", "path": None}] * 2, "label": [0, 1]}, features=features
    )
    broken.save_to_disk(str(tmp_path / "broken"))
    with pytest.raises(UserError, match="broken, split train, row 0: not an image"):
        shape_of([read(f"hf:{tmp_path}/broken").train])
    lost = datasets.Dataset.from_dict({"img": [Image.new("L", (8, 8)), None], "label": [0, 1]}, features=features)
    lost.save_to_disk(str(tmp_path / "lost"))
    with pytest.raises(UserError, match="lost, split train, row 1 has no image"):
        read(f"hf:{tmp_path}/lost")
    with pytest.raises(UserError, match=r"is not a data set that datasets\.save_to_disk wrote"):
        read(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "is none of digits, torchvision:NAME"),
        ("npz:/nowhere.npz", "/nowhere.npz does not exist"),
        ("folder:/nowhere", "/nowhere does not exist"),
        ("torchvision:MINST", "torchvision has no data set 'MINST'"),
        ("torchvision:utils", "torchvision has no data set 'utils'"),
    ],
)
def test_sources_that_do_not_exist(spec, message):
    with pytest.raises(UserError, match=message):
        read(spec)


def test_torchvision_without_its_files_names_the_local_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name a local copy: dataset = 'npz:FILE'"):
        read("torchvision:CIFAR100", str(tmp_path / "file"))


@pytest.mark.parametrize("name", ["FakeData", "Food101", "EMNIST"])
def test_torchvision_sets_of_another_form_are_refused_with_a_way_out(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="'folder:DIR'"):
        read(f"torchvision:{name}", str(tmp_path / "file"))


def test_a_torchvision_set_that_a_network_would_not_help_is_told_apart(tmp_path):
    with pytest.raises(UserError, match=r"torchvision's EMNIST cannot be read here .*: give it as 'folder:DIR'"):
        read("torchvision:EMNIST", str(tmp_path))


@pytest.mark.parametrize(
    ("images", "labels", "named"),
    [([np.zeros((4, 4)), np.zeros((5, 4))], [0, 1], "images"), (np.zeros((2, 4, 4)), [[0], [1, 2]], "labels")],
)
def test_what_a_function_gives_must_make_arrays(tmp_path, monkeypatch, images, labels, named):
    (tmp_path / "ragged_images.py").write_text("def load():\n    return given\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("ragged_images").given = (images, labels)
    with pytest.raises(UserError, match=f"dataset = 'ragged_images:load' gave {named} that make no array"):
        read("ragged_images:load")


def test_images_in_memory_are_stretched_or_their_middle_is_kept():
    wide = torch.zeros(1, 1, 4, 8, dtype=torch.uint8)
    wide[..., 2:6] = 255
    source = read("digits")
    part = type(source.train)(torch.zeros(1, dtype=torch.long), wide)
    assert (pixels_of(part, 1, 4, crop=True) == 255).all()
    assert not (pixels_of(part, 1, 4) == 255).all()
    assert resized(source.train.pixels, 8) is source.train.pixels


def test_every_fifth_equals_a_loop():
    labels = RNG.integers(0, 3, 40)
    seen = dict.fromkeys(range(3), 0)
    for place, label in enumerate(labels.tolist()):
        assert every_fifth(labels, of_class=False)[place] == (place % 5 == 4)
        assert every_fifth(labels, of_class=True)[place] == (seen[label] % 5 == 4)
        seen[label] += 1


@pytest.mark.parametrize("shape", [(4, 32, 32), (13, 64, 64), (2, 8, 8), (3, 4, 4)])
def test_channels_first_are_refused(shape, tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((8, *shape), np.uint8), labels=np.arange(8) % 2)
    with pytest.raises(UserError, match=r"(seem to )?have their channels first; give \[N, H, W, C\]"):
        read(f"npz:{tmp_path}/a.npz")


def test_hf_splits_that_name_their_classes_otherwise_are_matched_by_name(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra `text` is not installed")

    def split(names, labels):
        kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        images = [Image.fromarray(np.full((4, 4), 9, np.uint8)) for _ in labels]
        return datasets.Dataset.from_dict({"image": images, "label": labels}, features=kinds)

    train = split(["cat", "cow", "dog"], [0, 1, 2, 0])
    for at, (names, labels, found) in enumerate(
        ((["cat", "dog"], [0, 1], [0, 2]), (["dog", "cow", "cat"], [0, 1, 2], [2, 1, 0]), (["cat", "eel"], [0], [0]))
    ):
        datasets.DatasetDict(train=train, test=split(names, labels)).save_to_disk(str(tmp_path / str(at)))
        source = read(f"hf:{tmp_path / str(at)}")
        assert (source.names, source.test.labels.tolist()) == (("cat", "cow", "dog"), found)
    datasets.DatasetDict(train=train, test=split(["cat", "eel"], [1])).save_to_disk(str(tmp_path / "eel"))
    with pytest.raises(
        UserError, match="images of the class eel, which is none of the training split's: cat, cow, dog"
    ):
        read(f"hf:{tmp_path / 'eel'}")
