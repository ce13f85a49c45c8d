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

    def run(self) -> int:
        export(read_rows(self.rows), self.to, self.out)
        print(self.out)
        return 0
