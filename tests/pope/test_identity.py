"""What a journal is not continued with: another number format, base model, options of vLLM, or source of a grader."""

import json
import shutil
import sys
from types import SimpleNamespace

import peft
import pytest
import torch

from retarget.errors import UserError
from retarget.pope.engines.local import TransformersEngine
from retarget.pope.engines.vllm import VLLMEngine
from retarget.pope.grading import Grader
from retarget.pope.identity import ADDED
from retarget.pope.journal import Journal
from retarget.pope.sampler import Sampler
from retarget.pope.studies.testbed import PROMPTS

EXACT = Grader("exact")


def journal(path, engine, grader=EXACT):
    """Open a journal of an engine's with one record, and close it."""
    begun(Sampler(engine, grader, PROMPTS).journal("mine", path, []))


def begun(book):
    with book:
        if not len(book):  # one without a record can begin again with other settings
            book.append({"unit": 0})


def of_an_earlier_version(path, engine, grader=EXACT):
    header = Sampler(engine, grader, PROMPTS).header("mine")
    begun(Journal(path, {name: one for name, one in header.items() if name not in ADDED}))


def test_a_journal_is_not_continued_in_another_precision(tiny, tmp_path):
    full, half = (TransformersEngine.load(str(tiny.directory), dtype=name) for name in ("float32", "bfloat16"))
    journal(tmp_path / "new.jsonl", full)
    journal(tmp_path / "new.jsonl", full)
    with pytest.raises(UserError, match=r"dtype = torch.float32 \(now torch.bfloat16\)"):
        journal(tmp_path / "new.jsonl", half)
    of_an_earlier_version(tmp_path / "old.jsonl", full)
    journal(tmp_path / "old.jsonl", half)


def test_a_journal_is_not_continued_with_options_of_vllm_that_change_its_samples(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=lambda **options: None))
    engines = [
        VLLMEngine(str(tiny.directory), **options)
        for options in ({}, {"tensor_parallel_size": 2, "max_num_seqs": 8}, {"dtype": "float16", "max_model_len": 64})
    ]
    for first in (0, 1):
        path = tmp_path / f"{first}.jsonl"
        journal(path, engines[first])
        journal(path, engines[1 - first])
        with pytest.raises(UserError, match=r'options = \{\} \(now \{"dtype": "float16", "max_model_len": 64\}\)'):
            journal(path, engines[2])
    of_an_earlier_version(tmp_path / "old.jsonl", engines[0])
    journal(tmp_path / "old.jsonl", engines[2])


@pytest.fixture
def adapter(tiny, tmp_path, monkeypatch):
    """The name of an adapter, in the working directory, of a model ``base`` there."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny.directory, "base")
    model = TransformersEngine.load("base").model
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(model, lora).save_pretrained("adapter")
    tiny.tokenizer.save_pretrained("adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    return "adapter"


def test_an_adapter_s_journal_is_not_continued_on_another_base(adapter, tmp_path):
    first = TransformersEngine.load(adapter)
    journal(tmp_path / "new.jsonl", first)
    of_an_earlier_version(tmp_path / "old.jsonl", first)
    with torch.no_grad():
        base = TransformersEngine.load("base").model
        next(iter(base.parameters())).add_(1.0)
        base.save_pretrained("base")
    other = TransformersEngine.load(adapter)
    assert other.identity["weights"] == first.identity["weights"]
    with pytest.raises(UserError, match=r"base = \w{16} \(now \w{16}\)"):
        journal(tmp_path / "new.jsonl", other)
    journal(tmp_path / "old.jsonl", other)


def test_an_adapter_without_its_base_says_which_one_it_lacks(adapter, tmp_path):
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="adapter: this adapter of the model base cannot be loaded"):
        TransformersEngine.load(adapter)


def test_a_journal_is_not_continued_with_an_edited_grader(engine, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "edited_grader.py"
    file.write_text(
        "from edited_rule import right\n\ndef grade(completion, answer, meta):\n    return right(completion)\n"
    )
    (tmp_path / "edited_rule.py").write_text("def right(text):\n    return text == '4'\n")
    grader = Grader("edited_grader:grade")
    journal(tmp_path / "new.jsonl", engine, grader)
    journal(tmp_path / "new.jsonl", engine, grader)
    of_an_earlier_version(tmp_path / "old.jsonl", engine, grader)
    (tmp_path / "edited_rule.py").write_text("def right(text):\n    return True\n")
    with pytest.raises(UserError, match=r"grader_source = \w{16} \(now \w{16}\)"):
        journal(tmp_path / "new.jsonl", engine, grader)
    journal(tmp_path / "old.jsonl", engine, grader)
