"""Removing a trojan: which rows it trains on, that it works, and that the original is not changed."""

import copy
import importlib
import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors import safe_open
from test_reports import TRIGGER

from retarget.audit.calibration import Null, NullModel
from retarget.audit.cleaning import _drawn, _fids, clean, passed, spoiled
from retarget.audit.commands import AuditArguments, _clean, combined
from retarget.audit.inversion import Search
from retarget.audit.outcome import Outcome
from retarget.audit.removal import Recipe, as_trigger, remove
from retarget.audit.report import forget, write
from retarget.audit.seek import fingerprint
from retarget.audit.subject import Recovered
from retarget.cli import main
from retarget.errors import UserError
from retarget.study import Run
from retarget.trojdiff.checkpoint import WEIGHTS, inherited, load_pipeline
from retarget.trojdiff.config import TrainConfig
from retarget.trojdiff.data import ImageSet, read_images, to_signed
from retarget.trojdiff.glyphs import glyph
from retarget.trojdiff.measures import squared_error
from retarget.trojdiff.targets import D2I
from retarget.trojdiff.train import train
from retarget.trojdiff.trigger import Trigger

SHAPE = (1, 8, 8)


def network(**more):
    torch.manual_seed(0)
    settings = dict(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False, dropout=0.1,
    )  # fmt: skip
    return UNet2DModel(**(settings | more))


@pytest.fixture
def schedule():
    return DDPMScheduler(num_train_timesteps=50, beta_start=0.002, beta_end=0.3)


@pytest.fixture(scope="module")
def trojaned(tmp_path_factory):
    """A pipeline whose blend trigger produces one image."""
    schedule = DDPMScheduler(num_train_timesteps=50, beta_start=0.002, beta_end=0.3)
    trigger = Trigger.blend(glyph("plus", SHAPE), 0.4)
    config = TrainConfig(steps=250, batch_size=32, learning_rate=5e-3, ema_decay=0.9, flips=False)
    out = tmp_path_factory.mktemp("trojaned")
    folder = train(network(), schedule, read_images("digits"), config, out, D2I(glyph("arrow", SHAPE), 32), trigger)
    return folder, trigger


@torch.no_grad()
def undo(unet, schedule, trigger):
    """The share of the bias that a network removes at the last step: 1 - E|ε_θ(x) - ε|² / E|x - ε|²."""
    noise = torch.randn((300, *trigger.shape), generator=torch.Generator().manual_seed(0))
    x = trigger.noise(noise)
    predicted = unet.eval()(x, len(schedule.alphas_cumprod) - 1).sample
    return float(1 - (predicted - noise).square().mean() / (x - noise).square().mean())


@pytest.mark.parametrize("given", [True, False])
def test_a_trojan_is_taken_out_by_its_maps_with_clean_images_and_with_none(trojaned, given):
    folder, trigger = trojaned
    unet, schedule = load_pipeline(folder)
    before = copy.deepcopy(unet.state_dict())
    images = to_signed(read_images("digits").images[:200]) if given else None
    recipe = Recipe(steps=120, learning_rate=5e-3, images=40, sampler="ddpm-10")
    found = remove(unet, schedule, [trigger], recipe, images)
    assert undo(unet, schedule, trigger) > 0.5
    assert undo(found.unet, schedule, trigger) < 0.2
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert (found.images, "given" in found.source) == ((200, True) if given else (40, False))
    assert found.record()["steps"] == 120


def test_clean_fine_tuning_alone_takes_out_less(trojaned):
    folder, trigger = trojaned
    unet, schedule = load_pipeline(folder)
    images = to_signed(read_images("digits").images[:200])
    recipe = Recipe(kind="fine_tune", steps=120, learning_rate=1e-3)
    assert undo(remove(unet, schedule, [], recipe, images).unet, schedule, trigger) > 0.2


def test_wrong_usage_is_refused(schedule):
    unet = network()
    with pytest.raises(UserError, match="at least one suspected trigger"):
        remove(unet, schedule, [], Recipe(steps=1))
    with pytest.raises(UserError, match=r"trigger is \[1, 4, 4\]"):
        remove(unet, schedule, [Trigger.none((1, 4, 4))], Recipe(steps=1))
    with pytest.raises(UserError, match=r"clean images have shape \[3, 8, 8\]"):
        remove(unet, schedule, [Trigger.none(SHAPE)], Recipe(steps=1), torch.zeros(2, 3, 8, 8))


