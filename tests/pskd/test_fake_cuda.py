"""PS-KD's training steps on a GPU that is not there: fake tensors have a device and no values.

A tensor on another device, or a value that the host waits for, ends the step with an error. ``cuda`` exists for fake
tensors only in a CUDA build of torch; a GPU is not needed.
"""

import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from retarget.pskd import PSKD, Dense, TopK
from retarget.pskd.past.in_table import PastInTable

sys.path.insert(0, str(Path(__file__).parent))
import tiny


class Event:
    """A point in the queue of a GPU that is never reached."""

    def record(self, stream):
        pass

    def query(self):
        return False


pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="needs a CUDA build of torch; a GPU is not needed")
N, C = 12, 3


@pytest.mark.parametrize("store", ["dense", TopK(2)], ids=str)  # a network of fake tensors cannot be copied
def test_a_step_stays_on_the_device_and_the_host_waits_for_nothing(store, monkeypatch):
    """Without backward, which asks the driver for the device."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    with FakeTensorMode():
        with torch.device("cuda"):
            network = tiny.Plain().layer
        method = PSKD(N, C, 3, store=store)
        for epoch in range(2):
            method.checks._pending.clear()  # an epoch ends when the host has waited for its checks
            method.set_epoch(epoch)
            for first in (0, 4):
                x, y = torch.randn(4, 5, device="cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")
                loss = method.loss(network(x), y, torch.arange(first, first + 4, device="cuda"))
                assert loss.device.type == "cuda"
                assert loss.requires_grad


class Copies(TorchDispatchMode):
    """Records, of each copy from the GPU to the host, whether the host waits for it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].is_cuda and str(kwargs.get("device")) == "cpu":
            self.waits.append(not kwargs.get("non_blocking", False))
        return func(*args, **kwargs)


def test_the_host_waits_for_the_keys_of_a_table_in_its_own_memory():
    """It reads their rows at once. Without waiting these were the rows of the keys of an earlier batch."""
    with FakeTensorMode(), Copies() as copies:
        copies.waits = []
        past = PastInTable(Dense(), N, C, device="cpu")
        past.begin(1)
        past.read(past.locate(torch.arange(4, device="cuda"), torch.device("cuda:0")), torch.device("cpu"))
    assert copies.waits == [True]


def test_what_waits_or_is_elsewhere_is_found():
    """The errors on which the test above relies."""
    with FakeTensorMode():
        x = torch.randn(4, 5, device="cuda")
        with pytest.raises(DataDependentOutputException):
            x.sum().item()
        with pytest.raises(RuntimeError, match="device"):
            x + torch.randn(4, 5)
