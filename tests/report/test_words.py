import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retarget.report import words


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ((3, 1, 2, 1), "3 of 7 claims hold here, 1 does not, 2 lack evidence, 1 was not measured."),
        ((1, 2, 1, 0), "1 of 4 claims holds here, 2 do not, 1 lacks evidence."),
        ((0, 2, 0, 3), "None of 5 claims holds here, 2 do not, 3 were not measured."),
        ((0, 4, 0, 0), "None of 4 claims holds here."),
        ((4, 0, 0, 0), "All 4 claims hold here."),
        ((0, 0, 3, 0), "All 3 claims lack evidence."),
        ((2, 0, 0, 0), "2 of 2 claims hold here."),
        ((0, 0, 0, 2), "None of 2 claims was measured."),
        ((1, 0, 0, 0), "The one claim holds here."),
        ((0, 0, 1, 0), "The one claim lacks evidence."),
        ((0, 0, 0, 0), "This study judges no claim."),
    ],
)
def test_the_finding_is_one_sentence_about_every_verdict(counts, sentence):
    assert words.finding(dict(zip(words.VERDICTS, counts, strict=True))) == sentence


@given(st.tuples(*[st.integers(0, 40)] * 4))
def test_every_count_and_the_total_stand_in_the_finding(counts):
    sentence = words.finding(dict(zip(words.VERDICTS, counts, strict=True)))
    if sum(counts) > 1:
        assert str(sum(counts)) in sentence
    if sum(map(bool, counts)) > 1:
        for count in counts:
            assert count == 0 or str(count) in sentence
    assert sentence.count(".") == 1


def test_every_verdict_has_its_own_words_and_symbol():
    from typing import get_args

    from retarget.report.claims import MARKS
    from retarget.study.results import Verdict

    for table in (words.VERDICT_WORDS, words.VERDICT_SYMBOLS, MARKS):
        assert tuple(table) == words.VERDICTS == get_args(Verdict)
        assert all(one != other for one, other in itertools.combinations(table.values(), 2))


@given(st.floats(-1e6, 1e6).filter(lambda value: abs(value) > 1e-12), st.integers(0, 4))
def test_a_difference_that_is_not_zero_never_reads_as_zero(value, decimals):
    shown = words.number(value, words.difference_decimals([value], decimals), signed=True)
    assert any(digit in shown.partition("×")[0] for digit in "123456789")
    assert shown[0] == ("+" if value > 0 else words.MINUS)
    assert "-" not in shown


@given(st.floats(1e7, 1e100), st.integers(0, 6))
def test_a_large_number_is_short_and_right(value, decimals):
    shown = words.number(value, decimals)
    digits, _, exponent = shown.partition("×10")
    assert len(shown) <= 12
    power = int(exponent.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")))
    assert float(f"{digits}e{power}") == pytest.approx(value, rel=1e-4)
    assert words.number(-value, decimals) == words.MINUS + shown
