"""Tables of the peers study: every method's rank by each metric, and every method under each corruption."""

import numpy as np
from scipy.stats import rankdata

from retarget.pskd.studies.images.scores import fitted_temperature
from retarget.pskd.studies.images.shift import kind_scores
from retarget.study.figures import Figure, Table
from retarget.study.record import Results

RANKED = ("top1", "nll", "nll_scaled", "ece", "ece_scaled", "aurc", "aurc_scaled")


def ranks(results: Results, condition: str, prefix: str) -> list[Figure]:
    """Each method's rank by its mean over the seeds that all methods have; none if there are no peers."""
    if not any("peer" in arm.settings for arm in results.plan.arms):
        return []
    runs = {arm.label: results.runs(condition, arm.name) for arm in results.plan.arms}
    runs = {label: many for label, many in runs.items() if any(many)}
    common = [at for at in range(len(results.seeds)) if all(many[at] for many in runs.values())]
    if not common or len(runs) < 3:
        return []
    ranked = [metric for metric in results.plan.metrics if metric.name in RANKED]
    columns = []
    for metric in ranked:
        values = [[one.metrics[metric.name] for at in common if (one := many[at])] for many in runs.values()]
        columns.append(_places(metric.better == "higher", values))
    return [
        Table(
            title=f"{prefix}Ranks among {len(runs)} methods",
            caption=f"Rank by the mean over {len(common)} seed{'s' * (len(common) > 1)}; in parentheses the best and "
            "worst rank on a single seed.",
            columns=["method", *(metric.label for metric in ranked)],
            rows=[list(row) for row in zip(runs, *columns, strict=True)],
        )
    ]


def corruptions(results: Results, condition: str, prefix: str) -> list[Figure]:
    """One table per metric: every method under every corruption."""
    found: dict[str, list[dict[str, dict[str, float]]]] = {}
    for arm in results.plan.arms:
        for arrays in (run.predictions() for run in results.runs(condition, arm.name) if run):
            if "shift_index" in arrays:
                found.setdefault(arm.label, []).append(kind_scores(arrays, fitted_temperature(arrays)))
    kinds = list(next(iter(found.values()))[0]) if found else []
    return [
        Table(
            title=f"{prefix}{label} under each corruption",
            caption="Mean over each method's seeds; CIFAR-C's corruptions, applied to the test images.",
            columns=["method", *(kind.replace("_", " ") for kind in kinds)],
            rows=[
                [method, *(f"{np.mean([scores[kind][name] for scores in seeds]):.{decimals}f}" for kind in kinds)]
                for method, seeds in found.items()
            ],
        )
        for name, label, decimals in (
            ("corrupt_top1", "Top-1 accuracy (%)", 2),
            ("corrupt_nll_scaled", "NLL after temperature", 3),
            ("corrupt_ece", "ECE (%)", 2),
            ("corrupt_ece_scaled", "ECE after temperature (%)", 2),
        )
        if kinds
    ]


def _places(higher: bool, values: list[list[float]]) -> list[str]:
    """Each method's rank by its mean, and its best and worst rank on a single seed, from values [methods, seeds]."""
    table = np.asarray(values) * (-1 if higher else 1)
    mean = rankdata(table.mean(1), method="min")
    single = rankdata(table, method="min", axis=0)
    rows = zip(mean, single.min(1), single.max(1), strict=True)
    return [f"{place:.0f}" + (f" ({best:.0f} to {worst:.0f})" if best < worst else "") for place, best, worst in rows]
