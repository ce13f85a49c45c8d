"""The callback in Lightning: what a plain loop gives, also where gradients accumulate, and after a resume."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from retarget.errors import UserError
from retarget.pskd import peers

N, C, EPOCHS = 16, 4, 4


def data():
    g = torch.Generator().manual_seed(0)
    return torch.randn(N, 1, 4, 4, generator=g), torch.arange(N) % C, torch.arange(N)


class Module(pl.LightningModule):
    """An ordinary module that takes its loss from the method."""

    def __init__(self, network, method):
        super().__init__()
        self.network, self.method = network, method

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, batch_idx):
        x, y, index = batch
        return self.method.loss(self(x), y, index, inputs=x)

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), 0.2)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, C))


MAKE = {
    "temporal": lambda model: peers.TemporalEnsembling(N, C, EPOCHS, ramp=0.5),
    "mixup": lambda model: peers.Mixup(N, C, EPOCHS),
    "mean_teacher": lambda model: peers.MeanTeacher(N, C, EPOCHS, model=model),
}


def as_list(rows):
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def fit(name, folder, epochs=EPOCHS, accumulate=1, resume=None, collate=as_list, averaging=()):
    model = network()
    method = MAKE[name](model)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        accumulate_grad_batches=accumulate, default_root_dir=folder, enable_checkpointing=False,
        callbacks=[peers.PeerCallback(method, directory=folder), *averaging],
    )  # fmt: skip
    loader = DataLoader(TensorDataset(*data()), batch_size=4, collate_fn=collate)
    trainer.fit(Module(model, method), loader, ckpt_path=resume, weights_only=True)
    return model, method, trainer


def plain(name, accumulate=1):
    model = network()
    method = MAKE[name](model)
    optimizer = torch.optim.SGD(model.parameters(), 0.2)
    x, y, _ = data()
    for epoch in range(EPOCHS):
        method.set_epoch(epoch)
        for step, index in enumerate(torch.arange(N).split(4)):
            loss = method.loss(model(x[index]), y[index], index, inputs=x[index])
            (loss / accumulate).backward()
            if (step + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
                method.after_step()
    return model, method


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["temporal", "mean_teacher"])
def test_lightning_equals_the_plain_loop(name, accumulate, tmp_path):
    model, method, _ = fit(name, tmp_path, accumulate=accumulate)
    expected, other = plain(name, accumulate)
    assert same(model, expected)
    if name == "mean_teacher":
        assert method.steps == other.steps == EPOCHS * 4 // accumulate
        assert same(method.evaluated, other.evaluated)


@pytest.mark.parametrize("name", ["temporal", "mean_teacher"])
def test_a_resumed_trainer_equals_an_uninterrupted_one(name, tmp_path):
    straight, method, _ = fit(name, tmp_path / "straight")
    _, _, trainer = fit(name, tmp_path / "half", epochs=2)
    trainer.save_checkpoint(tmp_path / "half" / "half.ckpt")
    resumed, again, _ = fit(name, tmp_path / "half", resume=tmp_path / "half" / "half.ckpt")
    assert same(straight, resumed)
    assert again.state_dict() == method.state_dict()
    assert [path.name[:13] for path in (tmp_path / "half").glob("*.safetensors")] == ["peer-epoch-1-"]


def test_batches_are_mixed_and_a_tuple_is_refused(tmp_path):
    torch.manual_seed(0)
    model, _, _ = fit("mixup", tmp_path, epochs=1)
    unmixed = network()
    optimizer = torch.optim.SGD(unmixed.parameters(), 0.2)
    x, y, _ = data()
    for index in torch.arange(N).split(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(unmixed(x[index]), y[index]).backward()
        optimizer.step()
    assert not same(model, unmixed)
    with pytest.raises(UserError, match="the batch is a tuple"):
        fit("mixup", tmp_path, epochs=1, collate=lambda rows: tuple(as_list(rows)))


@pytest.mark.parametrize("name", list(MAKE))
def test_the_epoch_that_weight_averaging_adds_is_not_announced(name, tmp_path):
    _, method, trainer = fit(name, tmp_path, averaging=[StochasticWeightAveraging(swa_lrs=0.1)])
    assert trainer.current_epoch == EPOCHS + 1
    assert method.epoch == EPOCHS - 1
