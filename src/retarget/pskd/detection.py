"""PS-KD on the classification head of torchvision's Faster R-CNN, whose loss is softened from outside.

Each step draws new proposals, so a proposal has no past of its own. The past comes either from the ground-truth object
that it matches, whose key is (image, object), or from the previous epoch's detector, which can classify any proposal.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from retarget.errors import UserError
from retarget.pskd.checks import Checks, one_hot
from retarget.pskd.form import Form
from retarget.pskd.functional import pskd_loss, widen
from retarget.pskd.method import PSKD
from retarget.pskd.own_loss import relative_error, tells
from retarget.pskd.past.base import Store, past_of
from retarget.pskd.past.previous import PreviousModel, bare
from retarget.pskd.sequences import Offsets, lengths_fingerprint

NEEDED = (
    "backbone",
    "roi_heads.select_training_samples",
    "roi_heads.box_roi_pool",
    "roi_heads.box_head",
    "roi_heads.box_predictor",
)
"""The parts of a torchvision detector that are used here; besides them only the name ``loss_classifier``."""

MOST_COMPARED = 100
"""Batches after which no more classes are waited for, to compare the detector's loss with what replaces it."""


class DetectionPSKD(Form):
    """Softens the targets of the box classifier of ``torchvision.models.detection.FasterRCNN``.

    Call ``losses(images, targets)`` instead of ``detector(images, targets)``. Only ``loss_classifier`` changes, and
    not even that with alpha 0 or in epoch 0. The detector itself is not modified, so you evaluate, save and export it
    as before. Mask and Keypoint R-CNN work too, as does a detector inside DistributedDataParallel.

    With a table, a proposal that matches an object is softened with the object's row: the mean prediction of the
    proposals that matched the object in the last epoch. A background proposal has no identity and keeps its hard
    target. With ``PreviousModel`` every sampled proposal, background included, is softened with the last epoch's
    detector's prediction for that same proposal.

    Args:
        detector: the detector being trained.
        objects: number of objects in each training image, in the order of ``image_id``; not needed with
            ``PreviousModel``.
        num_classes: C, the background included, as torchvision counts.
        store: as in :class:`~retarget.pskd.method.PSKD`; ``PreviousModel(detector)`` for the second way.

    Other arguments as in :class:`~retarget.pskd.method.PSKD`.

    Raises:
        UserError: the model lacks a part of a torchvision detector that is needed here.
    """

    def __init__(
        self,
        detector: nn.Module,
        objects: Sequence[int] | None,
        num_classes: int,
        total_epochs: int,
        alpha_T: float = 0.8,
        *,
        store: Store = "dense",
        schedule: Literal["linear", "constant"] = "linear",
        device: torch.device | str | None = None,
    ) -> None:
        self.detector = detector
        self._inner: Any = bare(detector)
        missing = [
            path
            for path in NEEDED
            if reduce(lambda at, name: getattr(at, name, None), path.split("."), self._inner) is None
        ]
        if missing:
            raise UserError(
                f"{type(self._inner).__name__} has no {', '.join(missing)}: DetectionPSKD is for the Faster R-CNN of "
                "torchvision, of the versions that this package allows"
            )
        if isinstance(store, PreviousModel):
            store = PreviousModel(ProposalClassifier(self._inner), store.mode, store.first_past)
        elif objects is None:
            raise UserError("a table stores one row per object: pass objects, the number of objects in each image")
        self.objects = None if isinstance(store, PreviousModel) or objects is None else Objects(objects)
        rows, name = (self.objects.num_rows, self.objects.name) if self.objects else (None, None)
        past = past_of(store, rows, num_classes, device, name=name)
        self.core = PSKD(rows, num_classes, total_epochs, alpha_T, store=past, schedule=schedule)
        counts = lengths_fingerprint(self.objects)  # rows of other images are refused
        parts = self.core.schedule, past, self.core.checks
        super().__init__(*parts, rows, num_classes, self.core.ignore_index, objects=counts)
        self._verified, self._compared, self._shown = False, 0, set[int]()

    def losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The detector's losses with the softened ``loss_classifier``; remembers the present predictions.

        Args:
            images: as the detector takes them.
            targets: as the detector takes them. For a table each target also has ``image_id``, the image's index in
                the training set, and, if an augmentation dropped or reordered objects, ``object_id`` [n], each
                object's index in the image before the augmentation.

        Raises:
            UserError: the detector is in evaluation mode; a key that is missing or out of range; a label that is no
                object's class; logits that are not finite.
        """
        if not self._inner.training:
            raise UserError("losses() is for training: call detector.train() first; evaluate with the detector itself")
        self._check_labels(targets)
        with watch(self._inner) as step:
            losses = self.detector(images, targets)
        labels = torch.cat(step.labels)
        self._check_loss(losses["loss_classifier"], step, labels)
        if self.objects is None:
            if self.alpha > 0:
                soft = self.core.soften(labels, inputs=(step.images, step.shapes, step.proposals))
                losses["loss_classifier"] = pskd_loss(step.logits, soft)
            return losses
        found, rows = labels > 0, self.objects.rows_of(step, self.checks)
        if self.alpha > 0:
            soft = one_hot(labels, self.num_classes, self.ignore_index)
            if found.any():
                soft[found] = self.core.soften(labels[found], rows[found])
            losses["loss_classifier"] = pskd_loss(step.logits, soft)
        if found.any():
            self.core.remember(*mean_predictions(step.logits[found], labels[found], rows[found]))
        return losses

    # -- inside

    def _check_labels(self, targets: list[dict[str, Tensor]]) -> None:
        """Refuse labels outside [1, C), which the pass would train as background, or which would stop a GPU.

        Raised at once: torchvision itself waits for the device there, to look at the boxes.
        """
        wrong = []
        for target in targets or ():  # torchvision says that there are none
            if "labels" not in target:
                raise UserError('a target has no "labels": set them to the classes of its objects, counted from 1')
            wrong.append((target["labels"] < 1) | (target["labels"] >= self.num_classes))
        if not wrong or not torch.cat(wrong).any():
            return
        number = next(place for place, one in enumerate(wrong) if one.any())
        target, row = targets[number], int(wrong[number].nonzero()[0, 0])
        label = int(target["labels"][row])
        if label >= self.num_classes:
            last = getattr(self._inner.roi_heads.box_predictor, "cls_score", None)
            self._check_classes(getattr(last, "out_features", self.num_classes))
        named = self.objects is not None and "image_id" in target
        image = f"image {_image_id(target)}" if named else f"image {number} of the batch"
        raise UserError(
            f"object {row} of {image} has the label {label}, which lies outside [1, {self.num_classes}): labels count "
            "from 1, since 0 is the background, and num_classes counts the background too"
        )

    def _check_classes(self, found: int) -> None:
        if found != self.num_classes:
            raise UserError(
                f"the detector has {found} classes, the background included, but num_classes is {self.num_classes}"
            )

    def _check_loss(self, loss: Tensor, step: "Step", labels: Tensor) -> None:
        """Check that the loss is finite and, at first, that it is the cross-entropy that is replaced here."""
        loss = loss.detach()
        self.checks.require(
            loss.isfinite().reshape(1),
            lambda _: (
                f"loss_classifier is {float(loss)}: the detector has diverged, or an image holds a value that is not "
                "finite"
            ),
        )
        if self._verified:
            return
        self._check_classes(step.logits.shape[1])
        understood, error = F.cross_entropy(widen(step.logits.detach()), labels), relative_error(step.logits)
        if not torch.allclose(loss.to(understood.dtype), understood, rtol=error, atol=0.1 * error, equal_nan=True):
            raise UserError(
                "the detector's loss_classifier is not the cross-entropy of its sampled proposals "
                f"({float(loss):.4g}, not {float(understood):.4g}) and cannot be softened; DetectionPSKD works with "
                "torchvision's Faster R-CNN, without class weights"
            )
        # Proposals of one class have the same mean loss whatever the class weighs: wait for the other classes.
        if tells(step.logits, labels, self.core.ignore_index, error):
            self._compared += 1
            self._shown.update(labels.unique().tolist())
            self._verified = len(self._shown) == self.num_classes or self._compared == MOST_COMPARED


@dataclass
class Step:
    """What was seen in one training pass of a detector; the lists have one entry per image.

    Attributes:
        images: [B, 3, H, W], normalised and padded.
        shapes: (H, W) of each image without padding.
        proposals: the sampled proposals, [P_i, 4] each.
        labels: [P_i] each, 0 is the background.
        matched: [P_i] each, the target's box that a proposal matches; meaningless if the label is 0.
        logits: [P, C], P the sum of P_i.
    """

    images: Any = None
    shapes: Any = None
    targets: Any = None
    proposals: Any = None
    labels: Any = None
    matched: Any = None
    logits: Any = None


class Objects(Offsets):
    """Where the rows of each image's objects lie.

    Args:
        lengths: objects of each image, in the order of ``image_id``.
    """

    def rows_of(self, step: Step, checks: Checks) -> Integer[Tensor, "proposals"]:
        """The row of the object that each proposal matches; an arbitrary row for the background."""
        rows = []
        for target, matched in zip(step.targets, step.matched, strict=True):
            count = len(target["boxes"])
            places = target.get("object_id", torch.arange(count, device=matched.device))
            if len(places) != count:
                raise UserError(f"a target has {count} boxes but {len(places)} object_id: it needs one per box")
            here = self._rows_in(_image_id(target), places, "object_id" in target, checks)
            rows.append(here[matched] if count else torch.zeros_like(matched))
        return torch.cat(rows)

    def _rows_in(self, image: int, places: Tensor, named: bool, checks: Checks) -> Integer[Tensor, "objects"]:
        if not 0 <= image < self.num_samples:
            raise UserError(
                f"image_id {image} lies outside [0, {self.num_samples}): objects has one number per training image"
            )
        count = int(self.lengths[image])
        if not named and len(places) < count:  # which of them are missing is not known
            raise UserError(
                f"image {image} has {len(places)} boxes in this batch, but objects lists {count}, so its boxes could "
                "get the rows of others: if an augmentation drops objects, set object_id in the target, each object's "
                "index before it; else count the objects as the dataset returns them"
            )
        checks.require(
            (places >= 0) & (places < count),
            lambda row: (
                f"object {int(places[row])} of image {image} has no row: the argument objects lists {count} for it; "
                "set object_id in the target if an augmentation drops objects"
            ),
        )
        return (int(self.starts[image]) + places).clamp(0, self.num_rows - 1)

    def name(self, row: int) -> str:
        """A row in a message."""
        return "object {1} of image {0}".format(*self.find(row))


def _image_id(target: dict[str, Any]) -> int:
    if "image_id" not in target:
        raise UserError('a target has no "image_id": set it to the image\'s index in the training set')
    try:
        return int(target["image_id"])
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"image_id {target['image_id']!r} is not one whole number: set it to the image's index in the training set"
        ) from error


@contextmanager
def watch(detector: Any) -> Iterator[Step]:
    """Record the sampled proposals, their labels and logits of the detector's passes inside the ``with`` block."""
    step, heads = Step(), detector.roi_heads
    users = vars(heads).get("select_training_samples")  # a replacement of the user's own
    select = heads.select_training_samples

    def selected(proposals: Any, targets: Any) -> Any:
        chosen = select(proposals, targets)
        step.targets, (step.proposals, step.matched, step.labels) = targets, chosen[:3]
        return chosen

    def entered(module: Any, args: Any) -> None:
        step.images = args[0]

    def pooled(module: Any, args: Any) -> None:
        step.shapes = args[2]

    def predicted(module: Any, args: Any, output: Any) -> None:
        step.logits = output[0]

    handles = [
        detector.backbone.register_forward_pre_hook(entered),
        heads.box_roi_pool.register_forward_pre_hook(pooled),
        heads.box_predictor.register_forward_hook(predicted),
    ]
    heads.select_training_samples = selected
    try:
        yield step
    finally:
        del heads.select_training_samples
        if users is not None:
            heads.select_training_samples = users
        for handle in handles:
            handle.remove()


