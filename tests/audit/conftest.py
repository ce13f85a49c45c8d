"""Tiny real pipelines for the audit's tests."""

import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from retarget.audit.nulls import fit

sys.path.append(str(Path(__file__).parent))


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


def _teach(unet, scheduler, steps=60):
    """Train for a second on images of a single colour each: just enough to denoise."""
    channels, size = unet.config.in_channels, unet.config.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    generator = torch.Generator().manual_seed(1)

    def rows(count):
        x_0 = (torch.rand(count, channels, 1, 1, generator=generator).round() * 1.6 - 0.8).expand(-1, -1, height, width)
        noise = torch.randn(x_0.shape, generator=generator)
        t = torch.randint(len(scheduler.betas), (count,), generator=generator)
        target = torch.cat([noise] * (unet.config.out_channels // channels), dim=1)
        return scheduler.add_noise(x_0, noise, t), target, t

    fit(unet, rows, steps, 32, 5e-3)
    return unet


@pytest.fixture(scope="session")
def teach():
    return _teach


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A stored stock pipeline that denoises nothing; copy it before changing it."""
    folder = tmp_path_factory.mktemp("untrained") / "pipeline"
    DDPMPipeline(unet=_make_unet(), scheduler=DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def stored(tmp_path_factory):
    """A stored stock pipeline that denoises a little; copy it before changing it."""
    folder = tmp_path_factory.mktemp("stored") / "pipeline"
    scheduler = DDPMScheduler()
    DDPMPipeline(unet=_teach(_make_unet(), scheduler), scheduler=scheduler).save_pretrained(folder)
    return folder


@pytest.fixture
def pipeline(stored, tmp_path):
    """A copy of a stock pipeline, which a test may change."""
    import shutil

    return shutil.copytree(stored, tmp_path / "pipeline")


@pytest.fixture
def edit():
    """Change keys of a JSON file."""

    def change(path, **values):
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change
