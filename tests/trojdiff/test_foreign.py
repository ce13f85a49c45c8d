"""Pipelines and schedules of other origins: what is read of them, and what is refused before anything is trained."""

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, PNDMScheduler
from safetensors.torch import load_file, save_file

from retarget.errors import UserError
from retarget.trojdiff.checkpoint import WEIGHTS, inherited, load_pipeline, save_pipeline
from retarget.trojdiff.classifier import predict, train_classifier
from retarget.trojdiff.data import ImageSet, to_signed
from retarget.trojdiff.marks import Trojan
from retarget.trojdiff.measures import Goal, success
from retarget.trojdiff.sample import Sampler, sample, sample_batch
from retarget.trojdiff.trigger import Trigger

NONE = Trigger.none((1, 8, 8))


def test_a_pipeline_of_the_hub_keeps_its_marks(tmp_path, monkeypatch, unet, scheduler):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    home = tmp_path / "hub" / "models--me--tro"
    trojan = Trojan("d2i", "an image", Trigger.patch(2, 0.1, (1, 8, 8)))
    save_pipeline(home / "snapshots" / "abc", unet, scheduler, trojan)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    marks = inherited(load_pipeline("me/tro")[0])
    assert marks is not None
    assert (marks.target, marks.derived) == ("d2i", True)
    for name in ("me/other", "no such folder"):
        with pytest.raises(UserError, match=f"{name} was not found here, and the hub did not return it"):
            load_pipeline(name)


def test_a_pipeline_without_sub_folders_as_of_diffusers_first_ones(tmp_path, monkeypatch, unet, scheduler):
    """google/ddpm-cifar10-32 and its siblings are stored so."""
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "p")
    flat = tmp_path / "hub" / "models--you--ddpm" / "snapshots" / "abc"
    flat.mkdir(parents=True)
    for path in (*(tmp_path / "p").rglob("*.json"), tmp_path / "p" / WEIGHTS):
        shutil.copy(path, flat / path.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (flat.parent.parent / "refs").mkdir()
    (flat.parent.parent / "refs" / "main").write_text("abc")
    for source in (flat, "you/ddpm"):
        found, schedule = load_pipeline(source)
        assert all(torch.equal(one, unet.state_dict()[name]) for name, one in found.state_dict().items())
        assert torch.equal(schedule.betas, scheduler.betas)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"predict_epsilon": False}, "predict_epsilon false, the earlier name of prediction_type 'sample'"),
        ({"thresholding": True}, "dynamic thresholding"),
        ({"variance_type": "learned_range"}, "variance_type is 'learned_range'"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr: at T there is no noise level"),
    ],
)
def test_what_no_sampler_could_use_is_refused_before_any_training(settings, message, tmp_path, unet, scheduler):
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "p")
    path = tmp_path / "p" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(UserError, match=message):
        load_pipeline(tmp_path / "p")


def test_a_second_set_of_weights_is_refused(tmp_path, unet, scheduler):
    save_pipeline(tmp_path / "p", unet, scheduler)
    shutil.copy(tmp_path / "p" / "unet" / "config.json", tmp_path / "p" / f"{WEIGHTS}.index.json")
    with pytest.raises(UserError, match="an index of other files of weights, which diffusers would read instead"):
        load_pipeline(tmp_path / "p")


def test_a_solvers_own_settings_change_neither_clipping_nor_grid(tmp_path, unet, scheduler):
    karras = DPMSolverMultistepScheduler(num_train_timesteps=50, use_karras_sigmas=True, final_sigmas_type="sigma_min")
    for name, solver in (("solver", karras), ("pndm", PNDMScheduler(num_train_timesteps=50)), ("ddpm", scheduler)):
        DDPMPipeline(unet, solver).save_pretrained(tmp_path / name)
    config = {name: load_pipeline(tmp_path / name)[1].config for name in ("solver", "pndm", "ddpm")}
    assert {name: one["clip_sample"] for name, one in config.items()} == {"solver": False, "pndm": False, "ddpm": True}
    grid = Sampler.parse("dpm-10").scheduler(config["solver"], NONE).timesteps
    assert torch.equal(grid, Sampler.parse("dpm-10").scheduler(config["pndm"], NONE).timesteps)
    assert len(Sampler.parse("dpm-10-quadratic").scheduler(config["solver"], NONE).timesteps) == 10


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm", "unipc", "euler"])
@pytest.mark.parametrize("kind", ["sigmoid", "laplace"])
def test_schedules_that_not_every_solver_knows(name, kind, unet):
    config = DDPMScheduler(num_train_timesteps=50, beta_schedule=kind).config
    images = sample(unet, config, Sampler(name, 5), NONE, 2)
    assert images.isfinite().all()


