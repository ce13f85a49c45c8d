"""``retarget pope merge``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from retarget.pope.merge import merge


@dataclass
class Merge:
    """Make one journal of several machines' journals of one work; units that stand in several are kept once."""

    journals: Annotated[Positional[tuple[Path, ...]], arg(help="mine.jsonl, search.jsonl, ... of each machine")]
    out: Path
    """Directory for the merged journal. Give the verb again with all problems and this directory: it samples what is
    missing and writes its results."""

    def run(self) -> int:
        found = merge(self.journals, self.out)
        print(f"{found.path}: {found.units} units of {found.problems} problems, {found.rollouts:,} rollouts; "
              f"{found.duplicates} stood in several journals")  # fmt: skip
        place = f"--out {self.out}" if found.verb != "oracle" else "--out OUT, if it is named OUT.journal.jsonl,"
        print(f"retarget pope {found.verb} PROBLEMS {place} goes on from it")
        return 0
