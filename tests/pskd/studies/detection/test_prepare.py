"""What is refused before the first run, and already by a dry run."""

import pytest
from PIL import Image
from scenes_for_tests import coco, voc

from retarget.errors import UserError
from retarget.pskd.studies.detection.plan import plan
from retarget.pskd.studies.detection.prepare import check, prepare

BOTH = pytest.mark.parametrize("look", [check, prepare])
CATS_AND_DOGS = [("cat", (2, 4, 20, 30), 0), ("dog", (10, 10, 40, 44), 0)]


def study(folder, arms=("classifier_ce", "ce_backbone"), objects=CATS_AND_DOGS, **config):
    """A study of two training images with two objects each."""
    if not folder.is_dir():
        voc(folder, dict.fromkeys("abcd", objects))
    return plan("small", {"dataset": f"voc:{folder}", "batch_size": 2, **config}, arms=list(arms))


@BOTH
@pytest.mark.parametrize(("pretrain", "message"), [
    ({}, r"pretrain\.validation_images = 100 of 4 crops of training objects leave 0 .* \(pretrain\.batch_size = 64\): "
         r"set pretrain\.validation_images=1 and pretrain\.batch_size=3, or lower$"),
    ({"validation_images": 2, "batch_size": 3}, r"leave 2 .*: set pretrain\.validation_images=1$"),
    ({"validation_images": 1, "batch_size": 4}, r"leave 3 .*: set pretrain\.batch_size=3, or lower$"),
    ({"validation_images": 1, "batch_size": 2, "images": 2}, r"validation_images = 1 of 2 crops .* leave 1 "),
    ({"images": 5}, r"pretrain\.images = 5, but there are only 4 training objects to crop: set pretrain\.images=null"),
])  # fmt: skip
def test_too_few_objects_to_train_a_classifier_of_crops_are_told(look, pretrain, message, tmp_path):
    with pytest.raises(UserError, match=message):
        look(study(tmp_path / "data", pretrain=pretrain))


@BOTH
def test_crops_that_suffice_and_arms_without_a_classifier_are_accepted(look, tmp_path):
    look(study(tmp_path / "data", pretrain={"validation_images": 1, "batch_size": 3}))
    look(study(tmp_path / "data", arms=["no_pretraining"]))


@BOTH
def test_a_table_of_more_classes_than_there_are_is_refused(look, tmp_path):
    crops = {"validation_images": 1, "batch_size": 3}
    heads = {"arms": ["classifier_ce", "direct_instance"], "pretrain": crops}
    look(study(tmp_path / "data", store="topk:3:uniform", **heads))
    with pytest.raises(UserError, match=r"^store = 'topk:4:uniform' keeps 4 classes of 3: set a smaller number"):
        look(study(tmp_path / "data", store="topk:4:uniform", **heads))
    with pytest.raises(UserError, match=r"^pretrain\.store = 'topk:3:uniform' keeps 3 classes of 2"):
        look(study(tmp_path / "data", ["classifier_pskd"], pretrain={**crops, "store": "topk:3:uniform"}))


@BOTH
def test_scenes_composed_of_digits_are_counted_too(look):
    with pytest.raises(UserError, match=r"pretrain\.validation_images = 100 of \d+ crops"):
        look(plan("demo", {"train_images": 8}, arms=["classifier_ce"]))


@BOTH
def test_a_classifier_of_one_class_is_refused(look, tmp_path):
    enough = {"validation_images": 1, "batch_size": 2}
    with pytest.raises(UserError, match="a classifier of crops needs two classes, but there is only cat: set pretrain"):
        look(study(tmp_path / "data", objects=[CATS_AND_DOGS[0]], pretrain=enough))
    look(study(tmp_path / "data", arms=["no_pretraining"]))


@BOTH
def test_objects_of_classes_that_were_not_chosen_are_left_out_and_counted(look, tmp_path, caplog):
    objects = [*CATS_AND_DOGS, ("bird", (9, 9, 9, 9), 0), ("fly", (1, 1, 9, 9), 1), ("fly", (2, 1, 9, 9), 1)]
    chosen = {"arms": ["no_pretraining"], "objects": objects, "classes": ["cat", "dog"], "bad_boxes": "refuse"}
    look(study(tmp_path / "data", **chosen))
    assert "12 objects of other classes than those in classes are left out, 8 of them fly" in caplog.text


def test_a_class_without_an_object_to_train_on_is_refused_with_the_setting_that_leaves_it_out(tmp_path):
    settings = coco(tmp_path)
    made = {"dataset": settings["dataset"], "batch_size": 2}
    with pytest.raises(UserError, match=r"an object of the class dog .*leave the class out with classes=\[\"cat\"\]"):
        check(plan("small", made))
    check(plan("small", {**made, "classes": ["cat"]}, arms=["no_pretraining"]))


@pytest.mark.parametrize("bad_boxes", ["drop", "refuse"])
@BOTH
def test_swapped_width_and_height_are_told_and_not_the_boxes(look, bad_boxes, tmp_path, caplog):
    voc(tmp_path / "data", size=(48, 60), objects={name: [("cat", (2, 4, 55, 30), 0)] for name in "abcd"})
    swapped = r"a\.jpg is 60×48 pixels, but .*a\.xml says 48×60: its width and height are swapped"
    with pytest.raises(UserError, match=swapped):
        look(study(tmp_path / "data", arms=["no_pretraining"], bad_boxes=bad_boxes))
    assert "cut to their image" not in caplog.text


def test_swapped_width_and_height_are_told_where_every_box_fits_too(tmp_path):
    voc(tmp_path / "data", size=(48, 60))
    with pytest.raises(UserError, match="width and height are swapped"):
        prepare(study(tmp_path / "data", arms=["no_pretraining"], classes=["cat"]))


@pytest.mark.parametrize("size", [(60, 48), (48, 60)])
def test_a_photograph_that_its_camera_turned_may_be_described_as_stored_and_as_shown(size, tmp_path):
    voc(tmp_path / "data", size=size)
    exif = Image.Exif()
    exif[0x0112] = 6
    for file in (tmp_path / "data" / "JPEGImages").iterdir():
        with Image.open(file) as image:
            stored = image.copy()
        stored.save(file, exif=exif)
    prepare(study(tmp_path / "data", arms=["no_pretraining"], classes=["cat"]))
