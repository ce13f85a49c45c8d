"""The functions that the peers are made of, against slow loops and finite differences."""

import numpy as np
import peers_reference as reference
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peers_for_tests import C, logits_and_labels

from retarget.errors import UserError
from retarget.pskd.peers import WeightEMA, losses

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-5}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_functions_equal_slow_loops(dtype, seed):
    z, y = logits_and_labels(seed)
    teacher = logits_and_labels(seed + 10)[0]
    z, teacher = z.to(dtype), teacher.to(dtype)
    wide, wide_teacher, labels = z.double().numpy(), teacher.double().numpy(), y.tolist()
    designed = losses.design_teacher(y, C, 0.9, 20.0)
    np.testing.assert_allclose(designed, reference.designed(labels, C, 0.9, 20.0), rtol=1e-6)
    np.testing.assert_allclose(losses.smooth_labels(y, C, 0.1), reference.smoothed(labels, C, 0.1), rtol=1e-6)
    pairs = [
        (losses.distill(z, teacher, 4.0, reduction="none"), reference.distill(wide, wide_teacher, 4.0)),
        (
            losses.match_probs(z, designed, reduction="none"),
            reference.kl(designed.double().numpy(), reference.softmax(wide)),
        ),
        (losses.focal_loss(z, y, 3.0, reduction="none"), reference.focal(wide, labels, 3.0)),
        (losses.dual_focal_loss(z, y, 5.0, reduction="none"), reference.dual_focal(wide, labels, 5.0)),
        (losses.suppress_maximum(z, reduction="none"), reference.maximum_above_mean(wide)),
        (losses.penalise_margin(z, 1.0, reduction="none"), reference.margin_penalty(wide, 1.0)),
    ]
    for found, expected in pairs:
        np.testing.assert_allclose(found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert losses.distill(z, teacher, 4.0).item() == pytest.approx(np.mean(pairs[0][1]), rel=1e-5)
    assert losses.distill(z, teacher, 4.0, reduction="sum").item() == pytest.approx(np.sum(pairs[0][1]), rel=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda z, y, t: losses.distill(z, t, 4.0),
        lambda z, y, t: losses.match_probs(z, F.softmax(t, 1)),
        lambda z, y, t: losses.focal_loss(z, y, 3.0),
        lambda z, y, t: losses.focal_loss(z, y, 0.5),
        lambda z, y, t: losses.dual_focal_loss(z, y, 5.0),
        lambda z, y, t: losses.suppress_maximum(z),
        lambda z, y, t: losses.penalise_margin(z, 0.7),
        lambda z, y, t: losses.squared_difference(F.softmax(z, 1), F.softmax(t, 1)),
    ],
)
def test_gradients_equal_finite_differences(function):
    z, y = logits_and_labels(3)
    t = logits_and_labels(4)[0].double()
    assert torch.autograd.gradcheck(lambda z: function(z, y, t), z.double().requires_grad_())


def test_focal_loss_of_a_certain_sample_has_a_finite_gradient():
    z = torch.tensor([[200.0, 0.0]], requires_grad=True)
    losses.focal_loss(z, torch.tensor([0]), gamma=0.5).backward()
    assert z.grad.isfinite().all()


def test_no_gradient_reaches_a_teacher():
    z, _ = logits_and_labels(0)
    teacher = z.clone().requires_grad_()
    assert not losses.distill(z, teacher, 4.0).requires_grad
    assert not losses.squared_difference(F.softmax(z, 1), F.softmax(teacher, 1)).requires_grad


@given(st.integers(0, 10_000), st.floats(0.0, 0.95))
@settings(max_examples=25, deadline=None)
def test_the_sum_of_a_blended_history_is_the_bias(seed, momentum):
    g = torch.Generator().manual_seed(seed)
    history, exact = torch.zeros(2, C, dtype=torch.float64), reference.Ensemble(2, C, momentum)
    for _ in range(4):
        probs = F.softmax(torch.randn(2, C, generator=g, dtype=torch.float64), 1)
        history = losses.blend_history(history, probs, momentum)
        for i in range(2):
            exact.update(i, probs[i].numpy())
    np.testing.assert_allclose(losses.unbias_history(history), [exact.target(0), exact.target(1)], rtol=1e-9)


@given(st.integers(0, 10_000), st.floats(0.0, 1.0), st.floats(0.1, 20.0), st.floats(0.1, 3.0))
@settings(max_examples=25, deadline=None)
def test_discounted_evidence_is_the_sum_of_all_that_was_seen(seed, discount, prior, weight):
    g = torch.Generator().manual_seed(seed)
    starts = F.one_hot(torch.randint(C, (2,), generator=g), C).double()
    exact, found = reference.Evidence(starts.tolist(), prior, discount, weight), prior * starts
    for _ in range(4):
        probs = F.softmax(torch.randn(2, C, generator=g, dtype=torch.float64), 1)
        found = losses.discount_evidence(found, probs, discount, weight)
        for i in range(2):
            exact.observe(i, probs[i].tolist())
    np.testing.assert_allclose(found, [exact.concentration(0), exact.concentration(1)], rtol=1e-9)
    np.testing.assert_allclose(losses.expect_probs(found), [exact.target(0), exact.target(1)], rtol=1e-9)


@pytest.mark.parametrize("discount", [0.5, 0.9])
def test_a_prior_as_strong_as_a_long_past_makes_evidence_an_exponential_average(discount):
    alpha = F.one_hot(torch.arange(C), C).double() / (1 - discount)
    average = losses.expect_probs(alpha)
    for seed in range(5):
        probs = F.softmax(logits_and_labels(seed, batch=C)[0].double(), 1)
        alpha = losses.discount_evidence(alpha, probs, discount, 1.0)
        average = losses.blend_history(average, probs, discount)
        torch.testing.assert_close(losses.expect_probs(alpha), average)


def test_a_prediction_as_evidence_of_its_own_epoch_would_only_scale_the_gradient():
    z, y = logits_and_labels(0)
    z, alpha = z.double().requires_grad_(), 3 * F.one_hot(y, C).double() + 0.2
    now = losses.discount_evidence(alpha, F.softmax(z.detach(), 1), 0.9, 1.0)
    gradients = [
        torch.autograd.grad(losses.match_probs(z, losses.expect_probs(one), reduction="sum"), z)[0]
        for one in (alpha, now)
    ]
    total = 0.9 * alpha.sum(1, keepdim=True)
    torch.testing.assert_close(gradients[1], gradients[0] * total / (total + 1))


def test_an_average_of_half_precision_weights_is_refused():
    """At a decay of .999 an average in bfloat16 stands still."""
    model = torch.nn.Linear(3, 4).to(torch.bfloat16)
    with pytest.raises(UserError, match=r"bfloat16, in which an average .* stands still"):
        WeightEMA(num_samples=4, num_classes=4, total_epochs=2, model=model)
