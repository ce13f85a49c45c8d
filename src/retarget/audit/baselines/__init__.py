"""Published detectors, reimplemented from their papers, with which the audit is compared."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from retarget.lazy import lazy

if TYPE_CHECKING:
    from retarget.audit.baselines.diff_cleanse import diff_cleanse
    from retarget.audit.baselines.elijah import elijah
    from retarget.audit.baselines.terd import terd

__all__ = ["diff_cleanse", "elijah", "terd"]
__getattr__: Callable[[str], object]
__getattr__, __dir__ = lazy(__name__, {"diff_cleanse": "diff_cleanse", "elijah": "elijah", "terd": "terd"})
