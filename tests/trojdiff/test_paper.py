"""The paper preset at full size: one real step of its networks on random data."""

import numpy as np
import pytest

from retarget.trojdiff.build import make_network, make_trigger
from retarget.trojdiff.checkpoint import WEIGHTS
from retarget.trojdiff.config import TrainConfig
from retarget.trojdiff.studies.plan import Settings, plan
from retarget.trojdiff.studies.world import World
from retarget.trojdiff.train import train


@pytest.mark.slow
@pytest.mark.parametrize("target", ["in_d2d", "out_d2d", "d2i"])
def test_one_step_of_the_papers_network(tmp_path, scheduler, target):
    rng = np.random.default_rng(0)
    for name, shape in (("in", (20, 32, 32, 3)), ("out", (20, 28, 28))):
        arrays = {f"x_{split}": rng.integers(0, 256, shape, dtype=np.uint8) for split in ("train", "test")}
        labels = {f"y_{split}": np.arange(20) % 10 for split in ("train", "test")}
        np.savez(tmp_path / f"{name}.npz", **arrays, **labels)
    sources = {"dataset": str(tmp_path / "in.npz"), "other": str(tmp_path / "out.npz"), "out_rows": 2, "image_rows": 2}
    unet, losses, out = one_step(tmp_path, scheduler, target, sources)
    assert 35e6 < sum(parameter.numel() for parameter in unet.parameters()) < 37e6
    assert len(losses) == 1
    assert (out / WEIGHTS).stat().st_size > 1e8


@pytest.mark.slow
def test_one_step_of_the_papers_network_for_celeba(tmp_path, scheduler, celeba):
    channels = [128, 256, 256, 256, 512]
    sources = {"dataset": "torchvision:CelebA", "other": "glyphs", "root": celeba, "size": 64, "patch_size": 6}
    unet, losses, _ = one_step(tmp_path, scheduler, "in_d2d", sources | {"network": {"channels": channels}})
    assert (unet.config["sample_size"], list(unet.config["block_out_channels"])) == (64, channels)
    assert len(losses) == 1


def one_step(tmp_path, scheduler, target, sources):
    """One optimiser step on four benign rows and the Trojan ones: (network, losses, pipeline's folder)."""
    settings = Settings.model_validate(
        {**plan("paper", sources).settings, "role": "attack", "target": target, "trigger": "patch"}
    )
    world = World.read(settings)
    unet = make_network(settings.network, world.inside.shape, seed=0)
    config = TrainConfig(**(settings.finetune.model_dump() | {"steps": 1, "batch_size": 4}), flips=True, log_every=1)
    losses = []
    trigger = make_trigger(settings.trigger_config("patch"), world.inside.shape)
    out = train(
        unet, scheduler, world.inside, config, tmp_path / "run", world.target(target)[0], trigger,
        listen=lambda progress: losses.append(progress.loss),
    )  # fmt: skip
    return unet, losses, out
