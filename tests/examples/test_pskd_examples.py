"""Every example runs and learns."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "examples"
LEARNT = {  # the least that ``main`` must return
    "pskd_plain_pytorch": 0.9,
    "pskd_lightning": 0.9,
    "pskd_accelerate": 0.9,
    "pskd_timm": 0.5,
    "pskd_detection": 0.8,
    "pskd_hf_image_classification": 0.7,
    "pskd_hf_text_classification": 0.9,
    "pskd_hf_translation": 0.7,
    "pskd_hf_causal_lm": 1.0,
    "pskd_mixing": 0.9,
    "pskd_multilabel": 0.9,
    "pskd_sft_lora": 0.4,
    "pskd_segmentation": 0.5,
}


def test_no_example_is_left_out():
    assert {path.stem for path in FOLDER.glob("pskd_*.py")} == set(LEARNT)


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


@pytest.mark.parametrize("name", LEARNT)
def test_it_learns(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(name).main() >= LEARNT[name]


def test_timm_mixes():
    assert load("pskd_timm").main(epochs=2, images=100, mixing=0.5) > 0
