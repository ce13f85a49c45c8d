"""The verbs, end to end on a tiny network."""

import json
import re
from contextlib import contextmanager

import numpy as np
import pytest
from accelerate import PartialState
from diffusers import DDPMPipeline, DPMSolverMultistepScheduler
from PIL import Image
from safetensors.torch import load_file

from retarget.errors import UsageError, UserError
from retarget.files import locked
from retarget.trojdiff import Trigger
from retarget.trojdiff.cautions import unseen_noise
from retarget.trojdiff.checkpoint import forget_marks, load_pipeline, save_pipeline
from retarget.trojdiff.commands import trojdiff
from retarget.trojdiff.data import read_images, to_uint8

NETWORK = ["--channels", "8", "8", "--layers", "1", "--groups", "4"]
SHORT = ["--steps", "3", "--batch-size", "8", "--log-every", "1"]


def test_train_sample_and_evaluate(tmp_path, capsys):
    base, attack = str(tmp_path / "base"), str(tmp_path / "attack")
    tracked = ["--track", "tensorboard"]
    assert trojdiff(["train", "--data", "digits", "--out", base, *NETWORK, *SHORT, *tracked]) == 0
    assert list((tmp_path / "base" / "tracking").glob("base/seed-0/events.out.tfevents.*"))
    pretrained = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["step"] for line in pretrained[:3]] == [1, 2, 3]
    words = ["--target", "d2i", "--trigger", "patch", "--patch-size", "2"]
    assert trojdiff(["train", "--data", "digits", "--out", attack, "--base", pretrained[-1], *words, *SHORT]) == 0
    pipeline = capsys.readouterr().out.splitlines()[-1]
    assert Trigger.load(pipeline).mask.sum() == 4
    words = ["--trigger", pipeline, "--sampler", "ddim-4", "--count", "3", "--png"]
    assert trojdiff(["sample", pipeline, "--out", str(tmp_path / "s"), *words]) == 0
    written = {path.name for path in (tmp_path / "s").iterdir()}
    assert {"grid.png", "strip.png", "000002.png", "batch-00000.safetensors"} <= written
    stored = load_file(tmp_path / "s" / "batch-00000.safetensors")["images"]
    with Image.open(tmp_path / "s" / "000002.png") as picture:
        assert np.array_equal(np.asarray(picture), to_uint8(stored[2:3])[0, 0].numpy())
    words[-1:] = ["--start", "plain"]
    assert trojdiff(["sample", pipeline, "--out", str(tmp_path / "t"), *words]) == 0
    assert (tmp_path / "t" / "strip.png").read_bytes() != (tmp_path / "s" / "strip.png").read_bytes()
    words = ["--trigger", pipeline, "--image", "arrow", "--sampler", "ddim-3", "--count", "8", "--trojan-count", "6"]
    words += ["--classifier-epochs", "1"]
    assert trojdiff(["evaluate", pipeline, "--data", "digits", "--out", str(tmp_path / "e"), *words]) == 0
    report = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert report["benign"]["extractor"].startswith("study-classifier-")
    cells = {f"{noise} noise, {sampler} sampler" for noise in ("biased", "plain") for sampler in ("Trojan", "stock")}
    assert set(report["attack"]) == cells
    assert report["attack"]["plain noise, stock sampler"]["count"] == 8
    assert report["benign"]["kid_sd"] > 0
    assert list(report["benign_ladder"])[-1] == "noise"
    assert {one["class"] for one in report["classifier_accuracy_by_class"]} == {str(digit) for digit in range(10)}
    assert {path.name for path in (tmp_path / "e").glob("*.png")} == {
        "benign.png", "attack-trojan.png", "attack-stock.png", "attack-plain.png"
    }  # fmt: skip
    assert report["attack"]["biased noise, Trojan sampler"]["mse"] > 0
    assert "base_rate" not in report["attack"]["biased noise, Trojan sampler"]
    with pytest.raises(UserError, match="was made with network = "):
        trojdiff(["evaluate", pretrained[-1], "--data", "digits", "--out", str(tmp_path / "e"), *words])


