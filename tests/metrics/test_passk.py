"""pass@k against exact fractions."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retarget.errors import UserError
from retarget.metrics import pass_at_k


def exact(n: int, c: int, k: int) -> Fraction:
    return 1 - Fraction(comb(n - c, k), comb(n, k))


def test_every_small_case_is_exact():
    for n in range(1, 9):
        for c in range(n + 1):
            for k in range(1, n + 1):
                assert pass_at_k(n, c, k) == pytest.approx(float(exact(n, c, k)), abs=1e-15)


@given(data=st.data(), n=st.integers(1, 3000))
def test_large_cases_are_exact(data, n):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert pass_at_k(n, c, k) == pytest.approx(float(exact(n, c, k)), abs=1e-12)


def test_one_right_sample_of_n_gives_k_over_n():
    assert pass_at_k(100_000, 1, 3) == pytest.approx(3e-5, rel=1e-10)


def test_arrays_broadcast_and_may_come_from_anywhere():
    n, c = np.array([[4, 8], [16, 16]]), np.array([[1, 0], [16, 2]])
    values = pass_at_k(n, c, 4)
    assert values.shape == (2, 2)
    assert values.ravel() == pytest.approx([float(exact(a, b, 4)) for a, b in zip(n.flat, c.flat, strict=True)])
    assert pass_at_k(16, [0, 2, 16], 8).tolist() == pass_at_k([16, 16, 16], torch.tensor([0, 2, 16]), 8).tolist()
    assert isinstance(pass_at_k(4, 1, 2), float)


@pytest.mark.parametrize(
    ("n", "c", "k", "message"),
    [
        ([8, 4], [1, 1], 5, r"k = 5 is more than n samples: .* \(row 1: n = 4, c = 1\)"),
        ([8, 8], [1, 9], 2, r"c right samples must lie in \[0, n\] \(row 1: n = 8, c = 9\)"),
        (8, -1, 2, r"\(row 0: n = 8, c = -1\)"),
        (8, 1, 0, "k must be at least 1: got 0"),
        ([8, 8], [1], 1, r"same shape.* got \(2,\) and \(1,\)"),
        ([], [], 1, "n and c must be integers: got float64"),
    ],
)
def test_what_cannot_be_is_refused(n, c, k, message):
    with pytest.raises(UserError, match=message):
        pass_at_k(n, c, k)
