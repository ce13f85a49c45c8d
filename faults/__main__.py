"""``python -m faults [--inputs N] [--kills N] [--seed S] [--record]``: count how damaged inputs and
interrupted commands end.

Exits with 1 if any of them shows a fault.
"""

import argparse
import json
import sys
from pathlib import Path

from faults.fuzz import fuzz
from faults.interruptions import SAME, interrupt
from faults.targets import TARGETS
from retarget.files import write_json
from retarget.study.environment import environment

RECORDS = Path(__file__).parent.parent / "results" / "faults"
GOOD = ("right result", "clear error", SAME)


def main() -> int:
    """Damage inputs, interrupt commands, count how they end, print the counts."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="number of damaged inputs; 0 for none")
    parser.add_argument("--kills", type=int, default=24, help="kills per verb that writes; 0 for no interruptions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="run only the targets whose name contains this text")
    parser.add_argument("--record", action="store_true", help="write both tallies to results/faults/")
    given = parser.parse_args()
    if given.only and given.record:
        parser.error("--record needs all targets: leave out --only")
    chosen = [target for target in TARGETS if given.only in target.name]
    damaged = fuzz(chosen, given.inputs, given.seed) if chosen and given.inputs else ()
    bad = False
    for name, found, words in (
        ("tally.json", damaged, f"--inputs {given.inputs} --kills 0"),
        ("interruptions.json", interrupt(given.only, given.kills, given.seed), f"--inputs 0 --kills {given.kills}"),
    ):
        tallies = []
        for tally in found:
            counts = dict(sorted(tally.counts.items()))
            print(json.dumps({"target": tally.target, **counts}), flush=True)
            for example in tally.examples.values():
                print(example, file=sys.stderr, flush=True)
            tallies.append({"target": tally.target, "counts": counts, "faults": sorted(tally.examples)})
            bad = bad or not set(counts) <= set(GOOD)
        if given.record and tallies:
            command = f"python -m faults {words} --seed {given.seed}"
            RECORDS.mkdir(parents=True, exist_ok=True)
            write_json(RECORDS / name, {"command": command, "tallies": tallies, **environment()})
    return int(bad)


if __name__ == "__main__":
    raise SystemExit(main())
