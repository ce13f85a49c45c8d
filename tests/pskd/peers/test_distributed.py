"""Peers in two processes."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from processes import run_ranks

SCRIPT = Path(__file__).parent / "peers_ranks.py"


def test_two_processes_equal_one(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    (one,) = run_ranks(SCRIPT, [], 1, tmp_path / "one")
    for rank in run_ranks(SCRIPT, [], 2, tmp_path / "two"):
        for mine, expected in zip(rank, one, strict=True):  # OLS, temporal ensembling, BSD, OLS with an empty rank
            for a, b in zip(mine, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