class ProposalClassifier(nn.Module):
    """The part of a detector that classifies given proposals; ``PreviousModel`` copies only this part."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        heads = detector.roi_heads
        self.backbone, self.pool = detector.backbone, heads.box_roi_pool
        self.head, self.predictor = heads.box_head, heads.box_predictor

    def forward(
        self, images: Tensor, shapes: list[tuple[int, int]], proposals: list[Tensor]
    ) -> Float[Tensor, "proposals classes"]:
        """Logits of the proposals of a normalised and padded batch."""
        features = self.backbone(images)
        if isinstance(features, Tensor):
            features = OrderedDict([("0", features)])
        return self.predictor(self.head(self.pool(features, proposals, shapes)))[0]


def mean_predictions(
    logits: Float[Tensor, "proposals classes"],
    labels: Integer[Tensor, "proposals"],
    rows: Integer[Tensor, "proposals"],
) -> tuple[Float[Tensor, "objects classes"], Integer[Tensor, "objects"], Integer[Tensor, "objects"]]:
    """The logarithm of the mean probabilities of each object's proposals; and the objects' labels and rows.

    >>> logits, labels, rows = mean_predictions(torch.tensor([[0.0, 99.0], [99.0, 0.0]]), torch.ones(2).long(),
    ...                                         torch.tensor([7, 7]))
    >>> logits.exp(), rows
    (tensor([[0.5000, 0.5000]]), tensor([7]))
    """
    objects, member = rows.unique(return_inverse=True)
    probs = F.softmax(widen(logits.detach()), 1)
    total = probs.new_zeros(len(objects), probs.shape[1]).index_add_(0, member, probs)
    count = member.bincount(minlength=len(objects))[:, None]
    return (total / count).log(), torch.empty_like(objects).scatter_(0, member, labels), objects
