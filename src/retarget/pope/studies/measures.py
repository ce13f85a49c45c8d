"""Measurements besides success: calibration of the majority answer, growth of the solved set, shared states."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from retarget.metrics import aurc, expected_calibration_error
from retarget.pope.curricula import Group
from retarget.pope.evaluation import Evaluation
from retarget.pope.problems import Problem
from retarget.pope.studies.chain import MODULUS, visited


def majority_calibration(parts: Sequence[tuple[Sequence[Problem], Evaluation]]) -> dict[str, float]:
    """ECE and AURC, in percent, of the most frequent answer; its confidence is its share of the samples.

    Args:
        parts: problems with their evaluation. A problem without any answer counts as wrong, with confidence 0. Many
            confidences are equal, so that AURC is the expected one over their orders.
    """
    confidence, right = [], []
    for problems, evaluation in parts:
        answers = {one.id: one.answer for one in problems}
        for name, (answer, count) in zip(evaluation.problems, evaluation.majority, strict=True):
            confidence.append(count / evaluation.samples)
            right.append(answer == answers[name])
    probs, labels = np.array(confidence), np.array(right)
    return {"ece": 100 * expected_calibration_error(probs, labels), "aurc": 100 * aurc(probs, labels, ties="expected")}


def solved_while_training(groups: Sequence[Group], problems: Sequence[str]) -> set[str]:
    """The problems that an unguided rollout solved in at least one cycle."""
    wanted = set(problems)
    return {one.problem for one in groups if one.correct and one.stratum == "unguided" and one.problem in wanted}


def transfer_rates(groups: Sequence[Group], problems: Sequence[str]) -> Float[np.ndarray, "problems"]:
    """[P] share of correct rollouts among a problem's unguided ones during training; NaN if there were none."""
    right, drawn = Counter[str](), Counter[str]()
    for one in groups:
        if one.stratum == "unguided":
            right[one.problem] += one.correct
            drawn[one.problem] += one.n
    return np.array([right[one] / drawn[one] if drawn[one] else np.nan for one in problems])


def rank_correlation(first: Float[np.ndarray, "items"], second: Float[np.ndarray, "items"]) -> float:
    """Spearman's rank correlation over items that are finite in both; NaN for fewer than three, or a constant side.

    >>> round(rank_correlation(np.array([1.0, 2.0, 3.0, np.nan]), np.array([9.0, 5.0, 1.0, 0.0])), 9)
    -1.0
    """
    known = np.isfinite(first) & np.isfinite(second)
    ranks = rankdata(first[known]), rankdata(second[known])
    if known.sum() < 3 or min(one.std() for one in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


class Overlap(NamedTuple):
    """Shares in [0, 1]; NaN if no guided rollout visits a state on a correct path.

    Attributes:
        share: of the states of guided rollouts that an unguided rollout reaches too, weighted by the number of visits.
        chance: the share that is expected of unguided rollouts of the same form with random results.
    """

    share: float
    chance: float


def state_overlap(problem: Problem, prefix: str, guided: Sequence[str], unguided: Sequence[str]) -> Overlap:
    """Where guided and unguided rollouts meet on correct paths.

    A state is the number of finished operations and the value written, and counts if every result up to it is correct,
    so that the generated problems allow an exact comparison. Wrong states do not count: with 23 values, a few dozen
    rollouts of any model visit nearly all of them. With random results, a rollout is still on the correct path after j
    results with probability ``23^-j``.
    """
    meta = {**problem.meta, "prefix": prefix}
    states = [state.done for text in guided for state in visited(text, meta) if state.right]
    if not states:
        return Overlap(float("nan"), float("nan"))
    alone = [visited(text, problem.meta) for text in unguided]
    reached = {state.done for some in alone for state in some if state.right}
    missed: dict[int, float] = dict.fromkeys(states, 1.0)
    for some in alone:
        for results, state in enumerate(some, start=1):
            if state.done in missed:
                missed[state.done] *= 1 - MODULUS**-results
    return Overlap(
        float(np.mean([done in reached for done in states])), float(np.mean([1 - missed[done] for done in states]))
    )
