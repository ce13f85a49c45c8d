"""Studies of a known truth, judged by the public function: how often a verdict is wrong.

``python tests/study/simulated_studies.py [STUDIES]`` prints one line for each cell of the whole table.
"""

import json
import sys
from typing import NamedTuple

import numpy as np

from retarget.study.claims import judge
from retarget.study.config import Arm, Claim, Metric, StudyPlan

EFFECT = 1.0
"""The smallest effect, in standard deviations of a paired difference."""
LOOKS = {3: (2, 3), 5: (3, 5), 10: (3, 5, 10)}


class Cell(NamedTuple):
    """One kind of study: ``claims`` claims and ``seeds`` seeds; every truth 0, at the smallest effect, or half each."""

    claims: int
    seeds: int
    correlated: bool
    truth: str
    looks: bool


CELLS = [
    Cell(claims, seeds, correlated, truth, looks)
    for claims in (1, 4, 16)
    for seeds in (3, 5, 10)
    for correlated in (False, True)
    for truth in ("none", "smallest", "mixed")
    for looks in (False, True)
]


def wrong_verdicts(cell: Cell, studies: int, seed: int = 0) -> tuple[int, int]:
    """Number of studies with any wrong "holds", and with any wrong "does not hold" (or "below the smallest effect").

    Correlated claims share their control, so that their differences correlate by 1/2; the others have one each.
    """
    rng = np.random.default_rng([seed, CELLS.index(cell)])
    plan = _plan(cell)
    place = np.arange(cell.claims)
    truths = {"none": 0 * place, "smallest": 1 + 0 * place, "mixed": place % 2}[cell.truth] * EFFECT
    controls = 1 if cell.correlated else cell.claims
    held = failed = 0
    for _ in range(studies):
        control = rng.normal(50, np.sqrt(0.5), (controls, cell.seeds))
        treated = rng.normal(50, np.sqrt(0.5), (cell.claims, cell.seeds)) + truths[:, None]
        arms = {f"control-{i}": {"score": row} for i, row in enumerate(control.tolist())}
        arms |= {f"treated-{i}": {"score": row} for i, row in enumerate(treated.tolist())}
        found = judge(plan, {"default": arms})
        held += any(one.verdict == "holds" and truth <= 0 for one, truth in zip(found, truths, strict=True))
        failed += any(
            (one.verdict == "does not hold" or one.below_smallest_effect) and truth >= EFFECT
            for one, truth in zip(found, truths, strict=True)
        )
    return held, failed


def _plan(cell: Cell) -> StudyPlan:
    controls = 1 if cell.correlated else cell.claims
    names = [f"control-{i}" for i in range(controls)] + [f"treated-{i}" for i in range(cell.claims)]
    claims = tuple(
        Claim(id=f"claim-{i}", sentence="It helps.", metric="score", direction="higher", smallest_effect=EFFECT,
              arms=(f"treated-{i}", f"control-{0 if cell.correlated else i}"))
        for i in range(cell.claims)
    )  # fmt: skip
    return StudyPlan(
        study="simulated", title="Simulated", question="How often is a verdict wrong?", preset="demo", task="none:none",
        arms=tuple(Arm(name=name, label=name) for name in names), seeds=tuple(range(cell.seeds)),
        metrics=(Metric(name="score", label="score"),), claims=claims, looks=LOOKS[cell.seeds] if cell.looks else (),
    )  # fmt: skip


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    for one in CELLS:
        holds, fails = wrong_verdicts(one, count)
        print(json.dumps(one._asdict() | {"studies": count, "holds": holds, "does not hold": fails}), flush=True)
