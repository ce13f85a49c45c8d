r"""Answers that do not settle on one: several boxes, a box beside a number, a box that is denied. None is paid."""

import pytest

from retarget.pope.answers import final_answer
from retarget.pope.boxes import alternatives, joined_boxes, without_denied
from retarget.pope.grading import Grader

HEDGES = (
    r"x is \boxed{3} or \boxed{4}", r"\boxed{1}, \boxed{2}, \boxed{3}, \boxed{4}", r"\boxed{3} (or \boxed{4})",
    r"\boxed{3}/\boxed{4}", r"Either \boxed{3} or possibly \boxed{4}", r"\boxed{3}, alternatively \boxed{4}",
    r"$\boxed{3}\text{ or }\boxed{4}$", r"\boxed{3}; \boxed{4}", "\\boxed{3}\n\nor\n\n\\boxed{4}",
    r"**\boxed{3}** or **\boxed{4}**", r"\(\boxed{3}\) and/or \(\boxed{4}\)", r"\boxed 3 or \boxed 4",
    r"\boxed{3}. Alternatively, \boxed{4}", r"\boxed{3}, \boxed{4}, \boxed{4}", r"$x = \boxed{3}$, $x_2 = \boxed{4}$.",
    r"\boxed{4} or 5", r"It is $\boxed{4}$, or $x = 5$.", r"\boxed{4} (or 5)", r"\boxed{4} or perhaps 5.",
    r"\boxed{4\text{ cm}} or \boxed{4\text{ m}}",
)  # fmt: skip
DENIED = (
    r"The answer is not \boxed{4}.", r"The answer cannot be \boxed{4}.", r"It isn't $\boxed{4}$.",
    r"It is neither \boxed{3} nor \boxed{4}.", r"The answer is \boxed{4}. No, it is not \boxed{4}.",
    r"The answer is 4. But it can not be \(\boxed{4}\).", r"$x \neq \boxed{4}$",
    r"So 4. The answer is not equal to **\boxed{4}**.",
)  # fmt: skip
SETTLED = (
    r"\boxed{3}. Wait, that is wrong, so it is \boxed{4}.", r"\boxed{3}, no: \boxed{4}", r"Not 3. It is \boxed{4}",
    r"It is not \boxed{3} but \boxed{4}.", r"\boxed{4}, not \boxed{3}.", r"So \boxed{4} rather than \boxed{3}.",
    r"\boxed{4} or \boxed{4}", r"\boxed{4.0} or \boxed{4}", r"It is $\boxed{4}$ or 4.0.", r"\boxed{3} \boxed{4}",
    r"\boxed{4} minutes or 240 seconds", r"\boxed{4} or 240 seconds.", r"$x=\boxed{3}$, so it is $\boxed{4}$.",
    r"Is it 3 or 5? It is \boxed{4}.", r"As $x \ne 3$, it is \boxed{4}.", r"So $2x = 8$, or $x = \boxed{4}$.",
    r"It is not \boxed{3}. The answer is 4.",
    r"Not \boxed{3}, and not \boxed{5}. <answer>4</answer>",
)  # fmt: skip


@pytest.mark.parametrize("spec", ["numeric", "exact", "math"])
def test_an_answer_that_is_hedged_or_denied_is_not_paid(spec):
    texts = [*HEDGES, *DENIED]
    with Grader(spec) as grader:
        grades = grader.grade(texts, ["4"] * len(texts))
    assert [text for text, one in zip(texts, grades, strict=True) if one.reward or one.status != "ok"] == []


@pytest.mark.parametrize("spec", ["numeric", "exact", "math"])
def test_an_answer_that_is_corrected_or_settled_on_is_paid(spec):
    with Grader(spec) as grader:
        grades = grader.grade(SETTLED, ["4"] * len(SETTLED))
    assert [text for text, one in zip(SETTLED, grades, strict=True) if not one.reward] == []


def test_boxes_in_a_row_are_still_the_gold_set_that_they_list():
    texts = ("\\boxed{3}, \\boxed{4}", "$\\boxed{4}$ and $\\boxed{3}$", "\\boxed{3} or \\boxed{4}", "\\boxed{3} or 4")
    with Grader("math") as grader:
        assert [one.reward for one in grader.grade(texts, ["3, 4"] * 4)] == [1, 1, 1, 0]
        assert grader.grade(["\\boxed{\\frac{1}{2}} or \\boxed{0.5}"], ["0.5"])[0].correct


def test_a_hedge_leaves_no_answer_to_count():
    with Grader("numeric") as grader:
        assert {one.extracted for one in grader.grade([*HEDGES, *DENIED], ["7"] * (len(HEDGES) + len(DENIED)))} == {
            None
        }


def test_what_is_denied_is_told_from_what_is_left():
    assert without_denied(r"\boxed{1}, not \boxed{2}, never \boxed{3}") == (r"\boxed{1}, not ", {"2", "3"})
    assert final_answer(r"\boxed{1}, not \boxed{2}, never \boxed{3}") == "1"
    assert final_answer(r"\boxed{3}. Hmm, it is not \boxed{3}.") is None
    assert not alternatives(r"nothing \boxed{}")
    assert joined_boxes(r"\boxed{1} or \boxed{2}") == "1,2"


@pytest.mark.parametrize("piece", ["not \\boxed{4} ", "\\boxed{4} or ", "\\boxed{1}, ", "( $ ** ", "or "])
def test_many_boxes_cost_no_more_than_a_few(piece):
    with Grader("math", seconds=60.0) as grader:
        grades = grader.grade([piece * (40_000 // len(piece)) + "\\boxed{4}"], ["5"])
    assert [(one.reward, one.status) for one in grades] == [(0, "ok")]
