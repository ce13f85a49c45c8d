"""``retarget pope mine``."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from retarget.errors import UsageError, UserError
from retarget.files import make_directory, write_text
from retarget.helptext import one_paragraph
from retarget.identity import fingerprint
from retarget.pope.commands.options import (
    PROBLEMS,
    Cost,
    Mining,
    Reading,
    failures,
    histogram,
    lines,
    progress,
    said,
    stops,
)
from retarget.pope.grading import LabelCheck
from retarget.pope.identity import weights_of
from retarget.pope.mining import Kind, Outcome, mine
from retarget.pope.problems import read_problems, write_problems

_NOTE = "less if sampling of a problem stops at its first success"


@dataclass
@one_paragraph
class Mine:
    """Sample every problem up to k times without guidance, and keep those that are never solved."""

    problems: Annotated[Positional[str], arg(metavar="PROBLEMS", help=PROBLEMS)]
    out: Path
    """Directory for the journal, outcomes.jsonl and hard.jsonl."""
    sampling: tyro.conf.OmitArgPrefixes[Mining]
    reading: tyro.conf.OmitArgPrefixes[Reading] = field(default_factory=Reading)
    cost: tyro.conf.OmitArgPrefixes[Cost] = field(default_factory=Cost)
    k: int = 128
    """Rollouts per problem, at most."""
    rates: FlagCreatePairsOff[bool] = False
    """Sample all k rollouts of every problem, for pass rates; by default sampling stops at the first success."""
    accept: tuple[Kind, ...] = ("hard",)
    """Kinds of problems to keep: hard, and of the doubtful kinds truncated, unparsed and suspect."""
    check: LabelCheck = "solution"
    """What the grader must accept before a problem is sampled: its answer and the answer marked in its solution
    (solution), only its answer (answer), or nothing (none)."""
    checkpoint: str | None = None
    """A later model: mine the problems of OUT/hard.jsonl that are in PROBLEMS again with it. Problems that it solves go
    to graduates.jsonl, those that are still hard to still-hard.jsonl, the others (truncated, unparsed, suspect) to
    left-over.jsonl."""
    dry_run: FlagCreatePairsOff[bool] = False
    """Only print the number of rollouts, tokens and GPU-hours."""

    def run(self) -> int:
        again = self.checkpoint is not None
        problems = self.reading.read(self.problems, "optional", self.dry_run or again, mined=again)
        if self.checkpoint:
            return self._graduate({one.id for one in problems})
        if self.dry_run:
            print(json.dumps(self.cost.of(len(problems) * self.k, _NOTE)))
            return 0
        make_directory(self.out)
        sampler = self.sampling.sampler()
        with progress("mining") as told:
            found = mine(
                problems, sampler, self.k, stop_at_success=not self.rates, accepted=self.accept, check=self.check,
                journal=self.out / "mine.jsonl", progress=told,
            )  # fmt: skip
        said(found.sampled, found.rollouts, self.out / "mine.jsonl", sampler.grader)
        write_text(self.out / "outcomes.jsonl", lines(one.to_json() for one in found.outcomes))
        write_problems(self.out / "hard.jsonl", found.hard)
        rates = [one.rate for one in found.outcomes if one.rate is not None]
        print(histogram(rates) if self.rates else stops([(one.n, one.correct > 0) for one in found.outcomes if one.n]))
        counts = ", ".join(f"{name} {count}" for name, count in found.counts.items() if count)
        print(f"{len(problems)} problems: {counts}. {found.rollouts:,} rollouts, {found.tokens:,} tokens.")
        _examples(found.outcomes, "outcomes.jsonl")
        print(f"{self.out / 'hard.jsonl'}: {len(found)} problems")
        if not len(found):
            print("There is nothing to search: --accept keeps other kinds, and a larger --max-tokens truncates fewer.")
        return 0

    def _graduate(self, asked: set[str]) -> int:
        if self.rates:
            raise UsageError("--rates has no effect with --checkpoint: mining again stops at a success")
        every = read_problems(self.out / "hard.jsonl", solutions="optional", answer_in_solution=False)
        hard = [one for one in every if one.id in asked]
        if not hard:
            raise UserError(f"none of the {len(every)} problems of {self.out / 'hard.jsonl'} is in {self.problems}")
        if len(hard) < len(every):
            print(f"{len(every) - len(hard)} of {len(every)} hard problems are not in {self.problems}, and left out",
                  file=sys.stderr)  # fmt: skip
        if self.dry_run:
            print(json.dumps(self.cost.of(len(hard) * self.k, _NOTE)))
            return 0
        model = str(self.checkpoint)
        sampler = replace(self.sampling, model=model).sampler()
        # One journal per model: a path whose weights have changed is another model.
        journal = self.out / f"mine-again-{weights_of(model) or fingerprint(model)}.jsonl"
        with progress("mining again") as told:
            now = mine(
                hard, replace(sampler, params=sampler.sampling.of("mine again")), self.k, accepted=self.accept,
                check=self.check, journal=journal, progress=told,
            )  # fmt: skip
        said(now.sampled, now.rollouts, journal, sampler.grader)
        solved = [one.problem for one in now.outcomes if one.kind == "solved"]
        other = [one.problem for one in now.outcomes if one.kind not in ("solved", *self.accept)]
        write_text(self.out / "outcomes-again.jsonl", lines(one.to_json() for one in now.outcomes))
        for name, some in (("graduates", solved), ("still-hard", now.hard), ("left-over", other)):
            write_problems(self.out / f"{name}.jsonl", some)
        print(f"{len(solved)} of {len(hard)} hard problems are now solved: {self.out / 'graduates.jsonl'}")
        for one in now.outcomes:
            if one.kind == "solved":
                print(f"  {one.problem.id}: solved within {one.n} rollouts")
        print(f"{len(now)} are still hard: {self.out / 'still-hard.jsonl'}; {len(other)} are neither: "
              f"{self.out / 'left-over.jsonl'}")  # fmt: skip
        _examples(now.outcomes, "outcomes-again.jsonl")
        return 0


def _examples(outcomes: Sequence[Outcome], reasons: str) -> None:
    for kind, meaning in (
        ("broken", "the grader rejects the problem's own label"),
        ("truncated", "most rollouts were cut off by the token budget"),
        ("unparsed", "most rollouts have no final answer"),
        ("suspect", "most answers agree with each other but not with the label, which may be wrong"),
    ):
        some = [one for one in outcomes if one.kind == kind]
        if some:
            print(f"{kind} ({meaning}): {', '.join(one.problem.id for one in some[:5])}{' ...' if some[5:] else ''}")
    failures([(one.problem.id, one.reason, one.outage) for one in outcomes if one.kind == "failed"], reasons)
