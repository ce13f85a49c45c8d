"""What the callback remembers is what the loss was computed from, in the epoch that the trainer is in."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from test_lightning import EPOCHS, C, InOrder, Module, N, fit, make, samples, weights
from torch.utils.data import DataLoader

from retarget.errors import UserError
from retarget.pskd import PSKD, MultiLabelPSKD, PSKDCallback, with_index
from retarget.pskd.peers import TemporalEnsembling
from retarget.pskd.peers.lightning import PeerCallback


class WithPeer(Module):
    def __init__(self, method):
        super().__init__()
        self.method = method

    def training_step(self, batch, batch_idx):
        return self.method.loss(self(batch[0]), batch[1], batch[2], inputs=batch[0])


@pytest.mark.parametrize("kind", ["pskd", "peer"])
def test_resumed_from_the_last_step_of_an_epoch_equals_uninterrupted_bit_for_bit(kind, tmp_path):
    """Lightning does not announce the epoch that follows such a checkpoint."""

    def train(folder, ckpt=None):
        saving = ModelCheckpoint(tmp_path / folder, "{epoch}", every_n_train_steps=N // 4, save_top_k=-1)
        if kind == "pskd":
            module = Module()
            callback = PSKDCallback(make(module), keep=EPOCHS)
        else:
            method = TemporalEnsembling(N, C, EPOCHS)
            module, callback = WithPeer(method), PeerCallback(method, keep=EPOCHS)
        return fit(module, [callback, saving], tmp_path / folder, ckpt=ckpt)[0]

    straight = train("straight")
    resumed = train("second", ckpt=tmp_path / "straight" / "epoch=1.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))


class Scaled(Module):
    """Cosines that the step, or the module, scales; or a margin that the step adds."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        cosines = torch.tanh(self.net(x))
        return 20 * cosines if self.inside else cosines

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]) * (1 if self.inside else 20), batch[1])


@pytest.mark.parametrize("inside", [True, False])
def test_a_scale_that_only_the_loss_sees_is_told_once(inside, tmp_path):
    module = Scaled(inside)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, PSKDCallback(make(module)), tmp_path)
    told = [str(one.message) for one in caught if "let the module" in str(one.message)]
    assert len(told) == (not inside)
    assert all("it is the module's that are remembered" in one for one in told)


def test_a_batch_of_several_loaders_is_told_of_the_two_lines(tmp_path):
    module = Module()
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, logger=False,
                         enable_progress_bar=False, enable_model_summary=False,
                         callbacks=[PSKDCallback(make(module))])  # fmt: skip
    loaders = {name: DataLoader(with_index(samples()), 4, sampler=InOrder()) for name in ("with", "without")}
    with pytest.raises(UserError, match=r"holds \['with', 'without'\].*at the top of the batch only. Or call PS-KD"):
        trainer.fit(module, CombinedLoader(loaders, "max_size_cycle"))


def test_labels_that_multi_label_rows_cannot_follow_are_refused_before_they_are_used(tmp_path):
    class OneLogit(Module):
        def training_step(self, batch, batch_idx):
            return F.binary_cross_entropy_with_logits(self(batch[0])[:, 0], batch[1].float())

    with pytest.raises(UserError, match=r"labels are torch.int64 \[4\]: MultiLabelPSKD takes floats \[B, C\]"):
        fit(OneLogit(), PSKDCallback(MultiLabelPSKD(N, C, EPOCHS)), tmp_path)


class PartlyMixed(Module):
    """Mixes the first half of every batch but the first, whose labels it reads in two parts."""

    def training_step(self, batch, batch_idx):
        x, y = batch[:2]
        if batch_idx == 0:
            z = self(x)
            return F.cross_entropy(z[:2], y[:2]) + F.cross_entropy(z[2:], y[2:])
        z = self(torch.cat([0.5 * x[:2] + 0.5 * x[:2].flip(0), x[2:]]))
        mixed = 0.5 * F.cross_entropy(z[:2], y[:2]) + 0.5 * F.cross_entropy(z[:2], y[:2].flip(0))
        return mixed + F.cross_entropy(z[2:], y[2:])


class Skipping(Module):
    """Skips every batch but the first before the forward pass, as Lightning lets it."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx else super().training_step(batch, batch_idx)


@pytest.mark.parametrize("module", [PartlyMixed, Skipping])
def test_a_batch_that_is_mixed_in_part_or_skipped_is_not_remembered(module, tmp_path):
    method = PSKD(N, C, EPOCHS)
    fit(module(), PSKDCallback(method), tmp_path, epochs=1)
    method.set_epoch(1)
    assert method.past_probs(torch.tensor(list(InOrder())))[1].tolist() == [True] * 4 + [False] * 8


class OneLogit(Module):
    def forward(self, x):
        return self.net(x)[:, 0]

    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(self(batch[0]), (batch[1] > 0).float())


class Lbfgs(Module):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), max_iter=3)


class Elsewhere(Module):
    """Never calls itself, only a part of itself."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("module", "classes", "told"),
    [
        (OneLogit, 2, r"returned one logit for each sample, \[4\],.* Use MultiLabelPSKD with num_classes=1"),
        (Lbfgs, C, r"called the module itself \d+ times .*exactly once: an optimizer that runs the step .*LBFGS"),
        (Module, C + 1, rf"exactly once: it returned \[4, {C}\]. If the network has another number of classes"),
        (Elsewhere, C, r"called the module itself 0 times .*it was not called. Name the submodule .* by logits_from="),
    ],
)
def test_a_step_without_one_prediction_for_each_sample_is_told_why(module, classes, told, tmp_path):
    with pytest.raises(UserError, match=told):
        fit(module(), PSKDCallback(PSKD(N, classes, EPOCHS)), tmp_path)
