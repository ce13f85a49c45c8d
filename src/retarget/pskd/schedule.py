"""The epochs of a run: the current one, the weight of the past in it, and the samples counted in it."""

import warnings
from typing import Literal

import torch
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.functional import alpha_at

Growth = Literal["linear", "constant"]

MOST_PASSES = 20
"""Passes over the training set after which the sampler is taken to be endless; repeated augmentation makes fewer."""


NEARLY_ALL = 0.95
"""Share of an epoch's samples without a past row above which a warning is issued."""


MIXED = 0.25
"""Share of an epoch's remembered targets with two classes above which a warning about mixed inputs is issued."""


class Schedule:
    """The weight of the past over a run of ``total_epochs``.

    Args:
        total_epochs: length of the run, at least 1.
        alpha_T: weight in the last epoch, in [0, 1].
        growth: ``"linear"``, or ``"constant"`` from the second epoch on.

    Attributes:
        two_classed: number of this epoch's remembered targets that share themselves between exactly two classes.
        smaller: the least and the greatest smaller share of such targets, if there are only two classes.
        began: the current epoch, or the one in which a loaded state was saved; None before the first.
        fallbacks: number of samples in this epoch that had no past row, of those whose label is not ignored.
        asked: number of such samples in this epoch whose past row was looked up.
        pretrained: whether epoch 0 has a past, the pretrained model.
        lacking: the epoch of a restored state whose past was not loaded; None if nothing is lacking.

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
        self.lacking: int | None = None
        self.fallbacks: Tensor | int = 0
        self.two_classed: Tensor | int = 0
        self.smaller: tuple[Tensor, Tensor] | None = None
        self.asked: Tensor | int = 0
        self.pretrained = False
        self._seen, self._again = 0, 0
        self._warned: set[str] = set()

    @property
    def alpha_T(self) -> float:
        """Weight of the past in the last epoch."""
        return self._alpha_T

    @alpha_T.setter
    def alpha_T(self, alpha_T: float) -> None:
        try:
            within = 0.0 <= alpha_T <= 1.0
        except TypeError:  # a text or None
            within = False
        if not within:
            raise UserError(f"alpha_T must lie in [0, 1]: got {alpha_T!r}")
        self._alpha_T = float(alpha_T)

    @property
    def epoch(self) -> int:
        """The current epoch.

        Raises:
            UserError: none has begun.
        """
        if self.began is None:
            raise UserError("call set_epoch(epoch) before the first step of every epoch")
        return self.began

    @property
    def alpha(self) -> float:
        """Weight of the past in this epoch; 0 in epoch 0, unless its past is the pretrained model."""
        if self.epoch == 0 and not self.pretrained:
            return 0.0
        return self.alpha_T if self.growth == "constant" else alpha_at(self.epoch, self.total_epochs, self.alpha_T)

    def refuse(self, epoch: int) -> None:
        """Raise unless the epoch lies within the run and the rows that it reads have not been overwritten."""
        refuse_bad_epoch(epoch, self.total_epochs)
        if self.began is not None and 0 < epoch < self.began:
            raise UserError(
                f"the table has been through epoch {self.began}, so the rows that epoch {epoch} reads are overwritten: "
                f"load the state that was saved before epoch {epoch}"
            )

    def begin(self, epoch: int) -> None:
        """Begin an epoch and reset its counts; warn if it is begun a third time, as if in each step."""
        self._again = self._again + 1 if epoch == self.began and self._seen else 0
        if self._again == 2:
            warnings.warn(
                f"set_epoch({epoch}) was called a third time, after {self._seen:,} samples: each call forgets what the "
                "epoch has remembered. Call it once per epoch, not in each step; if you count steps, only when "
                "step % steps_per_epoch == 0",
                stacklevel=3,
            )
        self.began, self.fallbacks, self.asked, self._seen, self.two_classed = epoch, 0, 0, 0, 0
        self.lacking = None
        self.smaller, self._warned = None, set()

    def count_two(self, targets: Tensor) -> None:
        """Count the targets [B, 2] that two classes share, and note how far their smaller shares lie apart."""
        least = targets.detach().amin(1)
        shared = least > 1e-4
        self.two_classed += shared.sum()
        ends = least.masked_fill(~shared, torch.inf).amin(), least.masked_fill(~shared, -torch.inf).amax()
        if self.smaller is not None:
            ends = torch.minimum(self.smaller[0], ends[0]), torch.maximum(self.smaller[1], ends[1])
        self.smaller = ends

    def warn(self, stacklevel: int) -> None:
        """Warn, once in an epoch, of mixed inputs, or of hard labels as nearly all samples had no past row."""
        two_classed = int(self.two_classed)
        if self.smaller is not None and float(self.smaller[1] - self.smaller[0]) < 1e-3:
            two_classed = 0  # of two classes label smoothing gives each target the same smaller share
        if "mixed" not in self._warned and two_classed and two_classed >= MIXED * self._seen:
            self._warned.add("mixed")
            warnings.warn(
                f"{two_classed:,} of the {self._seen:,} targets of epoch {self.epoch} are shared between two classes. "
                "If their inputs are mixed (Mixup, CutMix), the predictions are of no sample but were stored: "
                "pass loss(logits, y, index, mixed=shares) with the hard labels y, or remember=False",
                stacklevel=stacklevel + 1,
            )
        asked = int(self.asked)
        if "past" not in self._warned and asked and int(self.fallbacks) >= NEARLY_ALL * asked:
            self._warned.add("past")
            warnings.warn(
                f"{int(self.fallbacks):,} of the {asked:,} samples of epoch {self.epoch} had no past row and kept "
                "their hard labels: no earlier epoch remembered them. If you compute the loss elsewhere, call "
                "remember(logits, targets, index); if you mix images, leave some batches unmixed",
                stacklevel=stacklevel + 1,
            )

    def count(self, samples: int, training_set: int | None) -> None:
        """Count the samples of this epoch.

        Args:
            samples: number of samples in this step.
            training_set: number of training samples; None if it is not known, then nothing is counted.

        Raises:
            UserError: so many samples were seen that the epoch must be endless.
        """
        self._seen += samples if training_set else 0
        if training_set and self._seen > MOST_PASSES * training_set:
            raise UserError(
                f"{self._seen:,} samples since set_epoch({self.epoch}), but the training set has {training_set:,}: "
                "call set_epoch at the start of every epoch; with an endless sampler count steps, and call "
                "set_epoch(step // steps_per_epoch) when step % steps_per_epoch == 0"
            )


def refuse_bad_run(num_samples: int, num_classes: int, total_epochs: int, fewest: int = 2) -> None:
    """Raise unless a run has at least one sample, ``fewest`` classes and one epoch."""
    if num_samples < 1 or num_classes < fewest:
        one = "; if the network has one logit for yes or no, use MultiLabelPSKD, with targets [B, 1]"
        raise UserError(
            f"need num_samples >= 1 and num_classes >= {fewest}: got {num_samples} and {num_classes}"
            + one * (num_classes == 1)
        )
    if total_epochs < 1:
        raise UserError(f"need total_epochs >= 1: got {total_epochs}")


def refuse_bad_epoch(epoch: int, total_epochs: int) -> None:
    """Raise unless the epoch lies within the run."""
    if not 0 <= epoch < total_epochs:
        raise UserError(f"epoch {epoch} lies outside [0, total_epochs = {total_epochs})")
