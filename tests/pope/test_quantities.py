import pytest

from retarget.errors import UserError
from retarget.pope.graders import numeric


@pytest.mark.parametrize(
    ("said", "gold", "right"),
    [
        ("2\\frac{1}{2}", "2.5", 1),
        ("2\\frac{1}{2}", "10.5", 0),
        ("2 \\frac12", "2.5", 1),
        ("2 1/2", "2.5", 1),
        ("21/2", "2 1/2", 0),
        ("-2\\frac{1}{2}", "-2.5", 1),
        ("-2\\frac{1}{2}", "-1.5", 0),
        ("2\\,\\frac{1}{2}\\text{ cm}", "2.5", 1),
        ("1 1/2 hours", "1.5", 1),
        ("0", "6.63e-34", 0),
        ("6.63\\times 10^{-34}", "6.63e-34", 1),
        ("1234568", "1234567", 0),
        ("1,234,567", "1234567", 1),
        ("1234567.0", "1234567", 1),
        ("2.0000001", "2", 1),
        ("2.001", "2", 0),
        ("0.333333", "1/3", 1),
        ("0.0", "0", 1),
        ("0", "0.0", 1),
        ("0.0000001", "0", 0),
        ("-0", "0", 1),
        ("055", "55", 1),
        ("9" * 9000, "5", 0),
        ("1e999999999", "5", 0),
    ],
)
def test_numbers_are_equal_to_one_part_in_a_million_and_integers_exactly(said, gold, right):
    assert numeric(f"\\boxed{{{said}}}", gold, {}).reward == right


def test_an_unmarked_mixed_number_is_read_whole():
    assert numeric("in all we get 3 1/2", "3.5", {}).extracted == "3 1/2"


@pytest.mark.parametrize("gold", ["1e400", "-1e400", "1e-400", "9" * 5000])
def test_a_gold_number_that_no_float_holds_is_refused(gold):
    with pytest.raises(UserError, match="outside the range of floating-point numbers: use the grader `math`"):
        numeric("\\boxed{5}", gold, {})


@pytest.mark.parametrize(("completion", "gold", "right"), [
    (r"\boxed{3 000}", "3000", True), (r"\boxed{3~000}", "3000", True), ("so 3 000 in all", "3000", True),
    ("12 345 678 people", "12345678", True), ("In 2024 100 people came", "100", True), ("one, 2, 3, 4", "4", True),
    (r"\boxed{1 200/7}", "1200/7", True), (r"\boxed{3 000}", "0", False), ("so 3 000", "0", False),
    ("12 345", "345", False), (r"\boxed{0,500}", "500", False), ("about 0,500", "500", False),
    ("it is 0,5", "5", False), ("at (3,4)", "4", False), ("1,2", "2", False),
])  # fmt: skip
def test_thousands_and_decimal_commas_are_no_numbers_of_their_own(completion, gold, right):
    assert numeric(completion, gold, {}).correct == right
