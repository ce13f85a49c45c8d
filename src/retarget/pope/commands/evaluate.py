"""``retarget pope evaluate``."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from retarget.errors import UsageError
from retarget.files import make_directory, write_text
from retarget.helptext import one_paragraph
from retarget.pope.commands.options import AGAIN, PROBLEMS, Evaluating, Reading, progress, said
from retarget.pope.evaluation import evaluate
from retarget.pope.graders import BUILT_IN
from retarget.pope.grading import rejected_solutions


@dataclass
@one_paragraph
class Evaluate:
    """Sample without guidance and estimate pass@1 and pass@k with intervals over problems."""

    problems: Annotated[Positional[str], arg(metavar="PROBLEMS", help=PROBLEMS)]
    out: Path
    """Directory for the journal and evaluation.json."""
    sampling: tyro.conf.OmitArgPrefixes[Evaluating]
    reading: tyro.conf.OmitArgPrefixes[Reading] = field(default_factory=Reading)
    samples: int = 32
    """Rollouts per problem. To compare sets of solved problems, use 256 or more, and as many for the base model as for
    the trained one."""
    k: tuple[int, ...] | None = None
    """The k of each pass@k to print; by default 1 and 16, if there are enough samples."""

    def run(self) -> int:
        ks = self.k or tuple(k for k in (1, 16) if k <= self.samples)
        if wrong := [k for k in ks if not 1 <= k <= self.samples]:
            raise UsageError(f"--k {wrong[0]}: k must be between 1 and --samples {self.samples}")
        problems = self.reading.read(self.problems, "optional", mined=True)
        make_directory(self.out)
        sampler = self.sampling.sampler()
        check = "solution" if sampler.grader.spec in BUILT_IN else "none"
        if broken := [problem.id for problem, _ in rejected_solutions(problems, sampler.grader, check)]:
            print(
                f"the grader rejects the label of {len(broken)} of {len(problems)} problems, alone or in their own "
                f"solution; they are sampled and hardly solved: {', '.join(broken[:5])}{' ...' * (len(broken) > 5)}",
                file=sys.stderr,
            )
        with progress("evaluating") as told:
            found = evaluate(problems, sampler, self.samples, journal=self.out / "evaluate.jsonl", progress=told)
        said(found.sampled, self.samples, self.out / "evaluate.jsonl", sampler.grader)
        for name, reason in found.failed.items():
            print(f"{name} has no rollouts, and is left out of all figures: {reason}", file=sys.stderr)
        if found.failed:
            print(AGAIN, file=sys.stderr)
        summary = found.to_json(ks)
        report = {**summary, "settings": self.sampling.shown()}
        write_text(self.out / "evaluation.json", json.dumps(report, default=str))
        for k, one in summary["pass"].items():
            low, high = one["interval"]
            print(f"pass@{k} {one['mean']:.4f} [{low:.4f}, {high:.4f}] over {summary['problems']} problems")
        print(f"solved {summary['solved']} of {summary['problems']} with {self.samples} samples each; "
              f"{summary['truncated']} completions truncated")  # fmt: skip
        rollouts = self.samples * summary["problems"]
        before = "unknown" if found.thinking is None else f"{found.thinking / rollouts:.1f}"
        print(f"tokens per completion {found.tokens / rollouts:.1f}, of them in a thinking block {before}")
        return 0
