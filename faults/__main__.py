"""``python -m faults [--inputs N] [--kills N] [--seed S] [--record]``: damaged inputs and interruptions, tallied.

Exit 1 where one of them shows a fault.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

from faults.fuzz import fuzz
from faults.interruptions import SAME, interrupt
from faults.targets import TARGETS
from retarget.files import write_json
from retarget.study.environment import environment

RECORD = Path(__file__).parent.parent / "results" / "faults" / "tally.json"
GOOD = ("right result", "clear error", SAME)


def main() -> int:
    """Damage, count, print."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=24, help="of each verb that writes; 0 for no interruptions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets whose name holds this text")
    parser.add_argument("--record", action="store_true", help=f"write results/faults/{RECORD.name}")
    given = parser.parse_args()
    chosen = [target for target in TARGETS if given.only in target.name]
    tallies = []
    damaged = fuzz(chosen, given.inputs, given.seed) if chosen and given.inputs else ()
    for tally in itertools.chain(damaged, interrupt(given.only, given.kills, given.seed)):
        counts = dict(sorted(tally.counts.items()))
        print(json.dumps({"target": tally.target, **counts}), flush=True)
        for example in tally.examples.values():
            print(example, file=sys.stderr)
        tallies.append({"target": tally.target, "counts": counts, "faults": sorted(tally.examples)})
    if given.record:
        command = f"python -m faults --inputs {given.inputs} --kills {given.kills} --seed {given.seed}"
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        write_json(RECORD, {"command": command, "tallies": tallies, **environment()})
    return 1 if any(outcome not in GOOD for one in tallies for outcome in one["counts"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
