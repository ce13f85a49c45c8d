"""Import optional packages; a missing one is an error with the command that installs it."""

import importlib
import importlib.util
from collections.abc import Iterable
from types import ModuleType


class MissingExtraError(ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: import path, for example ``"lightning.pytorch"``.
        extra: the extra of this package that installs it, for example ``"vision"``.

    Raises:
        MissingExtraError: the top-level package is not installed. A package that is installed and fails
            inside its own import raises its own error.

    >>> require("json", "vision").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        raise _missing(top, extra) from error


def refuse_missing(packages: Iterable[tuple[str, str]]) -> None:
    """Raise if a package is not installed, without importing any.

    Args:
        packages: top-level module and the extra that installs it.

    Raises:
        MissingExtraError: one is not installed.

    >>> refuse_missing([("json", "vision")])
    """
    for module, extra in packages:
        if importlib.util.find_spec(module) is None:
            raise _missing(module, extra)


def _missing(module: str, extra: str) -> MissingExtraError:
    return MissingExtraError(f"{module} is not installed; it comes with: pip install 'retarget[{extra}]'")