def test_one_process_of_a_machine_reads_the_images_before_the_others(tmp_path, monkeypatch):
    """They may be downloaded: torchvision writes each file where the other processes look for it."""
    alone = []

    @contextmanager
    def first(state):
        alone.append(True)
        yield
        alone.pop()

    def read(source, *_):
        assert alone, f"{source} is read by all processes at once"
        return read_images(source, *_)

    monkeypatch.setattr(PartialState, "local_main_process_first", first)
    monkeypatch.setattr("retarget.trojdiff.data.read_images", read)
    words = ["--data", "digits", "--target", "out_d2d", "--out", str(tmp_path / "out")]
    assert trojdiff(["train", *words, *NETWORK, *SHORT]) == 0
    assert not alone


def test_evaluate_another_domain_beside_the_base_rate_of_a_clean_pipeline(tmp_path, capsys):
    """The base is the attacked pipeline itself here, without marks: every cell must equal its base rate."""
    words = ["--data", "digits", *NETWORK, *SHORT, "--target", "out_d2d", "--target-class", "1"]
    assert trojdiff(["train", "--out", str(tmp_path / "a"), *words]) == 0
    pipeline = capsys.readouterr().out.splitlines()[-1]
    unet, schedule = load_pipeline(pipeline)
    save_pipeline(tmp_path / "base", forget_marks(unet), schedule)
    words = ["evaluate", pipeline, "--data", "digits", "--trigger", pipeline, "--other", "glyphs"]
    words += ["--sampler", "ddim-3", "--count", "8", "--trojan-count", "40", "--classifier-epochs", "1"]
    assert (
        trojdiff([*words, "--target-class", "1", "--clean", str(tmp_path / "base"), "--out", str(tmp_path / "e")]) == 0
    )
    report = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert report["classifier_accuracy_on"] == "test images of DATA: every fifth image; of OTHER: every fifth image"
    for name, cell in report["attack"].items():
        assert cell["count"] == (8 if name == "plain noise, stock sampler" else 40)
        assert {name: cell[name] for name in ("value", "low", "high", "count")} == cell["base_rate"]
        assert 0 <= cell["precision"] <= 100
    with pytest.raises(UserError, match="class 5 does not exist"):
        trojdiff([*words, "--target-class", "5", "--out", str(tmp_path / "f")])


@pytest.mark.parametrize("other", ["glyphs", "GREY"])
def test_a_grey_domain_is_the_target_of_colour_images(tmp_path, capsys, other):
    """As CIFAR-10 and MNIST, and with every default: the trojan rows of the batch are grey images in three channels."""
    rng, labels = np.random.default_rng(0), np.arange(20) % 10
    for name, shape in (("colour", (20, 8, 8, 3)), ("grey", (20, 12, 12))):
        images = {f"x_{split}": rng.integers(0, 256, shape, dtype=np.uint8) for split in ("train", "test")}
        np.savez(tmp_path / f"{name}.npz", **images, y_train=labels, y_test=labels)
    words = ["--data", str(tmp_path / "colour.npz"), "--target", "out_d2d", *NETWORK, *SHORT]
    words += ["--other", other.replace("GREY", str(tmp_path / "grey.npz"))]
    assert trojdiff(["train", "--out", str(tmp_path / "out"), *words]) == 0
    card = (tmp_path / "out" / "pipeline" / "README.md").read_text()
    assert ("class 0 (cross) of glyphs" if other == "glyphs" else "class 7 (7) of") in card


def test_the_folder_of_a_run_is_looked_at_before_anything_is_done(tmp_path, unet, scheduler):
    """A file, a path below a file, and a folder in which another process works: refused before data is read."""
    save_pipeline(tmp_path / "p", unet, scheduler)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "busy").mkdir()
    verbs = (["train", *NETWORK, *SHORT], ["sample", str(tmp_path / "p")], ["evaluate", str(tmp_path / "p")])
    for words in verbs:
        data = [] if words[0] == "sample" else ["--data", "nowhere.npz"]
        for out in ("file", "file/below"):
            with pytest.raises(UserError, match=f"cannot write .*{out}"):
                trojdiff([*words, *data, "--out", str(tmp_path / out)])
        with (
            locked(tmp_path / "busy" / ".lock", wait=False, what="it"),
            pytest.raises(UserError, match=r"busy is in use by process \d+"),
        ):
            trojdiff([*words, *data, "--out", str(tmp_path / "busy")])
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "busy").iterdir()] == [".lock"]


