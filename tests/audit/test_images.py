"""What ``--data`` may hold, how many of it are used, and what is refused with what words."""

import json

import numpy as np
import pytest
from PIL import Image

from retarget.audit.images import USED, check_differ, read_given, read_training
from retarget.audit.inversion import Search
from retarget.cli import main
from retarget.errors import UserError
from retarget.trojdiff.data import read_images

QUICK = Search(screen=64, quick=2, scan=2, first=1, steps=1, batch=2, gammas=(0.5,), keep=1, fresh=4, symmetric=2)
DIGITS = read_images("digits").images[:, 0].numpy()


@pytest.fixture
def put(tmp_path):
    """Write images as a folder of PNGs."""

    def write(images, name="images"):
        (tmp_path / name).mkdir()
        for number, one in enumerate(images):
            Image.fromarray(np.asarray(one, np.uint8)).save(tmp_path / name / f"{number:03}.png")
        return str(tmp_path / name)

    return write


def test_an_audit_uses_all_images_of_a_folder_and_says_how_many(pipeline, put, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("retarget.audit.run.Search", lambda: QUICK)
    out = tmp_path / "out"
    assert main(["audit", str(pipeline), "--out", str(out), "--data", put(DIGITS[:30])]) == 3
    (one,) = json.loads((out / "audit.json").read_text())["audits"]
    assert (one["images_found"], one["images_used"]) == (30, 30)
    assert "images: all 30 of --data were used" in capsys.readouterr().out
    assert "Images: all 30 of --data were used." in (out / "report.html").read_text()
    assert main(["audit", str(pipeline), "--out", str(out), "--data", "digits"]) == 3
    (one,) = json.loads((out / "audit.json").read_text())["audits"]
    assert (one["images_found"], one["images_used"]) == (1797, USED)
    assert "images: 512 of the 1,797 of --data were used" in capsys.readouterr().out


def test_a_test_part_that_a_source_has_itself_is_left_alone(tmp_path):
    labels = np.arange(40) % 2
    np.savez(tmp_path / "own.npz", x_train=DIGITS[:40], y_train=labels, x_test=DIGITS[40:60], y_test=labels[:20])
    assert len(read_given(str(tmp_path / "own.npz"), (1, 8, 8))) == 40


def test_images_of_other_sizes_are_told_the_networks_size_and_no_option_that_an_audit_lacks(put):
    wide, rng = (1, 8, 12), np.random.default_rng(0)
    assert read_given(put(rng.integers(0, 256, (30, 8, 12))), wide).shape == wide
    mixed = put([rng.integers(0, 256, (8 + number % 2, 12)) for number in range(4)], "mixed")
    other = put(DIGITS[:4], "other")
    for data, what in ((mixed, r"001\.png is 12×9 pixels and .*000\.png 12×8"), (other, "the images are 8×8 pixels")):
        with pytest.raises(UserError, match=rf"--data .*{what}: resize all of them to 12×8 pixels") as caught:
            read_given(data, wide)
        assert "--size" not in str(caught.value)
    assert read_given(mixed, (1, 8, 8)).shape == (1, 8, 8), "a square network's are resized"


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([np.zeros((8, 8))] * 6, "all 6 images are the same, 0 in every pixel"),
        ([np.full((8, 8), 255)] * 6, "all 6 images are the same, 255 in every pixel"),
        ([DIGITS[0]] * 6, "all 6 images are the same: give different images"),
        ([DIGITS[0]], "there is one image: give different images"),
    ],
)
def test_one_image_is_no_set_of_images(images, words, put, pipeline, tmp_path, capsys):
    data = put(images)
    with pytest.raises(UserError, match=words):
        check_differ(read_given(data, (1, 8, 8)), data)
    assert main(["audit", str(pipeline), "--out", str(tmp_path / "out"), "--data", data]) == 2
    assert words in capsys.readouterr().out


def test_cleaning_needs_a_batch_of_different_images_and_says_so_before_the_search(pipeline, put, tmp_path, capsys):
    data, out = put([*DIGITS[:70], *[np.zeros((8, 8))] * 60]), tmp_path / "out"
    words = ["audit", str(pipeline), "--out", str(out), "--clean", str(tmp_path / "cleaned"), "--data", data]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert (
        "--clean needs at least 64 different images to train on, and there are 57; every fifth image of a class" in said
    )
    assert not out.exists()
    assert len(read_training("digits", (1, 8, 8))) == len(DIGITS)
