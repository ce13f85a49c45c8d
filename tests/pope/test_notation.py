import pytest

from retarget.pope.answers import stated_answer
from retarget.pope.graders import boxed, math, numeric

UNICODE = (
    ("120", "120°", 1), ("120^\\circ", "120°", 1), ("90°", "90", 1), ("60^\\circ", "61°", 0), ("40", "40º", 1),
    ("5\\sqrt{2}", "5√2", 1), ("5", "5√2", 0), ("\\sqrt{x+1}", "√(x+1)", 1), ("25", "5²", 1), ("5", "5²", 0),
    ("x^2", "x²", 1), ("\\frac12", "½", 1), ("2.5", "2½", 1), ("2", "2½", 0), ("\\infty", "∞", 1), ("12", "１２", 1),
    ("-42", "–42", 1), ("42", "–42", 0), ("-2", "3–5", 0), ("0.\\overline{3}", "\\frac13", 1),
    ("0.\\overline{36}", "\\frac{4}{11}", 1), ("0.\\overline{3}", "0.3", 0), ("120000", "1.2e5", 1),
)  # fmt: skip
SCALED = (
    ("5", "5 million", 0), ("5000000", "5 million", 1), ("5", "5\\text{ dozen}", 0), ("60", "5\\text{ dozen eggs}", 1),
    ("5", "5 hundred", 0), ("2500000", "\\$2.5\\text{ million}", 1), ("300000", "3 hundred thousand", 1),
    ("3", "3 halves", 0), ("3", "3\\text{ thirds}", 0), ("5", "5\\text{ squared}", 0), ("5", "5\\text{ factorial}", 0),
    ("5", "5π", 0),
)  # fmt: skip


@pytest.mark.parametrize(("gold", "said", "right"), [*UNICODE, *SCALED])
def test_signs_of_unicode_and_words_of_scale_are_read(gold, said, right):
    for grader in (math, boxed):
        assert grader(f"Thus $\\boxed{{{said}}}$.", gold, {}).reward == right


@pytest.mark.parametrize(("gold", "said", "right"), SCALED)
def test_words_of_scale_count_for_numbers_too(gold, said, right):
    assert numeric(f"Thus $\\boxed{{{said}}}$.", gold, {}).reward == right


@pytest.mark.parametrize("form", ["The answer is {}.", "#### {}", "Answer: **{}**"])
@pytest.mark.parametrize("said", ["5 million", "5 dozen", "5 hundred", "$5$ thousand", "\\$5 million"])
def test_a_statement_takes_the_word_of_scale_with_its_number(form, said):
    factor = {"million": 10**6, "dozen": 12, "hundred": 100, "thousand": 1000}[said.split()[1]]
    for grader in (math, numeric):
        assert not grader(form.format(said), "5", {}).correct
        assert grader(form.format(said), str(5 * factor), {}).correct


@pytest.mark.parametrize("word", ["thirds", "quarters", "factorial", "squared", "halves"])
def test_a_statement_whose_last_word_changes_the_number_settles_nothing(word):
    assert stated_answer(f"The answer is 3 {word}.") is None
    assert stated_answer(f"#### 3 {word}") is None
    assert stated_answer("The answer is 12 in the first half.") == "12"
