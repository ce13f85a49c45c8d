"""The epochs of a run: which one is under way, the weight of the past in it, and what is counted in it."""

import warnings
from typing import Literal

from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.functional import alpha_at

Growth = Literal["linear", "constant"]

MOST_PASSES = 20
"""Samples of an epoch, in training sets, from which the epoch has no end: more than any repeated augmentation."""


NEARLY_ALL = 0.95
"""Share of an epoch's samples without a past row from which a warning says so."""


class Schedule:
    """The weight of the past over a run of ``total_epochs``.

    Args:
        total_epochs: length of the run, at least 1.
        alpha_T: weight in the last epoch, in [0, 1].
        growth: ``"linear"``, or ``"constant"`` from the second epoch on.

    Attributes:
        began: the epoch under way, or the one that a loaded state was in; None before the first.
        fallbacks: samples of this epoch that had no past row.
        asked: samples of this epoch whose past row was asked for.
        pretrained: epoch 0 has a past, the model as it came.

    >>> schedule = Schedule(total_epochs=4, alpha_T=0.8)
    >>> schedule.begin(1)
    >>> schedule.alpha
    0.4
    """

    def __init__(self, total_epochs: int, alpha_T: float, growth: Growth = "linear") -> None:
        if growth not in ("linear", "constant"):
            raise UserError(f"schedule is 'linear' or 'constant': got {growth!r}")
        self.total_epochs, self.alpha_T, self.growth = total_epochs, alpha_T, growth
        self.began: int | None = None
        self.fallbacks: Tensor | int = 0
        self.asked, self.pretrained = 0, False
        self._seen = 0

    @property
    def alpha_T(self) -> float:
        """Weight of the past in the last epoch."""
        return self._alpha_T

    @alpha_T.setter
    def alpha_T(self, alpha_T: float) -> None:
        if not 0.0 <= alpha_T <= 1.0:
            raise UserError(f"alpha_T must lie in [0, 1]: got {alpha_T}")
        self._alpha_T = float(alpha_T)

    @property
    def epoch(self) -> int:
        """The epoch under way.

        Raises:
            UserError: none is.
        """
        if self.began is None:
            raise UserError("call set_epoch(epoch) before the first step of every epoch")
        return self.began

    @property
    def alpha(self) -> float:
        """Weight of the past in this epoch; 0 in epoch 0, which has no past but the pretrained model."""
        if self.epoch == 0 and not self.pretrained:
            return 0.0
        return self.alpha_T if self.growth == "constant" else alpha_at(self.epoch, self.total_epochs, self.alpha_T)

    def refuse(self, epoch: int) -> None:
        """Raise unless the epoch is one of the run's, and what it reads is still there."""
        refuse_bad_epoch(epoch, self.total_epochs)
        if self.began is not None and 0 < epoch < self.began:
            raise UserError(
                f"the table has been through epoch {self.began}: what epoch {epoch} would read is overwritten; "
                "load the state saved at that time"
            )

    def begin(self, epoch: int) -> None:
        """Begin an epoch: nothing is counted in it yet."""
        self.began, self.fallbacks, self.asked, self._seen = epoch, 0, 0, 0

    def warn(self, stacklevel: int) -> None:
        """Say, once, that the epoch under way has been plain training: nearly all of its samples had no past row."""
        asked, self.asked = self.asked, 0
        if asked and int(self.fallbacks) >= NEARLY_ALL * asked:
            warnings.warn(
                f"{int(self.fallbacks):,} of the {asked:,} samples of epoch {self.epoch} had no past row and kept "
                "their hard labels: no earlier epoch remembered them. Call remember(logits, targets, index) where the "
                "loss is computed elsewhere, and leave some batches unmixed where images are mixed",
                stacklevel=stacklevel + 1,
            )

    def count(self, samples: int, training_set: int | None) -> None:
        """Count samples of this epoch.

        Args:
            samples: of this step.
            training_set: how many there are; None where that is not known, and nothing is counted.

        Raises:
            UserError: the epoch has no end.
        """
        self._seen += samples if training_set else 0
        if training_set and self._seen > MOST_PASSES * training_set:
            raise UserError(
                f"{self._seen:,} samples since set_epoch({self.epoch}), and the training set has {training_set:,}: "
                "set_epoch begins every epoch; an infinite sampler has none, so count steps, "
                "set_epoch(step // steps_per_epoch)"
            )


def refuse_bad_run(num_samples: int, num_classes: int, total_epochs: int) -> None:
    """Raise unless the sizes of a training run make sense."""
    if num_samples < 1 or num_classes < 2:
        raise UserError(f"need num_samples >= 1 and num_classes >= 2: got {num_samples} and {num_classes}")
    if total_epochs < 1:
        raise UserError(f"need total_epochs >= 1: got {total_epochs}")


def refuse_bad_epoch(epoch: int, total_epochs: int) -> None:
    """Raise unless the epoch is one of the run's."""
    if not 0 <= epoch < total_epochs:
        raise UserError(f"epoch {epoch} lies outside [0, total_epochs = {total_epochs})")
