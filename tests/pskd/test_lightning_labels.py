"""Under the callback a module's labels stay labels: metrics, hand-written losses, mixing, precision, compilation."""

import random

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from retarget.errors import UserError
from retarget.pskd import PSKD, MultiLabelPSKD, PSKDCallback, soft_targets, with_index

N, C, EPOCHS = 12, 4, 3


def samples(label=lambda y: y):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(N, 6, generator=g), torch.randint(C, (N,), generator=g)
    return list(zip(x, map(label, y), strict=True))


class Module(pl.LightningModule):
    """An ordinary module: a loss, and metrics from torchmetrics and computed by hand."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.BatchNorm1d(8), nn.Linear(8, C))
        self.measures = nn.ModuleList([MulticlassAccuracy(C), MulticlassF1Score(C), MulticlassConfusionMatrix(C)])
        self.seen = []

    def forward(self, x):
        return self.net(x)

    def loss(self, z, y):
        return F.cross_entropy(z, y)

    def parts(self, batch):
        return batch[0], batch[1]

    def training_step(self, batch, batch_idx):
        x, y = self.parts(batch)
        z = self(x)
        for measure in self.measures:
            measure.update(z, y)
        self.log("by_hand", (z.argmax(1) == y).float().mean())
        self.seen.append((z.detach().clone(), y.clone().tolist(), int((z.argmax(1) == y).sum())))
        return self.loss(z, y)

    def on_train_epoch_end(self):
        self.last = [measure.compute() for measure in self.measures]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.2)


def fit(module, method, folder, *, callbacks=(), collate=None, data=None, epochs=EPOCHS, names=None, **trainer):
    callback = [] if method is None else [PSKDCallback(method, **(names or {}))]
    pl.seed_everything(3, verbose=False)
    pl.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[*callback, *callbacks], default_root_dir=folder, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, **trainer,
    ).fit(module, DataLoader(with_index(data or samples()), 4, collate_fn=collate))  # fmt: skip
    return module


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def assert_same(a, b, **tolerance):
    for p, q in zip(weights(a), weights(b), strict=True):
        torch.testing.assert_close(p, q, **tolerance)


def test_metrics_are_those_of_the_hard_labels(tmp_path):
    module = fit(Module(), PSKD(N, C, EPOCHS), tmp_path)
    z = torch.cat([one for one, _, _ in module.seen])
    y = torch.stack([label for _, label in samples()]).repeat(EPOCHS)
    assert [labels for _, labels, _ in module.seen[:3]] * EPOCHS == [labels for _, labels, _ in module.seen]
    for measure, found in zip((MulticlassAccuracy, MulticlassF1Score, MulticlassConfusionMatrix), module.last,
                              strict=True):  # fmt: skip
        kept = measure(C)
        for measured, labels in zip(z.split(4), y.split(4), strict=True):
            kept.update(measured, labels)
        torch.testing.assert_close(found, kept.compute())
    assert sum(right for _, _, right in module.seen) == int((z.argmax(1) == y).sum())


def test_the_first_epoch_is_no_callback_bit_for_bit_and_draws_no_random_number(tmp_path):
    """The callback learns about a module from the graph of the first step, without running anything."""
    states = []

    class Draws(pl.Callback):
        def on_train_batch_end(self, *args):
            states.append((torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()))  # noqa: NPY002

    with_it, without = (
        fit(Module(), method, tmp_path, epochs=1, callbacks=[Draws()]) for method in (PSKD(N, C, EPOCHS), None)
    )
    for p, q in zip(with_it.state_dict().values(), without.state_dict().values(), strict=True):
        assert torch.equal(p, q)
    for p, q in zip(with_it.last, without.last, strict=True):
        assert torch.equal(p, q)
    assert len(states) == 6
    for mine, theirs in zip(states[:3], states[3:], strict=True):
        assert torch.equal(mine[0], theirs[0])
        assert (mine[1] == theirs[1]).all()
        assert mine[2] == theirs[2]


class Focal(Module):
    def loss(self, z, y):
        log_probs = F.log_softmax(z, 1).gather(1, y[:, None])
        return -((1 - log_probs.exp()) ** 2 * log_probs).mean()


class FocalAndALog(Focal):
    def loss(self, z, y):
        self.log("cross_entropy", F.cross_entropy(z, y))
        return super().loss(z, y)


class OneHot(Module):
    def loss(self, z, y):
        return -(F.one_hot(y, C) * F.log_softmax(z, 1)).sum(1).mean()


class Manual(Focal):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.optimizers().zero_grad()
        self.manual_backward(loss)


@pytest.mark.parametrize("kind", [Focal, FocalAndALog, OneHot, Manual])
def test_a_loss_of_the_hard_labels_alone_is_refused_before_anything_is_trained(kind, tmp_path):
    module = kind()
    before = weights(module)
    with pytest.raises(UserError, match=r"does not depend on the softened labels.*soft_targets\(y, num_classes\)"):
        fit(module, PSKD(N, C, EPOCHS), tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(before, weights(module), strict=True))
    assert len(module.seen) == 1


@pytest.mark.parametrize("mode", ["nll", "rows", "weighted", "module"])
def test_losses_of_other_kinds_train_as_cross_entropy_does(mode, tmp_path):
    class Other(Module):
        def loss(self, z, y):
            if mode == "nll":
                return F.nll_loss(F.log_softmax(z, 1), y)
            if mode == "weighted":
                return nn.CrossEntropyLoss(torch.ones(C))(z, y)
            if mode == "module":
                return nn.CrossEntropyLoss()(z, y.to(z.device))
            return -(soft_targets(y, C) * F.log_softmax(z, 1)).sum(1).mean()

    ours, theirs = (fit(kind(), PSKD(N, C, EPOCHS), tmp_path) for kind in (Other, Module))
    assert_same(ours, theirs, rtol=1e-5, atol=1e-6)
    plain = fit(Module(), None, tmp_path)
    assert max((p - q).abs().max() for p, q in zip(weights(ours), weights(plain), strict=True)) > 1e-4


def as_tuple(batch):
    return tuple(torch.utils.data.default_collate(batch))


def as_dict(batch):
    return dict(zip("xyi", torch.utils.data.default_collate(batch), strict=True))


@pytest.mark.parametrize("collate", [as_tuple, as_dict])
def test_batches_of_any_kind(collate, tmp_path):
    class Named(Module):
        def parts(self, batch):
            return (batch["x"], batch["y"]) if isinstance(batch, dict) else batch[:2]

    names = dict(label="y", index="i") if collate is as_dict else None
    ours = fit(Named(), PSKD(N, C, EPOCHS), tmp_path, collate=collate, names=names)
    assert_same(ours, fit(Module(), PSKD(N, C, EPOCHS), tmp_path), rtol=0, atol=0)


def test_smoothing_is_of_the_label_alone_as_in_a_plain_loop(tmp_path):
    class Smoothed(Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, C)

        def loss(self, z, y):
            return F.cross_entropy(z, y, label_smoothing=0.1)

    module, plain = Smoothed(), nn.Linear(6, C)
    plain.load_state_dict(module.net.state_dict())
    fit(module, PSKD(N, C, EPOCHS), tmp_path)
    method, optimizer = PSKD(N, C, EPOCHS), torch.optim.SGD(plain.parameters(), 0.2)
    for epoch in range(EPOCHS):
        method.set_epoch(epoch)
        for x, y, index in DataLoader(with_index(samples()), 4):
            optimizer.zero_grad()
            method.loss(plain(x), y, index, smoothing=0.1).backward()
            optimizer.step()
    torch.testing.assert_close(module.net.weight, plain.weight, rtol=1e-5, atol=1e-6)


def test_mixup_in_the_step_reads_rows_and_stores_none(tmp_path):
    class Mixup(Module):
        def training_step(self, batch, batch_idx):
            x, y = batch[:2]
            if self.current_epoch == 0 and batch_idx == 0:
                return F.cross_entropy(self(x), y)
            other = torch.arange(len(x)).roll(1)
            z = self(0.7 * x + 0.3 * x[other])
            return 0.7 * F.cross_entropy(z, y) + 0.3 * F.cross_entropy(z, y[other])

    method = PSKD(N, C, EPOCHS)
    fit(Mixup(), method, tmp_path, epochs=2)
    assert method.past_probs(torch.arange(N))[1].tolist() == [True] * 4 + [False] * 8


class Sorted(Module):
    """Sorts the batch, as for ``pack_padded_sequence``; ``how`` is what it restores."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def training_step(self, batch, batch_idx):
        x, y, _ = batch
        order = x.norm(dim=1).argsort()
        if self.how == "labels too":  # the module sees the batch in its order, the loss in another
            return F.cross_entropy(self(x)[order], y[order])
        if self.how == "nothing":
            return F.cross_entropy(self(x[order]), y[order])
        return F.cross_entropy(self(x[order])[order.argsort()], y)


