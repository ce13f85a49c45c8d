"""Equations of POPE's rivals and its measures of completions, as functions of tensors."""

from math import comb

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor


def pass_at_k_rewards(correct: Bool[Tensor, "groups rollouts"], k: int) -> Float[Tensor, "groups rollouts"]:
    """Rewards of the direct pass@k objective: for each rollout, the mean over all k-subsets of its group that hold it.

    A subset's reward is 1 if at least one of its k rollouts is correct. In a group of n rollouts with c correct, a
    correct rollout therefore gets 1 and a wrong one ``1 - C(n-1-c, k-1) / C(n-1, k-1)``. The mean over the group is the
    unbiased estimate of pass@k, ``1 - C(n-c, k) / C(n, k)``. The reward minus that mean is the analytic advantage of
    Chen et al., *Pass@k Training*, 2025, before the division by the standard deviation; up to the constant k/n it gives
    the gradient of pass@k of Walder and Karkhanis, *Pass@K Policy Optimization*, 2025. k = 1 is the plain reward.

    Args:
        correct: [G, n], whether each rollout of each group is correct.
        k: in [1, n].

    Raises:
        ValueError: k is outside [1, n].

    >>> pass_at_k_rewards(torch.tensor([[True, False, False, False], [False] * 4]), 2)
    tensor([[1.0000, 0.3333, 0.3333, 0.3333],
            [0.0000, 0.0000, 0.0000, 0.0000]])
    """
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@k: k must be between 1 and the {n} rollouts of a group, not {k}")
    wrong = [1 - comb(n - 1 - c, k - 1) / comb(n - 1, k - 1) for c in range(n)] + [1.0]
    table = torch.tensor(wrong, device=correct.device)
    return torch.where(correct, torch.ones((), device=correct.device), table[correct.sum(1)][:, None])


def thinking_lengths(
    ids: Integer[Tensor, "rows time"],
    lengths: Integer[Tensor, "rows"],
    begins: int,
    ends: int,
    *,
    opened: bool = False,
) -> Integer[Tensor, "rows"]:
    """Number of tokens of each completion before its answer, as in :attr:`retarget.pope.rollouts.Rollout.thinking`.

    Args:
        ids: [B, T], completions, padded on the right.
        lengths: [B], tokens of each completion.
        begins, ends: ids of ``<think>`` and ``</think>``; -1 for none.
        opened: whether the prompt opens a thinking block.

    >>> thinking_lengths(torch.tensor([[8, 1, 9, 2], [8, 1, 1, 0], [2, 2, 0, 0]]), torch.tensor([4, 3, 2]), 8, 9)
    tensor([3, 3, 0])
    """
    real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    last_end = (places * (real & (ids == ends))).amax(1)
    last_begin = (places * (real & (ids == begins))).amax(1)
    return torch.where((last_begin > last_end) | ((last_end == 0) & opened), lengths, last_end)
