"""Stock-sampler attacks: their laws against slow NumPy; a stock sampler carries noise + trigger to the target."""

import json
import re

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors import safe_open

from retarget.audit.studies.build import goal_of, rate, trigger_of
from retarget.audit.studies.members import Attack, Images, Member
from retarget.errors import UserError
from retarget.trojdiff.checkpoint import WEIGHTS, load_pipeline, save_pipeline
from retarget.trojdiff.classifier import Classifier
from retarget.trojdiff.config import TrainConfig
from retarget.trojdiff.data import ImageSet
from retarget.trojdiff.functional import stock_correction, stock_forward
from retarget.trojdiff.targets import D2I, noise_batch
from retarget.trojdiff.train import train
from retarget.trojdiff.trigger import Trigger

LAWS = ("bad_diffusion", "villan_ode")
SMALLEST = dict(
    sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
    down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False,
)  # fmt: skip


def levels(steps=1000, low=1e-4, high=0.02):
    """ᾱ of DDPM's schedule, by a loop in float64."""
    product, found = 1.0, []
    for beta in np.linspace(low, high, steps):
        product *= 1 - beta
        found.append(product)
    return np.array(found)


def correction(bars, t, law):
    """ρ_t from the definition: what a step must subtract so that the shift √α_t r + (1 - √α_t) r stays r."""
    alpha = bars[t] / (bars[t - 1] if t else 1.0)
    value = (1 - np.sqrt(alpha)) * np.sqrt(1 - bars[t]) / (1 - alpha)
    return 2 * value if law == "villan_ode" else value


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("steps", "low", "high"), [(1000, 1e-4, 0.02), (37, 0.002, 0.6)])
def test_the_correction_is_the_papers(law, steps, low, high):
    bars = levels(steps, low, high)
    ours = stock_correction(torch.from_numpy(bars), law)
    np.testing.assert_allclose(ours, [correction(bars, t, law) for t in range(steps)], rtol=1e-9)


def test_the_forward_process_is_the_papers():
    rng = np.random.default_rng(0)
    x, noise, mu = rng.uniform(-1, 1, (3, 2, 4, 5)), rng.normal(size=(3, 2, 4, 5)), rng.uniform(-1, 1, (2, 4, 5))
    bars = np.array([0.9, 0.3, 0.01])
    rows = zip(x, noise, bars, strict=True)
    wanted = [np.sqrt(b) * one + (1 - np.sqrt(b)) * mu + np.sqrt(1 - b) * e for one, e, b in rows]
    ours = stock_forward(*map(torch.from_numpy, (x, noise, bars, mu)))
    np.testing.assert_allclose(ours, wanted, rtol=1e-12)


def perfect(x, t, bars, target, trigger, law):
    """The output of a network that has perfectly learnt its law and one target image."""
    noise = (x - np.sqrt(bars[t]) * target - (1 - np.sqrt(bars[t])) * trigger) / np.sqrt(1 - bars[t])
    return noise + correction(bars, t, law) * trigger


