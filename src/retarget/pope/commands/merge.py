"""``retarget pope merge``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from retarget.helptext import one_paragraph
from retarget.pope.merge import merge


@dataclass
@one_paragraph
class Merge:
    """Merge several machines' journals of the same work into one; units that are in several are kept once."""

    journals: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="JOURNAL...", help="mine.jsonl, search.jsonl, ... of each machine")
    ]
    out: Path
    """Directory for the merged journal. Then run the verb again with all problems and this directory: it samples what
    is missing and writes the results."""

    def run(self) -> int:
        found = merge(self.journals, self.out)
        print(f"{found.path}: {found.units} units of {found.problems} problems, {found.rollouts:,} rollouts; "
              f"{found.duplicates} duplicates dropped")  # fmt: skip
        place = f"--out {self.out}" if found.verb != "oracle" else "--out OUT, with the journal as OUT.journal.jsonl,"
        print(f"retarget pope {found.verb} PROBLEMS {place} continues from it")
        return 0
