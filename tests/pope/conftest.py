"""A tiny real model, trained for a moment, shared by the tests of this folder."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A base that knows a little: its directory, model, tokenizer, and problems of length 2 (sometimes solved)."""
    import torch

    from retarget.pope.studies.chain import Corpus, make_problems
    from retarget.pope.studies.testbed import BaseModel, load_base, train_base

    torch.set_num_threads(1)
    base = BaseModel(
        corpus=Corpus(short=(1, 1), long=(2, 4), step_accuracy=1.0), layers=1, width=32, heads=2, steps=500,
        short_only_steps=0, batch_size=32, lr=8e-3,
    )  # fmt: skip
    cache = tmp_path_factory.mktemp("base")
    directory = train_base(base, cache)
    model, tokenizer = load_base(directory)
    return SimpleNamespace(
        base=base, cache=cache, directory=directory, model=model, tokenizer=tokenizer,
        problems=make_problems(12, 2, seed=3),
    )  # fmt: skip
