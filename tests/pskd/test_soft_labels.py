"""Labels of a batch: PyTorch's losses find the softened rows, everything else the hard labels."""

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from retarget.errors import UserError
from retarget.pskd import soft_targets
from retarget.pskd.soft_labels import SoftLabels, Step, depends_on

B, C, ALPHA = 8, 4, 0.3


def logits():
    return torch.randn(B, C, generator=torch.Generator().manual_seed(1), requires_grad=True)


def hard(ignored=None):
    labels = torch.randint(C, (B,), generator=torch.Generator().manual_seed(2))
    if ignored is not None:
        labels[::3] = ignored
    return labels


def past():
    return torch.softmax(torch.randn(B, C, generator=torch.Generator().manual_seed(3)), 1)


def make(alpha=ALPHA, ignored=None):
    """Labels that return rows, and their step."""
    labels = hard(ignored)
    rows = (1 - alpha) * F.one_hot(labels.clamp_min(0), C) + alpha * past()
    rows = rows * (labels != -100)[:, None]
    step = Step(labels.clone(), rows, torch.full((B,), alpha), C, -100)
    step.dress(labels)
    return labels, step


def test_they_are_the_same_integers_in_the_same_object():
    labels, _ = make()
    assert isinstance(labels, SoftLabels)
    assert labels.dtype == torch.int64
    assert labels.tolist() == hard().tolist()
    assert [int(one) for one in labels] == hard().tolist()
    assert torch.equal(F.one_hot(labels, C), F.one_hot(hard(), C))
    assert type(labels == 1) is torch.Tensor


@pytest.mark.parametrize(("reduction", "weighted", "smoothing", "ignored"), [
    *itertools.product(["mean", "sum", "none"], [False, True], [0.0, 0.2], [None, -100]),
])  # fmt: skip
def test_cross_entropy_means_what_it_means_for_labels(reduction, weighted, smoothing, ignored):
    """Of a sum over classes t_c l_c, with l_c PyTorch's own loss of the label c; the mean is by the hard labels."""
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0]) if weighted else None
    labels, step = make(ignored=ignored)
    z, kept = logits(), hard(ignored) != -100
    loss = nn.CrossEntropyLoss(weight, reduction=reduction, label_smoothing=smoothing)(z, labels)
    total = torch.zeros(B)
    for i in range(B):
        if not kept[i]:
            continue
        target = (1 - ALPHA) * ((1 - smoothing) * F.one_hot(hard()[i], C) + smoothing / C) + ALPHA * past()[i]
        for c in range(C):
            own = F.cross_entropy(z[i : i + 1], torch.tensor([c]), reduction="none")[0]
            total[i] = total[i] + target[c] * own * (1 if weight is None else weight[c])
    if reduction == "mean":
        of = torch.ones(B) if weight is None else weight[hard()]
        expected = total.sum() / (of * kept).sum()
    else:
        expected = total if reduction == "none" else total.sum()
    torch.testing.assert_close(loss, expected)
    assert step.reads == 1


@pytest.mark.parametrize(("reduction", "weighted", "smoothing", "ignored"), [
    *itertools.product(["mean", "sum", "none"], [False, True], [0.0, 0.2], [None, -100]),
])  # fmt: skip
def test_it_goes_over_into_pytorchs_as_alpha_goes_to_0(reduction, weighted, smoothing, ignored):
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0]) if weighted else None
    settings = dict(weight=weight, reduction=reduction, label_smoothing=smoothing)
    labels, _ = make(alpha=0.0, ignored=ignored)
    torch.testing.assert_close(F.cross_entropy(logits(), labels, **settings),
                               F.cross_entropy(logits(), hard(ignored), **settings))  # fmt: skip


def test_a_class_that_the_loss_ignores_has_no_loss():
    labels, step = make()
    losses = F.cross_entropy(logits(), labels, ignore_index=int(hard()[0]), reduction="none")
    assert torch.equal(losses == 0, hard() == hard()[0])
    assert step.reads == 1


