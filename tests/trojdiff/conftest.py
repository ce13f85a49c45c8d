"""A tiny real network, noise schedule and image set for the TrojDiff tests."""

import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from PIL import Image
from torchvision.datasets import CelebA

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


@contextmanager
def _a_full_disk(most):
    """Limit the size of files that this process writes, so that writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def a_full_disk():
    return _a_full_disk


@pytest.fixture(scope="session")
def digits():
    return read_images("digits")


@pytest.fixture
def celeba(tmp_path, monkeypatch):
    """A folder as torchvision keeps CelebA in: 16 photographs, of which the eight with even numbers train.

    Photograph n is one brightness, 10 n, but for white above and below its middle square; the bits of n // 2 are its
    heavy makeup, open mouth and smile. torchvision itself reads it; only its checksums are set aside.
    """
    folder = tmp_path / "data" / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    header = " ".join(f"attribute_{number}" for number in range(40))
    lines = {"list_attr_celeba": ["16", header], "identity_CelebA": [], "list_eval_partition": []}
    lines |= {"list_bbox_celeba": ["16", "id x y w h"], "list_landmarks_align_celeba": ["16", "x y"]}
    for number in range(16):
        name, bits = f"{number:06d}.png", number // 2
        pixels = np.full((218, 178, 3), 255, np.uint8)
        pixels[20:198] = 10 * number
        Image.fromarray(pixels).save(folder / "img_align_celeba" / name)
        has = dict(zip((18, 21, 31), (bits & 1, bits & 2, bits & 4), strict=True))
        values = ["1" if has.get(column) else "-1" for column in range(40)]
        lines["list_attr_celeba"].append(" ".join([name, *values]))
        lines["identity_CelebA"].append(f"{name} {number}")
        lines["list_eval_partition"].append(f"{name} {2 * (number % 2)}")
        lines["list_bbox_celeba"].append(f"{name} 0 0 178 218")
        lines["list_landmarks_align_celeba"].append(f"{name} 1 2")
    for name, text in lines.items():
        (folder / f"{name}.txt").write_text("\n".join(text) + "\n")
    monkeypatch.setattr(CelebA, "file_list", [("", None, path.name) for path in folder.glob("*.txt")])
    return str(tmp_path / "data")
