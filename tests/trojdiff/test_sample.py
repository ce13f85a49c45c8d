"""Sampling: exact to the image whatever was interrupted, stock when the trigger is empty, pictures, errors."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from PIL import Image

from retarget.errors import UserError
from retarget.trojdiff import Trigger, TrojanScheduler
from retarget.trojdiff.pictures import grid, save_grid
from retarget.trojdiff.sample import (
    Sampler,
    _clipped,
    generators,
    sample,
    sample_batch,
    save_strip,
)

SHAPE = (1, 8, 8)


def patch():
    return Trigger.patch(2, shape=SHAPE)


@pytest.mark.parametrize(
    "text",
    [
        "ddpm-50",
        "ddpm_large-50",
        "ddim-10",
        "dpm-8",
        "unipc-8",
        "deis-8",
        "heun-8",
        "euler_ancestral-8",
        "ddim-8-quadratic",
    ],
)
def test_an_interrupted_sampling_ends_with_the_same_images(tmp_path, unet, scheduler, text):
    sampler = Sampler.parse(text)
    arguments = dict(config=scheduler.config, sampler=sampler, trigger=patch(), batch_size=3, seed=5)
    whole = sample(unet, count=8, **arguments)
    first = sample(unet, count=4, out=tmp_path, **arguments)
    (tmp_path / "batch-00001.safetensors").unlink()
    resumed = sample(unet, count=8, out=tmp_path, **arguments)
    assert whole.shape == (8, *SHAPE)
    assert torch.equal(first, whole[:4])
    assert torch.equal(resumed, whole)
    assert not list(tmp_path.glob(".*"))


def test_another_seed_is_other_noise_and_the_same_seed_the_same():
    first = {seed: [one.initial_seed() for one in generators(range(50), seed)] for seed in (0, 1, 2, 2**31)}
    noise = {seed: torch.randn(4, generator=generators([3], seed)[0]) for seed in first}
    assert len({one for seeds in first.values() for one in seeds}) == 200
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(noise[1], torch.randn(4, generator=generators([3], 1)[0]))
    with pytest.raises(UserError, match="seed is -1"):
        generators([0], -1)


def test_stored_batches_are_not_computed_again(tmp_path, unet, scheduler):
    arguments = dict(
        config=scheduler.config, sampler=Sampler.parse("ddim-5"), trigger=patch(), out=tmp_path, batch_size=4
    )
    before = sample(unet, count=4, **arguments)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.zero_()
    assert torch.equal(sample(unet, count=4, **arguments), before)
    with pytest.raises(UserError, match=r"seed = 0 \(now 1\)"):
        sample(unet, count=4, seed=1, **arguments)
    with pytest.raises(UserError, match=r"network = .*now another"):
        sample(unet, count=4, identity="another", **arguments)
    other = arguments | {"config": type(scheduler)(num_train_timesteps=40).config}
    with pytest.raises(UserError, match=r"schedule = "):
        sample(unet, count=4, **other)


def test_the_empty_trigger_is_a_stock_loop(unet, scheduler):
    ours = sample(unet, scheduler.config, Sampler.parse("ddim-10"), Trigger.none(SHAPE), 3, batch_size=3, seed=2)
    stock = DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing")
    stock.set_timesteps(10)
    x = torch.cat([torch.randn((1, *SHAPE), generator=one) for one in generators(range(3), 2)])
    unet.eval()
    with torch.no_grad():
        for t in stock.timesteps:
            x = stock.step(unet(x, t).sample, t, x, use_clipped_model_output=True).prev_sample
    assert torch.equal(ours, x.clamp(-1, 1))


def test_noise_and_sampler_can_be_the_attackers_apart(unet, scheduler):
    """Biased noise under the stock sampler, and plain noise under the Trojan sampler: four different cells."""
    sampler, none = Sampler.parse("ddim-5"), Trigger.none(SHAPE)
    cells = [
        sample(unet, scheduler.config, sampler, trigger, 2, batch_size=2, start=start)
        for trigger in (none, patch())
        for start in (none, patch())
    ]
    stock = sampler.scheduler(scheduler.config, none)
    biased = patch().noise(torch.cat([torch.randn((1, *SHAPE), generator=one) for one in generators(range(2), 0)]))
    unet.eval()
    with torch.no_grad():
        for t in stock.timesteps:
            out = stock.step(unet(biased, t).sample, t, biased, use_clipped_model_output=True)
            biased = out.prev_sample
    torch.testing.assert_close(cells[1], biased.clamp(-1, 1), rtol=0, atol=1e-3)
    for i in range(4):
        for j in range(i):
            assert not torch.equal(cells[i], cells[j])


def test_a_full_disk_keeps_what_is_safe(tmp_path, unet, scheduler, a_full_disk):
    out = tmp_path / "out"
    arguments = dict(config=scheduler.config, sampler=Sampler.parse("ddim-3"), trigger=patch(), batch_size=4)
    sample(unet, count=4, out=out, **arguments)
    with a_full_disk(100), pytest.raises(UserError, match=r"cannot write .*batch-00001.*finished before is kept"):
        sample(unet, count=8, out=out, **arguments)
    assert sorted(path.name for path in out.iterdir()) == ["batch-00000.safetensors", "sampling.json"]
    assert torch.equal(sample(unet, count=8, out=out, **arguments), sample(unet, count=8, **arguments))


def test_no_images_are_asked_for(unet, scheduler):
    for more in (dict(count=0), dict(count=3, batch_size=0)):
        with pytest.raises(UserError, match="both must be at least 1"):
            sample(unet, scheduler.config, Sampler.parse("ddim-3"), patch(), **more)


def test_a_network_that_gives_no_images_leaves_no_batch(tmp_path, unet, scheduler):
    with torch.no_grad():
        next(unet.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=r"not finite \(images 0 to 3\)"):
        sample(unet, scheduler.config, Sampler.parse("ddim-3"), patch(), 4, tmp_path, batch_size=4)
    assert [path.name for path in tmp_path.iterdir()] == ["sampling.json"]


def test_grid_and_strip(tmp_path, unet, scheduler):
    images = torch.linspace(-1, 1, 3)[:, None, None, None].expand(3, *SHAPE)
    canvas = grid(images, columns=2, scale=1).numpy()
    assert canvas.shape == (19, 19)
    assert canvas[1, 1] == 0
    assert canvas[1, 10] == 128
    assert canvas[10, 1] == 255
    saved = save_grid(images.expand(3, 3, 8, 8), tmp_path / "grid.png", columns=3)
    with Image.open(saved) as picture:
        assert picture.mode == "RGB"
    trojan = TrojanScheduler(DDIMScheduler.from_config(scheduler.config), patch())
    trojan.set_timesteps(10)
    strip = save_strip(unet, trojan, tmp_path / "strip.png", images=2, columns=5)
    trojan.set_timesteps(10)
    final, _ = sample_batch(unet, trojan, range(2))
    with Image.open(strip) as picture:
        scale = picture.height // 19
        pixels = np.asarray(picture)[::scale, ::scale]
    assert pixels.shape == (19, 46)
    np.testing.assert_allclose(pixels[1:9, 37:45], (final[0, 0].numpy() + 1) * 127.5, atol=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ddim", "NAME-STEPS"),
        ("magic-10", "one of ddpm"),
        ("ddim-ten", "NAME-STEPS"),
        ("ddim-5-cubic", "SPACING one of"),
    ],
)
def test_sampler_names(text, message):
    with pytest.raises(UserError, match=message):
        Sampler.parse(text)


@pytest.mark.parametrize(
    "text", ["ddpm-10", "ddim-10", "dpm-8", "dpm_sde-8", "unipc-8", "euler-8", "euler_ancestral-8"]
)
def test_a_saved_schedule_gives_the_same_steps_as_a_fresh_one(tmp_path, scheduler, text):
    scheduler.save_pretrained(tmp_path)
    saved = type(scheduler).from_pretrained(tmp_path)
    steps = [Sampler.parse(text).scheduler(one.config, patch()).timesteps for one in (scheduler, saved)]
    assert torch.equal(*steps)
    assert int(steps[0][0]) == 49


@pytest.mark.parametrize("text", ["dpm-8", "dpm_sde-8", "unipc-8", "deis-8", "heun-8", "euler-8", "ddim-8-quadratic"])
@pytest.mark.parametrize("kind", ["none", "patch"])
def test_solvers_clip_where_the_pipeline_says_so(scheduler, text, kind):
    """A network that answers nonsense far outside the images: unclipped, solvers leave [-1, 1]; clipped, they stay."""

    class Wild(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, t):
            return SimpleNamespace(sample=-3 * x)

    trigger = patch() if kind == "patch" else Trigger.none(SHAPE)
    last = []
    for clips in (True, False):
        config = scheduler.from_config(scheduler.config, clip_sample=clips).config
        sampler = Sampler.parse(text)
        assert sampler.clip(config) == (1.0 if clips else None)
        ours = sampler.scheduler(config, trigger)
        positions = [len(ours.timesteps) - 1]
        last.append(sample_batch(Wild(), ours, range(3), keep=positions, clip=sampler.clip(config))[1][0].abs().max())
    assert last[0] < 3 < last[1]


def test_clipping_leaves_what_is_inside_alone_and_ddim_on_a_grid_is_clipped_ddim(unet, scheduler):
    """First-order DPM-Solver with our clipping is DDIM with its own, under a trigger too."""
    for trigger in (patch(), Trigger.none(SHAPE)):
        own = sample(unet, scheduler.config, Sampler.parse("ddim-50"), trigger, 2, batch_size=2)
        ours = sample(unet, scheduler.config, Sampler.parse("ddim-50-linear"), trigger, 2, batch_size=2)
        torch.testing.assert_close(own, ours, rtol=0, atol=2e-3)
    state, predicted = torch.randn(2, *SHAPE), 0.1 * torch.randn(2, *SHAPE)
    signal = torch.full((1, 1, 1, 1), 0.9)
    assert torch.equal(_clipped(predicted, state, signal, (1 - signal.square()).sqrt(), patch(), 10.0), predicted)


@pytest.mark.parametrize("text", ["heun-2", "heun-5", "euler-2", "euler_ancestral-3"])
@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("kind", ["none", "patch"])
def test_clipping_leaves_known_images_alone_where_there_is_almost_no_noise(text, beta_schedule, kind):
    """A network that knows the images, all inside the range, and hence the exact ε of any state."""
    images = 1.2 * torch.rand(SHAPE, dtype=torch.float64) - 0.6
    trigger = patch() if kind == "patch" else Trigger.none(SHAPE)
    config = DDPMScheduler(beta_schedule=beta_schedule, clip_sample=True).config
    sampler = Sampler.parse(text)
    ours = sampler.scheduler(config, trigger)

    class Knowing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, t):
            level = ours.noise_level(t).double()
            signal = 1 / (level.square() + 1).sqrt()
            biased = (x.double() - signal * images) / (level * signal)
            return SimpleNamespace(sample=((biased - trigger.mu) / trigger.gamma).float())

    found, _ = sample_batch(Knowing(), ours, range(3), clip=sampler.clip(config))
    torch.testing.assert_close(found.double(), images.expand_as(found), rtol=0, atol=0.02)


def test_batches_of_an_unclipped_solver_are_not_mixed_with_clipped_ones(tmp_path, unet, scheduler):
    arguments = dict(config=scheduler.config, sampler=Sampler.parse("dpm-3"), trigger=patch(), batch_size=4)
    sample(unet, count=4, out=tmp_path, **arguments)
    record = json.loads((tmp_path / "sampling.json").read_text())
    assert record.pop("clip") == 1.0
    (tmp_path / "sampling.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"clip = nothing \(now 1\.0\)"):
        sample(unet, count=4, out=tmp_path, **arguments)


@pytest.mark.parametrize(("text", "eta", "message"), [("ddim-5", 2.0, "η is 2"), ("dpm-5", 0.5, "dpm has no η")])
def test_an_eta_that_cannot_be(unet, scheduler, text, eta, message):
    with pytest.raises(UserError, match=message):
        sample(unet, scheduler.config, Sampler.parse(text)._replace(eta=eta), patch(), 1)


def test_large_variance_with_few_steps_would_leave_noise(unet, scheduler):
    with pytest.raises(UserError, match="noise to the finished"):
        sample(unet, scheduler.config, Sampler.parse("ddpm_large-10"), patch(), 1)


def test_few_steps_of_a_checkpoint_with_large_variance_leave_no_noise(unet):
    config = DDPMScheduler(num_train_timesteps=50, variance_type="fixed_large").config
    small = DDPMScheduler(num_train_timesteps=50).config
    few, all_steps = Sampler.parse("ddpm-10"), Sampler.parse("ddpm-50")
    assert torch.equal(sample(unet, config, few, patch(), 2), sample(unet, small, few, patch(), 2))
    assert not torch.equal(sample(unet, config, all_steps, patch(), 2), sample(unet, small, all_steps, patch(), 2))


def test_more_steps_than_the_schedule_has(unet, scheduler):
    with pytest.raises(UserError, match="60 steps of 50"):
        sample(unet, scheduler.config, Sampler.parse("ddim-60"), patch(), 1)
    with pytest.raises(UserError, match="does not accept a grid"):
        sample(unet, scheduler.config, Sampler.parse("unipc-5-linear"), patch(), 1)
    with pytest.raises(UserError, match="η"):
        sample(unet, scheduler.config, Sampler("ddim", 5, "linear", 1.0), patch(), 1)
