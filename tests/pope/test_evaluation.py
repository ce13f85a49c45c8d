import math

import numpy as np
import pytest

from retarget.errors import UserError
from retarget.pope.engines.local import TransformersEngine
from retarget.pope.evaluation import Evaluation, evaluate
from retarget.pope.grading import Grader
from retarget.pope.rollouts import Sampling
from retarget.pope.tasks.testbed import PROMPTS


def make(correct, samples=32):
    return Evaluation([str(i) for i in range(len(correct))], np.array(correct), samples, 0, 0)


def test_pass_at_k_is_the_mean_over_problems_of_the_unbiased_estimator():
    found = make([0, 1, 5, 32])
    for k in (1, 4, 16, 32):
        expected = np.mean([1 - math.comb(32 - c, k) / math.comb(32, k) for c in (0, 1, 5, 32)])
        assert found.pass_at(k) == pytest.approx(expected, abs=1e-12)
    assert found.solved == {"1", "2", "3"}
    with pytest.raises(UserError, match="at least 33 samples"):
        found.pass_at(33)


def test_the_interval_covers_a_known_rate_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    rates = random.beta(1, 3, size=(120, 60))
    hits = 0
    for row in rates:
        low, high = make(random.binomial(16, row), 16).interval(1, level=0.9, resamples=400)
        hits += low <= 0.25 <= high
    assert 0.8 <= hits / 120 <= 0.97


def test_every_problem_gets_its_samples_unguided_and_a_journal_resumes(tiny, tmp_path):
    engine = TransformersEngine(tiny.model, tiny.tokenizer, name="tiny")
    common = dict(
        grader=Grader("retarget.pope.tasks.chain:verify", workers=0), prompts=PROMPTS, chunk=8,
        params=Sampling(max_tokens=8, temperature=1.0, seed=4),
    )  # fmt: skip
    found = evaluate(tiny.problems, engine, 16, journal=tmp_path / "e.jsonl", **common)
    assert found.correct.shape == (12,)
    assert found.tokens > 12 * 16
    whole = (tmp_path / "e.jsonl").read_bytes()
    (tmp_path / "e.jsonl").write_bytes(whole[: len(whole) // 2])
    again = evaluate(tiny.problems, engine, 16, journal=tmp_path / "e.jsonl", **common)
    assert (again.correct == found.correct).all()
    assert (tmp_path / "e.jsonl").read_bytes() == whole
    summary = found.to_json((1, 16, 64))
    assert list(summary["pass"]) == ["1", "16"]
    assert summary["solved"] == (found.correct > 0).sum()
    with pytest.raises(UserError, match="20 in chunks of 8"):
        evaluate(tiny.problems, engine, 20, **common)
    with pytest.raises(UserError, match="an id of its own"):
        evaluate([], engine, 16, **common)