def test_nll_loss_takes_the_rows_too():
    labels, step = make()
    torch.testing.assert_close(F.nll_loss(F.log_softmax(logits(), 1), labels), F.cross_entropy(logits(), step.rows))
    torch.testing.assert_close(nn.NLLLoss()(F.log_softmax(logits(), 1), labels), F.cross_entropy(logits(), step.rows))


@pytest.mark.parametrize("metric", [MulticlassAccuracy, MulticlassF1Score, MulticlassConfusionMatrix, MulticlassAUROC])
def test_metrics_see_hard_labels(metric):
    labels, step = make()
    ours, plain = metric(C), metric(C)
    for z in (logits(), -logits()):
        ours.update(z.detach(), labels), plain.update(z.detach(), hard())
    torch.testing.assert_close(ours.compute(), plain.compute())
    assert step.reads == 0


TAKEN = {
    "mask": (lambda y: y[torch.arange(B) % 3 > 0], slice(None), lambda r: r[torch.arange(B) % 3 > 0]),
    "slice": (lambda y: y[1:5], None, lambda r: r[1:5]),
    "index": (lambda y: y[[3, 1]], None, lambda r: r[[3, 1]]),
    "order": (lambda y: y.flip(0), None, lambda r: r.flip(0)),
    "shape": (lambda y: y.view(-1, 1).squeeze(1), None, lambda r: r),
    "copy": (lambda y: y.clone().detach().long().contiguous().to("cpu"), None, lambda r: r),
    "split": (lambda y: torch.split(y, 3)[1], None, lambda r: r[3:6]),
    "cat": (lambda y: torch.cat([y, y[:2]]), None, lambda r: torch.cat([r, r[:2]])),
    "repeat": (lambda y: y.repeat_interleave(2), None, lambda r: r.repeat_interleave(2, 0)),
    "roll": (lambda y: torch.roll(y, 1), None, lambda r: torch.roll(r, 1, 0)),
}


@pytest.mark.parametrize("name", TAKEN)
def test_rows_follow_what_is_taken_from_the_labels(name):
    take, _, of = TAKEN[name]
    labels, step = make()
    taken = take(labels)
    assert taken.tolist() == take(hard()).tolist()
    rows = of(step.rows)
    z = torch.randn(len(rows), C, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(F.cross_entropy(z, taken), F.cross_entropy(z, rows))
    assert (step.order is not None) == (name in ("order", "roll"))
    if step.order is not None:
        assert step.order.tolist() == take(torch.arange(len(hard()))).tolist()
        assert torch.equal(step.logits, z)
    assert not step.mixed, "in one order only"
    F.cross_entropy(torch.zeros(len(hard()), C), labels)
    assert step.mixed == (name in ("order", "roll")), "and in the batch's own"


def test_numbers_made_of_labels_are_plain():
    labels, _ = make()
    for made in (labels + 1, labels.float(), labels != -100, labels.gather(0, torch.arange(3))):
        assert type(made) is torch.Tensor
    assert type(copy.deepcopy(labels)) is torch.Tensor
    assert torch.equal(pickle.loads(pickle.dumps(labels)), hard())  # noqa: S301


def test_a_label_of_another_batch_keeps_the_rows_of_none():
    first, _ = make()
    second, step = make()
    both = torch.cat([first, second])
    assert type(both) is torch.Tensor
    assert step.reads == 0


def test_where_nothing_is_softened_it_is_pytorchs_to_the_bit():
    labels = hard()
    step = Step(labels.clone(), None, None, C, -100)
    step.dress(labels)
    step.watch()
    z, same = logits(), logits()
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0])
    loss = F.cross_entropy(z, labels, weight=weight, label_smoothing=0.1)
    plain = F.cross_entropy(same, hard(), weight=weight, label_smoothing=0.1)
    loss.backward(), plain.backward()
    assert torch.equal(loss, plain)
    assert torch.equal(z.grad, same.grad)
    assert depends_on(loss, step.probe)


