"""Every network is built and trained for a step; sizes are those of the literature."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from retarget.errors import UserError
from retarget.pskd.studies.images.networks import NETWORKS, build

MILLIONS = {  # parameters for 100 classes
    "preact_resnet18": 11.2,
    "resnet101": 42.7,
    "densenet121": 7.0,
    "resnext29_8x64d": 34.5,
    "pyramidnet200_a240": 26.8,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_its_size_and_learns_a_step(name):
    torch.manual_seed(0)
    channels = 1 if name == "small_cnn" else 3
    size = 8 if name in ("small_cnn", "preact_resnet10_w24") else 16
    net = build(name, 100, channels)
    if name in MILLIONS:
        assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(MILLIONS[name], abs=0.06)
    x, y = torch.randn(2, channels, size, size), torch.tensor([3, 97])
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    before = [p.detach().clone() for p in net.parameters()]
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    assert all(p.grad is not None for p in net.parameters()), "a layer takes no part"
    optimizer.step()
    assert loss.isfinite()
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_the_network_of_the_small_study_is_small():
    """At most 40 million multiply-adds per image, of two flops each."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        build("preact_resnet10_w24", 100, 3).eval()(torch.randn(1, 3, 32, 32))
    assert counter.get_total_flops() // 2 <= 40e6


def test_any_timm_model_by_name():
    assert build("timm:resnet10t", 7, 1).eval()(torch.randn(1, 1, 32, 32)).shape == (1, 7)
    with pytest.raises(UserError, match="timm has no model 'resnet_of_nowhere'"):
        build("timm:resnet_of_nowhere", 7, 1)
    with pytest.raises(UserError, match="no network 'resnet': choose small_cnn"):
        build("resnet", 7, 1)
