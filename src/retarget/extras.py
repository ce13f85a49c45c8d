"""Import optional packages; a missing one is an error with the command that installs it."""

import importlib
import importlib.util
import re
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from types import ModuleType

ROOMS = {"metrics": "vision", "pskd": "vision", "pope": "rl", "trojdiff": "diffusion", "audit": "audit"}
"""The extra that a part of this package needs most often."""
_OF = {"sklearn": "scikit-learn", "PIL": "torchvision"}
"""The package that brings a module, where their names differ by more than a dash."""


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


def in_words(error: ModuleNotFoundError, room: str) -> ImportError:
    """The error to show in place of a failed import: that of a missing extra, or the same if no extra is missing.

    Args:
        error: of an ``import`` of any module.
        room: the part of this package that was used, a key of :data:`ROOMS`.

    >>> print(in_words(ModuleNotFoundError(name="trl.trainer"), "pope"))
    trl is not installed; it comes with: pip install 'retarget[rl]' (in a clone: pip install '.[rl]')
    >>> in_words(ModuleNotFoundError("no module", name="nowhere"), "trojdiff")
    ModuleNotFoundError('no module')
    """
    top = (error.name or "").partition(".")[0]
    bring = [extra for extra, packages in _extras().items() if _OF.get(top, top).replace("_", "-") in packages]
    if not bring:
        return error
    return _missing(top, ROOMS[room] if ROOMS.get(room) in bring else bring[0])


@cache
def _extras() -> dict[str, set[str]]:
    """The packages that each extra brings; none if this package is not installed."""
    found: dict[str, set[str]] = {}
    try:
        asked = requires("retarget") or []
    except PackageNotFoundError:
        return found
    for line in asked:
        if extra := re.search(r"""extra == ['"]([\w-]+)['"]""", line):
            found.setdefault(extra[1], set()).update(re.findall(r"^[\w.-]+", line))
    return found


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
    return MissingExtraError(
        f"{module} is not installed; it comes with: pip install 'retarget[{extra}]' "
        f"(in a clone: pip install '.[{extra}]')"
    )
