"""The equations against slow NumPy loops in float64."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.pskd import PSKD, TopK
from retarget.pskd.functional import SparseRows, alpha_at, gradient_scale, pskd_loss, soften, sparse_pskd_loss

sys.path.insert(0, str(Path(__file__).parent))
import reference


def random_case(seed, batch=6, classes=5, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, generator=g, dtype=dtype)
    past = torch.softmax(2 * torch.randn(batch, classes, generator=g, dtype=torch.float64), 1)
    labels = torch.randint(classes, (batch,), generator=g)
    return logits, past, labels


def test_alpha_grows_linearly_to_alpha_T():
    # The official CIFAR-100 run: 300 epochs, alpha_T = 0.8.
    assert alpha_at(0, 300, 0.8) == pytest.approx(0.8 / 300)
    assert alpha_at(299, 300, 0.8) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="got epoch 300 of 300"):
        alpha_at(300, 300, 0.8)
    with pytest.raises(ValueError, match=r"alpha_T must lie in \[0, 1\]: got 1.5"):
        alpha_at(0, 300, 1.5)


@given(st.integers(0, 1000), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_soften_and_loss_equal_the_reference(seed, alpha):
    logits, past, labels = random_case(seed)
    expected = reference.soft_target(labels.tolist(), past.numpy(), alpha, 5)
    soft = soften(F.one_hot(labels, 5).double(), past, alpha)
    np.testing.assert_allclose(soft.numpy(), expected, atol=1e-15)
    np.testing.assert_allclose(soft.sum(1).numpy(), 1, atol=1e-12)
    assert pskd_loss(logits, soft).item() == pytest.approx(reference.loss(logits.numpy(), expected), rel=1e-12)


def test_reductions_agree():
    logits, past, _ = random_case(3)
    losses = pskd_loss(logits, past, reduction="none")
    assert losses.shape == (6,)
    torch.testing.assert_close(pskd_loss(logits, past, reduction="sum"), losses.sum())
    torch.testing.assert_close(pskd_loss(logits, past), losses.mean())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_logits_are_widened_before_the_softmax(dtype):
    logits, past, _ = random_case(4, dtype=torch.float32)
    narrow = logits.to(dtype)
    loss = pskd_loss(narrow, past.float())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference.loss(narrow.double().numpy(), past.numpy()), rel=1e-5)


@given(st.integers(0, 1000), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_sparse_loss_and_gradient_equal_the_dense_ones(seed, k):
    logits, past, labels = random_case(seed)
    values, classes = past.topk(k, dim=1)
    rows = SparseRows(classes, values.float(), ((1 - values.float().sum(1)) / (5 - k)).float())
    alpha = torch.rand(6, generator=torch.Generator().manual_seed(seed))
    alpha[0] = 0.0  # a sample without a past
    soft = soften(F.one_hot(labels, 5).double(), rows.dense(5).double(), alpha.double())
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    dense, sparse = pskd_loss(a, soft), sparse_pskd_loss(b, labels, rows, alpha)
    dense.backward()
    sparse.backward()
    torch.testing.assert_close(sparse, dense, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(b.grad, a.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e6])
def test_an_offset_of_all_logits_costs_the_sparse_loss_no_digits(offset):
    """Multiples of 1/8, so that an offset changes no difference of logits, also in float32."""
    logits, past, labels = random_case(12, dtype=torch.float32)
    logits = (8 * logits).round() / 8
    values, classes = past.topk(2, dim=1)
    rows = SparseRows(classes, values.float(), ((1 - values.float().sum(1)) / 3).float())
    alpha = torch.full((6,), 0.4)
    a, b = logits.double().requires_grad_(), (logits + offset).requires_grad_()
    soft = soften(F.one_hot(labels, 5).double(), rows.dense(5).double(), alpha.double())
    expected = pskd_loss(a, soft, reduction="none")
    found = sparse_pskd_loss(b, labels, rows, alpha, reduction="none")
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    expected.sum().backward()
    found.sum().backward()
    torch.testing.assert_close(b.grad.double(), a.grad, rtol=1e-5, atol=1e-6)


def test_sparse_gradient_is_the_derivative():
    logits, past, labels = random_case(9)
    values, classes = past.topk(2, dim=1)
    rows = SparseRows(classes, values.float(), ((1 - values.float().sum(1)) / 3).float())
    alpha = torch.full((6,), 0.37)
    assert torch.autograd.gradcheck(lambda z: sparse_pskd_loss(z, labels, rows, alpha), logits.requires_grad_())


def test_second_derivatives_are_refused_for_topk_rows_and_right_for_dense_ones():
    labels, index = torch.arange(6) % 5, torch.arange(6)
    z = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    found = {}
    for store in ("dense", TopK(5)):
        method = PSKD(6, 5, 2, store=store)
        method.set_epoch(0)
        method.loss(z, labels, index)
        method.set_epoch(1)
        found[store] = method.loss(z, labels, index)
    (gradient,) = torch.autograd.grad(found["dense"], z, create_graph=True)
    (second,) = torch.autograd.grad(gradient[0, 0], z)
    p = z.detach().softmax(1)[0]
    torch.testing.assert_close(second[0], (torch.eye(5)[0] * p - p[0] * p) / 6)
    with pytest.raises(RuntimeError, match=r'no second derivatives.*use store="dense"'):
        torch.autograd.grad(found[TopK(5)], z, create_graph=True)


@given(st.integers(0, 1000), st.floats(0.01, 1))
@settings(max_examples=30, deadline=None)
def test_gradient_scale_is_the_ratio_of_the_gradients_on_the_true_class(seed, alpha):
    logits, past, labels = random_case(seed)
    at = labels[:, None]

    def gradient(targets):
        z = logits.clone().requires_grad_()
        pskd_loss(z, targets, reduction="sum").backward()
        return z.grad.gather(1, at)[:, 0]

    hard = F.one_hot(labels, 5).double()
    p_true = torch.softmax(logits, 1).gather(1, at)[:, 0]
    q_true = past.gather(1, at)[:, 0]
    expected = gradient(soften(hard, past, alpha)) / gradient(hard)
    scale = gradient_scale(p_true, q_true, alpha)
    # 1 - p_y carries the rounding of p_y: compare after multiplying by it.
    torch.testing.assert_close(scale * (1 - p_true), expected * (1 - p_true), rtol=1e-9, atol=1e-12)


def test_a_sample_that_improved_is_turned_down_below_one_minus_alpha():
    improved = gradient_scale(torch.tensor(0.9), torch.tensor(0.5), 0.4)
    stalled = gradient_scale(torch.tensor(0.5), torch.tensor(0.5), 0.4)
    worse = gradient_scale(torch.tensor(0.2), torch.tensor(0.5), 0.4)
    assert improved < 0.6 < worse
    assert stalled.item() == pytest.approx(0.6)
