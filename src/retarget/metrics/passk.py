"""pass@k: how often at least one of k sampled answers is correct. Needs only NumPy."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from jaxtyping import Float, Integer

from retarget.errors import UserError
from retarget.metrics._inputs import checked_integer

Counts = Integer[Any, "*problems"] | Sequence[int]


@overload
def pass_at_k(n: int, c: int, k: int) -> float: ...
@overload
def pass_at_k(n: Counts | int, c: Counts, k: int) -> np.ndarray: ...
@overload
def pass_at_k(n: Counts, c: int, k: int) -> np.ndarray: ...


def pass_at_k(n: Counts | int, c: Counts | int, k: int) -> Float[np.ndarray, "*problems"] | float:
    """Probability that k of n samples, drawn without replacement, include at least one of the c correct ones.

    ``1 - C(n - c, k) / C(n, k)`` (Chen et al., *Evaluating Large Language Models Trained on Code*, 2021, equation 1):
    the unbiased estimate of a problem's pass@k from n ≥ k samples. It is computed as a product of k ratios in [0, 1]:
    no factorial overflows, and the error stays near k × 1e-16. A benchmark's pass@k is the mean over its problems.

    Args:
        n: number of samples per problem, one for all or one per problem.
        c: number of correct samples among them, in [0, n], one for all or one per problem.
        k: in [1, n] for every problem.

    Returns:
        In [0, 1]: a float for plain numbers, else an array of the shape of ``n`` and ``c``.

    Raises:
        UserError: not integers (2.0 is none), shapes that do not fit, c outside [0, n], or k outside [1, n]; names the
            row.

    >>> pass_at_k(n=4, c=1, k=2)
    0.5
    >>> pass_at_k(8, np.array([0, 1, 8]), 4).tolist()
    [0.0, 0.5, 1.0]
    """
    k = checked_integer(k, "k")
    drawn, right = _checked(n, c, k)
    missed = np.ones(drawn.shape)
    for i in range(k):
        missed *= np.maximum(drawn - right - i, 0) / (drawn - i)
    return 1 - missed if missed.ndim else float(1 - missed)


def _checked(n: Any, c: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    """n and c as integer arrays of one shape."""
    n, c = np.asarray(n), np.asarray(c)
    if n.dtype.kind not in "iu" or c.dtype.kind not in "iu":
        raise UserError(f"n and c must be integers: got {n.dtype} and {c.dtype}")
    if n.shape != c.shape and n.ndim and c.ndim:
        raise UserError(f"n and c must have the same shape, or one must be a number: got {n.shape} and {c.shape}")
    n, c = np.broadcast_arrays(n.astype(np.int64), c.astype(np.int64))
    if k < 1:
        raise UserError(f"k must be at least 1: got {k}")
    for bad, why in (
        (k > n, f"k = {k} is more than n samples: draw more samples or ask for a smaller k"),
        ((c < 0) | (c > n), "c right samples must lie in [0, n]"),
    ):
        if bad.any():
            row = int(bad.reshape(-1).argmax())
            raise UserError(f"{why} (row {row}: n = {n.reshape(-1)[row]}, c = {c.reshape(-1)[row]})")
    return n, c
