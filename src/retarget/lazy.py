"""Public names of a package that are loaded on first use, so that importing the package imports nothing."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from retarget.extras import require


def lazy(
    package: str, homes: Mapping[str, str], extras: Mapping[str, tuple[str, str]] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The two functions by which a package offers its names (PEP 562).

    In its ``__init__.py``: ``__getattr__, __dir__ = lazy(__name__, {...})``, with ``__all__`` beside it and the same
    names imported under ``TYPE_CHECKING``, for type checkers.

    Args:
        package: its ``__name__``.
        homes: for each name, the module below the package that holds it.
        extras: for a module, what :func:`~retarget.extras.require` is asked before it is imported.

    Returns:
        ``__getattr__`` and ``__dir__``.

    >>> load, names = lazy("retarget", {"UserError": "errors"})
    >>> load("UserError").__name__, "UserError" in names()
    ('UserError', True)
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if extras and homes[name] in extras:
            require(*extras[homes[name]])
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return load, lambda: sorted({*vars(sys.modules[package]), *homes})
