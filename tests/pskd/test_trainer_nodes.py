"""The Hugging Face Trainer on several machines."""

import sys
from pathlib import Path

import pytest
from transformers import TrainingArguments

from retarget.pskd import PSKDTrainer
from retarget.pskd.trainer import STATE_FILE

sys.path.insert(0, str(Path(__file__).parent))
import tiny


@pytest.mark.parametrize("local", [0, 1])
def test_a_node_with_its_own_disk_saves_its_own_table(local, tmp_path, monkeypatch):
    """With ``save_on_each_node`` the second node found its model in its checkpoint and no table, and did not resume.

    That its rank is not asked for, test_distributed.py shows.
    """
    monkeypatch.setattr(TrainingArguments, "local_process_index", local)
    args = tiny.arguments(tmp_path, save_on_each_node=True, save_strategy="epoch")
    trainer = PSKDTrainer(model=tiny.Plain(), args=args, train_dataset=tiny.vectors())
    trainer.train()
    saved = sorted(path.parent.name for path in tmp_path.glob(f"checkpoint-*/{STATE_FILE}"))
    with_model = sorted(path.parent.name for path in tmp_path.glob("checkpoint-*/model.safetensors"))
    assert saved == with_model
    assert bool(saved) == (local == 0)
