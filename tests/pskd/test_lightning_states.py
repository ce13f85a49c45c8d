"""The tables beside Lightning's checkpoints: which are kept, and which one a resumed run finds."""

from pathlib import Path

import torch
from test_lightning import EPOCHS, C, Module, N, fit, make, weights

from retarget.pskd import PSKD, PSKDCallback


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
