"""Spacings: an exact count of distinct steps on any grid."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retarget.errors import UserError
from retarget.trojdiff.spacing import spaced_timesteps


@given(data=st.data(), steps=st.integers(1, 1000), spacing=st.sampled_from(["linear", "quadratic", "trailing"]))
def test_exact_count_distinct_descending_in_range(data, steps, spacing):
    count = data.draw(st.integers(1, steps))
    timesteps = spaced_timesteps(count, steps, spacing)
    assert len(timesteps) == count
    assert all(a > b for a, b in pairwise(timesteps))
    assert timesteps[0] == steps - 1
    assert timesteps[-1] >= 0


def test_quadratic_hundred_steps_is_a_hundred():
    timesteps = spaced_timesteps(100, 1000, "quadratic")
    assert len(set(timesteps)) == 100
    assert timesteps[:3] == [999, 979, 959]


@pytest.mark.parametrize("count", [0, 1001])
def test_counts_out_of_range(count):
    with pytest.raises(UserError, match="use 1 to 1000"):
        spaced_timesteps(count, 1000)


def test_unknown_spacing():
    with pytest.raises(UserError, match="linear, quadratic, trailing"):
        spaced_timesteps(3, 10, "cosine")
