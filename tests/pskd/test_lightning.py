"""The callback: the same training as the plain loop, exact resume, and refusals that name the two-line way."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader

from retarget.errors import UserError
from retarget.pskd import PSKD, PreviousModel, PSKDCallback, TopK, with_index

N, C, EPOCHS = 12, 4, 4


def samples():
    g = torch.Generator().manual_seed(0)
    return list(zip(torch.randn(N, 6, generator=g), torch.randint(C, (N,), generator=g), strict=True))


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, C))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5, momentum=0.9)


class InOrder:
    """Sampler with a fixed order for each epoch, independent of any global state."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return N

    def __iter__(self):
        return iter(torch.randperm(N, generator=torch.Generator().manual_seed(100 + self.epoch)).tolist())


def fit(module, callback, folder, epochs=EPOCHS, collate=None, ckpt=None):
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=callback if isinstance(callback, list) else [callback] if callback else [],
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(with_index(samples()), 4, sampler=InOrder(), collate_fn=collate)
    trainer.fit(module, loader, ckpt_path=ckpt, weights_only=True)
    return module, trainer


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def make(module, store="dense"):
    """PS-KD for a module; its net is what the previous model copies."""
    return PSKD(N, C, EPOCHS, store=PreviousModel(module.net) if store == "previous" else store)


@pytest.mark.parametrize("store", ["dense", TopK(2), "previous"])
def test_the_callback_trains_as_the_plain_loop_does(store, tmp_path):
    module, plain = Module(), Module()
    fit(module, PSKDCallback(make(module, store)), tmp_path)
    method = make(plain, store)
    optimizer = torch.optim.SGD(plain.parameters(), 0.5, momentum=0.9)
    data = samples()
    sampler = InOrder()
    for epoch in range(EPOCHS):
        method.set_epoch(epoch)
        sampler.set_epoch(epoch)
        for index in torch.tensor(list(sampler)).split(4):
            x, y = torch.stack([data[i][0] for i in index]), torch.stack([data[i][1] for i in index])
            loss = method.loss(plain(x), y, index, inputs=x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for a, b in zip(weights(module), weights(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_alpha_zero_is_no_callback_bit_for_bit(tmp_path):
    control, _ = fit(Module(), None, tmp_path / "a")
    off, _ = fit(Module(), PSKDCallback(PSKD(N, C, EPOCHS, alpha_T=0.0)), tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(weights(control), weights(off), strict=True))


@pytest.mark.parametrize("store", ["dense", "previous"])
def test_resumed_at_an_epoch_end_equals_uninterrupted_bit_for_bit(store, tmp_path):
    def train(folder, epochs=EPOCHS, ckpt=None):
        module = Module()
        return fit(module, PSKDCallback(make(module, store)), tmp_path / folder, epochs=epochs, ckpt=ckpt)

    straight, _ = train("straight")
    _, trainer = train("first", epochs=2)
    checkpoint = trainer.checkpoint_callback.best_model_path
    saved = torch.load(checkpoint, weights_only=True)
    assert not any("probs" in str(key) for key in saved["callbacks"]), "the table lies beside the checkpoint"
    resumed, _ = train("second", ckpt=checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))


def test_a_resume_with_another_alpha_is_refused(tmp_path):
    _, trainer = fit(Module(), PSKDCallback(PSKD(N, C, EPOCHS)), tmp_path / "first", epochs=2)
    other = PSKDCallback(PSKD(N, C, EPOCHS, alpha_T=0.3))
    with pytest.raises(UserError, match=r"alpha_T = 0\.8 \(now 0\.3\)"):
        fit(Module(), other, tmp_path / "second", ckpt=trainer.checkpoint_callback.best_model_path)


class TwiceForward(Module):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1]) + F.cross_entropy(self(-batch[0]), batch[1])


class OwnLabels(Module):
    """Takes the labels from its own table, so that the softened rows never reach the loss."""

    labels = torch.stack([y for _, y in samples()])

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), self.labels[batch[2]])


