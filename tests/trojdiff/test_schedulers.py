"""TrojanScheduler: the paper's steps in float64 loops, the stock sampler bit for bit, the right distribution."""

import inspect
import json
import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)

from retarget.errors import UserError
from retarget.trojdiff import Trigger, TrojanScheduler
from retarget.trojdiff.spacing import spaced_timesteps

SHAPE = (2, 3, 3)
BASES = {
    "ddpm_small": lambda **k: DDPMScheduler(variance_type="fixed_small", **k),
    "ddpm_large": lambda **k: DDPMScheduler(variance_type="fixed_large", **k),
    "ddim": lambda **k: DDIMScheduler(**k),
    "dpm_solver": lambda clip_sample=None: DPMSolverMultistepScheduler(),
    "dpm_solver_sde": lambda clip_sample=None: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    "unipc": lambda clip_sample=None: UniPCMultistepScheduler(),
    "deis": lambda clip_sample=None: DEISMultistepScheduler(),
    "euler": lambda clip_sample=None: EulerDiscreteScheduler(),
    "euler_leading": lambda clip_sample=None: EulerDiscreteScheduler(timestep_spacing="leading"),
    "euler_ancestral": lambda clip_sample=None: EulerAncestralDiscreteScheduler(),
    "heun": lambda clip_sample=None: HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02),
}


def rng(seed):
    return torch.Generator().manual_seed(seed)


def mixed_trigger():
    """Another mu and gamma in every pixel."""
    gamma = torch.rand(SHAPE, generator=rng(5)) * 0.9 + 0.1
    return Trigger((1 - gamma) * (torch.rand(SHAPE, generator=rng(6)) * 2 - 1), gamma)


def exact_tables(scheduler):
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def predicted_original(x, epsilon, mu, gamma, bar, clip):
    x_0 = (x - math.sqrt(1 - bar) * (gamma * epsilon + mu)) / math.sqrt(bar)
    return min(1.0, max(-1.0, x_0)) if clip else x_0


def ddpm_reference(x, epsilon, noise, mu, gamma, bar, bar_previous, large, clip):
    """Draw from q(x_{t-1} | x_t, x̂_0) of the paper, one pixel, as a product of two normal densities."""
    x_0 = predicted_original(x, epsilon, mu, gamma, bar, clip)
    if bar_previous == 1:
        return x_0
    alpha = bar / bar_previous
    k = math.sqrt(1 - bar) - math.sqrt(alpha) * math.sqrt(1 - bar_previous)
    prior_precision = 1 / ((1 - bar_previous) * gamma**2)
    prior_mean = math.sqrt(bar_previous) * x_0 + math.sqrt(1 - bar_previous) * mu
    precision = alpha / ((1 - alpha) * gamma**2)
    variance = 1 / (prior_precision + precision)
    mean = variance * (prior_precision * prior_mean + precision * (x - k * mu) / math.sqrt(alpha))
    return mean + math.sqrt((1 - alpha) * gamma**2 if large else variance) * noise


def ddim_reference(x, epsilon, noise, mu, gamma, bar, bar_previous, eta, clip):
    x_0 = predicted_original(x, epsilon, mu, gamma, bar, clip)
    sigma = eta * math.sqrt((1 - bar_previous) / (1 - bar) * (1 - bar / bar_previous))
    direction = math.sqrt(1 - bar_previous - sigma**2) * gamma * epsilon + math.sqrt(1 - bar_previous) * mu
    return math.sqrt(bar_previous) * x_0 + direction + sigma * gamma * noise


