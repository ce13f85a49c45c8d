"""The equations of PS-KD (Kim et al., ICCV 2021), as pure functions on tensors.

Notation: B batch size, C classes, k listed classes of a sparse row. Probabilities are float32 or wider; logits of a
narrower type are widened before the softmax.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]


class SparseRows(NamedTuple):
    """Rows of probabilities of which only k classes are listed.

    Attributes:
        classes: [B, k] int64, distinct within a row.
        values: [B, k] float32, probability of each listed class.
        rest: [B] float32, probability of *each* class that is not listed.
    """

    classes: Integer[Tensor, "batch k"]
    values: Float[Tensor, "batch k"]
    rest: Float[Tensor, "batch"]

    def dense(self, num_classes: int) -> Float[Tensor, "batch classes"]:
        """The same rows with every class written out, [B, C]."""
        return self.rest[:, None].repeat(1, num_classes).scatter(1, self.classes, self.values)


def cross_entropy(
    logits: Float[Tensor, "batch classes"],
    targets: Integer[Tensor, "batch"] | Float[Tensor, "batch classes"],
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, "batch"]:
    """PyTorch's cross-entropy, on logits widened to float32. ``ignore_index`` is passed on for labels only: PyTorch
    refuses one of 0 or above together with probabilities."""
    ignored = -100 if targets.is_floating_point() else ignore_index
    return F.cross_entropy(
        widen(logits), targets, ignore_index=ignored, label_smoothing=label_smoothing, reduction=reduction
    )


def alpha_at(epoch: int, total_epochs: int, alpha_T: float) -> float:
    """Weight of the past prediction in an epoch: ``alpha_T * (epoch + 1) / total_epochs`` (section 3.2).

    Args:
        epoch: counted from 0, below ``total_epochs``.
        total_epochs: length of the training run.
        alpha_T: weight in the last epoch, in [0, 1].

    >>> alpha_at(epoch=149, total_epochs=300, alpha_T=0.8)
    0.4
    """
    if total_epochs < 1 or not 0 <= epoch < total_epochs:
        raise ValueError(f"epoch must lie in [0, total_epochs): got epoch {epoch} of {total_epochs}")
    if not 0.0 <= alpha_T <= 1.0:
        raise ValueError(f"alpha_T must lie in [0, 1]: got {alpha_T}")
    return alpha_T * (epoch + 1) / total_epochs


def soften(
    target_probs: Float[Tensor, "batch classes"],
    past_probs: Float[Tensor, "batch classes"],
    alpha: float | Float[Tensor, "batch"],
) -> Float[Tensor, "batch classes"]:
    """The softened target ``(1 - alpha) * target + alpha * past`` (equation 2).

    Args:
        target_probs: [B, C], the hard targets as probabilities (one-hot rows, or already smoothed or mixed).
        past_probs: [B, C], the model's past prediction for the same samples.
        alpha: one number in [0, 1], or one per sample, [B].

    >>> soften(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]), alpha=0.5)
    tensor([[0.2500, 0.7500]])
    """
    if isinstance(alpha, Tensor):
        alpha = alpha[:, None]
    return (1 - alpha) * target_probs + alpha * past_probs


def pskd_loss(
    logits: Float[Tensor, "batch classes"],
    soft_targets: Float[Tensor, "batch classes"],
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, "batch"]:
    """Cross-entropy against softened targets: ``-sum_c t_c log softmax(z)_c``, temperature 1 (equation 3).

    Returns:
        A scalar, or [B] for ``reduction="none"``; float32 or wider.

    >>> pskd_loss(torch.zeros(1, 2), torch.tensor([[0.25, 0.75]])).item()  # log 2
    0.6931471824645996
    """
    return F.cross_entropy(widen(logits), soft_targets, reduction=reduction)


def sparse_pskd_loss(
    logits: Float[Tensor, "batch classes"],
    labels: Integer[Tensor, "batch"],
    past: SparseRows,
    alpha: Float[Tensor, "batch"],
    reduction: Reduction = "mean",
    smoothing: float = 0.0,
) -> Float[Tensor, ""] | Float[Tensor, "batch"]:
    """:func:`pskd_loss` for sparse rows and integer labels, without making a dense [B, C] target.

    With t the softened target and S = sum t, the loss is ``S logsumexp(z) - t·z`` and
    ``t·z = (1 - a) z_y + a (sum_k (v_k - r) z_k + r sum_c z_c)``, r being the probability of an unlisted class.
    Smoothing e replaces the label by ``(1 - e) onehot(y) + e / C``.

    Args:
        logits: [B, C].
        labels: [B], in [0, C).
        past: the past predictions' listed classes, values and rest.
        alpha: [B], 0 for a sample without a past.
        smoothing: label smoothing, in [0, 1].

    Raises:
        RuntimeError: in the backward pass, if second derivatives are asked for, which only :func:`pskd_loss` has.
    """
    losses, _ = sparse_pskd_losses(logits, labels, past, alpha, smoothing)
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def sparse_pskd_losses(
    logits: Float[Tensor, "batch classes"],
    labels: Integer[Tensor, "batch"],
    past: SparseRows,
    alpha: Float[Tensor, "batch"],
    smoothing: float = 0.0,
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
    """Per sample, the loss of :func:`sparse_pskd_loss` and ``logsumexp(z)``, [B] each; the second has no gradient."""
    result = _SparseSoftCrossEntropy.apply(logits, labels, past.classes, past.values, past.rest, alpha, smoothing)
    losses, log_norm = result  # type: ignore[misc]
    return losses, log_norm


def gradient_scale(
    p_true: Float[Tensor, "*batch"], q_true: Float[Tensor, "*batch"], alpha: float
) -> Float[Tensor, "*batch"]:
    """Ratio of the PS-KD gradient to the cross-entropy gradient on the true class's logit.

    ``dL/dz_i = p_i - (1 - a) y_i - a q_i``, so on the true class the ratio is
    ``w = 1 - a (1 - q_y) / (1 - p_y)``: below 1 - a for a sample that improved since its past prediction, 1 - a or
    more for one that stalled or got worse (section 3.3).

    Args:
        p_true: current probability of the true class, in [0, 1).
        q_true: past probability of the true class, in [0, 1].
        alpha: weight of the past prediction, in [0, 1].

    >>> gradient_scale(torch.tensor(0.5), torch.tensor(0.5), alpha=0.4).item()  # no change since: 1 - alpha
    0.6000000238418579
    """
    return 1 - alpha * (1 - q_true) / (1 - p_true)


def widen(logits: Tensor) -> Tensor:
    """Logits as float32 or wider: the softmax of bfloat16 or float16 logits is taken in float32."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


