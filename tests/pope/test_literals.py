import pytest

from retarget.pope.graders import boxed, math

PARTS_DIFFERENT = (
    ("2023-01-05", "2023-05-01"), ("2023/01/05", "2023/05/01"),
    ("3-1", "2-0"), ("3-1", "1-3"), ("5-7", "8-10"), ("5-7", "[5,7]"), ("5-7", "(5,7)"), 
    ("555-0123", "555-123"), (r"5-7\text{ days}", r"8-10\text{ days}"), (r"5-7\text{ days}", r"5-7\text{ hours}"),
    (r"5-7\%", r"8-10\%"), ("(A) 5-7", "8-10"),
)  # fmt: skip
PARTS_ALIKE = (
    ("5-7", "5–7"), ("5-7", "5 - 7"), ("5-7", r"5\text{--}7"), ("5-7", r"\text{5-7}"), ("5-7", "$5$-$7$"),
    ("5-7", r"5\text{ to }7"), (r"5-7\text{ days}", "5-7"), (r"\$5-\$7", r"\$5-7"), ("(A) 5-7", "5-7"),
    ("2023-01-05", "2023-1-5"), ("2023-01-05", "2023/01/05"), ("1,200-1,500", "1200–1500"), ("2.5-3.5", "2.50 - 3.5"),
)  # fmt: skip
FORMULAS_ALIKE = (
    ("x-1", "-1+x"), (r"3-\sqrt2", r"-\sqrt2+3"), ("2^{10}-1", "1023"), ("5-7i", "-7i+5"), (r"\frac34", "3/4"),
    ("3x-2", "-2+3x"), ("-2", "-2.0"), ("3:2", "6:4"), ("3:2", "3/2"), ("3:2", "1.5"), ("19:60", r"\frac{19}{60}"),
    ("aa", "a^2"), ("C_1+C_2", "C_2+C_1"), ("abc", "cba"),
)  # fmt: skip
TIMES_DIFFERENT = (
    ("12:45 PM", "4:15 PM"), ("12:45 PM", "12:45 AM"), ("10:10", "12:12"),
    ("5:12", "10:24"), (r"9\text{ a.m.}", r"9:30\text{ AM}"), ("3:30", "15:30"),
    ("9:00, 10:30", "9:00, 10:31"), ("10:05", "10:50"), ("3:2", "2:3"),
    (r"4\!:\!51\!:\!06 \text{ p.m.}", r"4:51:06\text{ AM}"), (r"3:45\text{ on Monday}", r"3:40\text{ on Monday}"),
)  # fmt: skip
TIMES_ALIKE = (
    ("3:45 PM", "3:45 p.m."), ("3:45 PM", r"\text{3:45 PM}"), ("15:30", "3:30 PM"), ("0:05", r"12:05\text{ a.m.}"),
    (r"9:00\text{ a.m.}", r"9\text{ a.m.}"), (r"4\!:\!51\!:\!06 \text{ p.m.}", r"4:51:06\text{ PM}"),
    ("9:00, 10:30", r"9:00 \text{ and } 10:30"), ("12{:}45", "12:45"), ("10:05", "10 : 05"), ("9:24", "t = 9:24"),
    ("8:34 p.m.", r"t = 8\!:\!34\text{ p.m.}"),
)  # fmt: skip
LETTERS_DIFFERENT = (
    ("0xFF", "0x1A"), ("0xFF", "0"), ("0xFF", "255"), ("0b101", "0b110"), ("'abc'", "'cba'"), ('"ab"', '"ba"'),
    ("'abc'", "'ABC'"), ("``abc''", "``bca''"), ("cat", "'act'"), ("5'-ATGC-3'", "5'-CGTA-3'"),
    ("5'-ATGC-3'", "3'-ATGC-5'"), ("AaBb", "AABb"), ("AaBb", "aabb"), ("Aabb", "aaBb"), ("AA", "aa"), ("Aa", "aa"),
    ("Fe^{3+}", "Fe^{2+}"), ("Na^+", r"\mathrm{Na}^-"), ("H_2O", r"\ce{H2O2}"), (r"\ce{H2O}", r"\ce{HO2}"),
)  # fmt: skip
LETTERS_ALIKE = (
    ("0xFF", "0xff"), ("0xFF", r"\text{0xFF}"), ("0b101", "0b0101"), ("'abc'", r"\text{'abc'}"),
    ("'abc'", "``abc''"), ('"Hello"', '"hello"'), ("5'-ATGC-3'", r"5'-\text{ATGC}-3'"), ("5'-ATGC-3'", "3'-CGTA-5'"),
    ("AaBb", "BbAa"), ("AaBb", r"\text{AaBb}"), ("Aa", "aA"), ("C_6H_{12}O_6", r"\mathrm{C_6H_{12}O_6}"),
    ("Fe^{3+}", r"\mathrm{Fe^{3+}}"), ("Fe^{3+}", r"\ce{Fe^3+}"), ("H_2O", r"\ce{H2O}"), ("H_2O", "H₂O"),
    ("SO_4^{2-}", r"\ce{SO4^2-}"), ("Na^+", r"\mathrm{Na}^{+}"), (r"\text{NaCl}", r"\ce{NaCl}"),
)  # fmt: skip
ONE_WAY = (
    ("2023-01-05", "2017", 0), ("2024-02-29", "1993", 0), ("555-1234", "-679", 0), ("10:10", "1", 0),
    ("15:30", r"\frac{15}{30}", 0), ("9:24", "3:8", 0), ("10:10, 9:09", "1, 1", 0), ("3-1", "2", 0),
    ("10-12", "-2", 0), ("-2", "10-12", 1),
    ("3:45 PM", "3:45", 0), ("3:45", "3:45 PM", 1), ("15:30", "0.5", 0), ("5:12", r"\frac{5}{12}", 1),
    ("15:10", "3:2", 0), ("'abc'", "abc", 1), ("'abc'", "cba", 0), ("'x'", "x", 1),
)  # fmt: skip


@pytest.mark.parametrize(("one", "other"), [*PARTS_DIFFERENT, *TIMES_DIFFERENT, *LETTERS_DIFFERENT])
def test_what_is_no_formula_is_not_computed(one, other):
    for grader in (math, boxed):
        assert not grader(f"so $\\boxed{{{one}}}$", other, {}).correct
        assert not grader(f"so $\\boxed{{{other}}}$", one, {}).correct


@pytest.mark.parametrize(("one", "other"), [*PARTS_ALIKE, *FORMULAS_ALIKE, *TIMES_ALIKE, *LETTERS_ALIKE])
def test_it_may_be_written_in_several_ways_and_formulas_are_computed(one, other):
    for grader in (math, boxed):
        assert grader(f"so $\\boxed{{{one}}}$", other, {}).correct
        assert grader(f"so $\\boxed{{{other}}}$", one, {}).correct


@pytest.mark.parametrize(("gold", "said", "right"), ONE_WAY)
def test_the_gold_answer_says_how_it_is_read(gold, said, right):
    for grader in (math, boxed):
        assert grader(f"so $\\boxed{{{said}}}$", gold, {}).reward == right
