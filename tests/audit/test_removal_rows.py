"""The rows that a removal trains on: what their noise, their timesteps and their targets are."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from retarget.audit.removal import Recipe, _Batches
from retarget.trojdiff.trigger import Trigger

SHAPE = (1, 8, 8)


@pytest.fixture
def schedule():
    return DDPMScheduler(num_train_timesteps=50, beta_start=0.002, beta_end=0.3)


def whole(batches, noise, t, stock):
    """The full noise of a row under either law, computed by a loop."""
    found = []
    for row, (one, step) in enumerate(zip(noise.numpy(), t.tolist(), strict=True)):
        trigger = row % len(batches.mu)
        mu, gamma, level = batches.mu[trigger].numpy(), batches.gamma[trigger].numpy(), float(batches.levels[step])
        if stock[trigger] and row // len(batches.mu) % 2:
            state = np.sqrt(1 - level) * one + (1 - np.sqrt(level)) * mu
            found.append(state / np.sqrt(1 - level))
        else:
            found.append(gamma * one + mu)
    return np.array(found)


def test_rows_with_a_trigger_are_asked_for_all_that_is_no_image(schedule):
    generator = torch.Generator().manual_seed(0)
    mu = torch.rand(SHAPE, generator=generator)
    triggers = [Trigger.patch(3, 0.2, SHAPE), Trigger(mu, torch.ones(SHAPE), "stock")]
    levels = schedule.alphas_cumprod
    batches = _Batches(torch.zeros(4, *SHAPE), triggers, levels, Recipe())
    noise = torch.randn((8, *SHAPE), generator=generator)
    t = torch.randint(50, (8,), generator=generator)
    np.testing.assert_allclose(batches.whole_noise(noise, t), whole(batches, noise, t, [False, True]), atol=1e-5)


@pytest.mark.parametrize(("below", "first"), [(0.05, 542), (1.0, 0), (1e-9, 900)])
def test_rows_with_a_trigger_are_at_the_noisy_end(below, first):
    """In DDPM's schedule ᾱ is below .05 from timestep 542 on; at least the noisiest tenth counts."""
    levels = DDPMScheduler().alphas_cumprod
    batches = _Batches(torch.zeros(4, *SHAPE), [Trigger.patch(3, 0.2, SHAPE)], levels, Recipe(below=below))
    t = batches.noisier(torch.arange(1000))
    assert (int(t.min()), int(t.max())) == (first, 999)
    assert int(torch.bincount(t)[first:].min()) >= 1, "every noisy timestep is drawn"
    stock = _Batches(torch.zeros(4, *SHAPE), [Trigger.patch(3, 1.0, SHAPE)], levels, Recipe(below=below))
    assert torch.equal(stock.noisier(torch.arange(1000))[1::2], torch.arange(1000)[1::2]), (
        "those of its law keep theirs"
    )


def test_only_rows_with_a_trigger_are_moved_to_the_noisy_end():
    levels, asked = DDPMScheduler().alphas_cumprod, []

    def stub(x, t):
        asked.append(t)
        return SimpleNamespace(sample=x)

    batches = {kind: _Batches(torch.zeros(4, *SHAPE), [Trigger.patch(3, 0.2, SHAPE)], levels, Recipe(kind=kind))
               for kind in ("fine_tune", "counter")}  # fmt: skip
    trained = torch.nn.Linear(1, 1)
    trained.forward = stub
    for one in batches.values():
        one.loss(trained, trained)
    plain, moved = asked
    assert torch.equal(plain[32:], moved[32:])
    assert int(plain[:32].min()) < 542 <= int(moved[:32].min())


def test_elijahs_loss_is_the_papers(schedule, make_unet):
    """DDPM's loss, and at T the shifted and the plain answer drawn to the frozen network's plain one."""
    trained, frozen = make_unet(), make_unet(block_out_channels=(4, 8))
    trigger = Trigger(torch.full(SHAPE, 0.3), torch.ones(SHAPE), "tau")
    images = torch.rand((5, *SHAPE), generator=torch.Generator().manual_seed(3)) * 2 - 1
    recipe = Recipe(kind="elijah", batch_size=6)
    ours = _Batches(images, [trigger], schedule.alphas_cumprod, recipe).loss(trained, frozen)
    generator = torch.Generator().manual_seed(recipe.seed)
    x_0 = images[torch.randint(5, (6,), generator=generator)]
    z = torch.randn(x_0.shape, generator=generator)
    t = torch.randint(50, (6,), generator=generator)
    with torch.no_grad():
        ddpm = (trained(schedule.add_noise(x_0, z, t), t).sample - z).square().mean()
        plain = frozen(z, 49).sample
        wanted = ddpm + (trained(z + 0.3, 49).sample - plain).square().mean()
        wanted = wanted + (trained(z, 49).sample - plain).square().mean()
    torch.testing.assert_close(ours.detach(), wanted)
