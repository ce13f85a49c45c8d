"""One smoke for generation and for a cycle of training on a GPU: ``python -m pytest -m gpu``."""

import pytest
import torch
from pope_training import run

from retarget.pope.engines import open_engine
from retarget.pope.rollouts import Sampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, shown to the tests by `pytest -m gpu`"),
]


def test_greedy_rollouts_are_those_of_the_cpu(tiny):
    there, here = open_engine(str(tiny.directory)), open_engine(str(tiny.directory), device="cpu")
    assert there.model.device.type == "cuda"
    prompts, greedy = [f"{one.prompt} =" for one in tiny.problems[:4]], Sampling(max_tokens=8, temperature=0.0)
    told = [[[one.text for one in rollouts] for rollouts in e.sample(prompts, 1, greedy)] for e in (there, here)]
    assert told[0] == told[1]
    drawn = there.sample(prompts, 2, Sampling(max_tokens=8))
    assert [[one.text for one in of] for of in drawn] == [
        [one.text for one in of] for of in there.sample(prompts, 2, Sampling(max_tokens=8))
    ]


@pytest.mark.parametrize("bf16", [False, True])
def test_a_cycle_of_training(bf16, tiny, tmp_path):
    precision = "bf16" if bf16 else "fp32"
    trainer = run(tiny.directory, tmp_path, cycles=1, precision=precision, extra={"disable_tqdm": True})
    assert next(trainer.model.parameters()).is_cuda
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert trainer.state.global_step == 2
