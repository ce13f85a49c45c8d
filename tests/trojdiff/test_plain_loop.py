"""The trainer against a plain loop in PyTorch: draws, loss, learning rate, clipping and the average of the weights."""

import math

import pytest
import torch
from safetensors.torch import load_file

from retarget.trojdiff import D2I, Trigger
from retarget.trojdiff.checkpoint import WEIGHTS
from retarget.trojdiff.config import TrainConfig
from retarget.trojdiff.glyphs import glyph
from retarget.trojdiff.train import ADDED, BENIGN, FLIPS, _stream, batch_rows, train

STEPS, BATCH, ROWS, SEED = 5, 6, 2, 3
LEVELS = 50


def plain_draws(step, digits, trigger, flips):
    """x_t, ε and t of a step: benign rows, flipped at random, then copies of the target under the Trojan law."""
    x_0, _ = digits.take(batch_rows(step, BATCH, len(digits), SEED))
    if flips:
        turned = torch.rand(BATCH, generator=_stream(SEED, FLIPS, step)) < 0.5
        x_0 = torch.stack([one[..., range(7, -1, -1)] if turn else one for one, turn in zip(x_0, turned, strict=True)])
    times, noises = [], []
    for stream, count in ((BENIGN, BATCH), (ADDED, ROWS)):
        generator = _stream(SEED, stream, step)
        half = torch.randint(0, LEVELS, (count // 2,), generator=generator)
        times += [half, LEVELS - 1 - half]
        noises.append(torch.randn(count, 1, 8, 8, generator=generator))
    noise, t = torch.cat(noises), torch.cat(times)
    whole = torch.cat([noises[0], trigger.gamma * noises[1] + trigger.mu])
    level = torch.cumprod(1 - torch.linspace(0.002, 0.3, LEVELS), 0)[t][:, None, None, None]
    images = torch.cat([x_0, glyph()[None].expand(ROWS, -1, -1, -1)])
    return level.sqrt() * images + (1 - level).sqrt() * whole, noise, t


@pytest.mark.parametrize(
    ("more", "factors"),
    [
        (dict(warmup_steps=3, clip=1e9, flips=False), [1 / 3, 2 / 3, 1, 1, 1]),
        (dict(decay="cosine", clip=0.5), [(1 + math.cos(math.pi * step / STEPS)) / 2 for step in range(STEPS)]),
        (dict(loss="mean", warmup_steps=2, clip=0.01, accumulation=2), [1 / 2, 1, 1, 1, 1]),
    ],
    ids=["warm-up", "cosine", "mean"],
)
def test_it_trains_as_a_plain_loop_does(tmp_path, make_unet, scheduler, digits, more, factors):
    trigger, told = Trigger.patch(2, shape=(1, 8, 8)), []
    config = TrainConfig(
        **(dict(steps=STEPS, batch_size=BATCH, learning_rate=1e-3, ema_decay=0.9, seed=SEED, log_every=1) | more)
    )
    unet, plain = make_unet(dropout=0.0), make_unet(dropout=0.0)
    folder = train(unet, scheduler, digits, config, tmp_path, D2I(glyph(), rows=ROWS), trigger, listen=told.append)
    optimizer = torch.optim.Adam(plain.parameters())
    average = [value.detach().clone() for value in plain.parameters()]
    losses = []
    for step, factor in enumerate(factors):
        x_t, noise, t = plain_draws(step, digits, trigger, config.flips)
        loss = (plain(x_t, t).sample - noise).square().mean() * (64 if config.loss == "sum" else 1)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norm = torch.cat([one.grad.flatten() for one in plain.parameters()]).norm()
        for one in plain.parameters():
            one.grad *= min(1.0, config.clip / float(norm))
        optimizer.param_groups[0]["lr"] = 1e-3 * factor
        optimizer.step()
        decay = min(0.9, (1 + step) / (10 + step)) if step else 0.0  # diffusers' warm-up of the average
        average = [decay * a + (1 - decay) * p.detach() for a, p in zip(average, plain.parameters(), strict=True)]
    assert [one.loss for one in told] == pytest.approx(losses, rel=1e-4)
    written = load_file(folder / WEIGHTS)
    for (name, ours), theirs, averaged in zip(unet.named_parameters(), plain.parameters(), average, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(written[name], averaged, rtol=1e-3, atol=2e-5)