@pytest.mark.parametrize("how", ["outside", "nothing"])
def test_logits_in_another_order_than_the_batch_s_are_refused(how, tmp_path):
    with pytest.raises(UserError, match=r"in another order than the batch's.*Restore the order inside the module"):
        fit(Sorted(how), PSKD(N, C, EPOCHS), tmp_path)


def test_labels_and_logits_in_one_other_order_are_remembered_under_their_samples(tmp_path):
    def trained(module):
        module.net[1].p = 0.0
        method = PSKD(N, C, EPOCHS)
        return fit(module, method, tmp_path), method.past_probs(torch.arange(N))[0]

    (ours, rows), (plain, same) = trained(Sorted("labels too")), trained(Module())
    assert_same(ours, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rows, same)


class Scaled(Module):
    def loss(self, z, y):
        return F.cross_entropy((z - z.mean(1, keepdim=True)) / 2, y)


def test_logits_that_are_changed_for_the_loss_are_no_other_order(tmp_path):
    method = PSKD(N, C, EPOCHS)
    fit(Scaled(), method, tmp_path)
    assert method.past_probs(torch.arange(N))[1].all()


class Edits(Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def parts(self, batch):
        x, y, _ = batch
        if self.how == "a copy":
            y = y.clone()
            y[y == 0] = 1
        elif self.how == "the batch's own":
            batch[1].clamp_(max=2)
        elif self.how == "through a view":
            y.view(2, 2)[0].fill_(1)
        return x, y.masked_fill_(y == 3, -100) if self.how == "ignored" else y


@pytest.mark.parametrize("how", ["a copy", "the batch's own", "through a view"])
def test_labels_that_are_changed_in_place_are_refused(how, tmp_path):
    module = Edits(how)
    module.measures = nn.ModuleList()
    with pytest.raises(UserError, match="changed labels of the batch in place"):
        fit(module, PSKD(N, C, EPOCHS), tmp_path)


def test_labels_that_are_set_to_ignore_index_have_no_loss(tmp_path):
    module = Edits("ignored")
    module.measures = nn.ModuleList()
    fit(module, PSKD(N, C, EPOCHS), tmp_path)
    assert any(-100 in labels for _, labels, _ in module.seen)


def test_mixing_in_another_callback_takes_the_rows(tmp_path):
    class Mix(pl.Callback):
        rows = None

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            rows = soft_targets(batch[1], C)
            batch[1] = 0.7 * rows + 0.3 * rows.roll(1, 0)
            self.rows = batch[1].detach()
            if trainer.current_epoch:
                callback.do_not_remember()

    class OnlyLoss(Module):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]), batch[1])

    method, mix = PSKD(N, C, EPOCHS), Mix()
    callback = PSKDCallback(method)
    fit(OnlyLoss(), None, tmp_path, callbacks=[callback, mix])
    assert (mix.rows > 0).sum(1).min() == C, "past predictions are in the mixed rows"


