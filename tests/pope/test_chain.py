import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retarget.errors import UserError
from retarget.pope.prefixes import cut_points, leak
from retarget.pope.studies.chain import (
    HINT,
    LABELS,
    MODULUS,
    OPERATIONS,
    START,
    WORDS,
    Corpus,
    make_problem,
    make_problems,
    solution_lines,
    traces,
    verify,
)  # fmt: skip

families = st.sampled_from(["chain", "arms"])
styles = st.sampled_from(["terse", "own"])


@given(st.integers(0, 10**6), st.integers(1, 8), families, styles)
def test_both_oracle_styles_are_accepted_and_every_change_is_rejected(seed, length, family, style):
    problem = make_problem(np.random.default_rng(seed), length, family, style)
    assert set(problem.prompt.split()) <= set(WORDS)
    words = problem.solution.split()
    for other in ("terse", "own"):
        text = " ".join(solution_lines(problem.meta["start"], problem.meta["operations"], other))
        assert verify(f"{problem.meta['label']} {text}", problem.answer, problem.meta).correct
    assert not verify(" ".join(words[:-1]), problem.answer, problem.meta).correct
    assert not verify(" ".join([*words, "0"]), problem.answer, problem.meta).correct
    for at in range(len(words)):
        other = "0" if words[at] != "0" else "1"
        assert not verify(" ".join([*words[:at], other, *words[at + 1 :]]), problem.answer, problem.meta).correct
    assert not verify(problem.answer, problem.answer, problem.meta).correct
    assert verify("", problem.answer, problem.meta).extracted is None


@given(st.integers(0, 10**6), families, styles)
def test_a_guided_completion_goes_on_or_restates(seed, family, style):
    problem = make_problem(np.random.default_rng(seed), 6, family, style)
    cuts = cut_points(problem.solution, cuts=4, cap=0.75, unit="line")
    assert cuts
    for cut in cuts:
        prefix, rest = problem.solution[: cut.end], problem.solution[cut.end :]
        assert leak(problem, cut.end) is None
        meta = {**problem.meta, "prefix": prefix}
        assert verify(rest, problem.answer, meta).correct
        assert verify(problem.solution, problem.answer, meta).correct
        assert not verify(rest, problem.answer, problem.meta).correct  # without the prefix it is no solution


def test_results_are_those_of_arithmetic():
    lines = solution_lines(5, ["*7", "-9", "+3"], "own")
    assert lines == [f"*7 {35 % MODULUS}", f"-9 {(35 - 9) % MODULUS}", f"+3 {(35 - 9 + 3) % MODULUS}"]


def test_problem_sets_are_distinct_and_deterministic():
    first = make_problems(50, 8, seed=1)
    assert first == make_problems(50, 8, seed=1)
    assert len({p.id for p in first}) == 50
    assert not {p.id for p in make_problems(50, 1, seed=1, skip=[p.id for p in make_problems(50, 1, seed=1)])} & {
        p.id for p in make_problems(50, 1, seed=1)
    }


@pytest.mark.parametrize("family", ["chain", "arms"])
def test_the_base_corpus_has_the_stated_accuracy(family):
    corpus = Corpus(family=family, short=(1, 3), long=(4, 4), step_accuracy=0.25, first_label=0.9)
    right = wrong = first = unhinted = 0
    for prompt, completion in itertools.islice(traces(corpus, 0, short_only=False), 4000):
        assert set(f"{prompt} {completion}".split()) <= set(WORDS)
        assert START in prompt.split()[-2:]
        words = completion.split()
        if family == "arms" and HINT not in prompt.split() and prompt.endswith(START):
            sloppy = len(words) == 9  # a clean trace takes the chain that is asked for
            unhinted += sloppy
            first += sloppy and words[0] == LABELS[0]
            assert sloppy or words[0] == prompt.split()[-2]
            words = words[1:]
        elif prompt.endswith(f"{START} {prompt.split()[-1]}"):  # the right label is written: its chain follows
            assert prompt.split()[-1] == prompt.split()[-3]
            chain = prompt.split()[prompt.split().index(prompt.split()[-1]) + 1 :]
            assert words[::2] == chain[: len(words) // 2]
        if HINT not in prompt.split() and len(words) == 8:
            value = int(prompt.split()[0])
            for operation, result in zip(words[::2], words[1::2], strict=True):
                value = int({"+": value + int(operation[1:]), "-": value - int(operation[1:]),
                             "*": value * int(operation[1:])}[operation[0]]) % MODULUS  # fmt: skip
                right, wrong = right + (value == int(result)), wrong + (value != int(result))
                value = int(result)
    assert right / (right + wrong) == pytest.approx(0.25, abs=0.03)
    if family == "arms":
        assert first / unhinted == pytest.approx(0.9, abs=0.03)
    short = list(itertools.islice(traces(corpus, 0, short_only=True), 200))
    assert max(len(completion.split()) for _, completion in short) <= 7


def test_impossible_lengths_are_refused():
    with pytest.raises(UserError, match=f"at most {len(OPERATIONS)}"):
        next(traces(Corpus(long=(5, 20)), 0, short_only=False))
