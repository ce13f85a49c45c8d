"""``torchmetrics.Metric`` classes of the functions in :mod:`retarget.metrics.calibration`, under the same names.

They can be logged from a Lightning module and put into a ``MetricCollection``, and work across processes: states are
lists with one number per sample, concatenated in rank order, and ``compute`` calls the function itself. ``update``
refuses bad values, naming the row of the batch. Every update copies its batch to the host.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from retarget.metrics import _ranking, calibration
from retarget.metrics._inputs import DIGITS, Judged, judge
from retarget.metrics._temperature import log_losses_of_logits, softmax


class _SampleMetric(Metric):
    """A metric whose states are lists with one number per sample.

    States are float64 (float32 on MPS, which has no float64), and so is the metric's own dtype, because a process
    without samples sends an empty state of that dtype.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self, states: tuple[str, ...], logits: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.set_dtype(torch.float64)
        self.logits = logits
        for name in states:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def _probs(self, preds: Tensor) -> Any:
        return softmax(preds) if self.logits else preds

    def _remember(self, **values: np.ndarray) -> None:
        for name, value in values.items():
            getattr(self, name).append(self._tensor(value))

    def _seen(self, name: str) -> np.ndarray:
        state = getattr(self, name)
        return dim_zero_cat(state).double().cpu().numpy() if len(state) else np.zeros(0)

    def _tensor(self, value: np.ndarray | float) -> Tensor:
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.as_tensor(value, dtype=dtype).to(self.device)


class _ConfidenceMetric(_SampleMetric):
    """A function of confidence and correctness. It also keeps the digits of the coarsest type of its batches."""

    def __init__(self, function: Callable[..., float], logits: bool, **kwargs: Any) -> None:
        super().__init__(("confidence", "correct"), logits, **kwargs)
        self.add_state("digits", default=torch.tensor(float(DIGITS["float64"])), dist_reduce_fx="min")
        self._function = function

    def update(self, preds: Float[Tensor, "batch classes"], target: Integer[Tensor, "batch"]) -> None:
        """Add a batch of probabilities, or of logits if ``logits`` was set, and its labels."""
        judged: Judged = judge(self._probs(preds), target)
        self._remember(confidence=judged.confidence, correct=judged.correct)
        held = DIGITS["float32" if self.device.type == "mps" else "float64"]
        self.digits = self.digits.clamp_max(min(judged.digits, held))

    def compute(self) -> Float[Tensor, ""]:
        """The value over all samples of all processes."""
        return self._tensor(self._function(self._seen("confidence"), self._seen("correct") == 1))


class _LossMetric(_SampleMetric):
    """The mean of one loss per sample, a function of probabilities or, if given, of the logits themselves."""

    def __init__(
        self,
        losses: Callable[..., np.ndarray],
        logits: bool,
        of_logits: Callable[..., np.ndarray] | None = None,
        **kwargs: Any,
    ) -> None:
        self._name = losses.__name__  # a MetricCollection merges metrics whose states have equal names and values
        super().__init__((self._name,), logits, **kwargs)
        self._losses, self._of_logits = losses, of_logits

    def update(self, preds: Float[Tensor, "batch classes"], target: Integer[Tensor, "batch"]) -> None:
        """Add a batch of probabilities, or of logits if ``logits`` was set, and its labels."""
        if self.logits and self._of_logits:
            losses = self._of_logits(preds, target)
        else:
            losses = self._losses(self._probs(preds), target)
        self._remember(**{self._name: losses})

    def compute(self) -> Float[Tensor, ""]:
        """The mean over all samples of all processes; NaN if there are none."""
        losses = self._seen(self._name)
        return self._tensor(losses.mean() if len(losses) else np.nan)


class ExpectedCalibrationError(_ConfidenceMetric):
    """Metric of :func:`~retarget.metrics.expected_calibration_error`; same settings.

    Args:
        bins: number of bins.
        scheme: ``"equal_width"`` or ``"equal_mass"``.
        debiased: subtract the estimated bias.
        logits: whether ``update`` gets logits; else probabilities.
        kwargs: passed to ``torchmetrics.Metric``.

    >>> metric = ExpectedCalibrationError()
    >>> metric.update(torch.tensor([[0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1]))
    >>> round(metric.compute().item(), 4)
    0.25
    """

    def __init__(
        self,
        bins: int = 10,
        scheme: calibration.Scheme = "equal_width",
        debiased: bool = False,
        logits: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(calibration.calibration_error, logits, **kwargs)
        self.bins, self.scheme, self.debiased = calibration.check_binning(bins, scheme), scheme, debiased

    def compute(self) -> Float[Tensor, ""]:
        """The value over all samples of all processes."""
        judged = judge(self._seen("confidence"), self._seen("correct") == 1)._replace(digits=int(self.digits))
        return self._tensor(self._function(judged, self.bins, self.scheme, self.debiased))


class AURC(_ConfidenceMetric):
    """Metric of :func:`~retarget.metrics.aurc`; ties are ordered by rank, then by arrival.

    >>> metric = AURC()
    >>> metric.update(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0]))
    >>> metric.compute().item()
    0.25
    """

    def __init__(self, logits: bool = False, **kwargs: Any) -> None:
        super().__init__(_ranking.aurc, logits, **kwargs)


class ExcessAURC(_ConfidenceMetric):
    """Metric of :func:`~retarget.metrics.excess_aurc`; ties are ordered by rank, then by arrival."""

    def __init__(self, logits: bool = False, **kwargs: Any) -> None:
        super().__init__(_ranking.excess_aurc, logits, **kwargs)


class AUGRC(_ConfidenceMetric):
    """Metric of :func:`~retarget.metrics.augrc`."""

    def __init__(self, logits: bool = False, **kwargs: Any) -> None:
        super().__init__(_ranking.augrc, logits, **kwargs)


class FailureAUROC(_ConfidenceMetric):
    """Metric of :func:`~retarget.metrics.failure_auroc`; NaN if all predictions are correct, or all wrong."""

    higher_is_better = True

    def __init__(self, logits: bool = False, **kwargs: Any) -> None:
        super().__init__(_ranking.failure_auroc, logits, **kwargs)


class NegativeLogLikelihood(_LossMetric):
    """Metric of :func:`~retarget.metrics.negative_log_likelihood`; of logits it is ``logsumexp(z) - z_label``, finite
    also where the label's probability would round to 0.

    >>> metric = NegativeLogLikelihood(logits=True)
    >>> metric.update(torch.zeros(1, 2), torch.tensor([0]))
    >>> round(metric.compute().item(), 4)
    0.6931
    """

    def __init__(self, logits: bool = False, **kwargs: Any) -> None:
        super().__init__(calibration.log_losses, logits, log_losses_of_logits, **kwargs)


class BrierScore(_LossMetric):
    """Metric of :func:`~retarget.metrics.brier_score`."""

    def __init__(self, logits: bool = False, **kwargs: Any) -> None:
        super().__init__(calibration.brier_losses, logits, **kwargs)
