"""The samplers of the Hugging Face Trainer draw the same batches with PS-KD as without."""

import sys
from pathlib import Path

import datasets
import pytest
from transformers import Trainer

from retarget.pskd import PSKDTrainer

sys.path.insert(0, str(Path(__file__).parent))
import tiny


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance", "random"])
def test_a_column_of_lengths_groups_the_samples_as_in_the_librarys_trainer(strategy, tmp_path):
    """The index goes around the dataset, in which the library then found no column, and measured the inputs itself."""
    rows = [
        {**one, "input_ids": one["input_ids"].tolist(), "length": 7 * i % 12} for i, one in enumerate(tiny.texts(12))
    ]
    args = tiny.arguments(tmp_path, train_sampling_strategy=strategy, remove_unused_columns=False)
    drawn = []
    for kind in (Trainer, PSKDTrainer):
        trainer = kind(model=tiny.classifier(), args=args, train_dataset=datasets.Dataset.from_list(rows))
        sampler = trainer.get_train_dataloader().batch_sampler
        drawn.append(getattr(sampler, "lengths", None) or getattr(sampler.sampler, "lengths", len(sampler.sampler)))
    assert drawn[0] == drawn[1]