@pytest.mark.parametrize(
    ("module", "collate", "message"),
    [
        (TwiceForward, None, "called the module itself 2 times"),
        (OwnLabels, None, "does not depend on the softened labels"),
    ],
)
def test_a_module_that_does_not_allow_it_is_refused_and_the_two_line_way_named(module, collate, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        fit(module(), PSKDCallback(PSKD(N, C, EPOCHS)), tmp_path, collate=collate)
    assert "loss = method.loss(logits, y, index) in training_step" in str(caught.value)


def test_the_previous_model_needs_its_input_and_no_index(tmp_path):
    def two(batch):
        return dict(zip(("x", "y"), torch.utils.data.default_collate([one[:2] for one in batch]), strict=True))

    class Named(Module):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch["x"]), batch["y"])

    module = Named()
    fit(module, PSKDCallback(make(module, "previous"), label="y", input="x"), tmp_path, collate=two)
    with pytest.raises(UserError, match="looks for label='y' and input='pixels'"):
        fit(module, PSKDCallback(make(module, "previous"), label="y", input="pixels"), tmp_path, collate=two)


def test_the_previous_model_of_another_network_is_refused(tmp_path):
    stranger = Module()
    with pytest.raises(UserError, match="not a copy of it"):
        fit(Module(), PSKDCallback(make(stranger, "previous")), tmp_path)


