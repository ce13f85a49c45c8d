"""Prefixes that state the answer in another notation, in words or in another language."""

import pytest

from retarget.pope.prefixes import bare_occurrences, leak
from retarget.pope.problems import Problem, find_answer

NOTATIONS = (
    ("The total is $1{,}200$.", "1200"), ("The total is $1,\\!200$.", "1200"), ("It is $1\\,200$.", "1200"),
    ("The total is 1200.", "1,200"), ("The total is $1{,}200$.", "1,200"), ("The total is 1,200.", "1{,}200"),
    ("The limit is $\\dfrac{3}{4}$.", "\\frac{3}{4}"), ("The limit is $\\frac{3}{4}$.", "\\dfrac{3}{4}"),
    ("It is $\\tfrac{3}{4}$.", "\\frac{3}{4}"), ("It is $\\left( 3, 4 \\right)$.", "(3,4)"),
)  # fmt: skip


@pytest.mark.parametrize(("sentence", "answer"), NOTATIONS)
def test_an_answer_in_another_notation_is_stated_and_counted(sentence, answer):
    problem = Problem(id="p", prompt="?", solution=f"First. {sentence} Then check.\n#### {answer}", answer=answer)
    end = len(f"First. {sentence}")
    assert leak(problem, len("First.")) is None
    assert leak(problem, end).statement == sentence
    assert bare_occurrences(problem, end) == (1, False)
    assert bare_occurrences(problem, len("First.")) == (0, False)


def test_a_part_of_a_number_in_groups_is_no_answer():
    for text in ("1{,}200", "1,\\!200", "200{,}500", "200,\\!500", "1,200"):
        assert list(find_answer(text, "200")) == []
    assert list(find_answer("of 1{,}200 only 200", "200")) == [16]


ANNOUNCED = (
    "$\\textbf{Answer}$: $12$.", "\\textbf{Answer:} 12.", "정답: 12.", "정답은 12입니다.", "답: 12", "**정답**: 12",
    "答え: 12。", "答えは12です。", "答え：12", "正解は12。", "答：12", "Respuesta: 12", "**Respuesta:** 12.",
    "Réponse : 12", "Antwort: 12.", "Lösung: 12.", "Ответ: 12.", "**Ответ**: 12.", "Ответ — 12.",
    "The answer is twelve.", "The answer is **Twelve** cats.", "Answer: twelve", "\\boxed{\\text{twelve}}",
)  # fmt: skip


@pytest.mark.parametrize("statement", ANNOUNCED)
def test_an_answer_that_is_announced_in_another_way_leaks(statement):
    for answer, told in (("12", True), ("13", False)):
        whole = f"{statement}\nConsider the sum. We add.\nSo it is \\boxed{{{answer}}}."
        found = leak(Problem(id="p", prompt="?", solution=whole, answer=answer), len(statement))
        assert (found is not None) == told, answer


@pytest.mark.parametrize("statement", ["(C) is correct.", "So C is correct.", "Here (C) is the right answer.",
                                       "**C** is the correct option.", "We see: (C) must be true."])  # fmt: skip
def test_an_option_that_is_called_correct_leaks(statement):
    problem = Problem(id="p", prompt="?", solution=f"{statement} Add them. Then, C.\n#### C", answer="C")
    assert leak(problem, len(statement)) is not None
    other = problem.model_copy(update={"answer": "D", "solution": f"{statement} Add them. Then, D.\n#### D"})
    assert leak(other, len(statement)) is None


@pytest.mark.parametrize(("sentence", "answer"), [
    ("Twelve cats and twelve dogs.", "12"), ("The answer is one of these.", "1"), ("The answer is twenty-one.", "20"),
    ("The answer is two hundred.", "2"), ("The answer to two questions is sought.", "2"), ("Angle C is right.", "C"),
])  # fmt: skip
def test_a_number_word_or_a_letter_that_is_not_announced_is_no_leak(sentence, answer):
    solution = f"{sentence} Consider the sum. We add.\n#### {answer}"
    assert leak(Problem(id="p", prompt="?", solution=solution, answer=answer), len(sentence)) is None
