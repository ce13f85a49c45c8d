"""What the annotations of VOC and COCO may say, and that no image is in two parts."""

import json
import re

import pytest
from scenes_for_tests import GOOD, SPLITS, coco, model, voc

from retarget.errors import UserError
from retarget.pskd.studies.detection.data import scenes


def refused(settings, message, **more):
    with pytest.raises(UserError, match=message):
        scenes(model({**settings, **more}))


@pytest.mark.parametrize(("more", "message"), [
    ({"test_split": "train"}, r"a\.jpg is both in train_split = 'train' and in test_split = 'train': name splits that "
                              r"share no image$"),
    ({"validation_split": "test"}, r"d\.jpg is both in validation_split = 'test' and in test_split = 'test'"),
    ({"train_split": "trainval"}, r"c\.jpg is both in train_split = 'trainval' and in validation_split = 'val': .*set "
                                  r"validation_split=null and validation_images=N to hold out N training images"),
])  # fmt: skip
def test_an_image_of_two_parts_is_refused_with_both_splits(more, message, tmp_path):
    settings = voc(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "trainval.txt").write_text("a\nb\nc\n")
    refused(settings, message, **more)


def test_trainval_trains_if_its_validation_images_are_held_out_of_it(tmp_path):
    settings = voc(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "trainval.txt").write_text("a\nb\nc\n")
    held_out = {"train_split": "trainval", "validation_split": None, "validation_images": 1}
    parts = scenes(model({**settings, **held_out}))
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [2, 1, 1]


def test_an_image_that_is_twice_in_one_part_is_refused(tmp_path):
    settings = voc(tmp_path)
    twice = r"a\.jpg is twice in train_split = 'train': list each image once, and name each directory once"
    refused(settings, twice, dataset=f"voc:{tmp_path}+{tmp_path / 'JPEGImages' / '..'}")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb\na\n")
    refused(settings, twice)


def test_a_link_to_an_image_of_another_part_is_that_image(tmp_path):
    settings = coco(tmp_path)
    (tmp_path / "test" / "d.jpg").unlink()
    (tmp_path / "test" / "d.jpg").symlink_to(tmp_path / "train" / "b.jpg")
    refused(settings, r"test/d\.jpg is both in train_split = 'train' and in test_split = 'test'")


def test_a_copy_of_an_image_of_another_part_is_that_image(tmp_path):
    """In COCO's layout each split has its own folder, so that the path of a copy is another one."""
    settings = coco(tmp_path)
    image = (tmp_path / "train" / "b.jpg").read_bytes()
    (tmp_path / "train" / "a.jpg").write_bytes(image)  # a copy within one split stays allowed
    scenes(model(settings))
    (tmp_path / "test" / "d.jpg").write_bytes(image)
    refused(
        settings, r"test/d\.jpg in test_split = 'test' is a copy of \S+train/a\.jpg in train_split = 'train': name "
    )
    (tmp_path / "test" / "d.jpg").write_bytes(image[:-1] + b"\0")  # of the same size
    assert len(scenes(model(settings)).test) == 1


def test_voc_boxes_that_are_shares_of_the_image_are_refused(tmp_path):
    shares = [(name, (x1 / 60, y1 / 48, x2 / 60, y2 / 48), 0) for name, (x1, y1, x2, y2), _ in GOOD]
    settings = voc(tmp_path, objects={name: shares for names in SPLITS.values() for name in names})
    refused(settings, r"train\.txt: all 4 boxes lie between 0 and 1, so they are shares of the image: VOC's are xmin, "
                      r"ymin, xmax and ymax in pixels")  # fmt: skip


def test_voc_boxes_that_are_left_top_width_and_height_are_refused(tmp_path):
    sides = [(name, (x1, y1, x2 - x1, y2 - y1), 0) for name, (x1, y1, x2, y2) in
             [("cat", (30, 4, 50, 30)), ("dog", (10, 20, 40, 44))]]  # fmt: skip
    settings = voc(tmp_path, objects=dict.fromkeys("abcd", sides))
    refused(
        settings, r"train\.txt: 2 of 4 boxes end before they begin, and all would fit as x, y, width, height: VOC's"
    )


def test_a_size_of_voc_is_a_whole_number_also_with_a_point(tmp_path):
    settings = voc(tmp_path, size=("60.0", " 48 "))
    assert scenes(model(settings)).train[0].size == (48, 60)
    written = tmp_path / "Annotations" / "a.xml"
    written.write_text(written.read_text().replace("60.0", "60.5"))
    refused(settings, r"a\.xml is damaged: 60\.5 is no whole number of pixels")


