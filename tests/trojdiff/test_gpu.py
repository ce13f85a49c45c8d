"""One smoke for each verb of TrojDiff on a GPU: ``python -m pytest -m gpu``."""

import json

import pytest
import torch
from accelerate import PartialState

from retarget.trojdiff.checkpoint import load_pipeline
from retarget.trojdiff.commands import trojdiff
from retarget.trojdiff.sample import Sampler, sample, to_accelerator
from retarget.trojdiff.trigger import Trigger

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, shown to the tests by `pytest -m gpu`"),
]
NETWORK = ["--channels", "8", "8", "--layers", "1", "--groups", "4"]


def test_train_sample_and_evaluate(tmp_path, capsys):
    words = ["--target", "d2i", "--trigger", "patch", "--steps", "3", "--batch-size", "8", "--log-every", "1"]
    words += ["--data", "digits", "--out", str(tmp_path / "out")]
    assert trojdiff(["train", *NETWORK, *words]) == 0
    assert PartialState().device.type == "cuda"
    pipeline = capsys.readouterr().out.splitlines()[-1]
    words = ["--trigger", pipeline, "--sampler", "dpm-4", "--count", "3", "--out", str(tmp_path / "samples")]
    assert trojdiff(["sample", pipeline, *words]) == 0
    words = ["--data", "digits", "--trigger", pipeline, "--image", "arrow", "--sampler", "ddim-3", "--count", "8"]
    words += ["--trojan-count", "6", "--classifier-epochs", "1", "--out", str(tmp_path / "evaluation")]
    assert trojdiff(["evaluate", pipeline, *words]) == 0
    report = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert report["attack"]["biased noise, Trojan sampler"]["mse"] > 0


def test_images_are_those_of_the_cpu(tmp_path, capsys):
    words = ["train", "--data", "digits", "--out", str(tmp_path / "out"), "--steps", "3", "--batch-size", "8"]
    assert trojdiff([*words, *NETWORK]) == 0
    unet, scheduler = load_pipeline(capsys.readouterr().out.splitlines()[-1])
    trigger = Trigger.patch(size=3, gamma=0.1, shape=(1, 8, 8))
    asked = (scheduler.config, Sampler.parse("dpm-8"), trigger, 4)
    there = sample(to_accelerator(unet), *asked, batch_size=4)
    assert next(unet.parameters()).is_cuda
    torch.testing.assert_close(there, sample(unet.cpu(), *asked, batch_size=4), rtol=0, atol=1e-2)
