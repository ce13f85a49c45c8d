"""Bad predictions are refused with the row and the value."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from retarget.errors import UserError
from retarget.metrics import (
    apply_temperature,
    augrc,
    aurc,
    brier_score,
    excess_aurc,
    expected_calibration_error,
    failure_auroc,
    fit_temperature,
    negative_log_likelihood,
    reliability_diagram,
    risk_coverage_curve,
    top_k_error,
)
from retarget.metrics._inputs import BLOCK, checked_labels, checked_matrix, judge

OF_PAIRS = [
    expected_calibration_error,
    reliability_diagram,
    aurc,
    excess_aurc,
    augrc,
    failure_auroc,
    risk_coverage_curve,
]
OF_PROBS = [*OF_PAIRS, negative_log_likelihood, brier_score, top_k_error]
GOOD = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
LABELS = np.array([0, 1, 0])


def broken(row: int, column: int, value: float) -> np.ndarray:
    probs = GOOD.copy()
    probs[row, column] = value
    return probs


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("function", OF_PROBS)
@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        (broken(1, 0, np.nan), LABELS, "row 1, class 0, are nan: they must be finite"),
        (broken(2, 1, np.inf), LABELS, "row 2, class 1, are inf: they must be finite"),
        (broken(1, 1, 0.8), LABELS, "probabilities of row 1 sum to 1.05, not to 1"),
        (np.array([[0.5, 0.5], [1.5, -0.5], [1.0, 0.0]]), LABELS, "probability of row 1, class 1, is -0.5"),
        (GOOD, np.array([0, 1, 2]), r"label 2 of row 2 lies outside the classes \[0, 2\)"),
        (GOOD, np.array([0, -1, 0]), r"label -1 of row 1 lies outside the classes \[0, 2\)"),
        (GOOD[:0], LABELS[:0], r"probabilities are empty: their shape is \(0, 2\)"),
    ],
)
def test_bad_probabilities_and_labels_are_refused(function, probs, labels, message, convert):
    with pytest.raises(UserError, match=message):
        function(convert(probs), convert(labels))


@pytest.mark.parametrize("function", OF_PAIRS)
def test_bad_confidences_are_refused(function):
    with pytest.raises(UserError, match="confidence nan of row 1"):
        function(np.array([0.5, np.nan]), np.array([True, False]))
    with pytest.raises(UserError, match="there are no samples"):
        function(np.zeros(0), np.zeros(0, bool))
    with pytest.raises(UserError, match="need booleans of the same shape"):
        function(np.array([0.5, 0.6]), np.array([1, 0]))


def test_only_calibration_needs_confidences_to_be_probabilities():
    score, correct = np.array([3.0, -2.0]), np.array([True, False])
    assert aurc(score, correct) == 0.25
    with pytest.raises(UserError, match=r"confidence 3 of row 0 must lie in \[0, 1\]"):
        expected_calibration_error(score, correct)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: checked_matrix(np.zeros(3), "logits"),
            r"logits must be floating point of shape .* got float64 \(3,\)",
        ),
        (lambda: checked_matrix(np.zeros((3, 2), int), "logits"), r"got int64 \(3, 2\)"),
        (lambda: checked_labels(np.zeros(2, int), 3, 2), r"labels must be integers of shape \(3,\): got int64 \(2,\)"),
        (lambda: checked_labels(np.zeros(3), 3, 2), r"got float64 \(3,\)"),
        (lambda: judge(GOOD, LABELS.astype(float)), "labels must be integers"),
        (lambda: judge(GOOD, LABELS == 0), "labels must be integers"),
    ],
)
def test_shapes_and_types_that_do_not_fit_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_logits_are_refused_where_they_are_not_finite():
    logits = broken(2, 0, -np.inf)
    for call in (lambda: apply_temperature(logits, 1.0), lambda: fit_temperature(logits, LABELS)):
        with pytest.raises(UserError, match="logits of row 2, class 0, are -inf"):
            call()


def test_large_finite_logits_whose_sum_overflows_are_taken():
    huge = np.full((1, 2), 3e38, dtype=np.float32)
    assert apply_temperature(huge, 1.0).tolist() == [[0.5, 0.5]]


def test_rounding_of_a_narrow_type_is_not_an_error():
    logits = torch.randn(50, 100, generator=torch.Generator().manual_seed(0)) * 4
    for dtype in (torch.float16, torch.bfloat16):
        probs = torch.softmax(logits, 1).to(dtype)
        assert 0 <= expected_calibration_error(probs, torch.zeros(50, dtype=torch.long)) <= 1


def test_matrices_longer_than_a_block_are_read_whole():
    rows = 3 * BLOCK // 4
    probs = np.tile(np.array([[0.7, 0.2, 0.05, 0.05], [0.1, 0.1, 0.2, 0.6]]), (rows // 2, 1))
    judged = judge(probs, np.zeros(rows, int))
    assert judged.confidence.tolist() == [0.7, 0.6] * (rows // 2)
    assert judged.correct.tolist() == [True, False] * (rows // 2)
    probs[rows - 2, 3] = 0.06
    with pytest.raises(UserError, match=f"probabilities of row {rows - 2} sum to 1.01"):
        judge(probs, np.zeros(rows, int))
    probs[rows - 2] = [0.5, 0.6, -0.1, 0.0]
    with pytest.raises(UserError, match=f"probability of row {rows - 2}, class 2, is -0.1"):
        judge(probs, np.zeros(rows, int))


def test_the_layout_in_memory_does_not_matter():
    transposed, strided = np.asfortranarray(GOOD), np.repeat(GOOD, 2, axis=0)[::2]
    for probs in (transposed, strided, torch.tensor(GOOD.T.copy()).T):
        assert judge(probs, LABELS).confidence.tolist() == [0.5, 0.75, 1.0]


OF_OTHER_TYPES = """
import numpy as np
import torch
from retarget import metrics as m
from retarget.errors import UserError

