"""Parts of a user's own by import path, ``module:name``: loaded, mistakes shown in the user's lines, sources found."""

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

PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
KINDS = ("timm", "hf", "torchvision", "npz", "folder")
"""Words before a colon that are no module: they say what kind of thing is named."""
INSTALLED = ("site-packages", "dist-packages")


def is_path(text: str) -> bool:
    """Whether a setting is an import path, and not the name of a kind of thing.

    >>> is_path("mynet:build"), is_path("timm:resnet18"), is_path("small_cnn")
    (True, False, False)
    """
    return bool(PATH.fullmatch(text)) and text.partition(":")[0] not in KINDS


def load(path: str) -> Callable[..., Any]:
    """The function or class behind ``module:name``.

    Raises:
        ImportError: the module, or something that it imports, is missing.
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
    """As :func:`load`, for what a user wrote: every failure is one that the user can act on.

    Args:
        path: ``module:name``; modules of the working directory are found too.
        what: the setting that holds the path, named in errors.

    Raises:
        UserError: the path has another form, there is no such module or name, or the module fails when it is imported;
            then the user's own line is shown.
    """
    if not PATH.fullmatch(path):
        raise UserError(f"{what} = {path!r} is no import path: write module:name, such as mine:build")
    module, _, name = path.partition(":")
    found = imported(module, f"{what} = {path!r}")
    if not hasattr(found, name):
        raise UserError(f"{what} = {path!r}: {getattr(found, '__file__', module)} has no {name}")
    if not callable(getattr(found, name)):
        raise UserError(f"{what} = {path!r} is a {type(getattr(found, name)).__name__}, not a function or a class")
    return getattr(found, name)


def called(path: str, what: str, *arguments: Any, **named: Any) -> Any:
    """What a user's function or class gives for these arguments.

    Raises:
        UserError: as :func:`part`, or it fails; then the user's own line is shown.
    """
    function = part(path, what)
    try:
        return function(*arguments, **named)
    except UserError:
        raise
    except Exception as error:  # a user's function may raise anything
        origin = origin_of(path.partition(":")[0])
        raise UserError(f"{what} = {path!r} failed\n{blame(error, origin.parent if origin else Path())}") from error


def imported(module: str, what: str) -> ModuleType:
    """A user's module.

    Raises:
        UserError: there is none of this name, or it fails when it is imported; then the user's own line is shown.
    """
    origin = origin_of(module)
    if origin is None:
        raise UserError(f"{what}: there is no module {module}; modules of the working directory are found too")
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise UserError(f"{what} cannot be imported\n{blame(error, origin.parent)}") from error


def origin_of(module: str) -> Path | None:
    """The file of a module, without importing anything; None where there is none."""
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
    """The files that a module at this place may be."""
    return [place / "__init__.py", *(place.with_name(place.name + suffix) for suffix in all_suffixes())]


def blame(error: BaseException, folder: Path) -> str:
    """An error as the user sees it: the last line of the user's own on the way to it, and what was raised.

    Args:
        error: what was raised.
        folder: where the user's files lie.
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
    """Find a folder's modules for a while, after all others, so that none of them hides an installed package."""
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
    """The file of a module and, of what it imports, the files that lie beside it: read, not run.

    Imports inside functions count. Of an installed package, only its own files are followed.

    Returns:
        By their place below the folder that the module was found in, ``package/part.py``.
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
    left = [first]
    while left:
        path = left.pop()
        name = str(path.relative_to(home))
        if name in found:
            continue
        found[name] = path
        if path.suffix == ".py":
            left += [
                one for imported in _imports(path, home) if followed in (None, imported.partition(".")[0])
                for one in _files(imported, home)
            ]  # fmt: skip
    return dict(sorted(found.items()))


def _imports(path: Path, home: Path) -> Iterator[str]:
    """Dotted names that a file may import: of ``from a import b`` both ``a`` and ``a.b``."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # who imports it says so
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
    """Files below a folder that importing a module reads: those of the packages above it, and its own."""
    place = home
    for part in module.split("."):
        place = place / part
        yield from (one for one in (place / "__init__.py", place.with_name(f"{part}.py")) if one.is_file())