def _replaced(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(("said", "ignored"), [("True", True), (" 1.0 ", True), ("false", False), ("0.0", False),
                                               ("Unspecified", False), ("", False)])  # fmt: skip
def test_difficult_objects_are_marked_in_the_words_of_every_tool(said, ignored, tmp_path):
    settings = voc(tmp_path)
    _replaced(tmp_path / "Annotations" / "a.xml", "<difficult>0<", f"<difficult>{said}<")
    assert scenes(model(settings)).train[0].ignored.tolist() == [ignored, True]


@pytest.mark.parametrize(("old", "new", "message"), [
    ("<difficult>1<", "<difficult>2<", "an object has the difficult '2': it is 0 or 1"),
    ("<name>dog<", "<name> <", "an object has no name"),
    ("<annotation>", '<annotation xmlns="urn:x">', "it has the element {urn:x}object: VOC's is called object, without"),
])  # fmt: skip
def test_what_would_lose_objects_of_voc_is_refused(old, new, message, tmp_path):
    settings = voc(tmp_path)
    _replaced(tmp_path / "Annotations" / "b.xml", old, new)
    refused(settings, r"b\.xml is damaged.*" + re.escape(message))


def test_capital_objects_of_voc_are_no_background(tmp_path):
    settings = voc(tmp_path)
    for old in ("<object>", "</object>"):
        _replaced(tmp_path / "Annotations" / "b.xml", old, old.replace("o", "O", 1))
    refused(settings, r"b\.xml is damaged: it has the element Object: VOC's is called object")


def test_an_empty_size_of_voc_is_read_from_the_image(tmp_path):
    settings = voc(tmp_path, size=("", " "))
    assert scenes(model(settings)).train[0].size == (48, 60)


@pytest.mark.parametrize("layout", [voc, coco])
def test_files_may_begin_with_a_byte_order_mark(layout, tmp_path):
    settings = layout(tmp_path)
    lists = [*tmp_path.glob("ImageSets/Main/*.txt"), *tmp_path.glob("annotations/*.json")]
    assert len(lists) == 3
    for path in lists:
        path.write_text(path.read_text(), encoding="utf-8-sig")
    parts = scenes(model(settings))
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [2, 1, 1]


def test_images_in_another_format_or_place_are_named(tmp_path):
    settings = voc(tmp_path / "voc", suffix=".bmp")
    refused(
        settings, r"a\.jpg is missing, but .*train\.txt lists it; there is a\.bmp: convert the images to JPEG or PNG"
    )
    settings = coco(tmp_path / "coco")
    _edited(tmp_path / "coco", lambda held: held["images"][0].update(file_name="train/a.jpg"))
    refused(settings, r"train/train/a\.jpg is missing, but .* lists train/a\.jpg, and there is .*: image files are "
                      r"named from .*train on")  # fmt: skip


def _edited(folder, change):
    path = folder / "annotations" / "instances_train.json"
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))


@pytest.mark.parametrize(("given", "ignored"), [(0, False), (1, True), (False, False), (True, True), ("0", False),
                                                ("1", True)])  # fmt: skip
def test_a_crowd_is_0_or_1_also_as_text(given, ignored, tmp_path):
    settings = coco(tmp_path)
    _edited(tmp_path, lambda held: held["annotations"][0].update(iscrowd=given))
    assert scenes(model(settings)).train[0].ignored[0].item() is ignored


@pytest.mark.parametrize("given", ["no", "", None, 2, [1]], ids=str)
def test_another_crowd_is_refused_with_its_annotation(given, tmp_path):
    settings = coco(tmp_path)
    _edited(tmp_path, lambda held: held["annotations"][1].update(iscrowd=given))
    refused(settings, re.escape(f"instances_train.json: annotation 1 has the iscrowd {given!r}: it is 0 or 1"))


@pytest.mark.parametrize(("change", "message"), [
    (lambda held: held["categories"][1].update(name="dog"), "the categories 3 and 7 have one name, 'dog': rename one"),
    (lambda held: held["categories"][1].update(id=3), "the categories 'dog' and 'cat' have one id, 3"),
    (lambda held: held.pop("annotations"), "instances_train.json has no `annotations`: .*image_info"),
    (lambda held: held.pop("images"), "instances_train.json has no `images`"),
    (lambda held: held["images"][0].pop("height"), r"the image a\.jpg has the height None and the width 60: give both"),
    (lambda held: held["annotations"][1].update(category_id="7"), "which `categories` does not list: its ids are 3, 7"),
    (lambda held: held["annotations"][1].update(bbox=[1, 2, None, 3]), r"annotation 1 has the bbox \[1, 2, None, 3\]"),
    (lambda held: held["annotations"][1].update(bbox=[1, "x", 2, 3]), r"annotation 1 has the bbox \[1, 'x', 2, 3\]"),
])  # fmt: skip
def test_what_is_wrong_in_cocos_file_is_named(change, message, tmp_path):
    settings = coco(tmp_path)
    _edited(tmp_path, change)
    refused(settings, message)


def test_a_category_may_have_a_number_as_its_name(tmp_path):
    settings = coco(tmp_path)
    for split in SPLITS:
        path = tmp_path / "annotations" / f"instances_{split}.json"
        path.write_text(path.read_text().replace('"cat"', "12"))
    assert scenes(model(settings)).classes == ("12", "dog")