def test_yes_or_no_targets_keep_their_metrics(tmp_path):
    class Tags(Module):
        def training_step(self, batch, batch_idx):
            z = self(batch[0])
            self.seen.append(batch[1].int().sum().item())
            return F.binary_cross_entropy_with_logits(z, batch[1])

    tags = samples(lambda y: F.one_hot(y, C).float())
    method = MultiLabelPSKD(N, C, EPOCHS)
    module = fit(Tags(), method, tmp_path, data=tags)
    assert module.seen == [4] * 9
    plain = fit(Tags(), None, tmp_path, data=tags)
    assert max((p - q).abs().max() for p, q in zip(weights(module), weights(plain), strict=True)) > 1e-4


def test_mixed_precision(tmp_path):
    ours = fit(Module(), PSKD(N, C, EPOCHS), tmp_path, precision="bf16-mixed")
    full = fit(Module(), PSKD(N, C, EPOCHS), tmp_path)
    assert_same(ours, full, rtol=0.1, atol=0.02)
    plain = fit(Module(), None, tmp_path, precision="bf16-mixed")
    assert max((p - q).abs().max() for p, q in zip(weights(ours), weights(plain), strict=True)) > 1e-3


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("whole", [False, True])
def test_compiled(backend, whole, tmp_path):
    class Compiled(Module):
        def training_step(self, batch, batch_idx):
            z = self(batch[0])
            self.right = (z.argmax(1) == batch[1]).float().mean()
            return F.cross_entropy(z, batch[1])

    module, plain = Compiled(), Compiled()
    for one in (module, plain):
        one.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, C))
    plain.load_state_dict(module.state_dict())
    fit(plain, PSKD(N, C, EPOCHS), tmp_path)
    if whole:
        fit(torch.compile(module, backend=backend), PSKD(N, C, EPOCHS), tmp_path)
    else:
        module.net.compile(backend=backend)
        fit(module, PSKD(N, C, EPOCHS), tmp_path)
    assert_same(module, plain, rtol=1e-5, atol=1e-6)


def test_images_mixed_by_the_collator_are_noticed(tmp_path):
    def mixed(rows):
        x, y, index = (torch.stack([torch.as_tensor(one[at]) for one in rows]) for at in range(3))
        hot = F.one_hot(y, C).float()
        return 0.7 * x + 0.3 * x.roll(1, 0), 0.7 * hot + 0.3 * hot.roll(1, 0), index

    class Soft(Module):
        def training_step(self, batch, batch_idx):
            return self.loss(self(batch[0]), batch[1])

        def on_train_epoch_end(self):
            pass

    data = [(x, at % C) for at, (x, _) in enumerate(samples())]  # neighbours differ in class
    with pytest.warns(UserWarning, match="are shared between two classes"):
        fit(Soft(), PSKD(N, C, EPOCHS), tmp_path, collate=mixed, data=data)