def loop(reference, x, epsilon, noise, trigger, **levels):
    out = torch.empty_like(x, dtype=torch.float64)
    for index in np.ndindex(*x.shape):
        mu, gamma = trigger.mu[index[1:]].item(), trigger.gamma[index[1:]].item()
        out[index] = reference(x[index].item(), epsilon[index].item(), noise[index].item(), mu, gamma, **levels)
    return out


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("steps", [1000, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ddpm_steps_are_the_papers(clip, large, steps, dtype):
    base = DDPMScheduler(variance_type="fixed_large" if large else "fixed_small", clip_sample=clip)
    bars = exact_tables(DDPMScheduler()).alphas_cumprod.tolist()
    scheduler = TrojanScheduler(exact_tables(base) if dtype == torch.float64 else base, mixed_trigger())
    scheduler.set_timesteps(steps)
    for position in (0, steps // 2, steps - 2, steps - 1):
        t = int(scheduler.timesteps[position])
        previous = bars[int(scheduler.timesteps[position + 1])] if position + 1 < steps else 1.0
        x, epsilon = torch.randn(2, 2, *SHAPE, generator=rng(t), dtype=dtype)
        noise = torch.randn(2, *SHAPE, generator=rng(9), dtype=dtype)
        ours = scheduler.step(epsilon, t, x, generator=rng(9)).prev_sample
        expected = loop(
            ddpm_reference,
            x,
            epsilon,
            noise,
            scheduler.trigger,
            bar=bars[t],
            bar_previous=previous,
            large=large,
            clip=clip,
        )
        tolerance = 1e-12
        if dtype == torch.float32:
            # 1 - ᾱ_t/ᾱ_{t-1} loses digits in float32 near t = 0: the stock step is no better against its own equation
            stock = DDPMScheduler.from_config(base.config)
            stock.set_timesteps(steps)
            plain = stock.step(epsilon, t, x, generator=rng(9)).prev_sample
            levels = {"bar": bars[t], "bar_previous": previous, "large": large, "clip": clip}
            equation = loop(ddpm_reference, x, epsilon, noise, Trigger.none(SHAPE), **levels)
            tolerance = max(1e-5, 1.5 * (plain - equation).abs().max().item())
        assert (ours - expected).abs().max() <= tolerance * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ddim_steps_are_the_papers(clip, eta, dtype):
    base = DDIMScheduler(clip_sample=clip)
    bars = exact_tables(DDIMScheduler()).alphas_cumprod.tolist()
    scheduler = TrojanScheduler(exact_tables(base) if dtype == torch.float64 else base, mixed_trigger())
    scheduler.set_timesteps(50)
    for t in (980, 500, 20, 0):
        x, epsilon, noise = torch.randn(3, 2, *SHAPE, generator=rng(t), dtype=dtype)
        ours = scheduler.step(epsilon, t, x, eta=eta, variance_noise=noise)
        previous = bars[t - 20] if t >= 20 else 1.0
        expected = loop(
            ddim_reference, x, epsilon, noise, scheduler.trigger, bar=bars[t], bar_previous=previous, eta=eta, clip=clip
        )
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        assert (ours.prev_sample - expected).abs().max() <= tolerance * max(1.0, expected.abs().max().item())
        if clip:
            assert ours.pred_original_sample.abs().max() <= 1 + 1e-6


@pytest.mark.parametrize("name", BASES)
def test_the_empty_trigger_gives_the_stock_images_bit_for_bit(name):
    stock, ours = BASES[name](), TrojanScheduler(BASES[name](), Trigger.none(SHAPE))
    takes = {"generator"} & set(inspect.signature(stock.step).parameters)
    first, second = rng(0), rng(0)
    stock.set_timesteps(12)
    ours.set_timesteps(12)
    assert torch.equal(ours.timesteps, stock.timesteps)
    x = torch.randn(3, *SHAPE, generator=first) * stock.init_noise_sigma
    y = ours.initial_noise((3, *SHAPE), second)
    for t in stock.timesteps:
        x = stock.step(torch.tanh(stock.scale_model_input(x, t)), t, x, **dict.fromkeys(takes, first)).prev_sample
        y = ours.step(torch.tanh(ours.scale_model_input(y, t)), t, y, **dict.fromkeys(takes, second)).prev_sample
        assert torch.equal(x, y)


def exact_epsilon(network_input, bar, mean, covariance, trigger):
    """E[ε | x_t] for x_0 ~ N(mean, covariance) under the Trojan law."""
    mu, gamma = trigger.mu.flatten().double(), torch.diag(trigger.gamma.flatten().double())
    spread = bar * covariance + (1 - bar) * gamma @ gamma
    centred = network_input.flatten(1) - math.sqrt(bar) * mean - math.sqrt(1 - bar) * mu
    return (math.sqrt(1 - bar) * centred @ torch.linalg.inv(spread) @ gamma).reshape(network_input.shape)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("kind", ["blend", "patch"])
def test_with_the_exact_noise_of_a_gaussian_the_sampler_ends_at_that_gaussian(name, kind):
    shape, count = (1, 2, 2), 5000
    # a stochastic sampler's variance is right only in the limit of small steps
    steps = 1000 if name.startswith(("ddpm", "euler_ancestral")) else 200
    trigger = {
        "blend": Trigger.blend(torch.tensor([[[1.0, -1.0], [0.5, 0.0]]])),
        "patch": Trigger.patch(size=1, shape=shape, gamma=0.1),
    }[kind]
    factor = torch.randn(4, 4, generator=rng(3), dtype=torch.float64) * 0.25
    covariance = factor @ factor.T + 0.05 * torch.eye(4, dtype=torch.float64)
    mean = torch.tensor([0.4, -0.3, 0.0, 0.6], dtype=torch.float64)
    scheduler = TrojanScheduler(BASES[name](clip_sample=False), trigger)
    scheduler.set_timesteps(steps)
    extra = {"generator": rng(2)} if "generator" in inspect.signature(scheduler.step).parameters else {}
    bars = DDPMScheduler().alphas_cumprod.double().numpy()
    x = scheduler.initial_noise((count, *shape), rng(1), dtype=torch.float64)
    for t in scheduler.timesteps:
        # fractional timesteps stand for an interpolated σ
        sigma = np.interp(float(t), np.arange(1000), np.sqrt((1 - bars) / bars))
        epsilon = exact_epsilon(
            scheduler.scale_model_input(x, t).double(), 1 / (1 + sigma**2), mean, covariance, trigger
        )
        x = scheduler.step(epsilon, t, x, **extra).prev_sample
    ended = x.flatten(1).double()
    assert (ended.mean(0) - mean).abs().max() < 0.02  # ᾱ_T is not 0, and no sampler starts with √ᾱ_T x_0
    assert (torch.cov(ended.T) - covariance).abs().max() < 0.015


@pytest.mark.parametrize("spacing", ["linear", "quadratic", "trailing"])
def test_first_order_dpm_solver_on_any_grid_is_ddim(spacing):
    steps = spaced_timesteps(20, 1000, spacing)
    trigger = mixed_trigger()
    scheduler = TrojanScheduler(DPMSolverMultistepScheduler(solver_order=1), trigger)
    scheduler.set_timesteps(timesteps=steps)
    bars = exact_tables(DDIMScheduler()).alphas_cumprod.tolist()
    x = scheduler.initial_noise((1, *SHAPE), rng(0), dtype=torch.float64)
    for position, t in enumerate(steps):
        epsilon = torch.tanh(x)
        previous = bars[steps[position + 1]] if position + 1 < len(steps) else 1.0
        ours = scheduler.step(epsilon, torch.tensor(t), x).prev_sample
        expected = loop(ddim_reference, x, epsilon, x, trigger, bar=bars[t], bar_previous=previous, eta=0.0, clip=False)
        assert (ours - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
        x = ours


def test_the_signature_is_the_bases_and_tuples_come_back():
    ours = TrojanScheduler(DDIMScheduler(), mixed_trigger())
    assert inspect.signature(ours.step) == inspect.signature(DDIMScheduler().step)
    ours.set_timesteps(10)
    x = torch.zeros(1, *SHAPE)
    as_tuple = ours.step(x, 900, x, return_dict=False)
    output = ours.step(x, 900, x)
    assert torch.equal(as_tuple[0], output.prev_sample)
    assert torch.equal(as_tuple[1], output.pred_original_sample)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["ddim", "dpm_solver", "unipc", "euler"])
def test_half_precision_states_keep_their_dtype(name, dtype):
    ours = TrojanScheduler(BASES[name](), mixed_trigger())
    ours.set_timesteps(10)
    x = ours.initial_noise((1, *SHAPE), rng(0), dtype=dtype)
    for t in ours.timesteps:
        x = ours.step(torch.zeros_like(x), t, x).prev_sample
        assert x.dtype == dtype
    assert bool(torch.isfinite(x).all())


def test_the_base_is_copied_and_its_configuration_stays_untouched(tmp_path):
    base = DDIMScheduler(clip_sample_range=0.9)
    before = json.loads(base.to_json_string())
    ours = TrojanScheduler(base, mixed_trigger())
    ours.set_timesteps(10)
    ours.step(torch.zeros(1, *SHAPE), 900, torch.zeros(1, *SHAPE))
    ours.save_pretrained(tmp_path)
    assert json.loads(base.to_json_string()) == before
    assert base.num_inference_steps is None
    assert DDIMScheduler.from_pretrained(tmp_path).config.clip_sample_range == 0.9
    assert Trigger.load(tmp_path).hash == ours.trigger.hash


def tiny_unet():
    return UNet2DModel(
        sample_size=4, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
    )  # fmt: skip


def test_diffusers_pipelines_drop_or_break_the_wrapper(tmp_path):
    """Why the Trojan scheduler serves a sampling loop of ours: a pipeline silently runs the stock process."""
    trigger = Trigger.blend(torch.ones(1, 4, 4))
    pipeline = DDIMPipeline(unet=tiny_unet(), scheduler=TrojanScheduler(DDIMScheduler(), trigger))
    assert type(pipeline.scheduler) is DDIMScheduler
    kept = DDPMPipeline(unet=tiny_unet(), scheduler=TrojanScheduler(DDPMScheduler(), trigger))
    kept.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"] == [None, None]


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda: PNDMScheduler(), "PNDMScheduler is not supported"),
        (lambda: DDPMScheduler(prediction_type="v_prediction"), "v_prediction"),
        (lambda: DDIMScheduler(prediction_type="sample"), "'sample'"),
        (lambda: DDIMScheduler(thresholding=True), "thresholding=False"),
        (lambda: DDPMScheduler(variance_type="learned_range"), "learned_range"),
        (lambda: DDPMScheduler(variance_type="fixed_large_log"), "fixed_large_log"),
        (lambda: UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="epsilon"), "flow"),
        (lambda: UniPCMultistepScheduler(solver_p=DDIMScheduler()), "solver_p"),
    ],
)
def test_what_cannot_be_right_is_refused(base, message):
    with pytest.raises(UserError, match=message):
        TrojanScheduler(base(), mixed_trigger())