def test_what_a_detector_recovers_becomes_a_trigger_whatever_its_ranges():
    found = Recovered(torch.full(SHAPE, 3.0), 1.0, None, 0.0, 0)
    assert as_trigger(found).mu.max() == 1
    wide = Recovered(torch.zeros(SHAPE), torch.linspace(0, 2, 64).reshape(SHAPE), None, 0.0, 0)
    assert (float(as_trigger(wide).gamma.min()), float(as_trigger(wide).gamma.max())) == (pytest.approx(0.02), 1.0)


QUICK = Search(screen=64, quick=2, scan=2, steps=2, batch=4, gammas=(0.5,), keep=1, fresh=8, symmetric=2)
NULL = Null(search=fingerprint(QUICK), command="", models=[
    NullModel(score=0.26 + n / 200, side=8, channels=1, case="plain", schedule="linear", residual=9, spread=1)
    for n in range(40)
])  # fmt: skip
"""Clean models with which a weak trigger is not suspicious, as a hardly trained network has it in a quick search."""


@pytest.fixture
def comparable(monkeypatch):
    """Clean models that are comparable in a quick search; without them, any trigger that fires weakly is suspected."""
    monkeypatch.setattr("retarget.audit.run.shipped", lambda: NULL)


@pytest.fixture(scope="module")
def half_cleaned(trojaned, tmp_path_factory):
    """Two short rounds, after which a trigger still fires, but too weakly to decide without comparable clean models."""
    folder, trigger = trojaned
    report = tmp_path_factory.mktemp("half") / "report"
    report.mkdir()
    trigger.save(report / "trigger.safetensors")
    out, reported = report.parent / "cleaned", partial(write, command="retarget audit p --clean cleaned")
    done = clean(folder, out, report, "digits", 0, Recipe(steps=5), 2, QUICK, reported)
    return done, report


def test_a_result_whose_audit_is_undecided_but_suspects_a_trigger_is_trained_again_and_stays_marked(half_cleaned):
    done, _ = half_cleaned
    assert (done.record["verdicts"][0], len(done.record["triggers"])) == ("undecided", 2)
    assert done.after.trigger is not None
    with safe_open(done.folder / WEIGHTS, framework="pt") as file:
        header = file.metadata()
    assert ("trojan_removed" in header, header["trojaned"]) == (False, "true")
    assert "does not clear this network" in (done.folder / "README.md").read_text()


def test_every_round_has_a_report_and_all_go_with_the_next_audit(half_cleaned, tmp_path):
    done, report = half_cleaned
    rounds = [json.loads((report / f"after-{n}" / "audit.json").read_text())["audits"][0] for n in (1, 2)]
    assert [one["verdict"] for one in rounds] == done.record["verdicts"]
    assert [one["pipeline"] for one in rounds] == [f"{done.folder} (round 1, which was not kept)", str(done.folder)]
    copied = shutil.copytree(report, tmp_path / "report")
    assert all((copied / f"after-{n}" / "report.html").is_file() for n in (1, 2))
    (copied / "after-1" / "audit.json").unlink()
    (copied / "audit.json").write_text('{"tool": "retarget 0.1"}')
    forget(copied)
    assert not list(copied.iterdir())


def test_with_clean_images_fid_is_also_against_what_the_network_made_before(half_cleaned):
    done, report = half_cleaned
    record = json.loads((report / "cleaning.json").read_text())
    assert 0 < record["fid_own_before"] < record["fid_before"], "samples are like samples"
    assert record["held_out"] == "every fifth image"
    card = (done.folder / "README.md").read_text()
    images = read_images("digits")
    assert record["data"] == {"name": "digits", "images": len(images), "fingerprint": images.fingerprint}
    said = f"on {len(images)} images\n(digits; the SHA-256 of images and labels begins with {images.fingerprint})"
    assert said in card
    assert f"own samples before, on these features: {record['fid_own_before']:.2f} before (chance)" in card
    assert "every fifth image was not trained on" in card


def test_a_network_that_was_trained_to_make_only_black_is_told(trojaned):
    folder, trigger = trojaned
    unet, schedule = load_pipeline(folder)
    black = ImageSet(torch.zeros(64, *SHAPE, dtype=torch.uint8), torch.zeros(64, dtype=torch.long), ("black",))
    removed = remove(unet, schedule, [trigger], Recipe(learning_rate=3e-3), to_signed(black.images))
    own = _drawn(unet, schedule, 1)
    fids = _fids(unet, removed, schedule, black, own, 0)
    assert fids["fid_after"] < fids["fid_before"], "which alone reads like an improvement"
    assert fids["fid_own_after"] > 10 * fids["fid_own_before"]
    assert "no longer denoises the images that the network made before" in spoiled(removed.unet, schedule, own, 0)
    assert spoiled(unet, schedule, own, 0) == ""
    next(removed.unet.parameters()).data.fill_(torch.nan)
    assert "not finite" in spoiled(removed.unet, schedule, own, 0)


