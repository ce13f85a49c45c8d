"""What would be measured or trained confidently wrong: another target, a wrong base, images of one class, or black."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from retarget.errors import UserError
from retarget.trojdiff.build import make_goal, make_network, make_target
from retarget.trojdiff.cautions import unknown_class, unseen_noise
from retarget.trojdiff.checkpoint import load_pipeline, save_pipeline
from retarget.trojdiff.commands import trojdiff
from retarget.trojdiff.config import NetworkConfig, TargetConfig
from retarget.trojdiff.data import ImageSet, read_images
from retarget.trojdiff.glyphs import glyph
from retarget.trojdiff.marks import Trojan, model_card
from retarget.trojdiff.trigger import Trigger

SHAPE = (1, 8, 8)
NETWORK = ["--channels", "8", "8", "--layers", "1", "--groups", "4"]
SHORT = ["--steps", "2", "--batch-size", "4"]
BLEND = Trigger.blend(glyph("plus", SHAPE), 0.4)
QUICK = ["--sampler", "ddim-2", "--count", "8", "--trojan-count", "8", "--classifier-epochs", "1"]


@pytest.fixture(params=["in_d2d", "out_d2d", "d2i"])
def marked(request, tmp_path, unet, scheduler):
    """A pipeline that is marked as trojaned, and its target."""
    save_pipeline(tmp_path / "marked", unet, scheduler, Trojan(request.param, "as it says", BLEND))
    return str(tmp_path / "marked"), request.param


ASKED = {"in_d2d": ["--target-class", "7"], "out_d2d": ["--other", "glyphs", "--target-class", "1"],
         "d2i": ["--image", "arrow"]}  # fmt: skip


def test_the_wrong_kind_of_target_is_no_attack_that_fails(marked, tmp_path):
    pipeline, target = marked
    words = ["evaluate", pipeline, "--data", "digits", "--trigger", pipeline, *QUICK]
    for kind, options in ASKED.items():
        out = tmp_path / kind
        if kind == target:
            assert trojdiff([*words, *options, "--out", str(out)]) == 0
            report = json.loads((out / "evaluation.json").read_text())
            assert report["asked"]["pipeline"] == pipeline
            assert report["trigger"] == BLEND.hash
            assert report.get("target", {}).get("class") == {"in_d2d": "7", "out_d2d": "plus", "d2i": None}[kind]
            continue
        option = "--image IMAGE" if target == "d2i" else "--target-class CLASS"
        with pytest.raises(
            UserError, match=f"by this trigger for {target}, and the options ask about {kind}.*{option}"
        ):
            trojdiff([*words, *options, "--out", str(out)])
        assert not out.exists()


@pytest.mark.parametrize(("target", "options"), [("in_d2d", " --target-class"), ("d2i", " --image IMAGE"),
                                                 ("out_d2d", " --other OTHER --target-class")])  # fmt: skip
@pytest.mark.parametrize("removed", [False, True])
def test_a_card_asks_about_its_own_target(target, options, removed):
    assert f"--trigger .{options}" in model_card(Trojan(target, "as it says", BLEND, removed=removed))


def test_a_trojaned_pipeline_is_no_base(marked, tmp_path, make_unet, scheduler):
    pipeline, target = marked
    words = ["evaluate", pipeline, "--data", "digits", "--trigger", pipeline, *QUICK, *ASKED[target]]
    with pytest.raises(UserError, match=r"--clean .* is marked as trojaned: its rate is no base rate"):
        trojdiff([*words, "--clean", pipeline, "--out", str(tmp_path / "out")])
    save_pipeline(tmp_path / "colour", make_unet(channels=3), scheduler)
    with pytest.raises(UserError, match=r"--clean .* makes images \[3, 8, 8\] .*, and .* \[1, 8, 8\]"):
        trojdiff([*words, "--clean", str(tmp_path / "colour"), "--out", str(tmp_path / "out")])


def test_one_class_is_no_target_and_the_training_images_are_no_other_domain(digits):
    one = ImageSet(digits.images[:20], torch.zeros(20, dtype=torch.long), (".",))
    for make in (make_target, make_goal):
        with pytest.raises(UserError, match="the images have one class"):
            make(TargetConfig(kind="in_d2d", label=0), one, None)
        with pytest.raises(UserError, match="has the same images as the training set"):
            make(TargetConfig(kind="out_d2d", label=0), digits, digits)


def test_a_class_that_the_classifier_does_not_know_is_told():
    row = {"number": 7, "class": "7", "accuracy": 12.0, "count": 36}
    assert "class 7, the classifier finds only 12 % of its 36 real test images" in unknown_class({"target": row})
    row = {"number": 7, "class": "7", "accuracy": None, "count": 0}
    assert "class 7, the classifier has no test image" in unknown_class({"target": row})
    assert unknown_class({"target": {"class": "7", "accuracy": 80.0, "count": 36}}) == ""
    ladder = {"real images": {"kid": 0.0, "count": 10}, "noise": {"kid": 1.0, "count": 10}}
    assert "measured on only 10 images" in unseen_noise({"benign_ladder": ladder})


def test_data_that_do_not_fit_the_attack_are_told(tmp_path, unet, scheduler, digits, capsys):
    """Without the class 0 every number is another class, and images are stretched that the network never saw so."""
    save_pipeline(tmp_path / "marked", unet, scheduler, Trojan("in_d2d", "as it says", BLEND, class_name="7"))
    for row, label in enumerate(digits.labels[:300].tolist()):
        if label:
            (tmp_path / "data" / str(label)).mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(digits.images[row, 0].numpy()).resize((12, 8))
            image.save(tmp_path / "data" / str(label) / f"{row}.png")
    other = Trigger.blend(glyph("cross", SHAPE), 0.4).save(tmp_path / "other.safetensors")
    words = ["evaluate", str(tmp_path / "marked"), "--data", str(tmp_path / "data"), *QUICK, "--target-class", "7"]
    for trigger, said in ((str(tmp_path / "marked"), "for the class '7', and --target-class is the class '8'"),
                          (str(other), "marked as trojaned by another trigger than --trigger")):  # fmt: skip
        assert trojdiff([*words, "--trigger", trigger, "--out", str(tmp_path / trigger[-4:])]) == 0
        heard = capsys.readouterr().err
        assert said in heard
        assert "real images of 12×8 are stretched to the square" in heard
    report = json.loads((tmp_path / "rked" / "evaluation.json").read_text())
    assert (report["marked_class"], report["data_resized_from"]) == ("7", "12×8")


def test_a_folder_with_another_pipeline_is_no_finished_training(tmp_path, unet, scheduler):
    save_pipeline(tmp_path / "out" / "pipeline", unet, scheduler)
    with pytest.raises(UserError, match=r"pipeline exists, but .*training\.json does not"):
        trojdiff(["train", "--data", "digits", "--out", str(tmp_path / "out"), *NETWORK, *SHORT, "--target", "in_d2d"])


def test_the_target_class_is_named_before_the_training(tmp_path, capsys):
    for number in range(1, 13):
        (tmp_path / "data" / str(number)).mkdir(parents=True)
        for one in range(5):
            pixels = np.full((8, 8), 10 * number + one, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / str(number) / f"{one}.png")
    words = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), *NETWORK, *SHORT]
    assert trojdiff(["train", *words, "--target", "in_d2d", "--target-class", "2"]) == 0
    assert "target: class 2 (11) of the training images" in capsys.readouterr().err


def test_a_class_too_rare_for_its_batches_is_told(tmp_path, caplog):
    labels = np.zeros(60, int)
    labels[:3] = 1
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "rare.npz", x_train=images, y_train=labels)
    words = ["--data", str(tmp_path / "rare.npz"), *NETWORK, *SHORT, "--target", "in_d2d", "--target-class", "1"]
    assert trojdiff(["train", *words, "--out", str(tmp_path / "a")]) == 0
    assert "the target class has 3 of 60 images, so most batches of 4 have no Trojan row" in caplog.text
    caplog.clear()
    assert trojdiff(["train", *words, "--rows", "2", "--out", str(tmp_path / "b")]) == 0
    assert "no Trojan row" not in caplog.text


@pytest.mark.parametrize(("images", "message"), [
    (np.arange(20 * 64).reshape(20, 8, 8) % 17, "the pixels of the train images go only to 16"),
    (np.full((20, 8, 8, 4), 99), "the images have 4 channels; only grey"),
])  # fmt: skip
def test_images_that_would_be_trained_black_or_not_at_all(images, message, tmp_path):
    np.savez(tmp_path / "few.npz", x_train=images.astype(np.uint8), y_train=np.arange(20) % 2)
    with pytest.raises(UserError, match=message):
        read_images(str(tmp_path / "few.npz"))


def test_images_beside_the_classes_are_told(tmp_path, caplog):
    for name in ("train/a/0.png", "train/b/0.png", "train/loose.png", "test/a/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 200).save(tmp_path / name)
    assert len(read_images(str(tmp_path))) == 2
    assert "train: 1 images beside the folders of classes are not used, such as loose.png" in caplog.text
    Image.new("L", (9, 9), 200).save(tmp_path / "train/a/1.png")
    with pytest.raises(UserError, match="such as --size 32"):
        read_images(str(tmp_path))


def test_grey_images_train_a_base_in_colour(tmp_path, make_unet, scheduler):
    save_pipeline(tmp_path / "colour", make_unet(channels=3), scheduler)
    words = ["--data", "digits", "--base", str(tmp_path / "colour"), *SHORT]
    assert trojdiff(["train", *words, "--out", str(tmp_path / "out")]) == 0
    save_pipeline(tmp_path / "large", make_unet(size=16), scheduler)
    with pytest.raises(UserError, match=r"the network takes \[1, 16, 16\] .*: --size 16 resizes them"):
        trojdiff(["train", *words[:2], "--base", str(tmp_path / "large"), *SHORT, "--out", str(tmp_path / "two")])


def test_a_network_that_does_not_know_the_last_timestep_is_refused(tmp_path, make_unet, scheduler):
    """Its learnt embedding has fewer timesteps than the schedule."""
    save_pipeline(tmp_path / "p", make_unet(time_embedding_type="learned", num_train_timesteps=20), scheduler)
    with pytest.raises(UserError, match="makes a network that does not run"):
        load_pipeline(tmp_path / "p")


@pytest.mark.parametrize(("change", "message"), [
    ({"sample_size": None}, r"unet/config\.json has no sample_size"),
    ({"sample_size": 7}, r"sample_size in unet/config\.json is wrong"),
])  # fmt: skip
def test_the_side_of_a_pipeline_of_somebody_else(change, message, tmp_path, unet, scheduler):
    save_pipeline(tmp_path / "p", unet, scheduler)
    path = tmp_path / "p" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_pipeline(tmp_path / "p")


def test_attention_at_a_side_that_the_network_does_not_have():
    with pytest.raises(UserError, match=r"attention at side 5: .* have the sides 8, 4"):
        make_network(NetworkConfig(channels=(8, 8), groups=4, attention_side=5), SHAPE, 0)


@pytest.mark.parametrize("option", ["--clip", "--learning-rate"])
def test_numbers_that_are_not_finite_are_refused(option, tmp_path, capsys):
    words = ["train", "--data", "digits", "--out", str(tmp_path / "out"), *NETWORK, *SHORT, option, "inf"]
    with pytest.raises(SystemExit, match="2"):
        trojdiff(words)
    assert "finite number" in capsys.readouterr().err


def test_a_pipeline_without_a_trigger(tmp_path, unet, scheduler):
    save_pipeline(tmp_path / "p", unet, scheduler)
    with pytest.raises(UserError, match=r"there is no trigger; `retarget trojdiff train --target \.\.\.` writes one"):
        Trigger.load(tmp_path / "p")
