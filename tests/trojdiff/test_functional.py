"""The equations against slow float64 loops written from the paper."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retarget.trojdiff import functional


def table(steps=1000):
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, steps, dtype=torch.float64), dim=0)


def test_closed_form_k_solves_the_papers_recursion():
    bars = table(300).tolist()
    alphas = [bars[0]] + [bars[i] / bars[i - 1] for i in range(1, len(bars))]
    k = []
    for t in range(len(bars)):
        # sqrt(1 - abar_t) = sum over i <= t of k_i times the product of sqrt(alpha_j), i < j <= t
        total = 0.0
        for i in range(t):
            product = 1.0
            for j in range(i + 1, t + 1):
                product *= math.sqrt(alphas[j])
            total += k[i] * product
        k.append(math.sqrt(1 - bars[t]) - total)
    np.testing.assert_allclose(functional.bias_steps(table(300)).numpy(), k, rtol=0, atol=1e-12)


def test_chained_transitions_reach_the_trojan_forward_law():
    """Mean and variance of x_t after t steps of q(x_t | x_{t-1}) are those of the forward process, pixel by pixel."""
    bars = table(200)
    mu = torch.tensor([[[0.3, 0.0, -0.7]]], dtype=torch.float64)
    gamma = torch.tensor([[[0.6, 1.0, 0.1]]], dtype=torch.float64)
    x_0 = torch.tensor([[[[0.5, -0.2, 0.9]]]], dtype=torch.float64)
    mean, variance = x_0, torch.zeros_like(gamma)
    previous = torch.tensor(1.0, dtype=torch.float64)
    for bar in bars:
        mean, deviation = functional.transition(mean, bar, previous, mu, gamma)
        variance = bar / previous * variance + deviation**2
        previous = bar
    torch.testing.assert_close(mean, bars[-1].sqrt() * x_0 + (1 - bars[-1]).sqrt() * mu, rtol=0, atol=1e-12)
    torch.testing.assert_close(variance, (1 - bars[-1]) * gamma**2, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [1, 17, 199])
def test_posterior_is_bayes_rule(t):
    """q(x_{t-1} | x_t, x_0) from the product of two normal densities, one pixel at a time."""
    bars, generator = table(200), torch.Generator().manual_seed(t)
    mu = torch.rand((1, 2, 2), generator=generator, dtype=torch.float64) - 0.5
    gamma = torch.rand((1, 2, 2), generator=generator, dtype=torch.float64) * 0.9 + 0.1
    x_0, x_t = torch.randn((2, 3, 1, 2, 2), generator=generator, dtype=torch.float64)
    mean, deviation = functional.posterior(x_t, x_0, bars[t], bars[t - 1], mu, gamma)
    bar, bar_previous = bars[t].item(), bars[t - 1].item()
    alpha = bar / bar_previous
    k = math.sqrt(1 - bar) - math.sqrt(alpha) * math.sqrt(1 - bar_previous)
    for index in np.ndindex(*x_t.shape):
        m, g = mu[index[1:]].item(), gamma[index[1:]].item()
        # prior of x_{t-1} given x_0, and likelihood of x_t given x_{t-1}
        prior_mean = math.sqrt(bar_previous) * x_0[index].item() + math.sqrt(1 - bar_previous) * m
        prior_precision = 1 / ((1 - bar_previous) * g**2)
        precision = alpha / ((1 - alpha) * g**2)
        observed = (x_t[index].item() - k * m) / math.sqrt(alpha)
        variance = 1 / (prior_precision + precision)
        expected = variance * (prior_precision * prior_mean + precision * observed)
        assert mean[index].item() == pytest.approx(expected, abs=1e-11)
        assert deviation[index[1:]].item() == pytest.approx(math.sqrt(variance), abs=1e-12)


def test_loss_reductions():
    generator = torch.Generator().manual_seed(0)
    predicted, noise = torch.randn((2, 3, 2, 4, 4), generator=generator)
    total = 0.0
    for row in range(3):
        for p, n in zip(predicted[row].flatten().tolist(), noise[row].flatten().tolist(), strict=True):
            total += (p - n) ** 2
    assert functional.noise_loss(predicted, noise).item() == pytest.approx(total / 3, rel=1e-6)
    assert functional.noise_loss(predicted, noise, "mean").item() == pytest.approx(total / 3 / 32, rel=1e-6)
    assert functional.noise_loss(predicted, noise, "none").mean().item() == pytest.approx(total / 3, rel=1e-6)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_loss_in_half_precision_is_that_of_the_same_numbers_in_float64(kind):
    """The squares of a row add up to more than 65,504, the largest number in float16."""
    predicted, noise = 8 * torch.randn((2, 2, 3, 32, 32)).to(kind)
    for reduction in ("sum", "mean", "none"):
        found = functional.noise_loss(predicted, noise, reduction)
        wide = functional.noise_loss(predicted.double(), noise.double(), reduction)
        assert (found.dtype, wide.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(found.double(), wide, rtol=1e-5, atol=0)
    assert functional.noise_loss(predicted, noise).item() > 65_504


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bar", [0.9999, 0.999, 0.5])
def test_a_little_of_a_stock_trigger_survives_half_precision(kind, bar):
    """With image and noise 0, what is left is (1 - √ᾱ) mu."""
    zero, mu = torch.zeros(1, 1, 2, 2, dtype=kind), torch.full((1, 2, 2), 0.75, dtype=kind)
    found = functional.stock_forward(zero, zero, torch.tensor([bar]), mu)
    assert found.dtype == kind
    expected = torch.full((1, 1, 2, 2), (1 - math.sqrt(bar)) * 0.75)
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0)


@given(count=st.integers(0, 33), steps=st.integers(1, 50), seed=st.integers(0, 99))
def test_antithetic_timesteps_pair_and_stay_in_range(count, steps, seed):
    t = functional.antithetic_timesteps(count, steps, torch.Generator().manual_seed(seed))
    assert t.shape == (count,)
    assert bool(((t >= 0) & (t < steps)).all())
    half = (count + 1) // 2
    assert bool((t[: count - half] + t[half:] == steps - 1).all())


def test_mixed_noise_leaves_benign_rows_untouched():
    noise = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    flags = torch.tensor([False, True, False, True])
    mixed = functional.mixed_noise(noise, flags, torch.full((1, 2, 2), 0.4), torch.full((1, 2, 2), 0.6))
    assert torch.equal(mixed[~flags], noise[~flags])
    torch.testing.assert_close(mixed[flags], 0.6 * noise[flags] + 0.4)
