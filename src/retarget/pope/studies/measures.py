"""Measurements besides success: calibration of the majority answer, growth of the solved set, shared states."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from retarget.metrics import aurc, expected_calibration_error
from retarget.pope.curricula import Group
from retarget.pope.evaluation import Evaluation
from retarget.pope.problems import Problem
from retarget.pope.studies.chain import visited


def majority_calibration(parts: Sequence[tuple[Sequence[Problem], Evaluation]]) -> dict[str, float]:
    """ECE and AURC, in percent, of the most frequent answer; its confidence is its share of the samples.

    Args:
        parts: problems with their evaluation. A problem without any answer counts as wrong, with confidence 0.
    """
    confidence, right = [], []
    for problems, evaluation in parts:
        answers = {one.id: one.answer for one in problems}
        for name, (answer, count) in zip(evaluation.problems, evaluation.majority, strict=True):
            confidence.append(count / evaluation.samples)
            right.append(answer == answers[name])
    probs, labels = np.array(confidence), np.array(right)
    return {"ece": 100 * expected_calibration_error(probs, labels), "aurc": 100 * aurc(probs, labels)}


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


def state_overlap(problem: Problem, prefix: str, guided: Sequence[str], unguided: Sequence[str]) -> float:
    """Share of the states of guided rollouts that an unguided rollout visits too, weighted by the number of visits.

    A state is the number of finished operations and the value written, so that the generated problems allow an exact
    comparison. NaN if the guided rollouts visit no state.
    """
    reached = {state for text in unguided for state in visited(text, problem.meta)}
    meta = {**problem.meta, "prefix": prefix}
    states = [state for text in guided for state in visited(text, meta)]
    return float(np.mean([state in reached for state in states])) if states else float("nan")
