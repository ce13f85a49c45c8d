import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retarget.errors import UserError
from retarget.pope.controls import of_length
from retarget.pope.curricula import Guides
from retarget.pope.engines.local import TransformersEngine
from retarget.pope.evaluation import evaluate
from retarget.pope.grading import Grader
from retarget.pope.mining import mine
from retarget.pope.oracle import ask_oracle
from retarget.pope.prefixes import cut_points
from retarget.pope.problems import Problem
from retarget.pope.rollouts import Rollout, Sampling
from retarget.pope.search import next_cut, rollouts_for, search_prefixes
from retarget.pope.studies.chain import make_problems
from retarget.pope.studies.testbed import PROMPTS


def simulate(rates, k, chunk, strategy, random):
    """The search on cuts with known success rates: the cut that it finds, and rollouts."""
    tried = [(0, 0)] * len(rates)
    while (at := next_cut(tried, k, strategy)) is not None:
        n, c = tried[at]
        draw = min(chunk, k - n)
        tried[at] = (n + draw, c + int(random.binomial(draw, rates[at])))
    found = next((at for at, (_, c) in enumerate(tried) if c), None)
    return found, sum(n for n, _ in tried), sum(n > 0 for n, _ in tried)


@given(st.integers(1, 40), st.integers(0, 40))
def test_where_success_is_certain_from_a_cut_on_both_find_it(cuts, first):
    rates = [float(at >= first) for at in range(cuts)]
    expected = first if first < cuts else None
    for strategy in ("grid", "bisect"):
        found, _, tried = simulate(rates, 8, 4, strategy, np.random.default_rng(0))
        assert found == expected
        assert tried <= (cuts if strategy == "grid" else 1 + math.floor(math.log2(cuts)))


def test_bisection_costs_half_of_the_grid_and_errs_as_stated():
    """Success near monotone, as on the generated problems: rare at the longest cut, none before it."""
    random, rates = np.random.default_rng(1), [0.0] * 6 + [0.01, 0.05]
    costs, missed = {}, {}
    for strategy in ("grid", "bisect"):
        runs = [simulate(rates, 64, 16, strategy, random) for _ in range(2000)]
        costs[strategy] = np.mean([cost for _, cost, _ in runs])
        missed[strategy] = np.mean([found is None for found, _, _ in runs])
    assert costs["bisect"] <= costs["grid"] / 2
    assert missed["bisect"] == pytest.approx(0.95**64 * 0.99**64, abs=0.02)
    assert missed["grid"] == pytest.approx(0.95**64 * 0.99**64, abs=0.02)


@given(st.floats(0.001, 0.9), st.floats(0.001, 0.9))
def test_the_rollouts_of_a_rate_and_an_error(rate, error):
    k = rollouts_for(rate, error)
    assert (1 - rate) ** k <= error * (1 + 1e-9)
    assert k == 1 or (1 - rate) ** (k - 1) > error * (1 - 1e-9)


@pytest.mark.parametrize(("rate", "error"), [(0.0, 0.1), (1.0, 0.1), (0.1, 0.0), (0.1, 1.5)])
def test_no_probability_is_refused(rate, error):
    with pytest.raises(UserError, match="must be strictly between 0 and 1"):
        rollouts_for(rate, error)


def test_both_searches_share_a_journal_and_agree_on_what_they_sampled(tiny, tmp_path):
    problems, journal = make_problems(6, 4, seed=5, style="own"), tmp_path / "search.jsonl"
    engine = TransformersEngine(tiny.model, tiny.tokenizer, batch_size=16)
    asking = dict(
        grader=Grader("retarget.pope.studies.chain:verify", workers=0), prompts=PROMPTS, chunk=4,
        params=Sampling(max_tokens=10, temperature=1.0),
    )  # fmt: skip

    def search(strategy, path):
        return search_prefixes(problems, engine, 3, 8, cap=0.75, unit="line", strategy=strategy, journal=path, **asking)

    grid, alone = search("grid", journal), search("bisect", tmp_path / "alone.jsonl")
    after = search("bisect", journal)
    assert [one.to_json() for one in after.found] == [one.to_json() for one in alone.found]
    assert after.sampled < alone.sampled
    for one, other in zip(grid.found, after.found, strict=True):
        assert one.status == other.status or "fallback" in (one.status, other.status)
        for end, n, correct in other.tried:
            known = {e: (m, c) for e, m, c in one.tried}
            assert known.get(end, (n, correct)) == (n, correct)