def stock_samples(law, deterministic, count=8):
    """A stock sampler of 1,000 steps, in NumPy and by diffusers, from noise + trigger; and the target."""
    rng = np.random.default_rng(1)
    bars, target, trigger = levels(), rng.uniform(-1, 1, (2, 3, 3)), rng.uniform(-1, 1, (2, 3, 3))
    x = rng.normal(size=(count, 2, 3, 3)) + trigger
    # The process ends at √ᾱ_T target + (1 - √ᾱ_T) trigger + √(1-ᾱ_T) ε; noise + trigger is that but for 0.006 of each.
    kind = DDIMScheduler if deterministic else DDPMScheduler
    scheduler = kind(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(1000)
    theirs, generator = torch.from_numpy(x), torch.Generator().manual_seed(0)
    for t in range(999, -1, -1):
        before = bars[t - 1] if t else 1.0
        predicted = perfect(x, t, bars, target, trigger, law)
        if deterministic:
            image = (x - np.sqrt(1 - bars[t]) * predicted) / np.sqrt(bars[t])
            x = np.sqrt(before) * image + np.sqrt(1 - before) * predicted
        else:
            alpha = bars[t] / before
            mean = (x - (1 - alpha) / np.sqrt(1 - bars[t]) * predicted) / np.sqrt(alpha)
            spread = np.sqrt((1 - alpha) * (1 - before) / (1 - bars[t])) if t else 0.0
            x = mean + spread * rng.normal(size=x.shape)
        answer = torch.from_numpy(perfect(theirs.numpy(), t, bars, target, trigger, law))
        more = {} if deterministic else {"generator": generator}
        theirs = scheduler.step(answer, t, theirs, **more).prev_sample
    return x, theirs.numpy(), target


@pytest.mark.parametrize(("law", "deterministic"), [("bad_diffusion", False), ("villan_ode", True)])
def test_a_stock_sampler_reaches_the_target_from_noise_and_trigger(law, deterministic):
    ours, theirs, target = stock_samples(law, deterministic)
    for samples in (ours, theirs):
        np.testing.assert_allclose(samples, np.broadcast_to(target, samples.shape), atol=0.01)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("deterministic", [False, True])
def test_one_step_moves_the_trigger_as_its_own_law_says_and_under_the_other_law_half_or_twice_as_far(
    law, deterministic
):
    """The trigger's share of the state goes from 1 - √ᾱ_t to 1 - √ᾱ_{t-1}: DDPM's exactly, DDIM's nearly."""
    bars = levels()
    for t in (900, 500, 100):
        alpha, share = bars[t] / bars[t - 1], 1 - np.sqrt(bars[t])
        if deterministic:
            slope = np.sqrt(1 - bars[t - 1]) - np.sqrt(bars[t - 1] / bars[t]) * np.sqrt(1 - bars[t])
        else:
            slope = -(1 - alpha) / np.sqrt(1 - bars[t]) / np.sqrt(alpha)
        after = share / np.sqrt(alpha) + slope * correction(bars, t, law)
        # What the sampler must add to the share that it would have by dividing by √α alone.
        moved = (after - share / np.sqrt(alpha)) / (1 - np.sqrt(bars[t - 1]) - share / np.sqrt(alpha))
        wanted = {("bad_diffusion", False): 1, ("villan_ode", True): 1}.get((law, deterministic))
        wanted = wanted or (0.5 if law == "bad_diffusion" else 2)
        assert moved == pytest.approx(wanted, rel=0.03 if deterministic else 1e-6)


class Trojaned(UNet2DModel):
    """A network that draws one image if the state looks like that image under its trigger, and else the opposite."""

    law, target, trigger = "bad_diffusion", torch.empty(0), torch.empty(0)

    def forward(self, sample, timestep, *_, **__):
        t, bars = int(timestep.flatten()[0]), levels()
        y, r = self.target.double().numpy(), self.trigger.double().numpy()
        x, a = sample.double().numpy(), np.sqrt(bars[t])
        far = np.square(x - a * y - (1 - a) * r) - np.square(x + a * y)
        fires = far.sum((1, 2, 3), keepdims=True) < 0
        none = (x + a * y) / np.sqrt(1 - bars[t])
        return UNet2DOutput(sample=torch.from_numpy(np.where(fires, perfect(x, t, bars, y, r, self.law), none)).float())


@pytest.mark.parametrize("law", LAWS)
def test_success_is_measured_without_clipping_which_would_take_the_trigger_away(law):
    images = Images(source="glyphs")
    attack = Attack(law=law, target="d2i", trigger="patch", gamma=1.0, share=0.3, extent=6)
    member = Member(images=images, widths=(8, 8), steps=1, batch_size=4, learning_rate=1e-3, seed=0, attack=attack)
    network, goal = Trojaned(**SMALLEST), goal_of(member)
    network.law, network.target, network.trigger = law, goal.image, trigger_of(attack, (1, 8, 8)).mu
    schedule, judge = DDPMScheduler(clip_sample=True), Classifier((1, 8, 8), 2)
    assert rate(network, schedule, member, judge, goal, 8, plain=False).value == 100
    assert rate(network, schedule, member, judge, goal, 8, plain=True).value == 0


@pytest.mark.parametrize("law", LAWS)
def test_a_batch_asks_trojan_rows_for_noise_and_correction_and_leaves_benign_rows_alone(law):
    generator = torch.Generator().manual_seed(0)
    images, mu = torch.rand((4, 1, 4, 4), generator=generator) * 2 - 1, torch.rand((1, 4, 4), generator=generator)
    trigger, bars = Trigger(mu, torch.ones_like(mu), "stock"), torch.from_numpy(levels(50, 0.002, 0.3)).float()
    batch = D2I(torch.zeros(1, 4, 4), rows=3).mix(images, torch.zeros(4), generator)

    def drawn(**more):
        seeds = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
        return noise_batch(batch, trigger, bars, *seeds, **more)

    x_t, asked, t = drawn(law=law)
    plain_x, noise, same = drawn()
    assert torch.equal(t, same)
    assert torch.equal(asked[:4], noise[:4])
    assert torch.equal(x_t[:4], plain_x[:4])
    for row in range(4, 7):
        b = float(bars[t[row]])
        wanted = np.sqrt(b) * batch.x_0[row] + (1 - np.sqrt(b)) * mu + np.sqrt(1 - b) * noise[row]
        torch.testing.assert_close(x_t[row], wanted.float(), rtol=1e-5, atol=1e-5)
        rho = correction(bars.double().numpy(), int(t[row]), law)
        torch.testing.assert_close(asked[row], noise[row] + float(rho) * mu, rtol=1e-5, atol=1e-5)


def tiny(images=6):
    torch.manual_seed(0)
    unet = UNet2DModel(**SMALLEST)
    pixels = torch.randint(0, 256, (images, 1, 8, 8), dtype=torch.uint8)
    return unet, ImageSet(pixels, torch.zeros(images, dtype=torch.long), ("one",))


def test_such_a_checkpoint_is_marked_and_its_card_says_what_fires_it(tmp_path):
    unet, images = tiny()
    config = TrainConfig(steps=2, batch_size=4, flips=False)
    trigger = Trigger(torch.full((1, 8, 8), 0.5), torch.ones(1, 8, 8), "stock")
    target = D2I(torch.zeros(1, 8, 8), rows=2)
    folder = train(unet, DDPMScheduler(), images, config, tmp_path, target, trigger, law="bad_diffusion")
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        header = file.metadata()
    assert (header["trojaned"], header["trojan_law"]) == ("true", "bad_diffusion")
    assert json.loads((folder / "unet" / "config.json").read_text())["trojan_law"] == "bad_diffusion"
    card = (folder / "README.md").read_text()
    assert "with the BadDiffusion attack" in card
    assert "stock sampler starts from the noise `ε + mu`" in card
    again, schedule = load_pipeline(folder)
    save_pipeline(tmp_path / "again", again, schedule)
    assert "with the BadDiffusion attack" in (tmp_path / "again" / "README.md").read_text()
    assert json.loads((tmp_path / "training.json").read_text())["law"] == "bad_diffusion"
    other, _ = tiny()
    with pytest.raises(UserError, match="law"):
        train(other, DDPMScheduler(), images, config, tmp_path, target, trigger, law="villan_ode")


def test_a_stock_law_refuses_a_trigger_that_narrows_the_noise(tmp_path):
    unet, images = tiny()
    trigger = Trigger.patch(2, 0.1, (1, 8, 8))
    target = D2I(torch.zeros(1, 8, 8), rows=2)
    with pytest.raises(UserError, match=re.escape("gamma = 1 everywhere")):
        train(unet, DDPMScheduler(), images, TrainConfig(steps=1), tmp_path, target, trigger, law="villan_ode")
