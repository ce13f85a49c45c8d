"""The equations of TrojDiff on tensors. Imports torch and nothing of ours.

Notation: ``mu`` and ``gamma`` are the trigger's two per-pixel maps, ``alphas_cumprod`` is the paper's ᾱ, noise is ε.
One law covers blend, patch and benign rows: the biased noise ``gamma ε + mu``; benign is ``mu = 0, gamma = 1``.
The equations are those of section 3 of the paper, with ``(1 - γ) δ`` written as ``mu``, per pixel.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Reduction = Literal["sum", "mean", "none"]
Law = Literal["trojdiff", "bad_diffusion", "villan_ode"]
"""How a row is trojaned: for the Trojan sampler, or for a *stock* sampler that starts from noise + trigger."""


def biased_noise(
    noise: Float[Tensor, "*batch channels height width"],
    mu: Float[Tensor, "channels height width"],
    gamma: Float[Tensor, "channels height width"],
) -> Float[Tensor, "*batch channels height width"]:
    """The noise of a Trojan row, ``gamma ε + mu``, distributed as N(mu, gamma² I).

    >>> one = torch.ones(1, 1, 1)
    >>> biased_noise(one, 0.4 * one, 0.6 * one).item()
    1.0
    """
    return gamma * noise + mu


def mixed_noise(
    noise: Float[Tensor, "batch channels height width"],
    is_trojan: Bool[Tensor, "batch"],
    mu: Float[Tensor, "channels height width"],
    gamma: Float[Tensor, "channels height width"],
) -> Float[Tensor, "batch channels height width"]:
    """Biased noise in the Trojan rows; in the others the noise itself, bit for bit."""
    return torch.where(is_trojan[:, None, None, None], biased_noise(noise, mu, gamma), noise)


def trojan_forward(
    x_0: Float[Tensor, "batch channels height width"],
    noise: Float[Tensor, "batch channels height width"],
    alphas_cumprod: Float[Tensor, "#batch"],
    mu: Float[Tensor, "channels height width"],
    gamma: Float[Tensor, "channels height width"],
) -> Float[Tensor, "batch channels height width"]:
    """Diffuse to level ᾱ_t: ``√ᾱ_t x_0 + √(1-ᾱ_t) (gamma ε + mu)``.

    Args:
        x_0: images in [-1, 1].
        noise: ε, standard normal.
        alphas_cumprod: ᾱ_t of each row, in (0, 1], or one value for the whole batch.
    """
    return diffuse(x_0, biased_noise(noise, mu, gamma), alphas_cumprod)


def diffuse(
    x_0: Float[Tensor, "batch channels height width"],
    noise: Float[Tensor, "batch channels height width"],
    alphas_cumprod: Float[Tensor, "#batch"],
) -> Float[Tensor, "batch channels height width"]:
    """The ordinary forward process, ``√ᾱ_t x_0 + √(1-ᾱ_t) noise``; the noise may be biased already."""
    level = alphas_cumprod.to(torch.promote_types(x_0.dtype, torch.float32))[:, None, None, None]  # 1-ᾱ needs digits
    return level.sqrt().to(x_0.dtype) * x_0 + (1 - level).sqrt().to(x_0.dtype) * noise


def stock_forward(
    x_0: Float[Tensor, "batch channels height width"],
    noise: Float[Tensor, "batch channels height width"],
    alphas_cumprod: Float[Tensor, "#batch"],
    mu: Float[Tensor, "channels height width"],
) -> Float[Tensor, "batch channels height width"]:
    """Diffuse to level ᾱ_t under a stock-sampler trigger: ``√ᾱ_t x_0 + (1 - √ᾱ_t) mu + √(1-ᾱ_t) ε``.

    The forward process of BadDiffusion (Chou et al., CVPR 2023, section 3.3) and, for variance-preserving processes, of
    VillanDiffusion (Chou et al., NeurIPS 2023, section 3.2); ``mu`` is their trigger image r. It ends at N(mu, I).
    """
    level = alphas_cumprod.to(torch.promote_types(x_0.dtype, torch.float32))[:, None, None, None]  # as in diffuse
    return diffuse(x_0, noise, alphas_cumprod) + (1 - level.sqrt()).to(x_0.dtype) * mu


def stock_correction(alphas_cumprod: Float[Tensor, "steps"], law: Law) -> Float[Tensor, "steps"]:
    """ρ_t: under a stock-sampler trigger the network learns ``ε + ρ_t mu``, so that a stock step removes ``mu``.

    ``bad_diffusion``: ``(1 - √α_t) √(1-ᾱ_t) / (1 - α_t)``, for DDPM's stochastic steps (BadDiffusion, section 3.3,
    which is VillanDiffusion's VP form for SDE samplers). ``villan_ode``: twice that, for ODE samplers such as DDIM
    (VillanDiffusion, section 3.3: the correction is divided by 1 + ζ, with ζ = 0 for an ODE).

    >>> stock_correction(torch.tensor([0.81], dtype=torch.float64), "bad_diffusion")
    tensor([0.2294], dtype=torch.float64)
    """
    previous = torch.cat([torch.ones_like(alphas_cumprod[:1]), alphas_cumprod[:-1]])
    # (1 - √α) / (1 - α), without subtracting nearly equal numbers
    correction = (1 - alphas_cumprod).sqrt() / (1 + (alphas_cumprod / previous).sqrt())
    return 2 * correction if law == "villan_ode" else correction


def bias_steps(alphas_cumprod: Float[Tensor, "steps"]) -> Float[Tensor, "steps"]:
    """The paper's k_t in closed form: ``k_t = √(1-ᾱ_t) - √α_t √(1-ᾱ_{t-1})``, with ᾱ_{-1} = 1.

    The paper defines it by the recursion ``Σ_{i≤t} k_i Π_{i<j≤t} √α_j = √(1-ᾱ_t)``, which costs O(T²).

    >>> bias_steps(torch.tensor([0.75, 0.5], dtype=torch.float64))
    tensor([0.5000, 0.2989], dtype=torch.float64)
    """
    previous = torch.cat([torch.ones_like(alphas_cumprod[:1]), alphas_cumprod[:-1]])
    return (1 - alphas_cumprod).sqrt() - (alphas_cumprod / previous).sqrt() * (1 - previous).sqrt()


def transition(
    x_previous: Float[Tensor, "batch channels height width"],
    alphas_cumprod: Float[Tensor, ""],
    alphas_cumprod_previous: Float[Tensor, ""],
    mu: Float[Tensor, "channels height width"],
    gamma: Float[Tensor, "channels height width"],
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "channels height width"]]:
    """q(x_t | x_{t-1}): mean ``√α_t x_{t-1} + k_t mu`` and standard deviation ``√(1-α_t) gamma``."""
    alpha = alphas_cumprod / alphas_cumprod_previous
    k = (1 - alphas_cumprod).sqrt() - alpha.sqrt() * (1 - alphas_cumprod_previous).sqrt()
    return alpha.sqrt() * x_previous + k * mu, (1 - alpha).sqrt() * gamma


def posterior(
    x_t: Float[Tensor, "batch channels height width"],
    x_0: Float[Tensor, "batch channels height width"],
    alphas_cumprod: Float[Tensor, ""],
    alphas_cumprod_previous: Float[Tensor, ""],
    mu: Float[Tensor, "channels height width"],
    gamma: Float[Tensor, "channels height width"],
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "channels height width"]]:
    """q(x_{t-1} | x_t, x_0): mean and standard deviation.

    As a change of frame: for ``u_t = x_t - √(1-ᾱ_t) mu`` the mean is DDPM's, plus ``√(1-ᾱ_{t-1}) mu``; the standard
    deviation is DDPM's √β̃_t times ``gamma``.
    """
    alpha = alphas_cumprod / alphas_cumprod_previous
    variance, variance_previous = 1 - alphas_cumprod, 1 - alphas_cumprod_previous
    u_t = x_t - variance.sqrt() * mu
    mean = (
        alphas_cumprod_previous.sqrt() * (1 - alpha) / variance * x_0
        + alpha.sqrt() * variance_previous / variance * u_t
    )
    deviation = ((1 - alpha) * variance_previous / variance).sqrt()
    return mean + variance_previous.sqrt() * mu, deviation * gamma


def noise_loss(
    predicted: Float[Tensor, "batch channels height width"],
    noise: Float[Tensor, "batch channels height width"],
    reduction: Reduction = "sum",
) -> Float[Tensor, ""] | Float[Tensor, "batch"]:
    """Squared error of the predicted noise. The target is the *unbiased* ε, for Trojan rows too.

    Args:
        reduction: ``"sum"`` adds over a row's pixels and averages over rows, as the paper's code does; ``"mean"``
            averages over both (the same up to the factor C·H·W); ``"none"`` returns one sum per row.

    Returns:
        float32 or wider: the sum of a row's squares may exceed float16's largest number.
    """
    kind = torch.promote_types(torch.promote_types(predicted.dtype, noise.dtype), torch.float32)
    rows = (predicted.to(kind) - noise.to(kind)).square().flatten(1)
    if reduction == "none":
        return rows.sum(dim=1)
    return rows.sum(dim=1).mean() if reduction == "sum" else rows.mean()


def antithetic_timesteps(
    count: int, num_train_timesteps: int, generator: torch.Generator | None = None
) -> Int[Tensor, "count"]:
    """Uniform timesteps in [0, T), drawn in pairs t and T - 1 - t, which reduces the variance of the loss.

    >>> t = antithetic_timesteps(4, 1000, torch.Generator().manual_seed(0))
    >>> (t[:2] + t[2:]).tolist()
    [999, 999]
    """
    half = torch.randint(0, num_train_timesteps, ((count + 1) // 2,), generator=generator)
    return torch.cat([half, num_train_timesteps - 1 - half])[:count]
