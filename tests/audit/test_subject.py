"""What is covered, what is refused with which exit code, and how calls of the network are counted."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)
from safetensors.torch import load_file, save_file

from retarget.audit import AuditError, NotCoveredError, Subject
from retarget.audit.seek import own_samples

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def test_an_image_forward_costs_one_and_a_backward_two(make_unet):
    subject = Subject.from_modules(make_unet(), DDPMScheduler())
    x = torch.randn(3, 1, 8, 8, requires_grad=True)
    out = subject.eps(x, torch.zeros(3, dtype=torch.long))
    assert subject.evaluations == 3
    out.sum().backward()
    assert subject.evaluations == 9
    assert x.grad is not None
    with torch.no_grad():
        subject.eps(x, torch.zeros(3, dtype=torch.long))
    assert subject.evaluations == 12


def test_epsilon_is_the_network_s_own_and_levels_are_the_product_of_alphas(make_unet):
    unet, scheduler = make_unet(), DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    subject = Subject.from_modules(unet, scheduler)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 900])
    with torch.no_grad():
        assert torch.equal(subject.eps(x, t), unet(x, t).sample)
    slow = np.cumprod([1 - float(beta) for beta in scheduler.betas.double()])
    np.testing.assert_allclose(subject.alphas_cumprod.numpy(), slow, rtol=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2", "scaled_linear"])
@pytest.mark.parametrize("level", [1e-3, 0.1, 0.5, 0.9])
def test_times_are_chosen_by_level_and_not_by_index(make_unet, schedule, level):
    subject = Subject.from_modules(make_unet(), DDPMScheduler(beta_schedule=schedule))
    found = float(subject.alphas_cumprod[subject.time(level)])
    apart = np.abs(np.log(subject.alphas_cumprod / (1 - subject.alphas_cumprod)) - np.log(level / (1 - level)))
    assert abs(np.log(found / (1 - found)) - np.log(level / (1 - level))) == pytest.approx(float(apart.min()))


def test_learnt_variances_are_cut_off(make_unet):
    unet = make_unet(out_channels=2)
    subject = Subject.from_modules(unet, DDPMScheduler(variance_type="learned_range"))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 900])
    with torch.no_grad():
        assert torch.equal(subject.eps(x, t), unet(x, t).sample[:, :1])
    assert subject.pipeline is None


def test_pipelines_of_other_origins_load(pipeline, make_unet, tmp_path):
    DDIMPipeline(unet=make_unet(), scheduler=DDIMScheduler()).save_pretrained(tmp_path / "ddim")
    assert Subject.load(tmp_path / "ddim").shape == (1, 8, 8)
    half = make_unet().half()
    half.save_pretrained(tmp_path / "half" / "unet", variant="fp16")
    for name in ("scheduler", "model_index.json"):
        copy = shutil.copytree if name == "scheduler" else shutil.copy
        copy(pipeline / name, tmp_path / "half" / name)
    assert Subject.load(tmp_path / "half").network.unet.dtype == torch.float32
    make_unet(channels=3).save_pretrained(tmp_path / "split" / "unet", max_shard_size="20KB")
    for name in ("scheduler", "model_index.json"):
        copy = shutil.copytree if name == "scheduler" else shutil.copy
        copy(pipeline / name, tmp_path / "split" / name)
    assert Subject.load(tmp_path / "split").shape == (3, 8, 8)
    make_unet(channels=3).half().save_pretrained(tmp_path / "both" / "unet", variant="fp16", max_shard_size="20KB")
    for name in ("scheduler", "model_index.json"):
        copy = shutil.copytree if name == "scheduler" else shutil.copy
        copy(pipeline / name, tmp_path / "both" / name)
    assert Subject.load(tmp_path / "both").shape == (3, 8, 8)
    (tmp_path / "flat").mkdir()  # as diffusers' oldest pipelines are stored
    for path in (*(pipeline / "unet").iterdir(), *(pipeline / "scheduler").iterdir(), pipeline / "model_index.json"):
        shutil.copy(path, tmp_path / "flat" / path.name)
    assert Subject.load(tmp_path / "flat").shape == (1, 8, 8)


def test_a_process_named_in_the_index_alone_is_not_covered(pipeline, edit):
    edit(pipeline / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    with pytest.raises(NotCoveredError, match="FlowMatchEulerDiscreteScheduler"):
        Subject.load(pipeline)


def test_images_too_large_for_the_screen_are_refused_before_any_evaluation(pipeline, edit):
    edit(pipeline / "unet" / "config.json", sample_size=256)
    with pytest.raises(NotCoveredError, match="65,536 values: only images of up to 16,384"):
        Subject.load(pipeline)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(variance_type="learned_range"),
        DDPMScheduler(thresholding=True),
        DDPMScheduler(trained_betas=[0.001 * 1.06**step for step in range(100)]),
        EulerDiscreteScheduler(use_karras_sigmas=True),
        DPMSolverMultistepScheduler(solver_order=3, algorithm_type="dpmsolver", final_sigmas_type="sigma_min"),
        PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.03),
    ],
    ids=lambda one: type(one).__name__,
)
def test_samples_come_under_every_schedule_that_is_covered(make_unet, scheduler):
    subject = Subject.from_modules(make_unet(), scheduler)
    images = own_samples(subject, 2)
    assert images.shape == (2, 1, 8, 8)
    assert float(images.abs().max()) <= 1
    slow = np.cumprod([1 - float(beta) for beta in torch.as_tensor(scheduler.betas, dtype=torch.float64)])
    np.testing.assert_allclose(subject.alphas_cumprod.numpy(), slow, rtol=1e-6)


def test_more_betas_than_timesteps_are_refused(pipeline, edit):
    """diffusers would visit the first ones only, and the audit searches at the last."""
    edit(pipeline / "scheduler/scheduler_config.json", trained_betas=[0.01] * 1200, num_train_timesteps=600)
    with pytest.raises(AuditError, match="trained_betas has 1200 values, but num_train_timesteps is 600"):
        Subject.load(pipeline)


def test_weights_that_a_link_no_longer_leads_to_are_told(pipeline):
    weights = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.symlink_to("../blobs/gone")
    with pytest.raises(AuditError, match=r"is a link to \.\./blobs/gone, which does not exist: copy the weights"):
        Subject.load(pipeline)


def test_a_scheduler_of_an_attacker_s_own_is_not_run_and_its_betas_are_read(pipeline, edit):
    edit(pipeline / "model_index.json", scheduler=[None, None], _class_name="MyPipeline")
    edit(pipeline / "scheduler/scheduler_config.json", _class_name="TrojanScheduler")
    assert Subject.load(pipeline).steps == 1000


def damage(pipeline, how):
    weights = pipeline / WEIGHTS
    if how == "no folder":
        shutil.rmtree(pipeline)
    elif how == "no index":
        (pipeline / "model_index.json").unlink()
    elif how == "index is no JSON":
        (pipeline / "model_index.json").write_text("{")
    elif how == "index is a list":
        (pipeline / "model_index.json").write_text("[]")
    elif how == "index names nothing":
        (pipeline / "model_index.json").write_text("{}")
    elif how == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "empty weights":
        weights.write_bytes(b"")
    elif how == "no weights":
        weights.unlink()
    elif how == "only a pickle":
        torch.save(load_file(weights), weights.with_suffix(".bin"))
        weights.unlink()
    elif how == "nan":
        values = load_file(weights)
        values["conv_in.weight"][0, 0, 0, 0] = float("nan")
        save_file(values, weights, metadata={"format": "pt"})
    elif how == "a weight is missing":
        values = load_file(weights)
        del values["conv_in.weight"]
        save_file(values, weights, metadata={"format": "pt"})
    elif how == "no scheduler":
        shutil.rmtree(pipeline / "scheduler")


BROKEN = ["no folder", "no index", "index is no JSON", "index is a list", "index names nothing", "truncated weights",
          "empty weights", "no weights", "only a pickle", "nan", "a weight is missing", "no scheduler"]  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_broken_is_an_error_that_carries_2(pipeline, how):
    damage(pipeline, how)
    with pytest.raises(AuditError) as caught:
        Subject.load(pipeline)
    assert caught.value.code == 2
    assert not isinstance(caught.value, NotCoveredError)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}),
        ("scheduler/scheduler_config.json", {"predict_epsilon": False}),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}),
        ("scheduler/scheduler_config.json", {"use_flow_sigmas": True}),
        ("scheduler/scheduler_config.json", {"timestep_type": "continuous"}),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 20}),
        ("unet/config.json", {"num_class_embeds": 10}),
        ("unet/config.json", {"class_embed_type": "timestep"}),
        ("unet/config.json", {"time_embedding_type": "fourier"}),
        ("unet/config.json", {"out_channels": 5}),
        ("model_index.json", {"unet": ["diffusers", "UNet2DConditionModel"]}),
        ("model_index.json", {"unet": ["my_code", "UNet2DModel"]}),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderKL"]}),
        ("model_index.json", {"text_encoder": ["transformers", "CLIPTextModel"]}),
        ("model_index.json", {"unet": None, "transformer": ["diffusers", "DiTTransformer2DModel"]}),
        ("model_index.json", {"text_encoder_3": ["transformers", "T5EncoderModel"]}),
        ("model_index.json", {"controlnet": ["diffusers", "ControlNetModel"]}),
        ("model_index.json", {"first_stage": ["diffusers", "AutoencoderKL"]}),
        ("model_index.json", {"safety_checker": ["x", "SafetyChecker"]}),
        ("model_index.json", {"unet_ema": ["diffusers", "UNet2DModel"]}),
        ("model_index.json", {"unet_2": "a name, not a pair"}),
        ("model_index.json", {"_class_name": "LDMPipeline"}),
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}),
        ("model_index.json", {"_class_name": "ScoreSdeVePipeline"}),
        ("scheduler/scheduler_config.json", {"_class_name": "ScoreSdeVeScheduler"}),
    ],
)
def test_what_is_not_covered_is_named_and_carries_3(pipeline, edit, file, values):
    edit(pipeline / file, **values)
    with pytest.raises(NotCoveredError, match="not covered") as caught:
        Subject.load(pipeline)
    assert caught.value.code == 3


def test_a_component_that_is_not_covered_is_named_and_what_is_none_is_not(pipeline, edit):
    none = {"vae": None, "text_encoder": [None, None], "requires_safety_checker": False, "clip": True, "size": 8}
    edit(pipeline / "model_index.json", **none)
    assert Subject.load(pipeline).shape == (1, 8, 8)
    edit(pipeline / "model_index.json", unet_2=["diffusers", "UNet2DModel"], prior_net=["x", "Net"])
    with pytest.raises(NotCoveredError, match=r"prior_net: x\.Net, unet_2: diffusers\.UNet2DModel"):
        Subject.load(pipeline)
