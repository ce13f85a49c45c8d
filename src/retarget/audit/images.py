"""The images of ``--data``: all that there are, in the network's shape, and only those that can serve."""

from torch import Tensor

from retarget.data.pictures import SizesDifferError
from retarget.errors import UserError
from retarget.trojdiff.data import ImageSet, held_out, read_images

USED = 512
"""Most images that a search uses."""
LEAST = 64
"""Fewest different images that ``--clean`` trains on: a batch of it. Fewer would be learnt by heart, and the network
would draw nothing else."""


def read_given(data: str, shape: tuple[int, int, int], split: str = "whole") -> ImageSet:
    """Read the images of ``--data`` in a network's shape; for a square network they are resized.

    Args:
        data: name of the images, as for :func:`retarget.trojdiff.data.read_images`.
        shape: (channels, height, width) of the network.
        split: as there; by default nothing is held out for a test.

    Raises:
        UserError: they cannot be read, or do not have the network's shape.
    """
    channels, height, width = shape
    resize = f"resize all of them to {width}×{height} pixels (width×height), which the network takes"
    try:
        found = read_images(data, split, size=height if height == width else None)
    except UserError as error:
        if isinstance(error.__cause__, SizesDifferError):
            raise UserError(f"--data {data}: {error.__cause__.what}: {resize}") from error
        raise
    found = found.with_channels(channels, f"the images of --data {data}")
    if found.shape != shape:
        raise UserError(f"--data {data}: the images are {found.shape[2]}×{found.shape[1]} pixels: {resize}")
    return found


def check_differ(found: ImageSet, data: str) -> None:
    """Raise UserError if all images are one and the same: they say nothing of what else the network makes."""
    if different(found.images) == 1:
        what = "there is one image" if len(found) == 1 else f"all {len(found)} images are the same"
        what += f", {found.images.unique().item()} in every pixel" if len(found.images.unique()) == 1 else ""
        raise UserError(
            f"--data {data}: {what}: give different images of the kind that the network makes, or leave out --data"
        )


def read_training(data: str, shape: tuple[int, int, int]) -> ImageSet:
    """Read the images that ``--clean`` trains on: not those that ``retarget trojdiff evaluate`` measures with later.

    Raises:
        UserError: as :func:`read_given`; or fewer than ``LEAST`` of them are different.
    """
    found = read_given(data, shape, "train")
    count = different(found.images)
    if count < LEAST:
        raise UserError(
            f"--data {data}: --clean needs at least {LEAST} different images to train on, and there are {count}; "
            f"{held_out(data)} is kept for measuring. Add images, or leave out --data to train on the network's own "
            "samples"
        )
    return found


def different(images: Tensor) -> int:
    """The number of different images.

    >>> import torch
    >>> different(torch.tensor([[[[0]]], [[[7]]], [[[0]]]]))
    2
    """
    return len(images.flatten(1).unique(dim=0))
