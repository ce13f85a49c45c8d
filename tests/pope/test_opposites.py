import pytest

from retarget.pope.graders import boxed, math

DIFFERENT = (
    (r"5\text{ m/s east}", r"5\text{ m/s west}"), ("5 m/s east", "5 m/s west"),
    (r"30^\circ\text{ north of east}", r"30^\circ\text{ east of north}"),
    (r"40^\circ\text{ E}", r"40^\circ\text{ W}"), (r"40^\circ\text{ N}", r"40^\circ\text{ S}"),
    (r"3\text{ m northeast}", r"3\text{ m southeast}"),
    (r"3\text{ m east}, 4\text{ m north}", r"4\text{ m east}, 3\text{ m north}"),
    (r"20\% \text{ loss}", r"20\% \text{ gain}"), (r"\$20\text{ profit}", r"\$20\text{ loss}"),
    ("20% loss", "20% gain"),
    (r"44\text{ B.C.}", r"44\text{ A.D.}"), (r"44\text{ BCE}", r"44\text{ CE}"), (r"5\text{ October}", r"5\text{ May}"),
    ("5 October", "5 May"), (r"3\text{ m above}", r"3\text{ m below}"), (r"5\text{ Monday}", r"5\text{ Sunday}"),
    (r"90^\circ\text{ clockwise}", r"90^\circ\text{ counterclockwise}"),
    (r"90^\circ\text{ clockwise}", r"90^\circ\text{ counter-clockwise}"),
    (r"5\text{ years older}", r"5\text{ years younger}"), (r"5\text{ years ago}", r"5\text{ years later}"),
    (r"5\text{ minutes early}", r"5\text{ minutes late}"), (r"5\text{ minutes slow}", r"5\text{ minutes fast}"),
    (r"5\text{ units up}", r"5\text{ units down}"), (r"5\text{ units left}", r"5\text{ units to the right}"),
    (r"20\%\text{ increase}", r"20\%\text{ decrease}"), (r"5\text{ m/s upward}", r"5\text{ m/s downward}"),
)  # fmt: skip
ALIKE = (
    (r"5\text{ m/s east}", r"5\text{ m/s East}"), (r"5\text{ m/s east}", r"5\text{ m/s eastward}"),
    (r"3\text{ m east}, 4\text{ m north}", r"4\text{ m north}, 3\text{ m east}"),
    (r"20\%\text{ profit}", r"20\%\text{ gain}"), (r"44\text{ BC}", r"44\text{ B.C.}"),
    (r"44\text{ BCE}", r"44\text{ BC}"), (r"5\text{ Oct}", r"5\text{ October}"),
    (r"90^\circ\text{ anticlockwise}", r"90^\circ\text{ counterclockwise}"),
    (r"14 \text{ right triangles}", "14"), (r"5\text{ m/s east}", r"5\text{ m/s}"),
    (r"20\% \text{ loss}", r"20\%"), ("4bc", "4cb"),
)  # fmt: skip


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_words_that_exclude_each_other_are_no_units(one, other):
    for grader in (math, boxed):
        assert not grader(f"so $\\boxed{{{one}}}$", other, {}).correct
        assert not grader(f"so $\\boxed{{{other}}}$", one, {}).correct


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_a_word_may_be_left_out_or_stand_in_another_form(one, other):
    for grader in (math, boxed):
        assert grader(f"so $\\boxed{{{one}}}$", other, {}).correct
        assert grader(f"so $\\boxed{{{other}}}$", one, {}).correct
