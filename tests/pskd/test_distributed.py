"""Two processes equal one on the same global batch, and every rank ends with every row."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.distributed_c10d import BackendConfig

from retarget.pskd.past.exchange import communication_device

sys.path.insert(0, str(Path(__file__).parent))
from processes import run_ranks


def train(case, store, world, folder):
    return run_ranks(Path(__file__).parent / "ranks.py", [case, store], world, folder)


@pytest.mark.parametrize(("case", "store"), [("pad", "dense"), ("drop", "topk"), ("pad", "file")])
def test_two_processes_equal_one(case, store, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (one,) = train(case, store, 1, tmp_path / "one")
    two = train(case, store, 2, tmp_path / "two")
    for rank in two:
        assert torch.equal(rank["rows"], two[0]["rows"]), "ranks differ in their rows"
        assert torch.equal(rank["written"], one["written"])
        for a, b in zip(rank["weights"], one["weights"], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        torch.testing.assert_close(rank["rows"], one["rows"], rtol=0, atol=1e-6)


def test_four_processes_equal_one(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "four").mkdir()
    (one,) = train("even", "dense", 1, tmp_path / "one")
    for rank in train("even", "dense", 4, tmp_path / "four"):
        for name in ("rows", "weights"):
            torch.testing.assert_close(rank[name], one[name], rtol=0, atol=1e-6)


def test_four_processes_agree_where_padding_repeats_samples(tmp_path):
    ranks = train("pad", "dense", 4, tmp_path)
    for rank in ranks:
        assert rank["written"].all()
        assert torch.equal(rank["rows"], ranks[0]["rows"])


@pytest.mark.parametrize(("began", "goes_on", "refused"), [(2, 1, {0}), (2, 3, {2}), (1, 2, {0, 1})])
def test_a_table_in_files_of_another_number_of_processes_is_named(began, goes_on, refused, tmp_path):
    """A table in memory goes on."""
    for rank in train("begin", "both", began, tmp_path):
        assert not rank["said"]
    cause = "table holds a table that another number of processes wrote: each of them has a copy of its own"
    for number, rank in enumerate(train("resume", "both", goes_on, tmp_path)):
        assert (cause in rank["said"]) == (number in refused) == bool(rank["said"]), rank["said"]
        assert rank["written"].all()


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("shards", r"sample 0 has one label in process 0 and another in process 1: .*with_index\(dataset\) first"),
        ("lengths", r"the processes have tables of 4, 3 rows: num_samples, or what stands for it"),
        ("unwritable", r"cannot write|another process could not save its state"),
    ],
)
def test_every_process_is_told_what_is_wrong_with_one(case, told, tmp_path):
    ranks = train(case, "say", 2, tmp_path)
    assert all(re.search(told, rank["said"]) for rank in ranks), ranks
    assert not any(rank["found"] for rank in ranks)


def test_a_state_is_there_for_every_process_when_it_is_saved(tmp_path):
    assert train("saved", "say", 2, tmp_path) == [{"said": "", "found": True}] * 2


def test_a_process_that_is_not_the_first_writes_if_it_is_asked_to(tmp_path):
    """As the first process of each node does, if the nodes have no common disk."""
    assert [rank["found"] for rank in train("second", "say", 2, tmp_path)] == [False, True]


def test_every_rank_has_the_same_previous_model_and_a_resumed_one_has_it_too(tmp_path):
    one, two = train("norm", "model", 2, tmp_path)
    assert torch.equal(one["past"], two["past"])
    for rank in (one, two):
        assert torch.equal(rank["resumed"], rank["past"])


def test_the_lightning_callback_on_two_processes_equals_one(tmp_path):
    script = str(Path(__file__).parent / "lightning_ranks.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for command in ([sys.executable], torchrun):
        subprocess.run([*command, script, str(tmp_path)], check=True, capture_output=True, timeout=900)
    (one,) = [torch.load(tmp_path / "1-0", weights_only=True)]
    for rank in range(2):
        for a, b in zip(one, torch.load(tmp_path / f"2-{rank}", weights_only=True), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    pasts = [torch.load(tmp_path / f"past-2-{rank}", weights_only=True) for rank in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*pasts, strict=True)), "batch norm's statistics differ"


@pytest.mark.parametrize(
    ("backend", "device"),
    [
        *((name, "cuda:1") for name in ("nccl", "undefined", "cuda:nccl")),
        *((name, "cpu") for name in ("gloo", "cpu:gloo,cuda:nccl")),
    ],
)
def test_rows_are_exchanged_on_a_device_that_the_backend_supports(backend, device, monkeypatch):
    """``init_process_group()`` on a machine with GPUs makes NCCL alone, and calls the backend undefined."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    config = str(BackendConfig(backend))
    monkeypatch.setattr(torch.distributed, "get_backend_config", lambda: config)
    assert communication_device() == torch.device(device)


def test_a_table_on_a_gpu_is_exchanged_on_that_gpu(monkeypatch):
    """In a loop without ``torch.cuda.set_device`` every process's current GPU is the first one, which NCCL refuses."""
    monkeypatch.setattr(torch.distributed, "get_backend_config", lambda: "cuda:nccl")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert communication_device(torch.device("cuda:3")) == torch.device("cuda:3")
    assert communication_device(torch.device("cpu")) == torch.device("cuda:0")
