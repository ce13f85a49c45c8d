"""A screen without search: directions along which a network returns less, or more, than it is given.

By Stein's identity, ``E[∂ε̂/∂ε] = E[ε̂ εᵀ]`` over plain noise. Its symmetric part less I is 0 for a clean network at T,
has an eigenvalue below 0 along a trigger that is undone, and above 0 along one that is amplified.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from retarget.audit.scores import Probe


def stein(probe: Probe) -> Float[Tensor, "values values"]:
    """Symmetric part of ``E[(ε̂ - ε) εᵀ]`` at a probe's level, its means removed; values are C H W."""
    noise = probe.noise.flatten(1)
    residual = (probe.base - probe.noise).flatten(1)
    matrix = (residual - residual.mean(0)).T @ noise / len(noise)
    return (matrix + matrix.T) / 2


def directions(
    matrix: Float[Tensor, "values values"], shape: tuple[int, int, int], lowest: int, highest: int
) -> tuple[Float[Tensor, "found"], Float[Tensor, "found channels height width"]]:
    """Eigenvalues and unit eigenvectors: the ``lowest`` smallest, then the ``highest`` largest."""
    values, vectors = torch.linalg.eigh(matrix.double().cpu())
    chosen = [*range(lowest), *range(len(values) - 1, len(values) - 1 - highest, -1)]
    return values[chosen].float(), vectors.T[chosen].float().reshape(-1, *shape)