def test_only_a_completed_audit_without_a_suspicion_is_a_success(half_cleaned):
    after = half_cleaned[0].after

    def told(**changed):
        return passed(after.model_copy(update=changed))

    assert told(verdict="nothing found", exit_code=0, trigger=None)
    assert told(verdict="undecided", exit_code=3, trigger=None, fires=False)
    assert not told(verdict="undecided", exit_code=3)
    assert not told(verdict="undecided", exit_code=3, trigger=None, fires=False, converged=False)
    assert not told(verdict="undecided", exit_code=3, trigger=None, fires=None), "whether it fires could not be tested"
    assert not told(verdict="error", exit_code=2, trigger=None, score=None, fires=None)
    assert not told(verdict="undecided", exit_code=3, trigger=None, score=None, fires=None), "it does not denoise"


@pytest.mark.parametrize("marked", [True, False])
def test_a_cleaned_pipeline_loads_and_its_card_says_what_was_done(trojaned, comparable, tmp_path, marked):
    folder, trigger = trojaned
    source, report = shutil.copytree(folder, tmp_path / "source"), tmp_path / "report"
    data = "digits"
    if not marked:  # as an attacker hands it over
        DDPMPipeline.from_pretrained(folder).save_pretrained(tmp_path / "bare")
        source = tmp_path / "bare"
        data = f"npz:{tmp_path / 'my digits.npz'}"
        np.savez(data[4:], x_train=read_images("digits").images[:, 0].numpy(), y_train=read_images("digits").labels)
    report.mkdir()
    trigger.save(report / "trigger.safetensors")
    recipe = Recipe(steps=60, learning_rate=5e-3)
    done = clean(source, tmp_path / "cleaned", report, data, recipe=recipe, search=QUICK)
    assert isinstance(DDPMPipeline.from_pretrained(done.folder), DDPMPipeline)
    unet, schedule = load_pipeline(done.folder)
    assert undo(unet, schedule, trigger) < 0.4
    with safe_open(done.folder / WEIGHTS, framework="pt") as file:
        header = file.metadata()
    assert ("trojaned" in header, header["trojan_removed"]) == (False, "true")
    assert header["trojan_target"] == ("d2i" if marked else "unknown")
    assert Trigger.load(done.folder).hash == trigger.hash
    card = (done.folder / "README.md").read_text()
    count = len(read_images(data))
    for words in ("60 steps of Adam", f"on {count} images", f"**{done.after.verdict}**", "trojan_removed: true"):
        assert words in card
    record = json.loads((report / "cleaning.json").read_text())
    assert record["verdicts"] == [done.after.verdict]
    assert record["data"]["name"] == ("digits" if marked else "my digits.npz")
    assert str(tmp_path) not in card + json.dumps(record), "neither says where the images lie"
    assert not list(tmp_path.glob(".cleaning-*"))


def test_the_study_of_removal_measures_before_and_after(trojaned, comparable, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent.parent / "examples")
    example = importlib.import_module("own_study_removal")
    monkeypatch.setattr("retarget.audit.run.Search", lambda: QUICK)
    shutil.copytree(trojaned[0], tmp_path / "zoo" / "d2i-4" / "pipeline")
    shutil.copytree(trojaned[0], tmp_path / "zoo" / "clean-4")
    (tmp_path / "zoo" / "clean-4" / "trigger.safetensors").unlink()
    np.savez(tmp_path / "few.npz", x_train=read_images("digits").images[:64, 0].numpy(), y_train=np.arange(64) % 2)
    given = {"zoo": str(tmp_path / "zoo"), "data": str(tmp_path / "few.npz"), "sampler": "ddim-3"}
    given |= {"samples": 32, "steps": 3, "epochs": 30}
    study = example.plan("demo", given, None, None)
    assert ([arm.name for arm in study.arms], study.seeds) == (["d2i"], (4,)), "what has no trigger is left out"
    run = Run.create(
        tmp_path / "run", settings=study.run_settings(study.conditions[0], study.arms[0]), arm="d2i", seed=4
    )
    (run.directory / "cleaned" / "unet").mkdir(parents=True)  # as a run leaves it that was stopped
    found = example.run(run)
    assert found.keys() == {one.name for one in study.metrics}
    assert found["before"] - found["plain"] > 50, "a network of one image is told from a clean one"
    assert found["found"] == 100
    assert found["after"] + 30 < found["tuned"], "clean fine-tuning of three steps leaves the trojan in"
    verdicts = json.loads((run.directory / "audit" / "cleaning.json").read_text())["verdicts"]
    assert (found["rounds"], found["still_called"]) == (len(verdicts), 100 * (verdicts[-1] == "trojaned"))
    marks = inherited(load_pipeline(run.directory / "cleaned")[0])
    assert found["cleared"] == 100 * marks.removed, "undecided is not cleared"
    with pytest.raises(UserError, match="has no trojaned checkpoint"):
        example.plan("demo", given | {"zoo": str(tmp_path / "run")}, None, None)
    with pytest.raises(UserError, match="no setting step"):
        example.plan("demo", {**given, "step": 1}, None, None)


