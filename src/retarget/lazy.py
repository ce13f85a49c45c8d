"""Load a package's public names on first use, so that importing the package imports nothing."""

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from retarget.extras import in_words, require


def lazy(
    package: str,
    homes: Mapping[str, str],
    extras: Mapping[str, tuple[str, str]] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the two functions that load a package's names on first use (PEP 562).

    In its ``__init__.py``: ``__getattr__, __dir__ = lazy(__name__, {...})``, with ``__all__`` beside it and the same
    names imported under ``TYPE_CHECKING``, for type checkers.

    Args:
        package: its ``__name__``.
        homes: for each name, the module below the package that defines it.
        extras: for a module, the arguments of :func:`~retarget.extras.require`, called before it is imported.
        renamed: present names by former ones, which still work, with a DeprecationWarning.

    Returns:
        ``__getattr__`` and ``__dir__``.

    >>> load, names = lazy("retarget", {"UserError": "errors"})
    >>> load("UserError").__name__, "UserError" in names()
    ('UserError', True)
    """

    def load(name: str) -> Any:
        if renamed and name in renamed:
            new = renamed[name]
            warnings.warn(f"{package}.{name} is now called {new}", DeprecationWarning, stacklevel=2)
            name = new
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if extras and homes[name] in extras:
            require(*extras[homes[name]])
        try:
            home = import_module(f"{package}.{homes[name]}")
        except ModuleNotFoundError as error:
            raise in_words(error, f"{package}..".split(".")[1]) from error
        return getattr(home, name)

    return load, lambda: sorted({*vars(sys.modules[package]), *homes})
