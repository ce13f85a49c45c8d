"""POPE's example runs on a tiny random model."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def test_own_problems():
    found = load("pope_own_problems").main()
    assert found == {"hard": 4, "prefixes": 4, "rows": 8, "pass@1": 0.0}  # a random model solves nothing


def test_a_source_without_a_model_is_refused():
    with pytest.raises(SystemExit, match="neither a GGUF file nor an installed package"):
        load("pope_model_from_gguf").main("no_such_package", "out")