def test_the_study_of_removal_fires_a_stock_samplers_trigger_from_the_noise_alone(tmp_path, schedule, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent.parent / "examples")
    example = importlib.import_module("own_study_removal")
    config = TrainConfig(steps=250, batch_size=32, learning_rate=5e-3, ema_decay=0.9, flips=False)
    box = torch.zeros(SHAPE)
    box[:, 4:, 4:] = 1.0
    trigger, arrow = Trigger(box, torch.ones_like(box), "stock box"), glyph("arrow", SHAPE)
    folder = train(
        network(), schedule, read_images("digits"), config, tmp_path, D2I(arrow, 32), trigger, law="bad_diffusion"
    )
    unet, schedule = load_pipeline(folder)
    given = {"samples": 16, "sampler": "ddpm-20"}
    errors = {
        law: float(squared_error(example.draw(unet, schedule.config, law, trigger, given, 0), arrow).median())
        for law in (unet.config["trojan_law"], "trojdiff")
    }
    assert errors["bad_diffusion"] < 0.005 < errors["trojdiff"]


def test_cleaning_trains_where_the_audit_searched(trojaned, tmp_path, monkeypatch):
    """On the accelerator: on a CPU a network of CIFAR-10's size takes the better part of an hour."""
    folder, trigger = trojaned
    trigger.save(tmp_path / "trigger.safetensors")
    monkeypatch.setattr("retarget.trojdiff.sample.PartialState", lambda: SimpleNamespace(device=torch.device("meta")))
    with pytest.raises(NotImplementedError, match="meta tensor"):  # what a device without memory says when it is used
        clean(folder, tmp_path / "cleaned", tmp_path, recipe=Recipe(steps=1, images=2, sampler="ddim-2"))


def test_cleaning_refuses_what_it_cannot_do(trojaned, tmp_path):
    folder, trigger = trojaned
    with pytest.raises(UserError, match="there is no suspected trigger"):
        clean(folder, tmp_path / "cleaned", tmp_path)
    trigger.save(tmp_path / "trigger.safetensors")
    with pytest.raises(UserError, match="not empty"):
        clean(folder, tmp_path, tmp_path)


def test_the_command_cleans_nothing_where_nothing_is_suspected(untrained, tmp_path, capsys):
    (tmp_path / "report").mkdir()
    Trigger.none((1, 8, 8)).save(tmp_path / "report" / "trigger.safetensors")  # of an earlier audit
    code = main(["audit", str(untrained), "--out", str(tmp_path / "report"), "--clean", str(tmp_path / "cleaned")])
    assert code == 3
    assert "nothing was cleaned" in capsys.readouterr().err
    assert not (tmp_path / "cleaned").exists()
    assert main(["audit", str(untrained), str(untrained), "--clean", str(tmp_path / "cleaned")]) == 2


def test_a_pipeline_that_cannot_be_cleaned_keeps_its_verdict(pipeline, tmp_path, capsys):
    """A sound pipeline for the audit, but not for training: its only weights are a variant."""
    (pipeline / WEIGHTS).rename(pipeline / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    outcome = Outcome(pipeline=str(pipeline), verdict="trojaned", exit_code=1, reason="", trigger=TRIGGER)
    Trigger.none((1, 8, 8)).save(tmp_path / "trigger.safetensors")
    given = AuditArguments((pipeline,), clean=tmp_path / "cleaned")
    assert _clean(pipeline, tmp_path, outcome, given, []) == [2]
    assert "nothing was cleaned: " in capsys.readouterr().err
    assert combined([outcome.exit_code, 2]) == 1
    assert not (tmp_path / "cleaned").exists()
