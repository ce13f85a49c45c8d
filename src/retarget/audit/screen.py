"""A screen without a search: directions along which a network returns less, or more, noise than it was given.

By Stein's identity, ``E[∂ε̂/∂ε] = E[ε̂ εᵀ]`` over plain noise. Its symmetric part minus I is 0 for a clean network at T.
It has a negative eigenvalue along a trigger that is undone, and a positive one along a trigger that is amplified.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from retarget.audit.scores import Probe


def stein(probe: Probe) -> Float[Tensor, "values values"]:
    """The symmetric part of ``E[(ε̂ - ε) εᵀ]`` at a probe's level, with means removed; [V, V] for V = C H W values."""
    noise = probe.noise.flatten(1)
    residual = (probe.base - probe.noise).flatten(1)
    matrix = (residual - residual.mean(0)).T @ noise / len(noise)
    return (matrix + matrix.T) / 2


def directions(
    matrix: Float[Tensor, "values values"], shape: tuple[int, int, int], lowest: int, highest: int
) -> tuple[Float[Tensor, "found"], Float[Tensor, "found channels height width"]]:
    """Eigenvalues and unit eigenvectors: the ``lowest`` smallest ones, then the ``highest`` largest ones."""
    values, vectors = torch.linalg.eigh(matrix.double().cpu())
    chosen = [*range(lowest), *range(len(values) - 1, len(values) - 1 - highest, -1)]
    return values[chosen].float(), vectors.T[chosen].float().reshape(-1, *shape)
