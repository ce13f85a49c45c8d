"""``retarget pope mix``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from retarget.pope.commands.options import Reading
from retarget.pope.mixture import mix, write_rows
from retarget.pope.prompts import Prompts
from retarget.pope.search import Prefixes


@dataclass
class Mix:
    """Write the rows to train on: guided and unguided variants of each hard problem."""

    problems: Annotated[Positional[str], arg(metavar="HARD", help="hard problems, as `mine` wrote them")]
    prefixes: Annotated[Positional[Path], arg(metavar="PREFIXES", help="prefixes.jsonl, as `search` wrote it")]
    out: Path
    """Parquet file; a data card OUT.md is written next to it."""
    reading: tyro.conf.OmitArgPrefixes[Reading] = field(default_factory=Reading)
    easy: str | None = None
    """Easy problems to mix in, unguided."""
    ratio: float = 1.0
    """Guided rows / unguided rows."""
    found_only: FlagCreatePairsOff[bool] = False
    """Leave out prefixes with which no rollout of the search succeeded."""
    keep_unpaired: FlagCreatePairsOff[bool] = False
    """Keep problems without a prefix as unguided rows; there are then more unguided rows than the ratio says."""
    other_template: FlagCreatePairsOff[bool] = False
    """Accept prefixes that were searched with other templates, for example for an ablation."""
    variant: str = "guided"
    """Template of the guided prompt; guided_no_restate is the paper's ablation."""
    templates: Path | None = None
    """Directory with templates of your own."""
    chat: bool = True
    """Write prompts as chat messages; --no-chat writes plain texts."""
    seed: int = 0
    """Seed of the order, and of the choice of rows that a ratio keeps."""
    prompts_per_batch: int = 32
    """Prompts per generation batch; decides the order."""

    def run(self) -> int:
        hard = self.reading.read(self.problems, mined=True)
        easy = self.reading.read(self.easy, "optional", mined=True) if self.easy else []
        prefixes = Prefixes.read(self.prefixes, self.found_only)
        prompts = Prompts.load(self.templates, self.variant, self.chat)
        rows = mix(hard, prefixes, prompts, easy=easy, ratio=self.ratio, seed=self.seed,
                   prompts_per_batch=self.prompts_per_batch, unpaired="keep" if self.keep_unpaired else "leave out",
                   other_template=self.other_template)  # fmt: skip
        write_rows(self.out, rows, {"problems": self.problems, "prefixes": self.prefixes, "easy": self.easy or "none",
                                    "ratio": self.ratio, "template": self.variant, "seed": self.seed})  # fmt: skip
        guided = sum(row["guided"] for row in rows)
        print(f"{self.out}: {len(rows)} rows, {guided} of them guided; {self.out}.md describes them")
        return 0
