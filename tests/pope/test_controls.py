import pytest
from hypothesis import given
from hypothesis import strategies as st

from retarget.errors import UserError
from retarget.pope.controls import of_length, scrambled, unrelated
from retarget.pope.prefixes import leak
from retarget.pope.problems import Problem
from retarget.pope.studies.chain import WORDS, make_problems

texts = st.dictionaries(st.text(min_size=1, max_size=4), st.text(min_size=1, max_size=12), min_size=2, max_size=9)


@given(texts, st.integers(0, 50))
def test_every_problem_gets_the_prefix_of_another_one(prefixes, seed):
    numbered = {name: f"{at} {text}" for at, (name, text) in enumerate(prefixes.items())}  # no two alike
    found = unrelated(numbered, seed)
    assert list(found) == list(numbered)
    assert sorted(found.values()) == sorted(numbered.values())
    assert all(found[name] != numbered[name] for name in numbered)
    assert found == unrelated(numbered, seed)


def test_scrambling_changes_every_number_and_nothing_else():
    prefixes = {"a": "First 12 + 7 = 19, so 19. Then x2 and 3.5%.", "b": "It is 4.\nHence 12-4=8 of the 1st."}
    found = scrambled(prefixes, 0)
    for name, text in prefixes.items():
        before, after = text.split(" "), found[name].split(" ")
        assert len(before) == len(after)
        for old, new in zip(before, after, strict=True):
            assert (old == new) == (not any(c.isdigit() for c in old) or old in ("x2", "1st.")), (old, new)


def test_scrambled_solutions_stay_within_the_words_of_the_generated_problems():
    prefixes = {one.id: one.solution.split("\n")[0] for one in make_problems(20, 8, seed=0)}
    for name, text in scrambled(prefixes, 3).items():
        old, new = prefixes[name].split(), text.split()
        assert set(new) <= set(WORDS)
        assert old[:2] == new[:2]  # the operations
        assert old[2] != new[2]


def test_what_cannot_be_a_control_is_refused():
    with pytest.raises(UserError, match="at least two problems must have a prefix, but 1"):
        unrelated({"a": "x"}, 0)
    with pytest.raises(UserError, match="at least two different numbers, but have 1"):
        scrambled({"a": "5 and 5", "b": "none"}, 0)


def test_lengths_that_no_search_decided():
    problems = make_problems(8, 8, seed=1)
    longest = of_length(problems, "longest", 4, 0.75, "line", 0)
    quarter = of_length(problems, "quarter", 4, 0.75, "line", 0)
    random = of_length(problems, "random", 4, 0.75, "line", 0)
    for one in problems:
        assert one.solution.startswith(longest[one.id])
        assert longest[one.id].count("\n") in (1, 2)  # as many of four lines as three quarters of the letters hold
        assert abs(len(quarter[one.id]) / len(one.solution) - 0.25) < 0.1
        assert random[one.id] in one.solution
    assert len({len(text) for text in random.values()}) > 1
    assert random == of_length(problems, "random", 4, 0.75, "line", 0)


def test_a_problem_whose_every_cut_says_the_answer_has_no_prefix():
    told = Problem(id="p", prompt="2 + 2?", solution="The answer is 4. It is so because 2 + 2 = 4.", answer="4")
    assert leak(told, 4) is not None
    assert of_length([told], "longest", 2, 0.4, "sentence", 0) == {}
