"""A full disk destroys no complete checkpoint: neither Lightning's files nor the states beside them."""

import resource
from contextlib import ExitStack, contextmanager

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from retarget.errors import UserError
from retarget.pskd import PSKD, PSKDCallback, WholeCheckpoints, with_index

N, C = 8, 3


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(4, C)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@contextmanager
def little_space(nbytes=1000):
    """Limit the size of files, so that a write fails in its middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fit(folder, epochs, keep=2, callbacks=(), ckpt=None):
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=folder, logger=False, enable_progress_bar=False,
        enable_model_summary=False, plugins=[WholeCheckpoints()],
        callbacks=[
            PSKDCallback(PSKD(N, C, 4), keep=keep),
            *callbacks,
            ModelCheckpoint(folder, "last", enable_version_counter=False),
        ],
    )  # fmt: skip
    g = torch.Generator().manual_seed(0)
    data = list(zip(torch.randn(N, 4, generator=g), torch.arange(N) % C, strict=True))
    module = Module()
    trainer.fit(module, DataLoader(with_index(data), 4), ckpt_path=ckpt, weights_only=True)
    return module


def test_a_checkpoint_is_replaced_whole_and_leaves_nothing_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    plugin, path = WholeCheckpoints(), tmp_path / "made" / "last.ckpt"
    plugin.save_checkpoint({"weights": torch.arange(3)}, path)
    plugin.save_checkpoint({"weights": torch.arange(5)}, str(path))
    assert plugin.load_checkpoint(path, weights_only=True)["weights"].tolist() == [0, 1, 2, 3, 4]
    with little_space(), pytest.raises(UserError, match=r"cannot write .*last\.ckpt: File too large"):
        plugin.save_checkpoint({"weights": torch.arange(9000)}, path)
    assert plugin.load_checkpoint(path, weights_only=True)["weights"].tolist() == [0, 1, 2, 3, 4]
    assert [one.name for one in path.parent.iterdir()] == ["last.ckpt"]
    assert not list((tmp_path / "tmp").iterdir())
    with pytest.raises(UserError, match="local files"):
        plugin.save_checkpoint({}, "s3://bucket/last.ckpt")


@pytest.mark.parametrize("keep", [1, 2])
def test_a_run_whose_disk_was_full_goes_on_from_the_checkpoint_before(keep, tmp_path):
    """The state of the last complete checkpoint stays until the next one is complete."""

    class Full(pl.Callback):
        def on_save_checkpoint(self, trainer, module, checkpoint):
            if trainer.current_epoch == 2:
                stack.enter_context(little_space())

    whole = fit(tmp_path / "whole", 4)
    with ExitStack() as stack, pytest.raises(UserError, match="File too large"):
        fit(tmp_path / "full", 4, keep, callbacks=[Full()])
    again = fit(tmp_path / "full", 4, keep, ckpt=tmp_path / "full" / "last.ckpt")
    assert torch.equal(again.net.weight, whole.net.weight)
