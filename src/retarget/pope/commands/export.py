"""``retarget pope export``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from retarget.pope.commands.options import Reading
from retarget.pope.export import Host, export
from retarget.pope.mixture import read_rows


@dataclass
class Export:
    """Write a mixture for another trainer."""

    rows: Annotated[Positional[Path], arg(help="Parquet file that `mix` wrote")]
    to: Host
    """The host; opsd are rows for privileged self-distillation, as TRL's SDFT and SDPO take them."""
    out: Path
    """File of the rows; validation rows, a reward file (for prime-rl a taskset) and a launch script stand beside it."""
    hold_out: float = 0.0
    """Share of the problems that are for validation alone; without, validation is on the unguided rows of training."""
    grader: str = "math"
    """Of the reward file: math, boxed, exact, numeric, or module:function."""
    solutions: str | None = None
    """Problems whose whole solution is the privileged context of opsd; by default it is the prefix of each."""
    reading: tyro.conf.OmitArgPrefixes[Reading] = field(default_factory=Reading)

    def run(self) -> int:
        solutions = None
        if self.solutions is not None:
            solutions = {one.id: one.solution for one in self.reading.read(self.solutions)}
        for file in export(read_rows(self.rows), self.to, self.out, hold_out=self.hold_out, grader=self.grader,
                           solutions=solutions):  # fmt: skip
            print(file)
        return 0
