"""What PS-KD does if a sample's probabilities or multi-label targets are other ones than before."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import ConcatDataset, DataLoader

from retarget.errors import UserError
from retarget.pskd import PSKD, Dense, MultiLabelPSKD, PreviousModel, TopK, with_index

N, C = 6, 4
INDEX = torch.arange(N)


def answers(seed=0):
    return torch.rand(N, C, generator=torch.Generator().manual_seed(seed)).round()


def peaked(shift=0):
    """Probabilities with a share for each class and most for one of them."""
    return 0.6 * F.one_hot((INDEX + shift) % C, C) + 0.1


def multilabel(**more):
    method = MultiLabelPSKD(N, C, 3, **more)
    method.set_epoch(0)
    return method


def single(**more):
    method = PSKD(N, C, 3, **more)
    method.set_epoch(0)
    return method


def test_an_index_that_means_two_samples_is_noticed():
    """Of two datasets, each counts from 0."""
    sets = [
        with_index([(one, label) for one, label in zip(torch.zeros(N, C), answers(s), strict=True)]) for s in (0, 1)
    ]
    method = multilabel()
    first, second = DataLoader(ConcatDataset(sets), batch_size=N)
    method.loss(*first)
    with pytest.raises(UserError, match=r"sample 0, row 0 of the batch, are not those that it had when it was last"):
        method.loss(*second)
    (x, y, index), *_ = DataLoader(ConcatDataset(sets), batch_size=2 * N)
    with pytest.raises(UserError, match=r"sample \d has two different targets in this batch, in rows \d and \d+"):
        multilabel().loss(x, y, index)


@pytest.mark.parametrize("store", ["dense", Dense("float16")])
@pytest.mark.parametrize("call", ["loss", "remember"])
def test_multi_label_targets_that_change_are_refused(store, call, tmp_path):
    method = multilabel(store=store)
    method.loss(torch.zeros(N, C), answers(), INDEX)
    method.save(tmp_path / "state")
    method.set_epoch(1)
    for _ in range(2):  # a second try is no way round
        with pytest.raises(UserError, match=r"the same sample, with the same targets, in every epoch.*remember=False"):
            getattr(method, call)(torch.zeros(N, C), answers(1), INDEX)
    method.loss(torch.zeros(N, C), answers(1), INDEX, remember=False)  # mixed inputs, say
    method.load(tmp_path / "state")  # which keeps no targets
    method.set_epoch(1)
    method.loss(torch.zeros(N, C), answers(1), INDEX)


def test_multi_label_targets_that_are_smoothed_or_ignored_are_the_same_ones():
    method, y = multilabel(), answers()
    for epoch, smoothing in enumerate((0.0, 0.2, 0.1)):
        method.set_epoch(epoch)
        method.loss(torch.zeros(N, C), y * (1 - smoothing) + smoothing / 2, INDEX)
    method.loss(torch.zeros(N, C), y.masked_fill(torch.eye(N, C).bool(), -100), INDEX)
    method.loss(torch.zeros(N, C), y.bfloat16(), INDEX)


@pytest.mark.parametrize("store", ["dense", TopK(3)])
@pytest.mark.parametrize("call", ["loss", "remember"])
def test_probabilities_with_another_likeliest_class_are_refused(store, call):
    method = single(store=store)
    method.loss(torch.zeros(N, C), peaked(), INDEX)
    method.set_epoch(1)
    method.loss(torch.zeros(N, C), 0.9 * peaked() + 0.1 / C, INDEX)
    for _ in range(2):
        with pytest.raises(UserError, match=r"sample 0 has the label 1 .* another label when .*mixed=shares"):
            getattr(method, call)(torch.zeros(N, C), peaked(1), INDEX)
    with pytest.raises(UserError, match=r"sample 3 has two labels in this batch"):
        method.loss(torch.zeros(N, C), peaked(), INDEX.masked_fill(INDEX == 5, 3))


def test_mixed_probabilities_are_not_taken_for_changed_ones():
    method, pairs = single(), torch.eye(N)[INDEX.flip(0)]
    method.loss(torch.zeros(N, C), peaked(), INDEX)
    shares = 0.3 * torch.eye(N) + 0.7 * pairs
    method.loss(torch.zeros(N, C), shares @ peaked(), INDEX, remember=False)
    method.loss(torch.zeros(N, C), peaked(), INDEX, mixed=shares)
    method.soften(shares @ peaked(), INDEX)
    for classes in (C, 2):
        method = PSKD(N, classes, 3)
        method.set_epoch(0)
        hard = F.one_hot(INDEX % classes, classes).float()
        method.loss(torch.zeros(N, classes), hard, INDEX)
        method.loss(torch.zeros(N, classes), shares @ hard, INDEX)  # warned of at the epoch's end


def test_without_a_table_there_is_no_index_to_mean_two_samples():
    model = torch.nn.Linear(3, C)
    for kind, targets in ((PSKD, peaked), (MultiLabelPSKD, answers)):
        method = kind(None, C, 3, store=PreviousModel(model))
        method.set_epoch(0)
        for seed in (0, 1):
            x = torch.zeros(N, 3)
            method.loss(model(x), targets(seed), inputs=x)


@pytest.mark.parametrize("zero", [0.0, torch.tensor(0), torch.tensor(0.0)])
@pytest.mark.parametrize("epoch", [0, 1])
def test_an_update_without_targets_has_the_loss_0(zero, epoch):
    for method, targets in ((single(), INDEX % C), (multilabel(), answers())):
        z = torch.zeros(N, C, requires_grad=True)
        method.loss(z, targets, INDEX)
        method.set_epoch(epoch)
        loss = method.loss(z, torch.full_like(targets, -100), INDEX, denominator=zero)
        loss.backward()
        assert loss == 0
        assert torch.equal(z.grad, torch.zeros(N, C))
        with pytest.raises(UserError, match="not finite"):
            method.loss(z, targets, INDEX, denominator=zero)
