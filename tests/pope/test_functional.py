"""Against slow NumPy references written from the definitions."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retarget.metrics.passk import pass_at_k
from retarget.pope.functional import pass_at_k_rewards, thinking_lengths


def reference(correct, k):
    """Mean, over all k-subsets of the group that hold a rollout, of whether one of the subset is correct."""
    n = len(correct)
    subsets = list(combinations(range(n), k))
    reward = np.array([max(correct[i] for i in subset) for subset in subsets], dtype=np.float64)
    return np.array([np.mean([r for r, subset in zip(reward, subsets, strict=True) if i in subset]) for i in range(n)])


@given(st.data())
def test_the_reward_is_the_mean_over_the_subsets_that_hold_a_rollout(data):
    n = data.draw(st.integers(2, 8))
    k = data.draw(st.integers(1, n))
    groups = data.draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=4))
    found = pass_at_k_rewards(torch.tensor(groups), k).double().numpy()
    for row, correct in zip(found, groups, strict=True):
        assert np.allclose(row, reference(correct, k), atol=1e-6)
        assert row.mean() == pytest.approx(pass_at_k(n, sum(correct), k), abs=1e-6)


def test_its_gradient_is_that_of_pass_at_k():
    """On a policy of one token the advantages give the gradient of the unbiased estimate's expectation."""
    logit, n, k = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True), 4, 2
    p = torch.sigmoid(logit)
    (exact,) = torch.autograd.grad(1 - (1 - p) ** k, logit)
    total = 0.0
    for c in range(n + 1):  # every group with c of n correct, weighed with its probability
        chance = float(torch.distributions.Binomial(n, p.detach()).log_prob(torch.tensor(float(c))).exp())
        correct = torch.tensor([[True] * c + [False] * (n - c)])
        rewards = pass_at_k_rewards(correct, k)[0].double()
        scores = torch.where(correct[0], 1 - p, -p).detach()  # d log-probability / d logit
        total += chance * float((rewards * scores).sum()) * k / n
    assert total == pytest.approx(float(exact), abs=1e-7)


def test_k_of_one_is_the_plain_reward_and_a_group_without_success_gets_nothing():
    correct = torch.tensor([[True, False, True, False], [False] * 4, [True] * 4])
    assert torch.equal(pass_at_k_rewards(correct, 1), correct.float())
    for k in (1, 2, 4):
        assert not pass_at_k_rewards(correct, k)[1].any()
        assert (pass_at_k_rewards(correct, k)[2] == 1).all()
    for k in (0, 5):
        with pytest.raises(ValueError, match=r"must be between 1 and the 4 rollouts"):
            pass_at_k_rewards(correct, k)


@given(
    st.lists(st.tuples(st.lists(st.integers(6, 9), min_size=7, max_size=7), st.integers(0, 7)), min_size=1),
    st.booleans(),
)
def test_an_answer_begins_after_the_last_end_of_thinking_and_padding_ends_nothing(rows, opened):
    """8 begins a thinking block and 9 ends one, also where a row is padded with it."""
    ids, lengths = torch.tensor([row for row, _ in rows]), torch.tensor([length for _, length in rows])
    found = thinking_lengths(ids, lengths, 8, 9, opened=opened).tolist()
    for one, (row, length) in zip(found, rows, strict=True):
        thinking, before = opened, 0
        for at, token in enumerate(row[:length]):
            thinking = token == 8 or (thinking and token != 9)
            before = at + 1 if token == 9 else before
        assert one == (length if thinking else before)