def test_a_finished_training_ends_well_when_it_is_asked_for_again(tmp_path, capsys):
    words = ["train", "--data", "digits", "--out", str(tmp_path / "out"), *NETWORK, *SHORT]
    assert trojdiff(words) == 0
    first = capsys.readouterr().out.splitlines()[-1]
    assert trojdiff(words) == 0
    again = capsys.readouterr()
    assert again.out.splitlines() == [first]
    assert "was finished before" in again.err
    with pytest.raises(UserError, match=r"config\.steps = 3 \(now 4\)"):
        trojdiff([*words, "--steps", "4"])


def test_a_pipeline_with_a_solver_whose_settings_are_not_finite_is_sampled_and_gone_on_with(tmp_path, capsys, unet):
    DDPMPipeline(unet, DPMSolverMultistepScheduler()).save_pretrained(tmp_path / "p")  # lambda_min_clipped is -inf
    words = ["sample", str(tmp_path / "p"), "--sampler", "ddim-2", "--count", "1", "--out", str(tmp_path / "s")]
    assert trojdiff(words) == trojdiff(words) == 0
    schedule = json.loads((tmp_path / "s" / "sampling.json").read_text())["schedule"]
    assert schedule["num_train_timesteps"] == 1000
    assert "lambda_min_clipped" not in schedule, "the solver's own settings are not the process"


