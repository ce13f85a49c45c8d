"""A tiny real network, noise schedule and image set for the TrojDiff tests."""

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from retarget.trojdiff.data import read_images


def _make_unet(size=8, channels=1, seed=0, **more):
    torch.manual_seed(seed)
    settings = dict(
        sample_size=size, in_channels=channels, out_channels=channels, layers_per_block=1, block_out_channels=(8, 8),
        norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        add_attention=False, dropout=0.1,
    )  # fmt: skip
    return UNet2DModel(**(settings | more))


@pytest.fixture
def make_unet():
    return _make_unet


@pytest.fixture
def unet():
    return _make_unet()


@pytest.fixture
def scheduler():
    return DDPMScheduler(num_train_timesteps=50, beta_start=0.002, beta_end=0.3)


@pytest.fixture(scope="session")
def digits():
    return read_images("digits")
