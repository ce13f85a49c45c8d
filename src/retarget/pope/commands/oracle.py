"""``retarget pope oracle``."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from retarget.errors import UsageError
from retarget.files import make_directory
from retarget.pope.commands.options import PROBLEMS, Asking, Reading, progress
from retarget.pope.problems import write_problems


@dataclass
class Oracle:
    """Ask a teacher for missing solutions; keep those whose final answer the grader accepts."""

    problems: Annotated[Positional[str], arg(metavar="PROBLEMS", help=PROBLEMS)]
    out: Path
    """JSONL file for the problems that have a solution now; the others go to OUT.unsolved.jsonl."""
    sampling: tyro.conf.OmitArgPrefixes[Asking]
    reading: tyro.conf.OmitArgPrefixes[Reading] = field(default_factory=Reading)
    attempts: int = 4
    """Samples per problem."""

    def run(self) -> int:
        from retarget.pope.oracle import ORACLE, ask_oracle

        if self.sampling.templates:
            raise UsageError("--templates does not apply to a teacher, whose prompt is the package's oracle.txt")
        problems = self.reading.read(self.problems, "optional")
        make_directory(self.out.parent)
        sampler = self.sampling.sampler()
        asking = replace(sampler, prompts=replace(ORACLE, chat=self.sampling.chat))
        with progress("asking") as told:
            solved, unsolved = ask_oracle(
                problems, asking, self.attempts, journal=Path(f"{self.out}.journal.jsonl"), progress=told
            )
        write_problems(self.out, solved)
        write_problems(Path(f"{self.out}.unsolved.jsonl"), unsolved)
        print(f"{self.out}: {len(solved)} problems with a solution; {len(unsolved)} without")
        return 0