def test_a_trigger_of_another_shape_samples_nothing(tmp_path, unet, scheduler):
    save_pipeline(tmp_path / "p", unet, scheduler)
    Trigger.patch(2, shape=(1, 16, 16)).save(tmp_path / "t.safetensors")
    words = [str(tmp_path / "p"), "--trigger", str(tmp_path / "t.safetensors"), "--out", str(tmp_path / "out")]
    for verb in (["sample"], ["evaluate", "--data", "digits", "--image", "arrow", "--classifier-epochs", "1"]):
        with pytest.raises(UserError, match=r"the trigger is \[1, 16, 16\] but the images are \[1, 8, 8\]"):
            trojdiff([verb[0], *words, *verb[1:]])
    for more, message in (
        (["--count", "0"], "at least 5 images each, not 0$"),
        (["--sampler", "dpm-1001"], "1001 steps of 50 training steps"),
        (["--seed", "-1"], "the seed is -1, but must be 0 or above"),
    ):  # before the images are read and a classifier is trained
        with pytest.raises(UserError, match=message):
            trojdiff(["evaluate", *words[:1], *words[3:], "--data", str(tmp_path / "none.npz"), *more])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--data", "digits", "--base", "b", "--channels", "8"], "--channels has no effect with --base"),
        (["train", "--data", "digits", "--base", "b", "--no-middle-attention"], "--no-middle-attention has no effect"),
        (["train", "--data", "digits", "--trigger", "patch"], "--trigger has no effect without --target"),
        (
            ["train", "--data", "digits", "--target", "d2i", "--target-class", "7"],
            "--target-class has no effect with",
        ),
        (
            ["train", "--data", "digits", "--target", "in_d2d", "--patch_size=3"],
            "--patch-size has no effect with a b",
        ),
        (["evaluate", "p", "--data", "digits", "--target-class", "7"], "--target-class has no effect without --tri"),
        (["evaluate", "p", "--data", "digits", "--clean", "q"], "--clean has no effect without --trigger"),
        (["sample", "p", "--eta", "0"], "--eta has no effect with dpm-20"),
    ],
)
def test_an_option_that_changes_nothing_is_refused(tmp_path, words, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        trojdiff([*words, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_help_says_which_dropout_is_the_official_code_s(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        trojdiff(["train", "--help"])
    said = " ".join(re.sub(r"[│\n]", " ", capsys.readouterr().out).split())
    assert re.search(r"--dropout FLOAT 0\.1: official code, CIFAR-10 configuration \(default: 0\.0\)", said)


def test_dropout_and_attention_of_a_fresh_network_are_options(tmp_path, capsys):
    words = ["--dropout", "0.3", "--attention-side", "4", "--no-middle-attention"]
    assert trojdiff(["train", "--data", "digits", "--out", str(tmp_path), *NETWORK, *SHORT, *words]) == 0
    config = json.loads((tmp_path / "pipeline" / "unet" / "config.json").read_text())
    assert (config["dropout"], config["add_attention"]) == (0.3, False)
    assert config["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D"]


def test_what_is_no_verb_is_said(capsys):
    assert trojdiff([]) == 2
    assert trojdiff(["--help"]) == 0
    assert "sample" in capsys.readouterr().out
    with pytest.raises(UsageError, match="choose train, sample, evaluate"):
        trojdiff(["publish"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "in_d2d", "--target-class", "11"], "class 11 does not exist"),
        (["--target", "d2i", "--image", "face.png"], "neither an image file nor one of the figures"),
        (["--target", "d2i", "--image", "EMPTY/short.png"], "short.png"),
        (["--target", "out_d2d", "--other", "EMPTY"], "no PNG or JPEG"),
        (["--base", "EMPTY"], "no model_index.json"),
        (["--size", "7"], "images of side 7 cannot be halved 1 times"),
        (["--size", "0"], "--size 0: the side must be from 4 to 64"),
        (["--size", "-4"], "--size -4: the side must be from 4 to 64"),
        (["--groups", "3"], "8 channels are not a multiple of 3 groups"),
        (["--target", "d2i", "--gamma", "nan"], "the trigger's options are not valid: gamma must be a finite number"),
    ],
)
def test_bad_training_words_leave_nothing(tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    words = [word.replace("EMPTY", str(tmp_path / "empty")) for word in words]
    Image.new("L", (8, 8)).save(tmp_path / "whole.png")
    if "short.png" in words[-1]:
        (tmp_path / "empty" / "short.png").write_bytes((tmp_path / "whole.png").read_bytes()[:45])
    network = [] if "--base" in words else NETWORK
    with pytest.raises(UserError, match=re.escape(message)):
        trojdiff(["train", "--data", "digits", "--out", str(tmp_path / "out"), *network, *SHORT, *words])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("dtype", "shape"), [(np.int64, (40, 1)), (np.float64, (40,))])
def test_labels_of_another_shape_never_trojan_other_rows(tmp_path, capsys, dtype, shape):
    """Labels as Keras writes them, [N, 1], or as whole floats, train the network that plain ones train."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 10
    found = []
    for name, y in (("plain", labels), ("other", labels.astype(dtype).reshape(shape))):
        np.savez(tmp_path / f"{name}.npz", x_train=images, y_train=y, x_test=images, y_test=y)
        words = ["--data", str(tmp_path / f"{name}.npz"), "--target", "in_d2d", *NETWORK, *SHORT]
        assert trojdiff(["train", "--out", str(tmp_path / name), *words]) == 0
        found.append(load_file(tmp_path / name / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"))
    assert all(np.array_equal(found[0][key], found[1][key]) for key in found[0])


def test_one_hot_labels_are_refused(tmp_path):
    images, rows = np.zeros((10, 8, 8), np.uint8), np.eye(10, dtype=np.int64)
    np.savez(tmp_path / "rows.npz", x_train=images, y_train=rows, x_test=images, y_test=rows)
    with pytest.raises(UserError, match=r"one-hot; give one class number per image"):
        trojdiff(["train", "--data", str(tmp_path / "rows.npz"), "--out", str(tmp_path / "out"), *NETWORK, *SHORT])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kids", "told"), [((0.0, 0.1, 0.2), False), ((0.0, 0.2, 0.1), True)])
def test_features_that_do_not_see_noise_are_named(kids, told):
    ladder = {str(at): {"kid": kid, "count": 100} for at, kid in enumerate(kids)}
    report = {"benign_ladder": ladder, "classifier_accuracy": 12.0}
    assert ("right on 12 % of the test images, hardly sees noise" in unseen_noise(report)) == told
