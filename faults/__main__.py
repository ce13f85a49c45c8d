"""``python -m faults [--inputs N] [--seed S] [--record]``: the tally of damaged inputs; exit 1 where one is a fault."""

import argparse
import json
import sys
from pathlib import Path

from faults.fuzz import fuzz
from faults.targets import TARGETS
from retarget.files import write_json
from retarget.study.environment import environment

RECORD = Path(__file__).parent.parent / "results" / "faults" / "tally.json"
GOOD = ("right result", "clear error")


def main() -> int:
    """Damage, count, print."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets whose name holds this text")
    parser.add_argument("--record", action="store_true", help=f"write results/faults/{RECORD.name}")
    given = parser.parse_args()
    chosen = [target for target in TARGETS if given.only in target.name]
    tallies = []
    for tally in fuzz(chosen, given.inputs, given.seed):
        counts = dict(sorted(tally.counts.items()))
        print(json.dumps({"target": tally.target, **counts}), flush=True)
        for example in tally.examples.values():
            print(example, file=sys.stderr)
        tallies.append({"target": tally.target, "counts": counts, "faults": sorted(tally.examples)})
    if given.record:
        command = f"python -m faults --inputs {given.inputs} --seed {given.seed}"
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        write_json(RECORD, {"command": command, "tallies": tallies, **environment()})
    return 1 if any(outcome not in GOOD for one in tallies for outcome in one["counts"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
