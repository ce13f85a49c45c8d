"""Folders that are not what they seem: parts that look like classes, and names that only look the same."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from retarget.data.images import read
from retarget.errors import UserError


def folders_of(path, *names):
    for name in names:
        (path / name).mkdir(parents=True)
        Image.fromarray(np.full((4, 4), 99, np.uint8)).save(path / name / "0.png")


@pytest.mark.parametrize("parts", [("seg_train", "seg_test"), ("train", "holdout"), ("images-train", "images-valid")])
def test_parts_of_other_names_are_not_taken_for_classes(parts, tmp_path):
    folders_of(tmp_path, *(f"{part}/{name}" for part in parts for name in ("forest", "sea")))
    with pytest.raises(UserError, match=r"have the same sub-folders \(forest, sea\), so they look like parts"):
        read(f"folder:{tmp_path}")


@pytest.mark.parametrize(("folders", "found"), [
    (("train", "test1"), "test1 beside it is named like a held-out part"),  # Kaggle's Dogs vs Cats
    (("train/0", "train/1", "unlabeled"), "unlabeled beside it is named like"),  # STL-10
    (("Training/x", "Training/y", "Test_Set"), "Test_Set beside it is named like"),
    (("train/x", "train/y", "test1/x"), "test1 beside it is named like"),
    (("train", "images", "masks", "val2017", "held-out"), "held-out, val2017 beside it are named like"),
    (("train", "seg_test"), "seg_test beside it is named like"),
    (("train/x", "train/y", "others"), r"it has sub-folders \(x, y\), and others beside it none or only"),
    (("train/x", "train/y", "train/z", "rest/y", "rest/z"), r"it has sub-folders \(x, y, z\), and rest beside it"),
])  # fmt: skip
def test_a_training_part_beside_oddly_named_parts_is_no_class(folders, found, tmp_path):
    folders_of(tmp_path, *folders)
    with pytest.raises(UserError, match=f"its folder [Tt]rain(ing)? looks like the training part .*: {found}.* Call"):
        read(f"folder:{tmp_path}")


@pytest.mark.parametrize("others", [
    ("tractor", "trout"), ("testudo", "valley"), ("bus", "test_tube", "crash_test", "devil"), ("bus/side", "car/front"),
])  # fmt: skip
def test_a_class_may_be_called_train(others, tmp_path):
    folders_of(tmp_path, "train", *others)
    assert read(f"folder:{tmp_path}").names == tuple(sorted({"train", *(name.split("/")[0] for name in others)}))


def test_a_class_called_train_may_have_sub_folders_beside_its_images(tmp_path):
    folders_of(tmp_path, "train", "train/night", "tractor")
    assert read(f"folder:{tmp_path}").names == ("tractor", "train")


def test_classes_with_sub_folders_stay_classes_and_are_told(tmp_path, caplog):
    folders_of(tmp_path, "cat/front", "cat/side", "dog/front", "dog/side")
    assert read(f"folder:{tmp_path}").names == ("cat", "dog")
    told = "4 folders (cat/front, cat/side, dog/front, dog/side) are merged into 2 classes (cat, dog)"
    assert told in caplog.text
    caplog.clear()
    folders_of(tmp_path, "cow")
    assert read(f"folder:{tmp_path}").names == ("cat", "cow", "dog")
    assert told in caplog.text


@pytest.mark.parametrize(("folders", "told"), [
    (("x", "x/masks", "y", "y/masks"), "4 folders (x, x/masks, y, y/masks) are merged into 2 classes (x, y): if they"),
    (("x/p", "x/q", "y/p"), "2 folders (x/p, x/q) are merged into 1 class (x): if they are the classes"),
    (("x", "y", "y/@eaDir/0"), "2 folders (y, y/@eaDir/0) are merged into 1 class (y)"),
    (("train/x", "train/y", "test/x", "test/x/thumbs"), "test: 2 folders (x, x/thumbs) are merged into 1 class (x)"),
])  # fmt: skip
def test_images_of_a_class_from_more_than_one_folder_are_told(folders, told, tmp_path, caplog):
    folders_of(tmp_path, *folders)
    assert read(f"folder:{tmp_path}").names == ("x", "y")
    assert told in caplog.text
    assert caplog.text.count("merged") == 1


def test_one_folder_per_class_is_not_told_of(tmp_path, caplog):
    folders_of(tmp_path, "cow", "cat/images", "dog/a/b")
    (tmp_path / "cow" / "notes").mkdir()
    assert read(f"folder:{tmp_path}").names == ("cat", "cow", "dog")
    assert caplog.text == ""


def test_a_name_in_another_unicode_form_is_told(tmp_path):
    one, other = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    folders_of(tmp_path, f"train/{one}", "train/tea", f"test/{other}")
    with pytest.raises(UserError, match=r"in another Unicode form \('cafe\\u0301', not 'caf\\xe9'\)"):
        read(f"folder:{tmp_path}")


def test_images_without_a_suffix_are_told_of(tmp_path, caplog):
    folders_of(tmp_path, "cat", "dog")
    (tmp_path / "cat" / "n0201").write_bytes((tmp_path / "cat" / "0.png").read_bytes())
    assert len(read(f"folder:{tmp_path}").train.labels) == 2
    assert "1 files have no suffix such as .png and are not read, such as n0201" in caplog.text
