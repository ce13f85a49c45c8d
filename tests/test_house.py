"""The rules of the house: who may import what, and how long a start may take in modules."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "retarget"
METHODS = ("pskd", "pope", "trojdiff")
TRAINERS = {"lightning": ("lightning.py",), "transformers": ("trainer.py", "trl.py"), "trl": ("trl.py",)}
FILES = sorted(SOURCE.rglob("*.py"))


def imports(path, top_level_only=False):
    """Full names of what a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def under(name, package):
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "functional.py"], ids=str)
def test_functional_imports_torch_and_nothing_of_ours(path):
    ours = [name for name in imports(path) if under(name, "retarget")]
    assert ours == []


@pytest.mark.parametrize("room", ["study", "report", "metrics"])
def test_the_shared_core_knows_no_method(room):
    for path in (SOURCE / room).rglob("*.py"):
        for name in imports(path):
            for method in (*METHODS, "audit"):
                assert not under(name, f"retarget.{method}"), f"{path} imports {name}"


@pytest.mark.parametrize("method", METHODS)
def test_methods_do_not_import_each_other(method):
    for path in (SOURCE / method).rglob("*.py"):
        for name in imports(path):
            for other in (*METHODS, "audit"):
                assert other == method or not under(name, f"retarget.{other}"), f"{path} imports {name}"


def test_a_trainer_library_is_imported_at_the_top_only_in_the_file_named_after_it():
    for path in FILES:
        for name in imports(path, top_level_only=True):
            for library, homes in TRAINERS.items():
                if under(name, library):
                    assert path.name in homes or {"tasks", "studies", "engines"} & set(path.parts), (
                        f"{path} imports {name}"
                    )


HEAVY = ("torch", "pydantic", "tyro", "numpy", "scipy", "matplotlib", "lightning", "transformers")


def loaded_after(code):
    check = f"{code}; import sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_and_its_methods_loads_nothing_heavy():
    code = "import retarget, retarget.pskd, retarget.metrics, retarget.pope, retarget.trojdiff, retarget.report"
    assert loaded_after(code) == "[]"


@pytest.mark.parametrize("method", [m for m in METHODS if (SOURCE / m / "study.py").exists()])
def test_a_study_is_described_without_torch(method):
    assert "torch" not in loaded_after(f"from retarget.{method}.study import plan; plan('demo')")


@pytest.mark.parametrize("method", METHODS)
def test_every_public_name_exists(method):
    code = f"import retarget.{method} as m; print([name for name in m.__all__ if not hasattr(m, name)])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
