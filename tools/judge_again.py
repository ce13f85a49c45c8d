"""Judge recorded results by the present rules and list the verdicts that change; writes nothing.

    python tools/judge_again.py                     # every folder of results/
    python tools/judge_again.py studies/pskd-demo   # these studies

A study's summary.json holds the values of every seed, and its study.json the claims, so that later rules can be applied
without running anything. Exits with 0 even if verdicts change.
"""

import argparse
import sys
from pathlib import Path

from retarget.errors import UserError
from retarget.files import read_json
from retarget.study.claims import judge
from retarget.study.figures import Analysis
from retarget.study.record import read_plan
from retarget.study.results import ClaimResult, Summary

ROOT = Path(__file__).parent.parent


def main() -> int:
    """List the changes in the named studies; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directories", nargs="*", type=Path, help="directories of studies; by default results/*")
    given = parser.parse_args().directories
    claims = changed = 0
    for directory in given or sorted(path.parent for path in (ROOT / "results").glob("*/summary.json")):
        before = Summary.model_validate(read_json(directory / "summary.json"))
        after = judge_again(directory, before)
        claims += len(after)
        for old, new in zip(before.claims, after, strict=True):
            if old.verdict != new.verdict:
                changed += 1
                print(f"{directory.name}/{old.id}: {_said(old)} -> {_said(new)}")
    print(f"{changed} of {claims} recorded verdicts change", file=sys.stderr)
    return 0


def judge_again(directory: Path, before: Summary) -> list[ClaimResult]:
    """The claims of a recorded study, judged by the present rules.

    Raises:
        UserError: the record's claims are not those of its plan.
    """
    plan = read_plan(directory / "study.json").model_copy(update={"seeds": before.seeds})
    if [claim.id for claim in plan.claims] != [claim.id for claim in before.claims]:
        raise UserError(f"{directory}: summary.json judges other claims than study.json states")
    values = {
        condition: {arm: {name: one.values for name, one in metrics.items()} for arm, metrics in arms.items()}
        for condition, arms in before.conditions.items()
    }
    path = directory / "analysis.json"
    analysis = Analysis.model_validate(read_json(path)) if path.is_file() else Analysis()
    shown = {claim.id: claim.item_interval for claim in before.claims if claim.item_interval}
    return judge(plan, values, shown | analysis.item_intervals, analysis.items)


def _said(claim: ClaimResult) -> str:
    if claim.interval is None:
        return claim.verdict
    low, high = claim.interval
    return f"{claim.verdict} [{low:+.4g}, {high:+.4g}]"


if __name__ == "__main__":
    sys.exit(main())
