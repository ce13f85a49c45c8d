"""TrojDiff: trojan a diffusion model through a biased noise, and measure the attack (Chen, Song and Li, CVPR 2023)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retarget.trojdiff.schedulers import TrojanScheduler
    from retarget.trojdiff.targets import D2I, InD2D, OutD2D
    from retarget.trojdiff.trigger import Trigger

_HOME = {
    "Trigger": "trigger",
    "TrojanScheduler": "schedulers",
    "InD2D": "targets",
    "OutD2D": "targets",
    "D2I": "targets",
}
__all__ = ["D2I", "InD2D", "OutD2D", "Trigger", "TrojanScheduler"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
