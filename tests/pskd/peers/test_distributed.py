"""Peers in two processes."""

import subprocess
import sys
from pathlib import Path

import torch


def run_ranks(world, folder):
    script = str(Path(__file__).parent / "peers_ranks.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(world), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    for rank in ranks:
        output, _ = rank.communicate(timeout=900)
        assert rank.returncode == 0, output
    return [torch.load(folder / f"{world}-{rank}", weights_only=True) for rank in range(world)]


def test_two_processes_equal_one(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    (one,) = run_ranks(1, tmp_path / "one")
    for rank in run_ranks(2, tmp_path / "two"):
        for mine, expected in zip(rank, one, strict=True):  # OLS, temporal ensembling
            for a, b in zip(mine, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
