import json
import math
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from statsmodels.stats.proportion import proportion_confint

from retarget.errors import UserError
from retarget.pope.engines.local import TransformersEngine
from retarget.pope.evaluation import Evaluation, evaluate
from retarget.pope.grading import Grader
from retarget.pope.mining import mine
from retarget.pope.rollouts import Sampling
from retarget.pope.studies.testbed import PROMPTS


def make(correct, samples=32):
    return Evaluation([str(i) for i in range(len(correct))], np.array(correct), samples, 0, 0)


def test_pass_at_k_is_the_mean_over_problems_of_the_unbiased_estimator():
    found = make([0, 1, 5, 32])
    for k in (1, 4, 16, 32):
        expected = np.mean([1 - math.comb(32 - c, k) / math.comb(32, k) for c in (0, 1, 5, 32)])
        assert found.pass_at(k) == pytest.approx(expected, abs=1e-12)
    assert found.solved == {"1", "2", "3"}
    with pytest.raises(UserError, match="pass@33: k must be between 1 and the 32 samples"):
        found.pass_at(33)


def test_the_interval_covers_a_known_rate_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    rates = random.beta(1, 3, size=(120, 60))
    hits = 0
    for row in rates:
        low, high = make(random.binomial(16, row), 16).interval(1, level=0.9, resamples=400)
        hits += low <= 0.25 <= high
    assert 0.8 <= hits / 120 <= 0.97


def test_problems_that_are_all_alike_have_an_interval():
    """Hard problems before training: resampling them shows no spread, but others like them may be solved."""
    for k in (1, 16):
        assert make([0] * 20, 32).interval(k) == pytest.approx(proportion_confint(0, 20, method="wilson"))
    low, high = make([16], 32).interval(1)
    assert (low, high) == pytest.approx(proportion_confint(0.5, 1, method="wilson"))


def test_every_problem_gets_its_samples_unguided_and_a_journal_resumes(tiny, tmp_path):
    engine = TransformersEngine(tiny.model, tiny.tokenizer, name="tiny")
    common = dict(
        grader=Grader("retarget.pope.studies.chain:verify", workers=0), prompts=PROMPTS, chunk=8,
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
    with pytest.raises(UserError, match="samples, chunk and batch must be at least 1, not 0"):
        evaluate(tiny.problems, engine, 0, **common)
    with pytest.raises(UserError, match="an id of its own"):
        evaluate([], engine, 16, **common)


def test_an_evaluation_does_not_repeat_the_rollouts_that_selected_its_problems(tiny, tmp_path):
    common = dict(
        engine=TransformersEngine(tiny.model, tiny.tokenizer, name="tiny"), chunk=8, prompts=PROMPTS,
        grader=Grader("retarget.pope.studies.chain:verify", workers=0),
        params=Sampling(max_tokens=8, temperature=1.0, seed=4),
    )  # fmt: skip
    mine(tiny.problems, k=8, stop_at_success=False, journal=tmp_path / "mine.jsonl", **common)
    evaluate(tiny.problems, samples=8, journal=tmp_path / "evaluate.jsonl", **common)
    examples = [
        [json.loads(line)["answers"] for line in (tmp_path / f"{verb}.jsonl").read_text().splitlines()[1:]]
        for verb in ("mine", "evaluate")
    ]
    assert len(examples[0]) == len(examples[1]) == 12
    assert examples[0] != examples[1]


def test_a_journal_is_refused_when_other_weights_lie_at_the_same_path(tiny, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny.directory, folder)
    common = dict(
        samples=8, chunk=8, prompts=PROMPTS, params=Sampling(max_tokens=4), journal=tmp_path / "e.jsonl",
        grader=Grader("retarget.pope.studies.chain:verify", workers=0),
    )  # fmt: skip
    evaluate(tiny.problems[:1], TransformersEngine.load(str(folder)), **common)
    evaluate(tiny.problems[:1], TransformersEngine.load(str(folder)), **common)
    with pytest.raises(UserError, match=r"was made with batch_size = 64 \(now 3\)\. Give another file"):
        evaluate(tiny.problems[:1], TransformersEngine.load(str(folder), batch_size=3), **common)
    other = [tiny.problems[0].model_copy(update={"meta": {"level": 5}})]
    with pytest.raises(UserError, match="was sampled for another prompt, answer or meta"):
        evaluate(other, TransformersEngine.load(str(folder)), **common)
    weights = load_file(folder / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"was made with weights = \w+ \(now \w+\)"):
        evaluate(tiny.problems[:1], TransformersEngine.load(str(folder)), **common)