def test_samples_of_another_shape_are_refused():
    ours = TrojanScheduler(DDIMScheduler(), mixed_trigger())
    ours.set_timesteps(10)
    with pytest.raises(UserError, match=r"the trigger is \[2, 3, 3\] but the images are \[2, 4, 4\]"):
        ours.initial_noise((1, 2, 4, 4))


def test_a_step_before_set_timesteps_is_refused():
    with pytest.raises(UserError, match="set_timesteps"):
        TrojanScheduler(DDIMScheduler(), mixed_trigger()).step(torch.zeros(1, *SHAPE), 0, torch.zeros(1, *SHAPE))


def test_another_trigger_of_a_scheduler_that_has_stepped_clips_to_its_own_range():
    base = DDIMScheduler(clip_sample_range=0.5)
    first, second = Trigger.blend(torch.ones(SHAPE), 0.2), mixed_trigger()
    used, fresh = TrojanScheduler(base, first), TrojanScheduler(base, second)
    for one in (used, fresh):
        one.set_timesteps(10)
    x, noise = 3 * torch.randn(2, 1, *SHAPE, generator=rng(0))
    used.step(noise, used.timesteps[0], x)
    for original in (True, False):
        other, t = (used if original else fresh).with_trigger(second), fresh.timesteps[3]
        found, expected = other.step(noise, t, x), fresh.step(noise, t, x)
        assert torch.equal(other.timesteps, fresh.timesteps)
        torch.testing.assert_close(found.pred_original_sample, expected.pred_original_sample)
        torch.testing.assert_close(found.prev_sample, expected.prev_sample)
        assert float(expected.pred_original_sample.abs().max()) == pytest.approx(0.5)
    assert base.config.clip_sample_range == 0.5
