"""``retarget pope export``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from retarget.errors import UsageError
from retarget.helptext import one_paragraph
from retarget.pope.commands.options import Reading
from retarget.pope.export import Host, export
from retarget.pope.mixture import read_rows


@dataclass
@one_paragraph
class Export:
    """Write a mixture for another trainer."""

    rows: Annotated[Positional[Path], arg(metavar="ROWS", help="Parquet file that `mix` wrote")]
    to: Host
    """The trainer; opsd writes rows for privileged self-distillation, in the form of TRL's SDFT and SDPO."""
    out: Path
    """File for the rows; validation rows, a reward file (for prime-rl a taskset) and a launch script are written next
    to it."""
    hold_out: float = 0.0
    """Share of the problems to hold out for validation; at 0, validation uses the unguided training rows."""
    grader: str = "math"
    """Grader of the reward file: math, boxed, exact, numeric, or module:function."""
    solutions: str | None = None
    """For opsd: problems whose whole solutions are the privileged contexts; by default these are the prefixes."""
    reading: tyro.conf.OmitArgPrefixes[Reading] = field(default_factory=Reading)

    def run(self) -> int:
        if self.out.resolve() == self.rows.resolve():
            raise UsageError(f"--out {self.out} is the mixture itself: give another file")
        solutions = None
        if self.solutions is None and self.reading != Reading():
            raise UsageError("--limit, --fields and the other options for reading apply to --solutions: give it too")
        if self.solutions is not None:
            solutions = self.reading.read(self.solutions, mined=True)
        for file in export(read_rows(self.rows), self.to, self.out, hold_out=self.hold_out, grader=self.grader,
                           solutions=solutions):  # fmt: skip
            print(file)
        return 0
