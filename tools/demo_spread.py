"""Print how much a pilot's differences spread and what it cost, but not the differences: for choosing settings.

    python tools/demo_spread.py studies/pilot/pskd

Prints one line per claim with at least two seeds: the standard deviation of its paired differences in units of the
smallest effect (or margin), and the fewest seeds at which its interval is narrower than that effect, so that one of the
two verdicts must come out: for this claim alone, and with the error divided among all claims of its family. The last
line of a study has the median time of a run.
"""

import math
import sys
from pathlib import Path
from statistics import median

from retarget.report.source import read_study
from retarget.study.config import Claim
from retarget.study.results import Summary
from retarget.study.statistics import mean_and_sd, paired_differences, t_quantile

MOST = 200


def differences(claim: Claim, summary: Summary) -> list[float]:
    """Paired differences of a claim; empty if an arm was not run under its condition."""
    arms = summary.conditions.get(claim.condition, {})
    values = [arms[arm][claim.metric].values for arm in claim.arms if claim.metric in arms.get(arm, {})]
    if len(values) < len(claim.arms):
        return []
    return paired_differences(values[0], values[1] if len(values) > 1 else [claim.against] * len(values[0]))


def seeds_for_width(share: float, alpha: float) -> int | None:
    """The fewest seeds at which an interval with error ``alpha`` at each end is narrower than the effect.

    Args:
        share: standard deviation in units of the effect.
        alpha: error at each end of the interval, in (0, 0.5).

    Returns:
        None if more than ``MOST`` seeds are needed.

    >>> seeds_for_width(0.25, 0.025)
    4
    """
    counts = range(2, MOST + 1)
    return next((n for n in counts if 2 * t_quantile(n - 1, alpha) * share / math.sqrt(n) < 1), None)


def main() -> None:
    """Print the spread of each study named on the command line."""
    for directory in map(Path, sys.argv[1:]):
        study = read_study(directory)
        found = {claim.id: differences(claim, study.summary) for claim in study.plan.claims}
        measured = [claim for claim in study.plan.claims if len(found[claim.id]) > 1]
        alpha = (1 - study.plan.level) / 2
        for claim in measured:
            share = mean_and_sd(found[claim.id])[1] / (claim.margin or claim.smallest_effect)
            alone, among = (seeds_for_width(share, error) for error in (alpha, alpha / len(measured)))
            print(f"{claim.id}: sd {share:.2f} smallest effects; seeds {alone} by itself, {among} of {len(measured)}")
        seconds = [run.seconds for run in study.runs if run.seconds]
        print(
            f"{directory}: {len(seconds)} runs, median {median(seconds):.0f} s" if seconds else f"{directory}: no run"
        )


if __name__ == "__main__":
    main()