probs, labels = np.array([[0.5, 0.5], [0.25, 0.75]]), np.array([0, 1])
for call in (
    lambda: m.expected_calibration_error(probs, labels, bins=2.5),
    lambda: m.reliability_diagram(probs, labels, bins=4.0),
    lambda: m.ExpectedCalibrationError(bins="10"),
    lambda: m.top_k_error(probs, labels, 1.5),
    lambda: m.pass_at_k(4, 2, 2.0),
    lambda: m.apply_temperature(probs, np.array([1.0, 2.0])),
    lambda: m.apply_temperature(probs, torch.tensor([1.0, 2.0])),
    lambda: m.apply_temperature(probs, "2"),
    lambda: m.apply_temperature(probs, None),
):
    try:
        print("accepted", call())
    except UserError as error:
        print(error)
ece = m.expected_calibration_error
print(ece(probs, labels, bins=np.int64(2)) == ece(probs, labels, bins=2))
print(m.top_k_error(probs, labels, np.int32(1)), m.pass_at_k(4, 2, np.int64(2)) == m.pass_at_k(4, 2, 2))
one = torch.nn.Parameter(torch.ones(1))
print(all((m.apply_temperature(probs, t) == m.softmax(probs)).all() for t in (1, np.float32(1), np.ones(1), one)))
"""


def test_numbers_of_another_type_are_refused_by_name():
    """In a process of its own: the tests check types, which users' programs do not."""
    done = subprocess.run([sys.executable, "-c", OF_OTHER_TYPES], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "bins must be an integer: got 2.5",
        "bins must be an integer: got 4.0",
        "bins must be an integer: got '10'",
        "k must be an integer: got 1.5",
        "k must be an integer: got 2.0",
        "temperature must be one number for all samples: got array([1., 2.])",
        "temperature must be one number for all samples: got tensor([1., 2.])",
        "temperature must be one number for all samples: got '2'",
        "temperature must be one number for all samples: got None",
        "True",
        "0.0 True",
        "True",
    ], done.stderr
