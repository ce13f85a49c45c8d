"""Shrink the images of an .npz file by averaging square blocks of pixels; labels and names stay as they are.

    python tools/average_images.py cifar100.npz cifar100_16.npz --side 16

The same input always gives the same output. Arrays named ``x_...`` are images [N, H, W] or [N, H, W, C] of uint8.
"""

import argparse
from pathlib import Path

import numpy as np

from retarget.files import replace_file


def averaged(images: np.ndarray, side: int) -> np.ndarray:
    """Images [N, H, H(, C)] as [N, side, side(, C)]: the mean of each block, rounded to the nearest integer."""
    block, rest = divmod(images.shape[1], side)
    if rest or images.shape[1] != images.shape[2]:
        raise SystemExit(f"images of {images.shape[1]} x {images.shape[2]} pixels have no square blocks of side {side}")
    blocks = images.reshape(len(images), side, block, side, block, *images.shape[3:])
    return np.rint(blocks.mean(axis=(2, 4))).astype(np.uint8)


def main() -> None:
    """Read the file, average its images, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--side", type=int, required=True)
    given = parser.parse_args()
    with np.load(given.source) as file:
        arrays = {
            name: averaged(file[name], given.side) if name.startswith("x_") else file[name] for name in file.files
        }

    def write(path: Path) -> None:
        with path.open("wb") as out:
            np.savez_compressed(out, **arrays)

    replace_file(given.target, write)


if __name__ == "__main__":
    main()
