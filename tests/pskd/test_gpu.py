"""One smoke test per code path of PS-KD on a GPU: ``python -m pytest -m gpu``."""

import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from retarget.pskd import PSKD, PreviousModel, PSKDCallback, PSKDTrainer, TopK, with_index

sys.path.insert(0, str(Path(__file__).parent))
import tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, shown to the tests by `pytest -m gpu`"),
]
N, C, EPOCHS = 12, 3, 3


def data():
    g = torch.Generator().manual_seed(0)
    return list(zip(torch.randn(N, 5, generator=g), torch.arange(N) % C, strict=True))


def loop(device, store, table=None):
    """Losses of a plain loop."""
    network = tiny.Plain().layer.to(device)
    method = PSKD(N, C, EPOCHS, store=PreviousModel(network) if store == "previous" else store, device=table)
    optimizer, losses = torch.optim.SGD(network.parameters(), 0.5), []
    for epoch in range(EPOCHS):
        method.set_epoch(epoch)
        for x, y, index in DataLoader(with_index(data()), 4):
            x, y = x.to(device), y.to(device)
            loss = method.loss(network(x), y, index if table == "cpu" else index.to(device), inputs=x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    method.end_epoch()
    return losses


@pytest.mark.parametrize("table", [None, "cpu"], ids=["on the device", "on the host"])
@pytest.mark.parametrize("store", ["dense", TopK(2), "previous"], ids=str)
def test_a_plain_loop_trains_as_on_the_cpu(store, table):
    if store == "previous" and table:
        pytest.skip("the previous model keeps no table")
    assert loop("cuda", store, table) == pytest.approx(loop("cpu", store), rel=1e-3)


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = tiny.Plain().layer
        self.right = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        z = self(batch[0])
        self.right.append(int((z.argmax(1) == batch[1]).sum()))
        return F.cross_entropy(z, batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)


@pytest.mark.parametrize("table", [None, "cpu"], ids=["on the device", "on the host"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_lightning(table, precision, tmp_path):
    def fit(accelerator):
        module = Module()
        pl.Trainer(
            max_epochs=EPOCHS, accelerator=accelerator, devices=1, default_root_dir=tmp_path, logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            precision=precision if accelerator == "gpu" else "32-true",
            callbacks=[PSKDCallback(PSKD(N, C, EPOCHS, device=table if accelerator == "gpu" else None))],
        ).fit(module, DataLoader(with_index(data()), 4))  # fmt: skip
        return module

    ours, expected = fit("gpu"), fit("cpu")
    tolerance = 1e-3 if precision == "32-true" else 0.05
    torch.testing.assert_close(ours.net.weight.cpu(), expected.net.weight, rtol=tolerance, atol=tolerance)
    assert len(ours.right) == 3 * EPOCHS


@pytest.mark.parametrize("store", [None, TopK(4), "previous"], ids=str)
def test_the_hugging_face_trainer(store, tmp_path):
    def train(use_cpu):
        trainer = PSKDTrainer(
            model=tiny.language_model(), args=tiny.arguments(tmp_path, use_cpu=use_cpu, num_train_epochs=EPOCHS),
            train_dataset=tiny.sentences(), data_collator=tiny.pad,
            store=PreviousModel() if store == "previous" else store,
        )  # fmt: skip
        trainer.train()
        return [p.detach().cpu() for p in trainer.model.parameters()]

    for p, q in zip(train(False), train(True), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-2, atol=1e-3)
