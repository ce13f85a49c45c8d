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


def test_classes_with_sub_folders_stay_classes_and_are_told(tmp_path, caplog):
    folders_of(tmp_path, "cat/front", "cat/side", "dog/front", "dog/side")
    assert read(f"folder:{tmp_path}").names == ("cat", "dog")
    assert "4 folders (cat/front, cat/side, dog/front, dog/side) are merged into 2 classes (cat, dog)" in caplog.text
    caplog.clear()
    folders_of(tmp_path, "cow")
    assert read(f"folder:{tmp_path}").names == ("cat", "cow", "dog")
    assert "merged" not in caplog.text


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
