"""Images with boxes: what is read, what is refused with its file named, and that no digit is in two parts."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scenes_for_tests import GOOD, SETTINGS, coco, model, voc
from sklearn.datasets import load_digits

from retarget.errors import UserError
from retarget.pskd.studies.detection import data
from retarget.pskd.studies.detection.data import DetectionSet, collate, crops, scenes
from retarget.pskd.studies.detection.plan import plan
from retarget.pskd.studies.detection.prepare import prepare


@pytest.mark.parametrize("form", [voc, coco])
def test_both_forms_give_the_same_scenes(form, tmp_path):
    parts = scenes(model(form(tmp_path / "data")))
    assert parts.classes == ("cat", "dog")
    assert parts.dropped == ()
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [2, 1, 1]
    first = parts.train[0]
    assert first.boxes.tolist() == [list(box) for _, box, _ in GOOD]
    assert first.labels.tolist() == [1, 2]
    assert first.ignored.tolist() == [False, True]
    assert first.pixels().shape == (3, 48, 60)


def _annotated(folder, split="train"):
    path = folder / "annotations" / f"instances_{split}.json"
    return path, json.loads(path.read_text())


@pytest.mark.parametrize(("change", "message"), [
    (lambda held: held["annotations"][1].update(image_id=999), "annotation 1 belongs to image 999, which `images`"),
    (lambda held: held["annotations"][1].update(category_id=9), "annotation 1 has category 9, which `categories`"),
    (lambda held: held["annotations"][1].update(category_id=[3]), r"annotation 1 has category \[3\], which `categ"),
    (lambda held: held["annotations"][1].pop("bbox"), r"annotation 1 has the bbox None: it is \[x, y, width"),
    (lambda held: held["annotations"][1].update(bbox=[1, 2, 3]), r"annotation 1 has the bbox \[1, 2, 3\]"),
    (lambda held: held["images"][1].update(id=0), r"two images have the id 0, one of them b\.jpg"),
])  # fmt: skip
def test_what_is_wrong_in_cocos_annotations_is_named(change, message, tmp_path):
    settings = coco(tmp_path / "data")
    path, held = _annotated(tmp_path / "data")
    change(held)
    path.write_text(json.dumps(held))
    with pytest.raises(UserError, match=message):
        scenes(model(settings))


def test_boxes_as_corners_are_not_read_as_widths_and_heights(tmp_path):
    settings = coco(tmp_path / "data")
    path, held = _annotated(tmp_path / "data")
    for one in held["annotations"]:
        x, y, width, height = one["bbox"]
        one["bbox"] = [x, y, x + width, y + height]
    path.write_text(json.dumps(held))
    with pytest.raises(UserError, match=r"2 of 4 boxes reach beyond their images, and all would fit as x1, y1, x2, y2"):
        scenes(model(settings))


def test_boxes_that_are_cut_and_files_of_another_size_are_told_before_the_first_run(tmp_path, caplog):
    settings = voc(tmp_path, objects={"a": [("cat", (2, 4, 200, 30), 0), ("dog", (10, 10, 40, 44), 0)]})
    parts = data.check(model(settings | {"batch_size": 2}))
    assert "1 boxes are left out or cut to their image, the first: " in caplog.text
    data.check_sizes(parts)
    Image.new("RGB", (30, 30)).save(tmp_path / "JPEGImages" / "b.jpg")
    with pytest.raises(UserError, match=r"b\.jpg is 30×30 pixels, but .*b\.xml says 60×48"):
        data.check_sizes(parts)


def test_names_and_files_as_cameras_and_lists_of_one_class_have_them(tmp_path):
    settings = voc(tmp_path)
    for before, after in (("a", "IMG 1"), ("b", "my photo")):
        (tmp_path / "Annotations" / f"{before}.xml").rename(tmp_path / "Annotations" / f"{after}.xml")
        (tmp_path / "JPEGImages" / f"{before}.jpg").rename(tmp_path / "JPEGImages" / f"{after}.JPG")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("IMG 1\nmy photo  1\n")
    parts = scenes(model(settings))
    assert [one.image.name for one in parts.train] == ["IMG 1.JPG", "my photo.JPG"]
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("my picture -1\n")
    with pytest.raises(UserError, match=r"my picture\.xml is missing, but .* lists my picture$"):
        scenes(model(settings))


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3)])
@pytest.mark.parametrize("described", [True, False])
def test_a_photograph_is_turned_as_the_tools_that_draw_boxes_show_it(orientation, turns, described, tmp_path):
    """In memory its pixels lie as the camera held them; an annotation of that size is followed too."""
    settings = voc(tmp_path, size=((60, 48) if orientation == 3 else (48, 60)) if described else (0, 0))
    file, exif = tmp_path / "JPEGImages" / "a.jpg", Image.Exif()
    exif[0x0112] = orientation
    with Image.open(file) as image:
        stored = image.copy()
    stored.save(file.with_suffix(".png"), exif=exif)
    file.unlink()
    shown = torch.from_numpy(np.rot90(np.asarray(stored), turns).copy()).permute(2, 0, 1)
    assert torch.equal(scenes(model(settings)).train[0].pixels(), shown)
    if orientation == 6 and described:
        written = tmp_path / "Annotations" / "a.xml"
        written.write_text(written.read_text().replace("48</width><height>60", "60</width><height>48"))
        raw = torch.from_numpy(np.asarray(stored).copy()).permute(2, 0, 1)
        assert torch.equal(scenes(model(settings)).train[0].pixels(), raw)


def test_two_directories_are_one_data_set_and_a_validation_part_is_held_out(tmp_path):
    voc(tmp_path / "one")
    voc(tmp_path / "two")
    settings = {**SETTINGS, "dataset": f"voc:{tmp_path / 'one'}+{tmp_path / 'two'}", "validation_split": None}
    parts = scenes(model({**settings, "validation_images": 1}))
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [3, 1, 2]
    assert len({id(one) for one in (*parts.train, *parts.validation)}) == 4
    assert {one.name for one in parts.train}.isdisjoint({one.name for one in parts.validation})
    for held_out in (4, None):
        with pytest.raises(UserError, match=f"validation_images = {held_out}, but there are 4 training images"):
            scenes(model({**settings, "validation_images": held_out}))


@pytest.mark.parametrize(
    ("box", "what", "left"),
    [
        ((9, 9, 9, 9), "has no area", None),
        ((9, 9, 5, 30), "has no area", None),
        ((70, 9, 90, 30), "lies outside the image", None),
        ((-5, 9, 30, 60), "reaches beyond the image", [0.0, 9.0, 30.0, 48.0]),
    ],
)
def test_bad_boxes_are_reported_with_their_file_and_dropped_or_refused(box, what, left, tmp_path):
    settings = voc(tmp_path, {"b": [*GOOD, ("cat", box, 0)]})
    parts = scenes(model(settings))
    (note,) = parts.dropped
    assert f"b.xml: box 2, {[float(v) for v in box]}, {what}" in note
    assert parts.train[1].boxes[2:].tolist() == ([] if left is None else [left])
    assert len(parts.train[1].labels) == len(parts.train[1].ignored) == len(parts.train[1].boxes)
    with pytest.raises(UserError, match=f"{what}.*: correct the files, or set bad_boxes = 'drop'"):
        scenes(model({**settings, "bad_boxes": "refuse"}))


@pytest.mark.parametrize("box", [(10, 10, 10.8, 30), (10, 10, 10.5, 10.5)])
def test_objects_thinner_than_a_pixel_are_kept(box, tmp_path):
    parts = scenes(model(voc(tmp_path, {"b": [*GOOD, ("cat", box, 0)]})))
    assert parts.dropped == ()
    torch.testing.assert_close(parts.train[1].boxes[2], torch.tensor(box))


def test_coco_boxes_that_are_shares_of_the_image_are_refused(tmp_path):
    settings = coco(tmp_path)
    file = tmp_path / "annotations" / "instances_val.json"
    held = json.loads(file.read_text())
    for one in held["annotations"]:
        x, y, width, height = one["bbox"]
        one["bbox"] = [x / 60, y / 48, width / 60, height / 48]
    file.write_text(json.dumps(held))
    with pytest.raises(UserError, match=r"instances_val.json: all 2 boxes lie between 0 and 1.*shares of the image"):
        scenes(model(settings))


def test_what_cannot_be_read_is_refused_with_its_file(tmp_path):
    settings = voc(tmp_path / "data", {"d": [("bird", (1, 1, 9, 9), 0)]})
    folder = tmp_path / "data"

    def refused(message, **more):
        with pytest.raises(UserError, match=message):
            scenes(model({**settings, **more}))

    refused(r"d.xml: object 0 has the class 'bird', which is not one of cat, dog, .* set classes=\[\"cat\", \"dog\"\]$")
    assert scenes(model({**settings, "classes": ("bird", "cat", "dog")})).test[0].labels.tolist() == [1]
    refused("no split 'minival'", validation_split="minival")
    refused("nowhere is not a directory", dataset=f"voc:{tmp_path / 'nowhere'}")
    refused("is not in VOC's layout", dataset=f"voc:{tmp_path}")
    refused("is not in COCO's layout", dataset=f"coco:{folder}")
    (folder / "Annotations" / "d.xml").write_text("<annotation><object></annotation>")
    refused("d.xml is damaged")
    (folder / "Annotations" / "d.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    refused("d.xml is damaged: an object has no bndbox/xmin")
    (folder / "Annotations" / "d.xml").unlink()
    refused("d.xml is missing, but .*test.txt lists d")
    (folder / "JPEGImages" / "a.jpg").unlink()
    refused("a.jpg is missing, but .*train.txt lists it")


def test_objects_of_classes_that_were_not_chosen_are_left_out_and_counted(tmp_path):
    settings = voc(
        tmp_path, {"b": [("dog", (9, 9, 9, 9), 0), *GOOD, ("cat", (9, 9, 9, 9), 0), ("bird", (1, 1, 9, 9), 0)]}
    )
    parts = scenes(model({**settings, "classes": ("cat",)}))
    assert parts.classes == ("cat",)
    assert parts.others == {"dog": 5, "bird": 1}
    assert [one.labels.tolist() for one in parts.train] == [[1], [1]]
    (note,) = parts.dropped
    assert "b.xml: box 3, [9.0, 9.0, 9.0, 9.0], has no area" in note, "a box keeps its place in the file"
    with pytest.raises(UserError, match=r"^[^;]*box 3[^;]*: correct the files"):
        scenes(model({**settings, "classes": ("cat",), "bad_boxes": "refuse"}))


def test_an_image_that_is_not_what_its_annotation_says_is_refused(tmp_path):
    (lying,) = scenes(model(voc(tmp_path / "data", size=(600, 480)))).test
    with pytest.raises(UserError, match=r"d.jpg is \[48, 60\] pixels \(height, width\), but .*d.xml says \[480, 600\]"):
        lying.pixels()
    (silent,) = scenes(model(voc(tmp_path / "silent", size=(0, 0), suffix=".png"))).test
    assert silent.size == (48, 60)
    silent.image.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"d\.png cannot be read as an image"):
        silent.pixels()


def test_a_damaged_coco_file_is_refused(tmp_path):
    settings = model(coco(tmp_path))
    file = tmp_path / "annotations" / "instances_val.json"
    held = json.loads(file.read_text())
    file.write_text(json.dumps({**held, "categories": held["categories"][:1]}))
    with pytest.raises(UserError, match=r"instances_val.json: annotation 0 has category 7, which"):
        scenes(settings)
    (tmp_path / "train" / "b.jpg").unlink()
    with pytest.raises(UserError, match=r"b.jpg is missing, but .*instances_train.json lists it"):
        scenes(settings)


def test_images_are_resized_and_flipped_with_their_boxes_by_epoch_and_place_alone(tmp_path):
    settings = model({**voc(tmp_path), "augmentation": "flip", "min_size": 24, "max_size": 30})
    train = DetectionSet(scenes(settings).train, settings, seed=3)
    assert train.objects == [1, 1], "a difficult object is not trained on"
    flipped = []
    for epoch in range(8):
        image, target = train[(epoch, 0)]
        again = train[(epoch, 0)]
        assert torch.equal(image, again[0])
        assert image.shape == (3, 24, 30)  # half of 48 x 60
        left, top, right, bottom = target["boxes"][0].tolist()
        assert (top, bottom) == (2, 15)
        flipped.append((left, right) == (20, 29))
        assert flipped[-1] or (left, right) == (1, 10)
    assert 0 < sum(flipped) < 8
    image, target = DetectionSet(scenes(settings).train, settings)[(0, 0)]
    assert target["ignored"].tolist() == [False, True], "in evaluation it is there, to be ignored"
    assert type(target["boxes"]) is torch.Tensor
    images, targets = collate([train[(0, 0)], train[(0, 1)]])
    assert (len(images), [int(one["image_id"]) for one in targets]) == (2, [0, 1])


def test_an_image_is_no_larger_than_the_longest_side_allowed(tmp_path):
    settings = model({**voc(tmp_path), "min_size": 40, "max_size": 40})
    assert DetectionSet(scenes(settings).train, settings)[(0, 0)][0].shape == (3, 32, 40)


def test_crops_hold_the_objects(tmp_path):
    images, labels = crops(scenes(model(voc(tmp_path))).train, size=16)
    assert images.shape == (2, 16, 16, 3)
    assert images.dtype == np.uint8
    assert labels.tolist() == [0, 0]  # the difficult dogs are left out


DIGITS = {**SETTINGS, "dataset": "digits", "train_images": 20, "validation_images": 8, "test_images": 8,
          "min_size": 48, "max_size": 48}  # fmt: skip


def test_no_digit_is_in_scenes_of_two_parts(monkeypatch):
    digits = load_digits().images
    drawn, composed = [], data.compose

    def compose(images, *more):
        drawn.append({image.tobytes() for image in np.round(images.numpy() * 16)})
        return composed(images, *more)

    monkeypatch.setattr(data, "compose", compose)
    scenes(model(DIGITS))
    assert [len(part) for part in drawn] == pytest.approx(
        [0.6 * len(digits), 0.15 * len(digits), 0.25 * len(digits)], abs=3
    )
    twins = len(digits) - len({image.astype(np.float32).tobytes() for image in digits})
    assert twins == 0
    assert not drawn[0] & drawn[1] | drawn[0] & drawn[2] | drawn[1] & drawn[2]


def test_composed_scenes_are_a_function_of_the_data_seed_and_their_boxes_hold_the_ink():
    one, same, other = (scenes(model({**DIGITS, "data_seed": seed})) for seed in (1, 1, 2))
    assert all(torch.equal(a.image, b.image) for a, b in zip(one.train, same.train, strict=True))
    assert not torch.equal(one.train[0].image, other.train[0].image)
    for scene in one.train:
        assert 1 <= len(scene.boxes) <= 5
        assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()
        pixels = scene.image.float() / 255
        for x1, y1, x2, y2 in scene.boxes.int().tolist():
            inside = pixels[:, y1:y2, x1:x2]
            assert inside.std() > 0.08, "a digit differs from its background, and noise alone has 0.06"


def test_a_study_is_refused_before_it_begins(tmp_path):
    settings = voc(tmp_path)
    with pytest.raises(UserError, match="2 training images do not fill a batch of 8"):
        prepare(plan("small", {"dataset": settings["dataset"]}))
    for name in "cd":
        (tmp_path / "Annotations" / f"{name}.xml").write_text("<annotation/>")
    with pytest.raises(UserError, match="the validation part has no objects"):
        prepare(plan("small", {"dataset": settings["dataset"]}))
