"""The rules of the house: files import from their own floor and below, never in a circle, and a start loads little."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from retarget.cli import METHODS, VERBS

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "retarget"
FILES = sorted(SOURCE.rglob("*.py"))
ROOMS = sorted(path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists())
SHARED = {"metrics", "data", "study", "report"}
METHOD_ROOMS = [room for room in ROOMS if room not in SHARED]

FLOORS = (
    ("__init__", "errors"),
    ("extras", "helptext", "lazy", "verbs"),
    ("files", "settings"),
    ("cluster", "identity", "own"),
    ("data", "metrics"),
    ("study",),
    ("report", *METHOD_ROOMS),
    ("cli", "commands", "__main__"),
)
"""Every file imports from its own floor and those below. ``study`` never sees the page, methods never each other."""

TRAINERS = {"lightning": ("lightning.py",), "transformers": ("trainer.py", "trl.py"), "trl": ("trl.py",)}
PLUGINS = {"lightning.py", "trainer.py", "trl.py", "torchmetrics.py"}


def name_of(path):
    """A file's import path."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, top_level_only=False):
    """Full names of what a file imports; ``from package import name`` gives ``package.name`` where that is a module."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


MODULES = {name_of(path): path for path in FILES}


def under(name, package):
    return name == package or name.startswith(package + ".")


def room_of(module):
    return module.removeprefix("retarget").lstrip(".").partition(".")[0] or "__init__"


def floor_of(module):
    (floor,) = [number for number, rooms in enumerate(FLOORS) if room_of(module) in rooms]
    return floor


def ours(path, **more):
    return sorted({name for name in imports(path, **more) if under(name, "retarget")})


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_file_imports_from_its_own_floor_and_below(path):
    module = name_of(path)
    above = [name for name in ours(path) if floor_of(name) > floor_of(module)]
    assert above == []


@pytest.mark.parametrize("room", METHOD_ROOMS)
def test_a_method_imports_neither_the_page_nor_another_method(room):
    allowed = {room} | ({"trojdiff"} if room == "audit" else set())
    for path in (SOURCE / room).rglob("*.py"):
        others = [one for one in ours(path) if room_of(one) in {"report", *METHOD_ROOMS} - allowed]
        assert others == [], path


def test_the_auditor_may_import_the_attack_and_the_attack_never_the_auditor():
    assert any(room_of(one) == "trojdiff" for path in (SOURCE / "audit").rglob("*.py") for one in ours(path))
    assert not [path for path in (SOURCE / "trojdiff").rglob("*.py") if "audit" in map(room_of, ours(path))]


def test_the_study_does_not_know_the_page_not_even_by_a_string():
    for path in (SOURCE / "study").rglob("*.py"):
        texts = [
            node.value for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value
        ]  # fmt: skip
        assert not [text for text in texts if under(text, "retarget.report")], path


def test_no_module_imports_itself_round_a_circle():
    """Imports inside functions count: one that is there to break a circle hides it."""
    graph = {name: [one for one in ours(path) if one in MODULES] for name, path in MODULES.items()}
    done, path = set(), []

    def visit(name):
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name not in done:
            path.append(name)
            for other in graph[name]:
                visit(other)
            path.pop()
            done.add(name)

    for name in graph:
        visit(name)
    assert len(done) == len(FILES)


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "functional.py"], ids=str)
def test_functional_imports_torch_and_nothing_of_ours(path):
    assert ours(path) == []


def test_a_plug_in_imports_neither_study_nor_page():
    for path in (p for p in FILES if p.name in PLUGINS):
        assert not [name for name in ours(path) if room_of(name) in ("study", "report")], path


def test_a_trainer_library_is_imported_at_the_top_only_in_the_file_named_after_it():
    for path in FILES:
        for name in imports(path, top_level_only=True):
            for library, homes in TRAINERS.items():
                if under(name, library):
                    assert path.name in homes or {"studies", "engines"} & set(path.parts), f"{path} imports {name}"


def test_no_test_file_is_longer_than_400_lines():
    """Split a longer one by subject, as ``src/`` is; shared helpers go into a module beside the tests."""
    lengths = {str(path.relative_to(TESTS)): len(path.read_text().splitlines()) for path in TESTS.rglob("*.py")}
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


HEAVY = ("torch", "pydantic", "tyro", "numpy", "scipy", "matplotlib", "lightning", "transformers")


def loaded_after(code):
    check = f"{code}; import sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_and_its_rooms_loads_nothing_heavy():
    names = ", ".join(["retarget", *(f"retarget.{room}" for room in ROOMS)])
    assert loaded_after(f"import {names}") == "[]"


@pytest.mark.parametrize("method", METHODS)
def test_a_study_is_described_without_torch(method):
    assert "torch" not in loaded_after(f"from {METHODS[method]} import plan; plan('demo')")


def test_the_methods_of_the_command_line_are_the_rooms_of_the_house():
    assert set(METHODS) | ({"audit"} & set(VERBS)) == set(METHOD_ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_exists_and_is_listed(room):
    code = (
        f"import retarget.{room} as m; public = getattr(m, '__all__', []); "
        "print([name for name in public if not hasattr(m, name) or name not in dir(m)])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
