"""Networks of the image-classification studies, in their CIFAR forms (3×3 stem, no max-pooling)."""

from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from retarget.errors import UserError
from retarget.extras import require
from retarget.own import called, is_path
from retarget.pskd.studies.images.pretrained import FromFolder, load_weights


class SmallCNN(nn.Sequential):
    """Two convolutions and a linear layer, for 8×8 digits."""

    def __init__(self, num_classes: int, channels: int, width: int = 32) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * width, num_classes),
        )


class PreActBlock(nn.Module):
    """Pre-activation basic block (He et al., 2016, identity mappings): norm, ReLU, convolution, twice."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.project = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        shortcut = self.project(active) if self.project is not None else x
        return shortcut + self.conv2(F.relu(self.norm2(self.conv1(active))))


class PreActResNet(nn.Module):
    """Pre-activation ResNet: ``width`` channels in the first of four stages, doubled in each of the others.

    ``PreActResNet(100, 3)`` is the textbook's PreAct ResNet-18. The official code adds batch norm and ReLU after the
    stem, passes ``relu(bn(x))`` through identity shortcuts, and has no last batch norm.
    """

    def __init__(
        self, num_classes: int, channels: int = 3, width: int = 64, blocks: Sequence[int] = (2, 2, 2, 2)
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False)]
        inputs = width
        for stage, count in enumerate(blocks):
            for block in range(count):
                layers.append(PreActBlock(inputs, width << stage, stride=2 if stage and not block else 1))
                inputs = width << stage
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU())
        self.classify = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x).mean((2, 3)))


class PyramidBottleneck(nn.Module):
    """Bottleneck of PyramidNet (Han et al., 2017): four norms, no ReLU first, shortcut padded with zeros."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, width, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.norm3, self.conv3 = nn.BatchNorm2d(width), nn.Conv2d(width, 4 * width, 1, bias=False)
        self.norm4 = nn.BatchNorm2d(4 * width)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.norm1(x))
        out = self.conv2(F.relu(self.norm2(out)))
        out = self.norm4(self.conv3(F.relu(self.norm3(out))))
        if self.stride > 1:
            x = F.avg_pool2d(x, 2)
        return out + F.pad(x, (0, 0, 0, 0, 0, out.shape[1] - x.shape[1]))


class PyramidNet(nn.Module):
    """PyramidNet with bottlenecks: the width grows by the same amount each block, by ``alpha`` in all."""

    def __init__(self, num_classes: int, channels: int = 3, depth: int = 200, alpha: int = 240) -> None:
        super().__init__()
        count = (depth - 2) // 9
        layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)]
        inputs, width = 16, 16.0
        for stage in range(3):
            for block in range(count):
                width += alpha / (3 * count)
                layers.append(PyramidBottleneck(inputs, round(width), stride=2 if stage and not block else 1))
                inputs = 4 * round(width)
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU())
        self.classify = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x).mean((2, 3)))


def _resnet101(num_classes: int, channels: int) -> nn.Module:
    net = require("torchvision.models", "vision").resnet101(num_classes=num_classes)
    net.conv1, net.maxpool = nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.Identity()
    return net


def _densenet121(num_classes: int, channels: int) -> nn.Module:
    net = require("torchvision.models", "vision").densenet121(num_classes=num_classes)
    net.features.conv0 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
    net.features.norm0 = net.features.relu0 = net.features.pool0 = nn.Identity()
    return net


def _resnext29(num_classes: int, channels: int) -> nn.Module:
    resnet = require("torchvision.models.resnet", "vision")
    net = resnet.ResNet(resnet.Bottleneck, [3, 3, 3, 1], num_classes=num_classes, groups=8, width_per_group=64)
    net.conv1, net.maxpool, net.layer4 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.Identity(), nn.Identity()
    net.fc = nn.Linear(1024, num_classes)  # three stages of three blocks: 29 layers
    return net


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "small_cnn": SmallCNN,
    "preact_resnet10_w12": partial(PreActResNet, width=12, blocks=(1, 1, 1, 1)),
    "preact_resnet10_w24": partial(PreActResNet, width=24, blocks=(1, 1, 1, 1)),
    "preact_resnet18": PreActResNet,
    "resnet101": _resnet101,
    "densenet121": _densenet121,
    "resnext29_8x64d": _resnext29,
    "pyramidnet200_a240": PyramidNet,
}


def build(name: str, num_classes: int, channels: int, weights: str | None = None) -> nn.Module:
    """A network by name: one of ``NETWORKS``, ``timm:NAME`` for any model of timm, ``hf:DIR`` for a saved image
    classifier of transformers, or ``module:function`` for a user's ``function(num_classes, channels)``.

    Args:
        weights: a safetensors file with trained weights; None initialises them at random (except for ``hf:DIR``).

    Raises:
        UserError: there is no such network (the message lists the known ones), or the weights do not fit it.
    """
    network = _built(name, num_classes, channels)
    if weights:
        load_weights(network, weights, num_classes)
    return network


def _built(name: str, num_classes: int, channels: int) -> nn.Module:
    kind, _, rest = name.partition(":")
    if is_path(name):
        made = called(name, "network", num_classes, channels)
        if not isinstance(made, nn.Module):
            raise UserError(f"network = {name!r} returned a {type(made).__name__}, not a torch.nn.Module")
        return made
    if kind == "hf" and rest:
        return FromFolder(rest, num_classes)
    if kind == "timm" and rest:
        timm = require("timm", "vision")
        if not timm.is_model(rest):
            raise UserError(f"timm has no model {rest!r}: timm.list_models() lists its models")
        return timm.create_model(rest, pretrained=False, num_classes=num_classes, in_chans=channels)
    if name not in NETWORKS:
        raise UserError(f"no network {name!r}: choose {', '.join(NETWORKS)}, timm:NAME, hf:DIR or module:function")
    return NETWORKS[name](num_classes, channels)
