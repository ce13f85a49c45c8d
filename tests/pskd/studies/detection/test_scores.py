"""Detections against ground truth: who is right, mAP on a case worked by hand, Platt scaling, pictures."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit

from retarget.pskd.studies.detection.scores import (
    OBJECT,
    RIGHT,
    WRONG,
    Detections,
    Judged,
    draw,
    match,
    mean_average_precision,
    platt,
    scores,
)

A, B, FAR = [0.0, 0, 10, 10], [20.0, 20, 30, 30], [50.0, 50, 60, 60]
HALF = [0.0, 0, 10, 5]  # IoU 0.5 with A
LESS = [0.0, 0, 10, 4.9]


def boxes(*rows):
    return torch.tensor(rows).reshape(-1, 4)


def found(*rows):
    """(box, label, score) each."""
    return {
        "boxes": boxes(*(box for box, _, _ in rows)),
        "labels": torch.tensor([label for _, label, _ in rows], dtype=torch.long),
        "scores": torch.tensor([score for _, _, score in rows]),
    }


def target(*rows):
    """(box, label, ignored) each."""
    return {
        "boxes": boxes(*(box for box, _, _ in rows)),
        "labels": torch.tensor([label for _, label, _ in rows], dtype=torch.long),
        "ignored": torch.tensor([ignored for _, _, ignored in rows], dtype=torch.bool),
    }


@pytest.mark.parametrize(
    ("detections", "right", "counted"),
    [
        ([(A, 1, 0.9)], [1], [1]),
        ([(A, 2, 0.9)], [0], [1]),
        ([(HALF, 1, 0.9)], [1], [1]),
        ([(LESS, 1, 0.9)], [0], [1]),
        ([(A, 1, 0.5), (A, 1, 0.9)], [0, 1], [1, 1]),  # the more confident one takes the object
        ([(B, 2, 0.9), (B, 2, 0.8)], [0, 0], [0, 0]),  # an ignored object may be found as often as one likes
        ([(B, 1, 0.9), (FAR, 2, 0.1)], [0, 0], [1, 1]),
        ([], [], []),
    ],
)
def test_who_is_right_and_who_counts(detections, right, counted):
    there = target((A, 1, False), (B, 2, True))
    assert [one.int().tolist() for one in match(found(*detections), there)] == [right, counted]
    nothing = match(found(*detections), target())
    assert [one.int().tolist() for one in nothing] == [[0] * len(right), [1] * len(right)]


def test_a_detection_inside_a_crowd_counts_neither_here_nor_in_map():
    """Its IoU with the crowd is small, and all of it lies in the crowd."""
    seen = Detections()
    crowd = [0.0, 0.0, 100.0, 100.0]
    seen.add(
        [found((A, 1, 0.9)), found(([40.0, 40.0, 60.0, 60.0], 1, 0.95))],
        [target((A, 1, False)), target((crowd, 1, True))],
    )
    assert seen.judged().right.tolist() == [True]
    assert mean_average_precision(seen)["map"] == pytest.approx(100)


def judged_pair():
    """Class 1 is found perfectly. Class 2: a false alarm of 0.95, then the object at IoU 0.5 with 0.75."""
    seen = Detections()
    seen.add([found((A, 1, 0.95), (FAR, 2, 0.95))], [target((A, 1, False), (B, 1, True))])
    seen.add([found((HALF, 2, 0.75))], [target((A, 2, False))])
    return seen


def test_mean_average_precision_of_a_case_worked_by_hand():
    """AP of class 1 is 1 everywhere. That of class 2 is 1/2 at IoU 0.5, where the first of two detections is wrong,
    and 0 at the nine stricter thresholds."""
    values = mean_average_precision(judged_pair())
    assert values["map50"] == pytest.approx(75)
    assert values["map75"] == pytest.approx(50)
    assert values["map"] == pytest.approx(100 * (1 + 0.5 / 10) / 2)


def test_scores_are_those_of_the_detections_that_count():
    seen = judged_pair()
    values = scores(seen, seen)
    assert values["precision"] == pytest.approx(200 / 3)
    assert values["confidence"] == pytest.approx(100 * (0.95 + 0.95 + 0.75) / 3)
    assert values["ece"] == pytest.approx(100 * (2 * abs(0.5 - 0.95) + abs(1 - 0.75)) / 3)
    assert values["detections"] == 1.5
    arrays = seen.arrays("test")
    assert arrays["test_right"].tolist() == [True, False, True]
    assert arrays["test_image"].tolist() == [0, 0, 1]


def test_platt_scaling_finds_a_known_slope_and_offset_and_repairs_an_overconfident_detector():
    rng = np.random.default_rng(0)
    z = rng.normal(0, 3, 20_000)
    right = rng.random(len(z)) < expit(0.5 * z - 0.7)
    slope, offset = platt(Judged(expit(z), right))
    assert slope == pytest.approx(0.5, abs=0.02)
    assert offset == pytest.approx(-0.7, abs=0.05)


@pytest.mark.parametrize("right", [True, False])
def test_platt_scaling_stays_finite_where_every_detection_is_alike(right):
    slope, offset = platt(Judged(np.array([0.5, 0.9, 1.0]), np.full(3, right)))
    assert np.isfinite([slope, offset]).all()


def test_a_detector_that_finds_nothing_has_no_calibration():
    silent = Detections()
    silent.add([found()], [target((A, 1, False))])
    values = scores(silent, silent)
    assert values["detections"] == 0
    assert all(np.isnan(values[name]) for name in ("ece", "ece_scaled", "nll_scaled", "confidence", "precision"))
    assert mean_average_precision(silent) == {"map": 0, "map50": 0, "map75": 0}
    assert silent.arrays("val")["val_boxes"].shape == (0, 4)


@pytest.mark.parametrize("there", [[], [(A, 1, True)]])
def test_without_an_object_that_counts_there_is_no_mean_average_precision(there):
    seen = Detections()
    seen.add([found((A, 1, 0.9))], [target(*there)])
    values = mean_average_precision(seen)
    assert set(values) == {"map", "map50", "map75"}
    assert np.isnan(list(values.values())).all()


def test_a_picture_shows_right_and_wrong_detections_and_objects(tmp_path):
    images = [torch.zeros(3, 60, 80), torch.zeros(3, 60, 80)]
    draw(tmp_path / "sheet", images, judged_pair(), ("cat", "dog"))
    with Image.open(tmp_path / "sheet") as sheet:
        assert (sheet.format, sheet.size) == ("PNG", (2 * 320 + 4, 240))
        colours = {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in sheet.getcolors(10_000)}
    assert {RIGHT, WRONG, OBJECT} <= colours
