"""The tables beside Lightning's checkpoints: which are kept, and which one a resumed run finds."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from test_lightning import EPOCHS, C, InOrder, Module, N, fit, make, samples, weights
from torch.utils.data import DataLoader

from retarget.pskd import PSKD, PSKDCallback, with_index


def test_only_the_newest_tables_are_kept(tmp_path):
    fit(Module(), PSKDCallback(PSKD(N, C, EPOCHS), directory=tmp_path / "tables"), tmp_path)
    kept = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "tables").iterdir())
    assert kept == ["pskd-epoch-2", "pskd-epoch-3"]


def test_a_run_in_the_folder_of_another_replaces_none_of_its_tables(tmp_path):
    def run(weight, folder, **given):
        module = Module()
        module.net[0].weight.data *= weight
        callback = PSKDCallback(make(module), directory=tmp_path / "tables", keep=EPOCHS)
        return fit(module, callback, tmp_path / folder, **given)

    straight, _ = run(1, "straight")
    _, trainer = run(1, "first", epochs=2)
    run(2, "other")
    for branch in ("resumed", "again"):
        resumed, _ = run(1, branch, ckpt=trainer.checkpoint_callback.best_model_path)
        assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))
        run(2, "other", epochs=3)


def test_a_resumed_run_deletes_the_older_tables_of_what_it_goes_on_from(tmp_path):
    def run(folder, **given):
        callback = PSKDCallback(PSKD(N, C, EPOCHS), directory=tmp_path / "tables", keep=2)
        return fit(Module(), callback, tmp_path / folder, **given)[1]

    trainer = run("first", epochs=2)
    run("second", ckpt=trainer.checkpoint_callback.best_model_path)
    assert sorted(path.name.split("-")[2] for path in (tmp_path / "tables").iterdir()) == ["2", "3"]


def test_the_table_of_a_checkpoint_of_version_0_1_is_found(tmp_path):
    def run(folder, **given):
        module = Module()
        return fit(module, PSKDCallback(make(module)), tmp_path / folder, **given)

    straight, _ = run("straight")
    _, trainer = run("first", epochs=2)
    path = Path(trainer.checkpoint_callback.best_model_path)
    checkpoint = torch.load(path, weights_only=True)
    (name,) = checkpoint["callbacks"]["PSKDCallback"].pop("states")[-1:]
    torch.save(checkpoint, path)
    (path.parent / name).rename(path.parent / "pskd-epoch-1.safetensors")
    resumed, _ = run("second", ckpt=path)
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))


class Searched(Module):
    lr = 0.1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)

    def test_step(self, batch, batch_idx):
        self(batch[0])


class InTheMiddle(LearningRateFinder):
    """Searches again at some epochs, as Lightning's documents show it."""

    def on_fit_start(self, *args):
        return

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch in (0, 2):
            self.lr_find(trainer, module)


@pytest.mark.parametrize("first", [True, False])
def test_a_search_in_the_middle_of_a_run_leaves_the_past_as_it_is(first, tmp_path):
    method = PSKD(N, C, EPOCHS)
    callbacks = [PSKDCallback(method), InTheMiddle(num_training_steps=2, update_attr=False)]
    fit(Searched(), callbacks if first else callbacks[::-1], tmp_path)
    assert method.epoch == EPOCHS - 1
    assert method.past_probs(torch.arange(N))[1].all()


def test_a_checkpoint_of_tested_weights_replaces_no_table(tmp_path):
    saving = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    _, trainer = fit(Searched(), [PSKDCallback(PSKD(N, C, EPOCHS), keep=EPOCHS), saving], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("pskd-*")}
    assert len(before) == EPOCHS
    loader = DataLoader(with_index(samples()), 4, sampler=InOrder())
    trainer.test(Searched(), loader, ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True, verbose=False)
    trainer.save_checkpoint(tmp_path / "tested.ckpt")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("pskd-*")} == before
    saved = [torch.load(tmp_path / name, weights_only=True) for name in ("epoch=1.ckpt", "tested.ckpt")]
    first, second = (one["callbacks"]["PSKDCallback"]["states"][-1] for one in saved)
    assert first == second
