"""``retarget pope mix``."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from retarget.errors import UserError
from retarget.pope.commands.options import Reading
from retarget.pope.mixture import mix, write_rows
from retarget.pope.prompts import Prompts


@dataclass
class Mix:
    """Write the rows to train on: guided and unguided variants of each hard problem."""

    problems: Annotated[Positional[str], arg(help="hard problems")]
    prefixes: Annotated[Positional[Path], arg(help="prefixes.jsonl, as `search` wrote it")]
    out: Path
    """Parquet file; a data card OUT.md is written beside it."""
    reading: tyro.conf.OmitArgPrefixes[Reading] = field(default_factory=Reading)
    easy: str | None = None
    """Easy problems to mix in, unguided."""
    ratio: float = 1.0
    """Guided rows over unguided ones."""
    found_only: FlagCreatePairsOff[bool] = False
    """Leave out guided rows whose prefix helped in no rollout of the search."""
    variant: str = "guided"
    """Template of the guided prompt; guided_no_restate is the paper's ablation."""
    templates: Path | None = None
    """Directory with templates of your own."""
    chat: bool = True
    """Messages; --no-chat for plain texts."""
    seed: int = 0
    prompts_per_batch: int = 32
    """Prompts of a generation batch, for the order."""

    def run(self) -> int:
        hard = self.reading.read(self.problems)
        easy = self.reading.read(self.easy, "optional") if self.easy else []
        prefixes = _prefixes(self.prefixes, self.found_only)
        prompts = Prompts.load(self.templates, self.variant, self.chat)
        rows = mix(hard, prefixes, prompts, easy=easy, ratio=self.ratio, seed=self.seed,
                   prompts_per_batch=self.prompts_per_batch)  # fmt: skip
        write_rows(self.out, rows, {"problems": self.problems, "prefixes": self.prefixes, "easy": self.easy or "none",
                                    "ratio": self.ratio, "template": self.variant, "seed": self.seed})  # fmt: skip
        guided = sum(row["guided"] for row in rows)
        print(f"{self.out}: {len(rows)} rows, {guided} of them guided; {self.out}.md describes them")
        return 0


def _prefixes(path: Path, found_only: bool) -> dict[str, str]:
    if not path.exists():
        raise UserError(f"{path}: no such file; `retarget pope search` writes it")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    if not all({"id", "prefix", "status"} <= set(one) for one in records):
        raise UserError(f"{path}: `retarget pope search` did not write it: not every line has id, prefix and status")
    return {
        one["id"]: one["prefix"] for one in records if one["prefix"] and (not found_only or one["status"] == "found")
    }
