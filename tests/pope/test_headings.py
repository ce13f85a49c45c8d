r"""Answers under a heading, answers with what they are not behind them, and answers in colour."""

import pytest

from retarget.pope.answers import final_answer, unsettled
from retarget.pope.grading import Grader
from retarget.pope.notation import without_colour

READ = {
    "Add.\n\n### Final Answer\n\n**4**": "4",
    "**Final Answer**\n4": "4",
    "## Answer\n\n$4$": "4",
    "**Answer**\n\\(4\\)": "4",
    "### **Final Answer**\n4.": "4",
    "**Final Answer**\n\n$$\n4\n$$": "4",
    "**The final answer**\n\n\\[\n4\n\\]": "4",
    "#### Answer\n\n4 cm": "4",
    "## Answer\n\n4\n\n## Solution\nAdd 8 and 9 to get 20.": "4",
    "The answer is 5.\n\n## Answer\n\nNew York": "New York",
    "# Answer\n(B)": "(B)",
    "The answer is 4, not 5.": "4",
    "The answer is **4**, not 5.": "4",
    "The answer is \\(4\\), not \\(5\\).": "4",
    "The answer is 4 not 5": "4",
    "The answer is **4**, and not **5**.": "4",
    "The answer is 4 cm, not 5 cm.": "4",
    "The answer is 4 rather than 5.": "4",
    "The answer is 4, not 5, because 2 + 2 = 4.": "4",
    "The answer is 4, not \\boxed{5}.": "4",
}
NOT_READ = (
    "## Answer\n\nTo find it, add 2 and 2. This gives 4.", "## Answer\n4\nBut then we see that 5 is better.",
    "## Answer\n\n4\n\nLet me check this: 2 + 3 = 5.", "## Answer\n\n4 sit with one more, so there are 5 in all.",
    "## Answer\nStep 1: x", "## Answer\n\nIt is clear", "## Answer\n2. Add them", "## Answer sheet\n4",
    "**Answer key**\n4", "### Answer\n", "## Answer\n3 or 4", "The answer is 4, not more.", "The answer is 4, and not",
    "The answer is 4 or 3, not 5.", "The answer is 4, not 5 or 6.", "The answer is not 4, not 5.",
)  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_an_answer_under_a_heading_or_before_what_it_is_not_is_read(text):
    assert final_answer(text) == READ[text]


@pytest.mark.parametrize("text", NOT_READ)
def test_a_heading_over_more_than_an_answer_states_none(text):
    assert final_answer(text) is None


def test_a_heading_over_two_numbers_settles_on_none_and_one_over_reasoning_says_nothing():
    assert unsettled("So 4.\n## Answer\n3 or 4")
    assert not unsettled("## Answer\n\n4 people sit with one more, so there are 5 in all.")
    assert final_answer("The answer is 4.\n\n## Answer\n\nAs we have seen, 2 + 2 = 4, since 2 + 1 = 3.") == "4"
    with Grader("numeric") as grader:
        texts = ["## Answer\n3 or 4", "## Answer\n\nAdd 2 and 2. This gives 4."]
        assert [one.reward for one in grader.grade(texts, ["4", "4"])] == [0, 1]


COLOURED = (
    r"\boxed{\textcolor{blue}{4}}", r"\boxed{\color{red}4}", r"\boxed{\color{red}{4}}", r"\boxed{\underline{4}}",
    r"\boxed{{\color{blue} 4}}", r"\boxed{\textcolor[rgb]{0,0,1}{4}}", r"\boxed{x = \textcolor{red}{4}}",
    r"\boxed{\underline{\underline{4}}}", r"\boxed{\color{red}\frac{8}{2}}",
)  # fmt: skip


@pytest.mark.parametrize("spec", ["math", "boxed", "numeric"])
def test_colours_and_lines_do_not_change_an_answer(spec):
    with Grader(spec) as grader:
        grades = grader.grade([*COLOURED, r"\boxed{\textcolor{blue}{5}}"], ["4"] * (len(COLOURED) + 1))
    assert [one.reward for one in grades] == [1] * len(COLOURED) + [0]


def test_a_gold_answer_may_be_coloured_and_a_partial_line_stays():
    with Grader("math") as grader:
        assert grader.grade([r"\boxed{\frac{1}{2}}", "\\boxed{0.5}"], [r"\textcolor{red}{\frac{1}{2}}"] * 2)[1].correct
    assert without_colour(r"\underline{a}\,\underline{b}") == r"\underline{a}\,\underline{b}"
    assert without_colour(r"\frac{\textcolor{red}{1}}{2} \pi\textcolor{red}{r}") == r"\frac{1}{2} \pi{r}"


@pytest.mark.parametrize("piece", ["\\textcolor{a}{", "\\underline{", "{\\color{a}", "{a}"])
def test_nested_groups_stay_cheap(piece):
    """They are not read; what matters is that the call returns."""
    whole = "\\boxed{" + piece * (20_000 // len(piece)) + "4" + "}" * (20_000 // len(piece)) + "}"
    with Grader("numeric") as grader:
        assert not grader.grade([whole], ["5"])[0].correct