def test_a_loss_that_does_not_come_from_the_rows_shows():
    labels, step = make()
    step.watch()
    log_probs = F.log_softmax(logits(), 1)
    focal = -((1 - log_probs.exp()) ** 2 * log_probs).gather(1, labels[:, None]).mean()
    with torch.no_grad():
        F.cross_entropy(logits(), labels)  # for the log
    assert step.reads == 1
    assert not depends_on(focal, step.probe)
    assert depends_on(focal + F.cross_entropy(logits(), labels), step.probe)
    assert depends_on(-(soft_targets(labels, C) * log_probs).sum(1).mean(), step.probe)


def test_soft_targets_of_any_labels():
    labels, step = make()
    torch.testing.assert_close(soft_targets(labels, C), step.rows)
    torch.testing.assert_close(soft_targets(hard(), C), F.one_hot(hard(), C).float())
    torch.testing.assert_close(soft_targets(past(), C), past())


def test_after_the_step_they_are_plain_and_copies_hold_no_rows():
    labels, step = make()
    kept = labels.clone()
    step.close()
    assert type(labels) is torch.Tensor
    assert not hasattr(labels, "_step")
    assert kept._step.rows is None
    assert torch.equal(F.cross_entropy(logits(), kept), F.cross_entropy(logits(), hard()))
    torch.testing.assert_close(soft_targets(kept, C), F.one_hot(hard(), C).float())


def test_yes_or_no_targets_answer_binary_losses_only():
    labels = (past() > 0.25).float()
    kept, rows = labels.clone(), 0.7 * labels + 0.3 * past()
    step = Step(kept, rows, None, C, -100, yes_or_no=True)
    step.dress(labels)
    torch.testing.assert_close(nn.BCEWithLogitsLoss()(logits(), labels),
                               F.binary_cross_entropy_with_logits(logits(), rows))  # fmt: skip
    torch.testing.assert_close(F.binary_cross_entropy(logits().sigmoid()[1:4], labels.double()[1:4].float()),
                               F.binary_cross_entropy(logits().sigmoid()[1:4], rows[1:4]))  # fmt: skip
    assert torch.equal(labels.int(), kept.int())


def test_probabilities_as_labels_are_softened_too():
    labels, rows = past(), 0.5 * past() + 0.5 * past().flip(0)
    step = Step(labels.clone(), rows, torch.full((B,), 0.5), C, -100)
    step.dress(labels)
    torch.testing.assert_close(F.cross_entropy(logits(), labels), F.cross_entropy(logits(), rows))
    torch.testing.assert_close(F.cross_entropy(logits()[2:4], labels[2:4]), F.cross_entropy(logits()[2:4], rows[2:4]))
    smoothed = 0.5 * (0.9 * past() + 0.1 / C) + 0.5 * past().flip(0)
    torch.testing.assert_close(F.cross_entropy(logits(), labels, label_smoothing=0.1),
                               F.cross_entropy(logits(), smoothed))  # fmt: skip
    assert torch.equal(labels.argmax(1), past().argmax(1))


def test_logits_of_another_number_of_classes_are_refused():
    labels, _ = make()
    with pytest.raises(UserError, match=r"logits \[8, 5\] with labels \[8\] of 4 classes"):
        F.cross_entropy(torch.zeros(B, 5), labels)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_code_finds_the_rows(backend):
    compiled = torch.compile(lambda z, y: (F.cross_entropy(z, y), (z.argmax(1) == y).float().mean()), backend=backend)
    for scale in (1.0, 2.0):
        labels, step = make()
        loss, accuracy = compiled(logits() * scale, labels)
        torch.testing.assert_close(loss, F.cross_entropy(logits() * scale, step.rows))
        assert accuracy == (logits().argmax(1) == hard()).float().mean()


def test_mixed_precision_takes_the_loss_in_float32():
    labels, step = make()
    layer = nn.Linear(C, C)
    with torch.autocast("cpu", torch.bfloat16):
        z = layer(logits())
        loss = F.cross_entropy(z, labels)
    assert z.dtype == torch.bfloat16
    torch.testing.assert_close(loss, F.cross_entropy(z.float(), step.rows))
