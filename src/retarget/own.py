"""Load users' own code by import path, ``module:name``; report errors with the user's line; find its sources."""

import ast
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import all_suffixes
from pathlib import Path
from types import ModuleType
from typing import Any

from retarget.errors import UserError
from retarget.files import is_there

PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
KINDS = ("timm", "hf", "torchvision", "npz", "folder")
"""Prefixes before a colon that are not modules but kinds of datasets, networks and so on."""
INSTALLED = ("site-packages", "dist-packages")


def is_path(text: str) -> bool:
    """Whether a setting is an import path, rather than a name with one of these prefixes.

    >>> is_path("mynet:build"), is_path("timm:resnet18"), is_path("small_cnn")
    (True, False, False)
    """
    return bool(PATH.fullmatch(text)) and text.partition(":")[0] not in KINDS


def load(path: str) -> Callable[..., Any]:
    """The function or class behind ``module:name``.

    Raises:
        ImportError: the module, or a module that it imports, is missing.
        AttributeError: the module has no such name.
        ValueError: the path has another form.

    >>> load("math:sqrt")(4)
    2.0
    """
    module, colon, name = path.partition(":")
    if not colon:
        raise ValueError(f"{path!r} is not of the form module:function")
    return getattr(importlib.import_module(module), name)


def part(path: str, what: str) -> Callable[..., Any]:
    """As :func:`load`, for users' code: every failure becomes a UserError.

    Args:
        path: ``module:name``; modules of the working directory are found too.
        what: the setting with the path, for messages.

    Raises:
        UserError: the path has another form, there is no such module or name, or importing the module fails; then the
            message shows the user's own line.
    """
    if not PATH.fullmatch(path):
        raise UserError(f"{what} = {path!r} is not an import path: write module:name, such as mine:build")
    module, _, name = path.partition(":")
    found = imported(module, f"{what} = {path!r}")
    if not hasattr(found, name):
        raise UserError(f"{what} = {path!r}: {getattr(found, '__file__', module)} has no {name}")
    if not callable(getattr(found, name)):
        raise UserError(f"{what} = {path!r} is a {type(getattr(found, name)).__name__}, not a function or a class")
    return getattr(found, name)


def called(path: str, what: str, *arguments: Any, **named: Any) -> Any:
    """Call a user's function or class.

    Raises:
        UserError: as :func:`part`, or the call fails; then the message shows the user's own line.
    """
    function = part(path, what)
    try:
        return function(*arguments, **named)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        origin = origin_of(path.partition(":")[0])
        raise UserError(f"{what} = {path!r} failed\n{blame(error, origin.parent if origin else Path())}") from error


def imported(module: str, what: str) -> ModuleType:
    """Import a user's module.

    Raises:
        UserError: there is no such module, or importing it fails; then the message shows the user's own line.
    """
    origin = origin_of(module)
    if origin is None:
        raise UserError(f"{what}: there is no module {module}; modules of the working directory are found too")
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        alone = "with no known parent package" in str(error)  # a file of a package, which was named by its path
        remedy = f"\nName it as a module of its package, such as package.{module}, or import without the dot" * alone
        raise UserError(f"{what} cannot be imported\n{blame(error, origin.parent)}{remedy}") from error


def origin_of(module: str) -> Path | None:
    """The file of a module, without importing anything; None if there is none."""
    top, *inner = module.split(".")
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    origin = Path(found.origin) if found and found.has_location and found.origin else None
    places = [Path(place) for place in (found.submodule_search_locations if found else None) or ()]
    for one in inner:
        origin = next((file for place in places for file in _named(place / one) if file.is_file()), None)
        places = [place / one for place in places if (place / one).is_dir()]
    return origin


def _named(place: Path) -> list[Path]:
    """The files that a module at this path may have."""
    return [place / "__init__.py", *(place.with_name(place.name + suffix) for suffix in all_suffixes())]


def blame(error: BaseException, folder: Path) -> str:
    """Format an error for the user: the last line of the user's own code in the traceback, and the exception.

    Args:
        error: the exception.
        folder: the folder of the user's files.
    """
    summary = traceback.TracebackException.from_exception(error)
    raised = "".join(summary.format_exception_only()).rstrip()
    ours = [frame for frame in summary.stack if folder in Path(frame.filename).parents]
    if isinstance(error, SyntaxError) or not ours:  # a syntax error names its own line
        return raised
    last = ours[-1]
    return f'  File "{last.filename}", line {last.lineno}, in {last.name}\n    {last.line}\n{raised}'


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Make a folder's modules importable inside the ``with`` block, searched last, so that they hide no package."""
    text = str(folder)
    if text in sys.path:
        yield
        return
    sys.path.append(text)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(text)


def sources(module: str) -> dict[str, Path]:
    """The file of a module, and what it imports of the files beside it and in the working directory.

    They are parsed, not run, and imports inside functions count. For an installed package, only its own files are
    followed.

    Returns:
        Files, keyed by their path relative to the module's folder (or the working directory), such as
        ``package/part.py``.
    """
    first = origin_of(module)
    if first is None:
        return {}
    top = module.partition(".")[0]
    home = first.parent
    for _ in range(module.count(".") + (first.name == "__init__.py")):
        home = home.parent
    followed = top if any(name in first.parts for name in INSTALLED) or home == Path(ast.__file__).parent else None
    found: dict[str, Path] = {}
    left = [(first, home)]
    while left:
        path, folder = left.pop()
        name = str(path.relative_to(folder))
        if name in found:
            continue
        found[name] = path
        if path.suffix == ".py":
            left += [
                one for imported in _imports(path, folder) if followed in (None, imported.partition(".")[0])
                for one in _resolved(imported, home, elsewhere=followed is None)
            ]  # fmt: skip
    return dict(sorted(found.items()))


def _resolved(module: str, home: Path, *, elsewhere: bool) -> list[tuple[Path, Path]]:
    """The files that importing a module reads, each with its folder: the task's own, or else the working directory."""
    found = [(file, home) for file in _files(module, home)]
    here = Path.cwd()
    if found or not elsewhere or home == here or not _is_found_in(here, module.partition(".")[0]):
        return found
    return [(file, here) for file in _files(module, here)]


def _is_found_in(folder: Path, top: str) -> bool:
    """Whether Python finds a module directly in this folder; this package is identified by its version."""
    if top in ("", "retarget") or not any(is_there(folder / name) for name in (top, f"{top}.py")):
        return False
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    places = [found.origin or "", *(found.submodule_search_locations or ())] if found else []
    return any(Path(place) in (folder / f"{top}.py", folder / top) for place in places if place)


def _imports(path: Path, home: Path) -> Iterator[str]:
    """Dotted names that a file may import: for ``from a import b`` both ``a`` and ``a.b``."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # importing it reports that
        return
    package = path.relative_to(home).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from [base] * bool(base)
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)


def _files(module: str, home: Path) -> Iterator[Path]:
    """Files below a folder that importing a module reads: its own, and those of the packages above it."""
    place = home
    for part in module.split("."):
        place = place / part
        yield from (one for one in (place / "__init__.py", place.with_name(f"{part}.py")) if one.is_file())
