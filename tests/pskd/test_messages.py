"""What is said to somebody who passes something else than was expected."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from retarget.errors import UserError
from retarget.pskd import PSKDTrainer, SequencePSKD, with_index
from retarget.pskd.index import KeepIndex, indexed

sys.path.insert(0, str(Path(__file__).parent))
import tiny

OTHER_TYPES = """
from collections import OrderedDict, namedtuple
import torch
from transformers.modeling_outputs import SequenceClassifierOutput
from retarget.pskd import PSKD, MultiLabelPSKD, PixelPSKD, SequencePSKD, TopK

def said(call, *args):
    try:
        call(*args)
    except Exception as error:
        print(type(error).__name__, error)

z, index, labels = torch.zeros(2, 3), torch.arange(2), torch.tensor([0, 2])
for outputs in (
    {"out": z}, OrderedDict(out=z, aux=z), SequenceClassifierOutput(logits=z), namedtuple("Two", "logits aux")(z, z)
):
    for method, targets in (
        (PSKD(2, 3, 2), labels), (MultiLabelPSKD(2, 3, 2), torch.zeros(2, 3)),
        (SequencePSKD([1, 1], 3, 2), labels[:, None]),
        (PixelPSKD(2, (1, 1), 3, 2, store=TopK(2)), labels[:, None, None]),
    ):
        method.set_epoch(0)
        said(method.loss, outputs, targets, index)
        said(method.remember, outputs, targets, index)
for alpha_T in ("0.8", None, [0.8], 80):
    said(PSKD, 2, 3, 2, alpha_T)
"""


def test_other_types_are_named():
    """In a process of its own: the tests check types, which users' programs do not."""
    done = subprocess.run([sys.executable, "-c", OTHER_TYPES], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    held = ["dict with out", "OrderedDict with out, aux", "SequenceClassifierOutput with logits", "Two"]
    remedy = "Pass the logits of the model's outputs: outputs.logits (Hugging Face, Inception), outputs['out'] "
    assert lines[:-4] == [
        f"UserError logits must be a tensor: got a {one}. {remedy}(torchvision's segmentation)"
        for one in held
        for _ in range(8)
    ], done.stderr
    assert lines[-4:] == [f"UserError alpha_T must lie in [0, 1]: got {one}" for one in ("'0.8'", None, [0.8], 80)]


def test_a_trainer_without_a_training_set_says_so(tmp_path):
    with pytest.raises(UserError, match="has no train_dataset"):
        indexed(None, lambda one: one)


def test_texts_are_no_labels():
    collate = KeepIndex(lambda features: {"input_ids": torch.zeros(len(features))})
    with pytest.raises(UserError, match="class numbers: one is the text 'a'"):
        collate([{"input_ids": 0, "label": "a", "index": 0}])
    with pytest.raises(UserError, match="the collator returned only input_ids"):
        collate([{"input_ids": 0, "index": 0}])


def test_a_key_that_the_trainer_adds_itself_is_to_be_renamed():
    with pytest.raises(UserError, match=r'a key "index", which with_index and the trainers add: rename it'):
        with_index([{"x": 1, "index": 5}])[0]


def test_a_model_with_one_logit_is_told_what_its_labels_must_be(tmp_path):
    model = tiny.Plain()
    model.layer = nn.Linear(5, 1)
    samples = [{**one, "labels": 0} for one in tiny.vectors()]
    with pytest.raises(UserError, match=r"num_labels=1.*num_labels=2; or, .* floats \[B, 1\]"):
        PSKDTrainer(model=model, args=tiny.arguments(tmp_path), train_dataset=samples).train()


def test_targets_that_are_drawn_anew_need_the_previous_model():
    method = SequencePSKD([2], 3, 2)
    method.set_epoch(0)
    with pytest.raises(UserError, match=r"1 targets but 2 rows.*store=PreviousModel\(\)"):
        method.loss(torch.zeros(1, 2, 3), torch.tensor([[1, -100]]), torch.tensor([0]))
