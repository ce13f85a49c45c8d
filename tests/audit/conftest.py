"""Tiny real pipelines for the audit's tests."""

import json

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel


def _make_unet(side=8, channels=1, seed=0, **more):
    torch.manual_seed(seed)
    settings = dict(
        sample_size=side, in_channels=channels, out_channels=channels, layers_per_block=1, block_out_channels=(8, 8),
        norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        add_attention=False,
    )  # fmt: skip
    return UNet2DModel(**(settings | more))


@pytest.fixture(scope="session")
def make_unet():
    return _make_unet


@pytest.fixture(scope="session")
def stored(tmp_path_factory):
    """A stock pipeline on the disk, untrained; copy it before changing it."""
    folder = tmp_path_factory.mktemp("stored") / "pipeline"
    DDPMPipeline(unet=_make_unet(), scheduler=DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def pipeline(stored, tmp_path):
    """A copy of a stock pipeline, to be changed."""
    import shutil

    return shutil.copytree(stored, tmp_path / "pipeline")


@pytest.fixture
def edit():
    """Change keys of a JSON file."""

    def change(path, **values):
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change
