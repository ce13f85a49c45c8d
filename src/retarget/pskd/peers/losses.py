"""The equations of the peers, as pure functions on tensors.

Notation: z logits [B, C], p = softmax(z), y labels, τ a temperature. KL(t ‖ p) = sum_c t_c (log t_c - log p_c).
Everything is float32 or wider.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from retarget.pskd.functional import Reduction, widen


def reduce(losses: Float[Tensor, "batch"], reduction: Reduction) -> Float[Tensor, ""] | Float[Tensor, "batch"]:
    """Per-sample losses unchanged, summed or averaged."""
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def smooth_labels(
    labels: Integer[Tensor, "batch"], num_classes: int, smoothing: float
) -> Float[Tensor, "batch classes"]:
    """Smoothed labels ``(1 - ε) onehot(y) + ε / C`` (Szegedy et al. 2016, Rethinking the Inception Architecture for
    Computer Vision, section 7).

    >>> smooth_labels(torch.tensor([1]), num_classes=2, smoothing=0.2)
    tensor([[0.1000, 0.9000]])
    """
    return (1 - smoothing) * F.one_hot(labels, num_classes).float() + smoothing / num_classes


def distill(
    logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, "batch"]:
    """``τ² KL(softmax(z_teacher / τ) ‖ softmax(z / τ))`` (Hinton et al. 2015, Distilling the Knowledge in a Neural
    Network, section 2). No gradient reaches the teacher's logits.

    >>> distill(torch.zeros(1, 2), torch.zeros(1, 2), temperature=4.0).item()
    0.0
    """
    log_p = F.log_softmax(widen(logits) / temperature, dim=1)
    log_t = F.log_softmax(widen(teacher_logits.detach()) / temperature, dim=1)
    return reduce(temperature**2 * F.kl_div(log_p, log_t, reduction="none", log_target=True).sum(1), reduction)


def design_teacher(
    labels: Integer[Tensor, "batch"], num_classes: int, correct_prob: float, temperature: float
) -> Float[Tensor, "batch classes"]:
    """The hand-made teacher of TF-KD: ``softmax(p^d / τ)`` with p^d = a on the label and (1 - a) / (C - 1) elsewhere
    (Yuan et al. 2020, Revisiting Knowledge Distillation via Label Smoothing Regularization, the manually designed
    teacher of Tf-KD_reg).

    The softmax is taken of p^d itself, as the official code does (yuanli2333/Teacher-free-Knowledge-Distillation,
    my_loss_function.py): at τ = 20 the rows are nearly uniform.

    >>> design_teacher(torch.tensor([0]), num_classes=2, correct_prob=1.0, temperature=1.0)
    tensor([[0.7311, 0.2689]])
    """
    off = (1 - correct_prob) / (num_classes - 1)
    designed = F.one_hot(labels, num_classes).float() * (correct_prob - off) + off
    return F.softmax(designed / temperature, dim=1)


def match_probs(
    logits: Float[Tensor, "batch classes"],
    target_probs: Float[Tensor, "batch classes"],
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, "batch"]:
    """``KL(t ‖ softmax(z))`` for target rows t that are given as probabilities.

    >>> match_probs(torch.zeros(1, 2), torch.tensor([[0.5, 0.5]])).item()
    0.0
    """
    log_p = F.log_softmax(widen(logits), dim=1)
    return reduce(F.kl_div(log_p, target_probs.detach().to(log_p), reduction="none").sum(1), reduction)


def focal_loss(
    logits: Float[Tensor, "batch classes"],
    labels: Integer[Tensor, "batch"],
    gamma: float,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, "batch"]:
    """``-(1 - p_y)^γ log p_y`` (Lin et al. 2017, Focal Loss for Dense Object Detection, section 3.2, for the softmax).

    >>> focal_loss(torch.zeros(1, 2), torch.tensor([0]), gamma=1.0).item()  # log(2) / 2
    0.3465735912322998
    """
    log_py = F.log_softmax(widen(logits), dim=1).gather(1, labels[:, None])[:, 0]
    # 1 - p_y as -expm1(log p_y), kept off zero: the derivative of a power below 1 is infinite there.
    other = (-torch.expm1(log_py)).clamp_min(torch.finfo(log_py.dtype).tiny)
    return reduce(-(other**gamma) * log_py, reduction)


def dual_focal_loss(
    logits: Float[Tensor, "batch classes"],
    labels: Integer[Tensor, "batch"],
    gamma: float,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, "batch"]:
    """``-(1 - p_y + p_j)^γ log p_y``, p_j being the largest probability below p_y, or 0 if there is none (Tao et al.
    2023, Dual Focal Loss for Calibration; the gradient flows through p_j as well, as in the official code,
    Linwei94/ICML2023-DualFocalLoss, Losses/dual_focal_loss.py).

    >>> dual_focal_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([0]), gamma=1.0).item()  # log(2) / 2: no p_j
    0.3465735912322998
    """
    log_p = F.log_softmax(widen(logits), dim=1)
    log_py = log_p.gather(1, labels[:, None])
    below = log_p.masked_fill(log_p >= log_py, -torch.inf).amax(1).exp()
    other = (-torch.expm1(log_py[:, 0])).clamp_min(torch.finfo(log_p.dtype).tiny)
    return reduce(-((other + below) ** gamma) * log_py[:, 0], reduction)


def suppress_maximum(
    logits: Float[Tensor, "batch classes"], reduction: Reduction = "mean"
) -> Float[Tensor, ""] | Float[Tensor, "batch"]:
    """``max_c z_c - mean_c z_c`` (Zhou et al. 2025, MaxSup: Overcoming Representation Collapse in Label Smoothing).

    Label smoothing has ``z_y - mean_c z_c`` instead, which widens the gap when the prediction is wrong.

    >>> suppress_maximum(torch.tensor([[3.0, 0.0, 0.0]])).item()
    2.0
    """
    z = widen(logits)
    return reduce(z.amax(1) - z.mean(1), reduction)


def penalise_margin(
    logits: Float[Tensor, "batch classes"], margin: float, reduction: Reduction = "mean"
) -> Float[Tensor, ""] | Float[Tensor, "batch"]:
    """``mean_c max(0, max_j z_j - z_c - m)``: logit distances beyond the margin (Liu et al. 2022, The Devil is in the
    Margin, the penalty of MbLS; the mean over classes in place of the equation's sum is the official code's,
    by-liu/MbLS, calibrate/losses/logit_margin_l1.py).

    >>> penalise_margin(torch.tensor([[12.0, 0.0]]), margin=10.0).item()
    1.0
    """
    z = widen(logits)
    return reduce(F.relu(z.amax(1, keepdim=True) - z - margin).mean(1), reduction)


def accumulate_class_rows(
    logits: Float[Tensor, "batch classes"],
    labels: Integer[Tensor, "batch"],
    total: Float[Tensor, "classes classes"],
    counted: Float[Tensor, "batch"],
) -> None:
    """Add the prediction of each correctly classified sample to its class's row of ``total``, in place (Zhang et al.
    2021, Delving Deep into Label Smoothing, algorithm 1).

    Args:
        counted: [B], 0 for a sample that takes no part.
    """
    probs = F.softmax(widen(logits.detach()), dim=1)
    right = (probs.argmax(1) == labels) * counted
    total.index_add_(0, labels, (probs * right[:, None]).to(total.dtype))


def refresh_class_rows(total: Float[Tensor, "classes classes"]) -> Float[Tensor, "classes classes"]:
    """Mean prediction of the correctly classified samples of each class (Zhang et al. 2021, algorithm 1).

    A probability row sums to 1, so the row's sum is the number of samples in it. A class without a correct prediction
    gets the uniform row, as in the official code (zhangchbin/OnlineLabelSmoothing,
    cifar/scripts/train_cifar_all_methods.py).

    >>> refresh_class_rows(torch.tensor([[1.5, 0.5], [0.0, 0.0]]))
    tensor([[0.7500, 0.2500],
            [0.5000, 0.5000]])
    """
    count = total.sum(1, keepdim=True)
    return torch.where(count > 0, total / count.clamp_min(1e-12), 1 / len(total))


def blend_history(
    history: Float[Tensor, "batch classes"], probs: Float[Tensor, "batch classes"], momentum: float
) -> Float[Tensor, "batch classes"]:
    """``α Z + (1 - α) p`` (Laine and Aila 2017, Temporal Ensembling, algorithm 2; Huang et al. 2020, Self-Adaptive
    Training, algorithm 1).

    >>> blend_history(torch.zeros(1, 2), torch.tensor([[0.5, 0.5]]), momentum=0.6)
    tensor([[0.2000, 0.2000]])
    """
    return momentum * history + (1 - momentum) * probs


def unbias_history(history: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """``Z / (1 - α^t)``, which removes the bias of starting at zero (Laine and Aila 2017, algorithm 2).

    Z blends t rows that sum to 1 into zeros, so its own sum is 1 - α^t and no count is needed. Zero rows stay zero.

    >>> unbias_history(torch.tensor([[0.1, 0.3]]))
    tensor([[0.2500, 0.7500]])
    """
    return history / history.sum(1, keepdim=True).clamp_min(1e-12)


def discount_evidence(
    alpha: Float[Tensor, "batch classes"], probs: Float[Tensor, "batch classes"], discount: float, weight: float
) -> Float[Tensor, "batch classes"]:
    """``γ α + w p``: a prediction adds w pseudo-counts to the concentrations of a Dirichlet distribution, of which a
    share of γ stays (after Adelöw et al. 2025; :class:`~retarget.pskd.peers.history.BSD` says what is theirs).

    >>> discount_evidence(torch.tensor([[10.0, 0.0]]), torch.tensor([[0.5, 0.5]]), discount=0.5, weight=1.0)
    tensor([[5.5000, 0.5000]])
    """
    return discount * alpha + weight * probs


def expect_probs(alpha: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """``α / sum_c α_c``, the mean of a Dirichlet distribution. Zero rows stay zero.

    >>> expect_probs(torch.tensor([[3.0, 1.0], [0.0, 0.0]]))
    tensor([[0.7500, 0.2500],
            [0.0000, 0.0000]])
    """
    return alpha / alpha.sum(1, keepdim=True).clamp_min(1e-12)


def weigh_by_confidence(
    losses: Float[Tensor, "batch"], targets: Float[Tensor, "batch classes"], counted: Float[Tensor, "batch"]
) -> Float[Tensor, ""]:
    """``sum_i w_i l_i / sum_i w_i`` with ``w_i = max_c t_ic`` (Huang et al. 2020, algorithm 1).

    >>> weigh_by_confidence(torch.tensor([1.0, 3.0]), torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.ones(2)).item()
    1.6666666269302368
    """
    weight = targets.amax(1) * counted
    return (losses * weight).sum() / weight.sum()


def ramp_up(done: float) -> float:
    """``exp(-5 (1 - t)²)`` for t in [0, 1], then 1 (Laine and Aila 2017, appendix A).

    >>> ramp_up(0.5), ramp_up(2.0)
    (0.2865047968601901, 1.0)
    """
    return math.exp(-5 * (1 - min(max(done, 0.0), 1.0)) ** 2)


def squared_difference(
    probs: Float[Tensor, "batch classes"], others: Float[Tensor, "batch classes"], reduction: Reduction = "mean"
) -> Float[Tensor, ""] | Float[Tensor, "batch"]:
    """``mean_c (p_c - q_c)²`` (Laine and Aila 2017, algorithm 2; Tarvainen and Valpola 2017, the consistency cost).

    >>> squared_difference(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])).item()
    0.25
    """
    return reduce((probs - others.detach()).square().mean(1), reduction)


@torch.no_grad()
def average_weights(average: nn.Module, model: nn.Module, decay: float, *, buffers: bool) -> None:
    """``θ' ← d θ' + (1 - d) θ`` for every parameter, in place (Tarvainen and Valpola 2017, section 2).

    Args:
        average: a copy of the model, which is changed.
        decay: d in [0, 1]; 0 copies.
        buffers: whether to average floating-point buffers (batch norm's statistics) too and copy the others.
    """
    pairs = list(zip(average.parameters(), model.parameters(), strict=True))
    if buffers:
        pairs += list(zip(average.buffers(), model.buffers(), strict=True))
    for mine, theirs in pairs:
        if decay == 0 or not mine.is_floating_point():
            mine.copy_(theirs)
        else:
            mine.lerp_(theirs.to(mine.dtype), 1 - decay)


def forward(network: nn.Module, inputs: Any) -> Float[Tensor, "batch classes"]:
    """Logits of a network without gradient; inputs are a tensor, positional (sequence) or named arguments (dict)."""
    with torch.no_grad():
        if isinstance(inputs, Tensor):
            return widen(network(inputs))
        return widen(network(**inputs) if isinstance(inputs, dict) else network(*inputs))
