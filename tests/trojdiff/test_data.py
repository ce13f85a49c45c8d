"""Image sets: sources, splits, errors."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from retarget.errors import UserError
from retarget.trojdiff.build import picture
from retarget.trojdiff.data import ImageSet, held_out, read_images, to_signed, to_uint8
from retarget.trojdiff.glyphs import DOMAIN, FIGURES, glyph
from retarget.trojdiff.study import plan


def npz(path, shape=(6, 28, 28), dtype=np.uint8):
    x = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    np.savez(path, x_train=x, y_train=np.arange(6) % 3, x_test=x[:2], y_test=np.zeros(2, int))
    return str(path)


def test_digits_and_glyphs_split_without_overlap():
    for source, classes in (("digits", 10), ("glyphs", 5)):
        train, test = read_images(source, "train"), read_images(source, "test")
        assert (train.shape, len(train.names)) == ((1, 8, 8), classes)
        assert sorted(test.labels.unique().tolist()) == list(range(classes))
        seen = {image.numpy().tobytes() for image in train.images}
        assert len(train) > 3 * len(test)
        if source == "digits":
            assert not any(image.numpy().tobytes() in seen for image in test.images)


def test_npz_grey_and_colour_and_resized(tmp_path):
    grey = read_images(npz(tmp_path / "a.npz"), size=16)
    assert (grey.shape, len(grey), grey.names) == ((1, 16, 16), 6, ("0", "1", "2"))
    colour = read_images(npz(tmp_path / "b.npz", (6, 8, 8, 3)), "test")
    assert (colour.shape, len(colour)) == ((3, 8, 8), 2)
    assert colour.images[0, 1, 0, 0] == 1


def test_a_folder_of_classes(tmp_path):
    for name, value in (("cat", 0), ("dog", 255)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((10, 10, 3), value, np.uint8)).save(tmp_path / name / "one.png")
    images = read_images(str(tmp_path), size=4)
    assert (images.names, images.labels.tolist(), images.shape) == (("cat", "dog"), [0, 1], (3, 4, 4))
    assert images.images[1].unique().tolist() == [255]


def test_a_folder_keeps_every_fifth_image_of_a_class_for_the_test(tmp_path):
    folder_of(tmp_path, {"cat": range(7), "dog": range(100, 110)})
    train, test = (read_images(str(tmp_path), split).images[:, 0, 0, 0].tolist() for split in ("train", "test"))
    assert test == [4, 104, 109]
    assert sorted(train + test) == [*range(7), *range(100, 110)]
    assert held_out(str(tmp_path)) == "every fifth image of a class"


def test_a_folder_with_a_test_part_of_its_own(tmp_path):
    folder_of(tmp_path / "train", {"cat": range(6), "dog": range(100, 106)})
    folder_of(tmp_path / "test", {"dog": [200]})
    train, test = (read_images(str(tmp_path), split) for split in ("train", "test"))
    assert (len(train), train.names, test.names) == (12, ("cat", "dog"), ("cat", "dog"))
    assert (test.labels.tolist(), test.images.unique().tolist()) == ([1], [200])
    assert held_out(str(tmp_path)) == "the sub-folder test"
    folder_of(tmp_path / "test", {"bird": [1]})
    with pytest.raises(UserError, match=r"test/bird: the training images have no class"):
        read_images(str(tmp_path), "test")


def test_a_folder_too_small_to_be_split(tmp_path):
    folder_of(tmp_path, {"cat": range(100, 104)})
    assert len(read_images(str(tmp_path))) == 4
    with pytest.raises(UserError, match="no class has five"):
        read_images(str(tmp_path), "test")


def folder_of(path, classes):
    """One grey 4×4 PNG per value, in one sub-folder per class."""
    for name, values in classes.items():
        (path / name).mkdir(parents=True)
        for number, value in enumerate(values):
            Image.fromarray(np.full((4, 4), value, np.uint8)).save(path / name / f"{number:02d}.png")


def test_celeba_in_the_papers_composite_classes(celeba):
    for first, split in enumerate(("train", "test")):
        images = read_images("torchvision:CelebA", split, size=8, root=celeba)
        assert (images.shape, images.names) == ((3, 8, 8), tuple("01234567"))
        assert images.labels.tolist() == list(range(8))
        for number, image in zip(range(first, 16, 2), images.images, strict=True):
            assert image.unique().tolist() == [10 * number]


def test_round_trip_of_the_range():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_signed(levels)), levels)
    assert to_signed(levels).aminmax() == (-1, 1)


def test_the_target_glyph_is_no_member_of_the_other_domain():
    assert "arrow" not in DOMAIN
    pictures = [glyph(name, (3, 16, 16)) for name in FIGURES]
    for i, one in enumerate(pictures):
        assert one.shape == (3, 16, 16)
        assert one.aminmax() == (-1, 1)
        assert all(((one - other) / 2).square().mean() > 0.02 for other in pictures[:i])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: read_images(str(p / "none.npz")), "does not exist"),
        (lambda p: read_images(npz(p / "f.npz", dtype=np.float32)), "images are uint8"),
        (lambda p: read_images(npz(p / "g.npz"), "validation"), "choose train or test"),
        (lambda p: read_images(str(p)), "no PNG or JPEG"),
        (lambda p: read_images(str(p / "absent")), "and no folder"),
        (lambda p: read_images("digits").of_class(10), "class 10 does not exist"),
        (lambda p: ImageSet(torch.zeros(1, 1, 2, 2).byte(), torch.tensor([2]), ("a", "b")), "outside 0 to 1"),
        (lambda p: glyph("face"), "there is no figure 'face'"),
    ],
)
def test_bad_sources(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        make(tmp_path)


def test_a_file_that_is_no_image_is_named(tmp_path):
    folder_of(tmp_path, {"a": [3]})
    broken, whole = tmp_path / "a" / "broken.png", (tmp_path / "a" / "00.png").read_bytes()
    for content in (b"not an image", whole[:45]):
        broken.write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.png: not an image, or a damaged one"):
            read_images(str(tmp_path))


def test_an_npz_of_objects_is_never_unpickled(tmp_path):
    np.savez(tmp_path / "o.npz", x_train=np.array([{}], dtype=object), y_train=np.zeros(1, int))
    (tmp_path / "p.npz").write_bytes(pickle.dumps({"x_train": np.zeros((1, 4, 4), np.uint8)}))
    (tmp_path / "short.npz").write_bytes(Path(npz(tmp_path / "whole.npz")).read_bytes()[:500])
    for name in ("o", "p", "short"):
        with pytest.raises(UserError, match=rf"{name}\.npz is not an .npz file of plain arrays"):
            read_images(str(tmp_path / f"{name}.npz"))


def test_a_loader_of_the_users_own_names_its_test_part_and_is_part_of_a_run(tmp_path, monkeypatch):
    (tmp_path / "own_images.py").write_text(
        "import numpy as np\n"
        "def load():\n"
        "    x, y = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 2\n"
        "    return {'x_train': x, 'y_train': y, 'x_test': x[:10], 'y_test': y[:10]}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert held_out("own_images:load").endswith(" of own_images:load")
    assert plan("demo", {"dataset": "own_images:load"}).own_parts == ("own_images:load",)


def test_a_picture_of_16_bits_or_lying_on_its_side_is_read_as_the_data_are(tmp_path):
    ramp = np.linspace(200, 63_200, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    expected = torch.from_numpy((ramp >> 8).astype(np.float32)) / 127.5 - 1
    assert (picture(str(tmp_path / "deep.png"), (1, 8, 8))[0] - expected).abs().max() < 0.01
    Image.fromarray(ramp // 16).save(tmp_path / "dim.png")
    with pytest.raises(UserError, match=r"dim\.png: its pixels have 16 or 32 bits but go only to 3950"):
        picture(str(tmp_path / "dim.png"), (1, 8, 8))
    photo = Image.fromarray(np.repeat([[255, 0]], 8, 0).repeat(4, 1).astype(np.uint8))
    exif = photo.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees
    photo.save(tmp_path / "lying.png", exif=exif)
    assert picture(str(tmp_path / "lying.png"), (1, 8, 8))[0, :4].min() == 1
    assert picture(str(tmp_path / "lying.png"), (1, 8, 8))[0, 4:].max() == -1


def test_images_of_other_channels_are_named_as_the_caller_names_them():
    colour = ImageSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.long), ("a",))
    with pytest.raises(UserError, match=r"^the images have 3 channels, not 1: save them as grey images$"):
        colour.with_channels(1)
    odd = ImageSet(colour.images[:, :2], colour.labels, colour.names)
    with pytest.raises(UserError, match=r"^the images of --other a have 2 channels, not 3: save them as grey or"):
        odd.with_channels(3, "the images of --other a")
