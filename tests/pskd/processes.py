"""Ranks of one process group, each a process that runs the same script."""

import subprocess
import sys
from pathlib import Path

import torch


def run_ranks(script: Path, words: list[str], world: int, folder: Path) -> list[dict]:
    """Run ``script WORDS RANK WORLD FOLDER`` once per rank; what each of them saved as ``FOLDER/WORLD-RANK``."""
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), *words, str(rank), str(world), str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    for rank in ranks:
        output, _ = rank.communicate(timeout=900)
        assert rank.returncode == 0, output
    return [torch.load(folder / f"{world}-{rank}", weights_only=True) for rank in range(world)]
