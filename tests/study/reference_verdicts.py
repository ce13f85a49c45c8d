"""Verdicts from the definition, in slow loops: two chains of one-sided t tests, Holm by its closed form."""

from itertools import combinations

import numpy as np
from scipy import stats


def closed_holm(p_values, alpha):
    """Closed testing with Bonferroni's local test, which Holm's procedure is a shortcut of.

    A hypothesis is rejected when every set of hypotheses that holds it has a p-value of alpha / size or less.
    """
    indices = range(len(p_values))
    return [
        all(
            min(p_values[other] for other in chosen) <= alpha / size
            for size in range(1, len(p_values) + 1)
            for chosen in combinations(indices, size)
            if index in chosen
        )
        for index in indices
    ]


def verdicts(claims, level=0.95):
    """Verdict of each claim of one family.

    Args:
        claims: ``(good differences, smallest effect, margin or None)`` of each, positive is good.
    """
    alpha = (1 - level) / 2
    holds, fails = [], []
    for good, effect, margin in claims:
        above, below = (0.0, effect) if margin is None else (-margin, -margin)
        holds.append(stats.ttest_1samp(good, above, alternative="greater").pvalue)
        fails.append(stats.ttest_1samp(good, below, alternative="less").pvalue)
    pairs = zip(closed_holm(holds, alpha), closed_holm(fails, alpha), strict=True)
    return ["holds" if held else "does not hold" if failed else "not enough evidence" for held, failed in pairs]


def verdicts_with_looks(claims, looks, level=0.95):
    """Verdict of each claim, and the look at which it was given: closed testing at every look, the first one stands."""
    given = [("not enough evidence", None)] * len(claims)
    smallest = np.ones((2, len(claims)))
    for count, weight in looks:
        for place, (good, effect, margin) in enumerate(claims):
            above, below = (0.0, effect) if margin is None else (-margin, -margin)
            held = stats.ttest_1samp(good[:count], above, alternative="greater").pvalue / weight
            failed = stats.ttest_1samp(good[:count], below, alternative="less").pvalue / weight
            smallest[:, place] = np.minimum(smallest[:, place], [held, failed])
        rejected = [closed_holm(chain.tolist(), (1 - level) / 2) for chain in smallest]
        for place, (held, failed) in enumerate(zip(*rejected, strict=True)):
            if given[place][1] is None and (held or failed):
                given[place] = ("holds" if held else "does not hold", count)
    return given