class _SparseSoftCrossEntropy(torch.autograd.Function):
    """Per-sample loss that exponentiates the logits once, for the loss, its gradient and the row to store."""

    @staticmethod
    def forward(ctx, logits, labels, classes, values, rest, alpha, smoothing):
        z = widen(logits)
        largest = z.amax(1)
        shifted = z - largest[:, None]  # the loss is the same, and an offset of all logits costs it no digits
        labels = labels[:, None]
        hard = (1 - alpha) * (1 - smoothing)
        listed = alpha[:, None] * (values - rest[:, None])
        unlisted = alpha * rest + (1 - alpha) * smoothing / z.shape[1]
        mass = hard + listed.sum(1) + unlisted * z.shape[1]
        of_label, of_listed = shifted.gather(1, labels)[:, 0], shifted.gather(1, classes)
        target_dot_z = hard * of_label + (listed * of_listed).sum(1) + unlisted * shifted.sum(1)
        exps = shifted.exp_()
        total = exps.sum(1)
        log_total = total.log()
        log_norm = largest + log_total
        ctx.save_for_backward(exps, labels, classes, hard, listed, unlisted, mass / total)
        ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(log_norm)
        return mass * log_total - target_dot_z, log_norm

    @staticmethod
    def backward(ctx, *grad_outputs):
        if torch.is_grad_enabled():  # create_graph=True: the gradient would be taken to be constant in the logits
            raise RuntimeError(
                "the loss of TopK rows has no second derivatives (create_graph=True, as for a gradient penalty or an "
                'optimizer that uses the Hessian): use store="dense" or PreviousModel(model)'
            )
        exps, labels, classes, hard, listed, unlisted, scale = ctx.saved_tensors
        grad_loss = grad_outputs[0]
        grad = exps * (scale * grad_loss)[:, None]
        grad.sub_((unlisted * grad_loss)[:, None])
        grad.scatter_add_(1, classes, (-listed * grad_loss[:, None]).to(grad.dtype))
        grad.scatter_add_(1, labels, (-hard * grad_loss)[:, None].to(grad.dtype))
        return grad.to(ctx.dtype), None, None, None, None, None, None