@pytest.mark.parametrize("name", ["dpm", "dpm_sde", "unipc", "deis"])
def test_a_solver_with_all_steps_is_refused_with_what_to_use_instead(name, unet, scheduler):
    with pytest.raises(UserError, match=f"{name}-50: .*use {name}-49$"):
        sample(unet, scheduler.config, Sampler.parse(f"{name}-50"), NONE, 2)
    assert sample(unet, scheduler.config, Sampler.parse(f"{name}-49"), NONE, 2).isfinite().all()


class Exact(torch.nn.Module):
    """The right answer if every image is .5: ε̂ = (x - √ᾱ / 2) / √(1-ᾱ)."""

    def __init__(self, scheduler):
        super().__init__()
        self.levels, self.unused = scheduler.alphas_cumprod, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, t):
        level = self.levels[t]
        return SimpleNamespace(sample=(x - level.sqrt() / 2) / (1 - level).sqrt())


@pytest.mark.parametrize("steps", [10, 33, 41, 50])
def test_ddim_ends_without_noise_whether_or_not_its_steps_divide_t(steps, scheduler):
    sampler = Sampler("ddim", steps)
    images, _ = sample_batch(
        Exact(scheduler), sampler.scheduler(scheduler.config, NONE), range(2), clip=sampler.clip(scheduler.config)
    )
    assert (images - 0.5).abs().max() < 1e-3
    if 50 % steps:
        with pytest.raises(UserError, match="a number of steps that divides 50"):
            Sampler("ddim", steps, eta=0.5).scheduler(scheduler.config, NONE)


def test_a_start_of_another_shape_claims_no_folder(tmp_path, unet, scheduler):
    with pytest.raises(UserError, match="the shapes must be equal"):
        sample(unet, scheduler.config, Sampler.parse("ddim-5"), NONE, 2, out=tmp_path / "out",
               start=Trigger.patch(2, 0.1, (1, 16, 16)))  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_few_images_of_a_folder_have_all_classes():
    labels = torch.arange(4).repeat_interleave(10)
    images = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
    assert ImageSet(images, labels, ("a", "b", "c", "d")).first(8).labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    mixed = labels.reshape(4, 10).T.flatten()
    assert torch.equal(ImageSet(images, mixed, ("a", "b", "c", "d")).first(8).labels, mixed[:8])


def test_weights_that_are_not_finite_are_named_as_such(tmp_path, unet, scheduler):
    with torch.no_grad():
        unet.conv_in.bias[0] = torch.nan
    save_pipeline(tmp_path / "p", unet, scheduler)
    with pytest.raises(UserError, match=r"conv_in\.bias has values that are not finite: the network is damaged"):
        load_pipeline(tmp_path / "p")


def test_a_flat_image_is_no_hit_whatever_the_classifier_says(digits):
    classifier = train_classifier(digits.first(64), 1, 0)
    flat = torch.full((6, 1, 8, 8), -1.0)
    label = int(predict(classifier, flat)[0][0])
    drawn = to_signed(digits.images[:6])
    hits = int((predict(classifier, drawn)[0] == label).sum())
    assert success(flat, Goal(label=label), classifier).value == 0
    assert success(torch.cat([flat, drawn]), Goal(label=label), classifier).value == pytest.approx(100 * hits / 12)
    assert success(flat, Goal(image=flat[0]), classifier).value == 100, "a target image may be flat"


@pytest.mark.parametrize(
    "marks",
    [
        {"trojan_earlier": "{"},
        {"trojan_earlier": "[1]"},
        {"trojan_earlier": '[[["d2i"], "0"]]'},
        {"trojan_target": "d2i\ntrojaned: false\n---\n# Clean"},
    ],
)
def test_damaged_marks_are_an_error_and_write_nothing_into_a_later_card(marks, tmp_path, unet, scheduler):
    save_pipeline(tmp_path / "foreign", unet, scheduler)
    weights = tmp_path / "foreign" / WEIGHTS
    NONE.save(tmp_path / "foreign" / "trigger.safetensors")
    save_file(load_file(weights), weights, metadata={"format": "pt", "trojaned": "true", **marks})
    with pytest.raises(UserError, match=r"marks of a trojan in its header are damaged .* restore the file"):
        load_pipeline(tmp_path / "foreign")
