"""TrojDiff's training step on a GPU that is not there: fake tensors have a device and no values.

A tensor on another device, or a value that the host waits for, ends the step with an error. ``cuda`` exists for fake
tensors only in a CUDA build of torch; a GPU is not needed.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from retarget.trojdiff import InD2D, Trigger
from retarget.trojdiff.config import TrainConfig
from retarget.trojdiff.train import _Loop

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="needs a CUDA build of torch; a GPU is not needed")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_stays_on_the_device_and_the_host_waits_for_nothing(accumulation, make_unet, scheduler, digits):
    config = TrainConfig(steps=6, batch_size=8, learning_rate=1e-3, accumulation=accumulation)
    trigger = Trigger.patch(2, shape=(1, 8, 8))
    loop = _Loop(make_unet(), scheduler, digits, config, InD2D(7), trigger, "trojdiff")
    batch = loop._batch(0)  # made on the host, from images
    loop._batch = lambda step: batch

    def backward(loss):
        """Gradients where they would be; the real ones ask the driver for the device."""
        assert loss.requires_grad
        for one in loop.unet.parameters():
            one.grad = torch.zeros_like(one) + loss.detach()

    loop.accelerator.backward = backward
    before = loop.accelerator.state.device
    loop.accelerator.state.device = torch.device("cuda")  # as accelerate sets it where it finds a GPU
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            with torch.device("cuda"):
                loop.unet = make_unet().train()
            loop.optimizer.optimizer = torch.optim.Adam(loop.unet.parameters())
            loop.ema.shadow_params = [one.detach().clone() for one in loop.unet.parameters()]
            loop.loss_sum = torch.zeros((), device="cuda")
            for step in range(2):
                loop.step(step)
            assert loop.loss_sum.device.type == "cuda"
            assert {one.device.type for one in loop.ema.shadow_params} == {"cuda"}
    finally:
        loop.accelerator.state.device = before