class Silent:
    name, identity = "silent", {}

    def sample(self, prompts, n, params):
        return [[Rollout("none", 1, False)] * n for _ in prompts]


class Helped(Silent):
    """Answers rightly from a given number of the solution's sentences on."""

    def __init__(self, sentences):
        self.sentences = sentences

    def sample(self, prompts, n, params):
        helped = [prompt.count(" step.") >= self.sentences for prompt in map(json.dumps, prompts)]
        return [[Rollout("#### 9" if one else "#### 8", 1, False)] * n for one in helped]


STEPS = " ".join(f"{name} step." for name in "ABCDEFGHIJ")


@pytest.mark.parametrize("needed", range(1, 7))
def test_the_shortest_prefix_that_helped_is_kept_and_units_have_one_name_in_both_searches(needed, tmp_path):
    problem = Problem(id="p", prompt="What?", solution=f"{STEPS} It is 9.", answer="9")
    ends = [cut.end for cut in cut_points(problem.solution, 5, 0.5)]
    assert [problem.solution[:end].count("step.") for end in ends] == [1, 2, 3, 4, 5]
    asking = dict(grader=Grader("exact"), chunk=2, cap=0.5)
    for strategies in (("grid", "bisect"), ("bisect", "grid")):
        known, journal = {}, tmp_path / f"{strategies[0]}.jsonl"
        for strategy in strategies:
            found = search_prefixes([problem], Helped(needed), 5, 4, strategy=strategy, journal=journal, **asking)
            (one,) = found.found
            assert one.status == ("found" if needed <= 5 else "fallback")
            assert one.prefix == problem.solution[: ends[min(needed, 5) - 1]]
            assert all((n, c) == ((2, 2) if ends.index(end) + 1 >= needed else (4, 0)) for end, n, c in one.tried)
            assert found.sampled == sum(n // 2 for end, n, _ in one.tried if end not in known)
            known |= {end: n for end, n, _ in one.tried}


FORMS = (
    ("055", "Each is in. So $\\boxed{55}$. The other way. So $\\boxed{055}$.", "Each is in."),
    ("0.5", "Halve it. The answer is $\\frac{1}{2}$. This is the same as 0.5 indeed, which we show now at length.",
     "Halve it."),
    ("2\\sqrt{3}", "Square it. The answer is $2\\sqrt3$. Or $\\sqrt{12}$, which is again the same as 2\\sqrt{3}.",
     "Square it."),
)  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "answer", "solution", "kept"), [("boxed", *FORMS[0]), *(("math", *one) for one in FORMS)]
)
def test_a_cut_that_states_the_answer_in_another_form_is_left_out(spec, answer, solution, kept):
    problem = Problem(id="p", prompt="?", solution=solution, answer=answer)
    with Grader(spec) as grader:
        (found,) = search_prefixes([problem], Silent(), 8, 1, cap=0.7, grader=grader).found
        fixed = of_length([problem], "longest", 8, 0.7, "sentence", 0, grader)
        shown = Guides([problem], PROMPTS, 8, 0.7, grader=grader)
    assert found.prefix == kept
    assert found.leaks >= 1
    assert fixed == {"p": kept}
    assert json.loads(shown.level("p", shown.levels("p"))["meta"])["prefix"] == kept


@pytest.mark.parametrize("spec", ["math", "boxed"])
def test_thinking_in_a_solution_hides_no_answer(spec):
    solution = "<think> Each is in. So $\\boxed{55}$. The other way again.</think> Add all of them up. So 055."
    problem = Problem(id="p", prompt="?", solution=solution, answer="055")
    with Grader(spec) as grader:
        (found,) = search_prefixes([problem], Silent(), 8, 1, cap=0.6, grader=grader).found
    assert found.prefix == "<think> Each is in."
    assert found.leaks >= 1


def test_two_problems_of_one_id_are_refused():
    problem = Problem(id="p", prompt="?", solution="One. Two. Three.", answer="3")
    for call in (search_prefixes, ask_oracle):
        with pytest.raises(UserError, match="two problems have the same id, 'p'"):
            call([problem, problem], Silent())


def test_several_rollouts_of_a_greedy_model_are_refused():
    problem = Problem(id="p", prompt="?", solution="One. Two. Three.", answer="3")
    for call in (search_prefixes, mine, ask_oracle, evaluate):
        with pytest.raises(UserError, match=r"at temperature 0 all \d+ rollouts of a prompt are the same"):
            call([problem], Silent(), params=Sampling(temperature=0.0))
