"""Published detectors, reimplemented from their papers, with which the audit is compared.

``diff_cleanse``, ``elijah`` and ``terd`` are modules, each with a function of its own name and its settings.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retarget.audit.baselines import diff_cleanse, elijah, terd

__all__ = ["diff_cleanse", "elijah", "terd"]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
