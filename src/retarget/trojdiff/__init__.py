"""TrojDiff: trojan a diffusion model by biasing its noise, and measure the attack (Chen, Song and Li, CVPR 2023).

Import from here what ``__all__`` lists; ``functional`` has the equations, ``checkpoint`` reads and writes pipelines.
"""

from typing import TYPE_CHECKING

from retarget.lazy import lazy

if TYPE_CHECKING:
    from retarget.trojdiff.schedulers import TrojanScheduler
    from retarget.trojdiff.targets import D2I, InD2D, OutD2D
    from retarget.trojdiff.trigger import Trigger

__all__ = ["D2I", "InD2D", "OutD2D", "Trigger", "TrojanScheduler"]
__getattr__, __dir__ = lazy(
    __name__,
    {
        "Trigger": "trigger",
        "TrojanScheduler": "schedulers",
        "InD2D": "targets",
        "OutD2D": "targets",
        "D2I": "targets",
    },
)
