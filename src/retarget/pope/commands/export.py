"""``retarget pope export``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from retarget.pope.export import Host, export
from retarget.pope.mixture import read_rows


@dataclass
class Export:
    """Write a mixture for another trainer."""

    rows: Annotated[Positional[Path], arg(help="Parquet file that `mix` wrote")]
    to: Host
    """The host."""
    out: Path
    """File of the rows; validation rows, a reward file (for prime-rl a taskset) and a launch script stand beside it."""
    hold_out: float = 0.0
    """Share of the problems that are for validation alone; without, validation is on the unguided rows of training."""
    grader: str = "math"
    """Of the reward file: math, boxed, exact, numeric, or module:function."""

    def run(self) -> int:
        for file in export(read_rows(self.rows), self.to, self.out, hold_out=self.hold_out, grader=self.grader):
            print(file)
        return 0