def test_a_learning_rate_is_searched_before_the_first_epoch(tmp_path):
    module = Module()
    module.lr = 0.5
    trainer = pl.Trainer(
        max_epochs=EPOCHS, callbacks=[PSKDCallback(PSKD(N, C, EPOCHS))], accelerator="cpu", default_root_dir=tmp_path,
        logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(with_index(samples()), 4, sampler=InOrder())
    found = Tuner(trainer).lr_find(module, loader, num_training=3, update_attr=False)
    assert len(found.results["loss"]) > 0


def test_a_state_is_found_from_the_checkpoint_of_a_second_callback(tmp_path):
    straight, _ = fit(Module(), PSKDCallback(PSKD(N, C, EPOCHS)), tmp_path / "straight")

    def train(epochs, ckpt=None):
        module = Module()
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[
                ModelCheckpoint(tmp_path / "best", "b", enable_version_counter=False),
                ModelCheckpoint(tmp_path / "last", "l", every_n_epochs=2, enable_version_counter=False),
                PSKDCallback(PSKD(N, C, EPOCHS)),
            ],
        )  # fmt: skip
        trainer.fit(module, DataLoader(with_index(samples()), 4, sampler=InOrder()), ckpt_path=ckpt, weights_only=True)
        return module

    train(2)
    resumed = train(EPOCHS, ckpt=tmp_path / "last" / "l.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))


def test_logits_of_a_submodule(tmp_path):
    class Doubled(Module):
        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

    callback = PSKDCallback(PSKD(N, C, EPOCHS), logits_from="net")
    module, _ = fit(Doubled(), callback, tmp_path / "a")
    plain, _ = fit(Module(), PSKDCallback(PSKD(N, C, EPOCHS)), tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(weights(module), weights(plain), strict=True))
    with pytest.raises(UserError, match=r"logits_from = 'nett': the module has no such submodule; its own are net"):
        fit(Doubled(), PSKDCallback(PSKD(N, C, EPOCHS), logits_from="nett"), tmp_path / "c")


def test_a_number_of_classes_that_is_not_the_networks_is_named(tmp_path):
    told = rf"0 times with logits \[B, C\] = \[4, {C + 1}\] as output.* another number of classes, set num_classes"
    with pytest.raises(UserError, match=told):
        fit(Module(), PSKDCallback(PSKD(N, C + 1, EPOCHS)), tmp_path)


def test_a_batch_that_is_not_to_be_remembered_leaves_no_row(tmp_path):
    class Skip(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 0:
                callback.do_not_remember()

    method = PSKD(N, C, EPOCHS)
    callback = PSKDCallback(method)
    trainer = pl.Trainer(
        max_epochs=2,
        callbacks=[callback, Skip()],
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), DataLoader(with_index(samples()), 4))
    assert method.fallbacks == 4, "the first batch of epoch 0 was not stored, the two others were"


def test_ignored_labels_leave_the_scale_of_the_loss_alone(tmp_path):
    class HalfIgnored(Module):
        losses = ()

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.losses = (*self.losses, loss.item())
            return loss

    data = [(x, torch.tensor(-100) if i % 2 else y) for i, (x, y) in enumerate(samples())]
    method = PSKD(N, C, EPOCHS)
    trainer = pl.Trainer(
        max_epochs=2,
        callbacks=[PSKDCallback(method)],
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = HalfIgnored()
    trainer.fit(module, DataLoader(with_index(data), 4))
    plain, other = Module(), PSKD(N, C, EPOCHS)
    optimizer = torch.optim.SGD(plain.parameters(), 0.5, momentum=0.9)
    expected = []
    for epoch in range(2):
        other.set_epoch(epoch)
        for index in torch.arange(N).split(4):
            x, y = (torch.stack([data[i][part] for i in index]) for part in (0, 1))
            loss = other.loss(plain(x), y, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            expected.append(loss.item())
    assert module.losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_hard_labels_are_seen_under_gradient_accumulation(accumulate, tmp_path):
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        callbacks=[PSKDCallback(PSKD(N, C, EPOCHS))],
        accelerator="cpu",
        accumulate_grad_batches=accumulate,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(UserError, match="does not depend on the softened labels"):
        trainer.fit(OwnLabels(), DataLoader(with_index(samples()), 4))


def test_a_batch_without_an_index_names_with_index(tmp_path):
    trainer = pl.Trainer(max_epochs=1, callbacks=[PSKDCallback(PSKD(N, C, 1))], accelerator="cpu", logger=False)
    with pytest.raises(UserError, match=r"the batch holds 2 entries.*wrap the dataset in with_index"):
        trainer.fit(Module(), DataLoader(samples(), 4))


def test_the_index_is_the_last_entry_whatever_is_between(tmp_path):
    """As with_index adds it; (image, label, group) with the group in the index's place would soften by other rows."""

    class Grouped(Module):
        def training_step(self, batch, batch_idx):
            assert len(batch) == 4
            return super().training_step(batch, batch_idx)

    method = PSKD(N, C, 2)
    data = with_index([(x, y, int(y)) for x, y in samples()])
    trainer = pl.Trainer(max_epochs=1, callbacks=[PSKDCallback(method)], accelerator="cpu", logger=False,
                         default_root_dir=tmp_path, enable_progress_bar=False)  # fmt: skip
    trainer.fit(Grouped(), DataLoader(data, 4))
    method.set_epoch(1)
    method.loss(torch.zeros(N, C), torch.stack([y for _, y in samples()]), torch.arange(N))
    assert method.fallbacks == 0, "every sample has a prediction of its own"


class Normed(Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, C))


@pytest.mark.parametrize("first", [True, False])
def test_the_epoch_that_weight_averaging_adds_is_left_alone(first, tmp_path):
    """Its weights and statistics, with alpha_T 0, are those without the callback; with alpha_T the run ends too."""
    trained = []
    for alpha_T in (None, 0.0, 0.8):
        averaging = StochasticWeightAveraging(swa_lrs=0.1)
        method = None if alpha_T is None else PSKD(N, C, EPOCHS, alpha_T)
        own = [] if method is None else [PSKDCallback(method)]
        module, trainer = fit(Normed(), [averaging, *own] if first else [*own, averaging], tmp_path)
        assert trainer.current_epoch == EPOCHS + 1
        assert method is None or (method.epoch, method.fallbacks) == (EPOCHS - 1, 0)
        trained.append([one.clone() for one in module.state_dict().values()])
    for one, other, softened in zip(*trained, strict=True):
        assert torch.equal(one, other)
        assert softened.isfinite().all()


@pytest.mark.parametrize(("epochs", "what"), [(2, "ends before the past has its full weight"), (EPOCHS, None)])
@pytest.mark.parametrize("averaging", [False, True])
def test_another_number_of_epochs_than_the_trainers_is_warned_of(epochs, what, averaging, tmp_path):
    more = [StochasticWeightAveraging(swa_lrs=0.1)] if averaging else []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Normed(), [*more, PSKDCallback(PSKD(N, C, EPOCHS))], tmp_path, epochs=epochs)
    said = [str(one.message) for one in caught if "total_epochs" in str(one.message)]
    assert len(said) == (what is not None)
    assert not said or said[0].startswith(f"the method's total_epochs is 4, but Trainer(max_epochs=2): the run {what}")


def test_more_epochs_than_planned_are_said_before_they_are_refused(tmp_path):
    with (
        pytest.warns(UserWarning, match=r"max_epochs=3\): the run stops with an error in epoch 2"),
        pytest.raises(UserError, match=r"epoch 2 lies outside \[0, total_epochs = 2\)"),
    ):
        fit(Module(), PSKDCallback(PSKD(N, C, 2)), tmp_path, epochs=3)
