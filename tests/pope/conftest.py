"""A tiny real model, trained for a moment, shared by the tests of this folder."""

import os
import shutil
import sys
import tempfile
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


@pytest.fixture(scope="module")
def cluster():
    """A real Ray cluster of one node: ports on this machine only, a folder with a short path."""
    folder = tempfile.mkdtemp(dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20})
        try:
            ray.init(address=nodes.address, log_to_driver=False, configure_logging=False)
            yield nodes
        finally:
            ray.shutdown()
            nodes.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def engine(tiny):
    from retarget.pope.engines.local import TransformersEngine

    return TransformersEngine(tiny.model, tiny.tokenizer, batch_size=4, name="tiny")


@pytest.fixture
def prompts(tiny):
    from retarget.pope.studies.testbed import PROMPTS

    return [PROMPTS.without_prefix(problem.prompt) for problem in tiny.problems[:3]]
