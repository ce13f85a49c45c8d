"""Labels in the forms that people store: class numbers are used, anything else is refused with its values."""

import numpy as np
import pytest

from retarget.data.labels import class_labels
from retarget.errors import UserError


@pytest.mark.parametrize(
    "values",
    [
        [[2], [0], [1], [1]],
        np.array([2, 0, 1, 1], np.uint64),
        np.array([2.0, 0.0, 1.0, 1.0], np.float16),
        np.array([2, 0, 1, 1], ">i2"),
    ],
)
def test_class_numbers_of_any_type_and_keras_columns_are_the_same_labels(values):
    labels = class_labels(values, "here")
    assert labels.dtype == np.int64
    assert labels.tolist() == [2, 0, 1, 1]


def test_booleans_are_two_classes():
    assert class_labels(np.array([True, False]), "here").tolist() == [1, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.eye(3)[[0, 1, 2, 0]], r"shape \[4, 3\] are a row of 3 values per image, perhaps one-hot; .*argmax"),
        ([0.0, 0.5, 1.0, 1.5], "labels are whole numbers; these are not: 0.5, 1.5"),
        ([0.0, float("nan"), 1.0], "these are not: nan"),
        ([0, 1, 3], "labels are 0, 1, 3; number the 3 classes from 0 to 2, without gaps"),
        ([1, 2, 3], "labels are 1, 2, 3; number the 3 classes from 0 to 2"),
        ([0, -1, 1], "labels are -1, 0, 1"),
        (np.array([0, 1, 4_000_000_000], np.uint32), "labels are 0, 1, 4000000000"),
        (np.array([0, 2**63 + 1], np.uint64), "labels are 0, 9223372036854775809"),
        (np.arange(20) * 3, r"labels are 0, 3, 6, 9, 12, 15, 18, 21, … \(20 values\)"),
        (["dog", "cat", "dog"], r"labels are text \(cat, dog\); number the classes from 0.*class_encode_column"),
        ([0, 1, None], "the image in row 2 has no label"),
        (np.array([{}, 1], object), "one whole number per image, from 0; these are object"),
        ([], "there are no images"),
        (np.zeros((2, 2, 2)), r"of shape \[2, 2, 2\]"),
        (0, r"of shape \[\]"),
    ],
)
def test_what_is_no_class_number_is_refused_with_its_values(values, message):
    with pytest.raises(UserError, match=f"labels.npy: .*{message}"):
        class_labels(values, "labels.npy")


def test_a_test_part_may_lack_classes_and_may_not_have_others():
    assert class_labels([2, 2], "here", classes=3).tolist() == [2, 2]
    with pytest.raises(UserError, match="there is the label 3, 4, but the training set has only the labels 0 to 2"):
        class_labels([0, 3, 4], "here", classes=3)
