"""Detections against ground truth: mean average precision, calibration, and pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logit
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_area, box_iou

from retarget.metrics import calibration as c

RIGHT_IOU = 0.5
DRAWN_SCORE = 0.3
RIGHT, WRONG, OBJECT = "#1f6feb", "#e36209", "#ffffff"  # colours of a picture's boxes


class Judged(NamedTuple):
    """The detections in a set of images that count, in one list.

    Attributes:
        scores: [M], confidences in (0, 1].
        right: [M] bool, whether each is correct.
    """

    scores: np.ndarray
    right: np.ndarray


class Detections:
    """A detector's detections in a set of images and the ground truth, kept on the CPU."""

    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []
        self.targets: list[dict[str, Tensor]] = []

    def add(self, found: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> None:
        """Add a batch: a torchvision detector's output and its targets."""
        for kept, batch in ((self.found, found), (self.targets, targets)):
            kept.extend({name: value.detach().cpu() for name, value in one.items()} for one in batch)

    def judged(self) -> Judged:
        """All detections that count, image after image."""
        parts = [match(found, target) for found, target in zip(self.found, self.targets, strict=True)]
        counts = [counted for _, counted in parts]
        return Judged(
            _joined([one["scores"][kept] for one, kept in zip(self.found, counts, strict=True)], np.float64),
            _joined([right[kept] for right, kept in parts], np.bool_),
        )

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """All detections as arrays (boxes [M, 4]; labels, scores, image [M]), and those of :meth:`judged`."""
        held = {name: torch.cat([one[name] for one in self.found]).numpy() for name in ("boxes", "labels", "scores")}
        held["image"] = np.repeat(np.arange(len(self.found)), [len(one["labels"]) for one in self.found])
        judged = self.judged()
        held |= {"counted_scores": judged.scores, "right": judged.right}
        return {f"{prefix}_{name}": value for name, value in held.items()}


def match(found: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Which detections of an image are correct, and which count, [M] bool each.

    In order of confidence, each detection takes the object of its class with the largest IoU, at least 0.5, that no
    other has taken. A detection with at least half of its area inside an ignored object of its class (COCO's rule for
    crowds) does not count.
    """
    right, counted = (torch.full((len(found["scores"]),), value, dtype=torch.bool) for value in (False, True))
    overlap = box_iou(found["boxes"], target["boxes"])
    other_class = found["labels"][:, None] != target["labels"]
    overlap = overlap.masked_fill(other_class, 0.0)
    inside = _share_inside(found["boxes"], target["boxes"]).masked_fill(other_class, 0.0)
    free = ~target["ignored"]
    for place in found["scores"].argsort(descending=True, stable=True).tolist():
        candidates = overlap[place].masked_fill(~free, 0.0)
        if len(candidates) and candidates.max() >= RIGHT_IOU:
            right[place], free[candidates.argmax()] = True, False
        elif (inside[place][target["ignored"]] >= RIGHT_IOU).any():
            counted[place] = False
    return right, counted


def _share_inside(boxes: Tensor, areas: Tensor) -> Tensor:
    """The share of each box [M, 4] that lies inside each area [N, 4], as [M, N]."""
    low, high = torch.maximum(boxes[:, None, :2], areas[:, :2]), torch.minimum(boxes[:, None, 2:], areas[:, 2:])
    return (high - low).clamp_min(0).prod(2) / box_area(boxes)[:, None].clamp_min(1e-9)


def mean_average_precision(detections: Detections) -> dict[str, float]:
    """COCO's mAP, mAP50 and mAP75 in percent, by torchmetrics and pycocotools; ignored objects are passed as crowds.

    All are NaN where no image has an object that is not ignored.
    """
    metric = MeanAveragePrecision(backend="pycocotools")
    targets = [{**one, "iscrowd": one["ignored"].long()} for one in detections.targets]
    metric.update(detections.found, [{name: one[name] for name in ("boxes", "labels", "iscrowd")} for one in targets])
    found = {name: float(value) for name, value in metric.compute().items() if name in ("map", "map_50", "map_75")}
    # pycocotools has -1 for the precision of no objects
    share = {name: 100 * value if value >= 0 else float("nan") for name, value in found.items()}
    return {"map": share["map"], "map50": share["map_50"], "map75": share["map_75"]}


def scores(validation: Detections, test: Detections) -> dict[str, float]:
    """Calibration of the test detections, raw and after Platt scaling fitted on the validation detections.

    All are NaN for a detector without detections.
    """
    fitted, judged = platt(validation.judged()), test.judged()
    out = {"detections": len(judged.scores) / len(test.found)}
    if len(judged.scores) == 0:
        return out | dict.fromkeys(("ece", "ece_scaled", "nll_scaled", "confidence", "precision"), float("nan"))
    scaled = fitted[0] * _logits(judged.scores) + fitted[1]
    return out | {
        "ece": 100 * c.expected_calibration_error(judged.scores, judged.right),
        "ece_scaled": 100 * c.expected_calibration_error(expit(scaled), judged.right),
        "nll_scaled": -float(log_expit(np.where(judged.right, scaled, -scaled)).mean()),
        "confidence": 100 * float(judged.scores.mean()),
        "precision": 100 * float(judged.right.mean()),
    }


def platt(judged: Judged) -> tuple[float, float]:
    """Slope and offset of the logits that minimise the NLL against Platt's smoothed targets (1999, section 2.2).

    One pair for all classes does not change the order of detections. Without detections it is (1, 0).
    """
    if len(judged.scores) == 0:
        return 1.0, 0.0
    z, right = _logits(judged.scores), judged.right
    wanted = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        u = parameters[0] * z + parameters[1]
        gap = expit(u) - wanted
        value = -(wanted * log_expit(u) + (1 - wanted) * log_expit(-u)).mean()
        return float(value), np.array([(gap * z).mean(), gap.mean()])

    slope, offset = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    return float(slope), float(offset)


def draw(path: Path, images: list[Tensor], detections: Detections, classes: tuple[str, ...]) -> None:
    """Draw the images, side by side, with the detections that score at least ``DRAWN_SCORE``, as a PNG file.

    Correct ones are blue, wrong ones orange, with class and score; objects are white.
    """
    tiles = []
    for image, found, target in zip(images, detections.found, detections.targets, strict=False):
        scale = max(1, round(240 / image.shape[1]))
        tile = Image.fromarray((255 * image.permute(1, 2, 0)).round().to(torch.uint8).numpy())
        tile = tile.resize((tile.width * scale, tile.height * scale), Image.Resampling.NEAREST)
        pen = ImageDraw.Draw(tile)
        for box in target["boxes"]:
            pen.rectangle((box * scale).tolist(), outline=OBJECT)
        right, _ = match(found, target)
        for place in (found["scores"] >= DRAWN_SCORE).nonzero()[:, 0].tolist():
            box, colour = (found["boxes"][place] * scale).tolist(), RIGHT if right[place] else WRONG
            text = f"{classes[int(found['labels'][place]) - 1]} {found['scores'][place]:.2f}"
            pen.rectangle(box, outline=colour, width=2)
            corner = (box[0], box[1])
            pen.rectangle(pen.textbbox(corner, text), fill=colour)
            pen.text(corner, text, fill=OBJECT)
        tiles.append(tile)
    columns, gap = min(len(tiles), 3), 4
    width, height = max(tile.width for tile in tiles) + gap, max(tile.height for tile in tiles) + gap
    sheet = Image.new("RGB", (columns * width - gap, -(-len(tiles) // columns) * height - gap), OBJECT)
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (place % columns * width, place // columns * height))
    sheet.save(path, "PNG")


def _logits(scores: np.ndarray) -> np.ndarray:
    return logit(np.clip(scores, 1e-6, 1 - 1e-6))  # float32 rounds a score close to 1 to 1


def _joined(parts: list[Tensor], dtype: Any) -> np.ndarray:
    return torch.cat(parts).numpy().astype(dtype)
