"""Two rules for holding out a test part; each study keeps the rule with which its results were recorded."""

import numpy as np


def stratified(labels: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Positions split at random into (the others, ``count`` of them with each class in proportion), each sorted."""
    order = rng.permutation(len(labels))
    rank_in_class = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank_in_class[members] = (np.arange(len(members)) + rng.random()) / len(members)
    by_rank = np.argsort(rank_in_class, kind="stable")
    return np.sort(by_rank[count:]), np.sort(by_rank[:count])


def every_fifth(labels: np.ndarray, of_class: bool) -> np.ndarray:
    """Which positions are the test part, [N] bool: every fifth one, counted through, or within each class.

    >>> every_fifth(np.array([0, 0, 1, 0, 0, 0, 1]), of_class=False).nonzero()[0].tolist()
    [4]
    >>> every_fifth(np.array([0, 0, 1, 0, 0, 0, 1]), of_class=True).nonzero()[0].tolist()
    [5]
    """
    place = np.arange(len(labels))
    if of_class:
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            place[members] = np.arange(len(members))
    return place % 5 == 4
