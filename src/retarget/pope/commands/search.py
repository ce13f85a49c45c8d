"""``retarget pope search``."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from retarget.files import make_directory, write_text
from retarget.helptext import one_paragraph
from retarget.pope.commands.options import Asking, Cost, Reading, failures, lines, progress, said
from retarget.pope.prefixes import Unit
from retarget.pope.search import Fallback, Strategy, search_prefixes

_UNSOLVED = {
    "fallback": "no rollout succeeded with any prefix; the longest one is used, except by `mix --found-only`",
    "none": "no rollout succeeded with any prefix",
    "no cut": "the solution cannot be cut within the cap without stating the answer",
}


@dataclass
@one_paragraph
class Search:
    """Find the shortest prefix of each solution with which the model succeeds at least once."""

    problems: Annotated[Positional[str], arg(metavar="HARD", help="hard problems, as `mine` wrote them")]
    out: Path
    """Directory for the journal and prefixes.jsonl."""
    sampling: tyro.conf.OmitArgPrefixes[Asking]
    reading: tyro.conf.OmitArgPrefixes[Reading] = field(default_factory=Reading)
    cost: tyro.conf.OmitArgPrefixes[Cost] = field(default_factory=Cost)
    cuts: int = 8
    """Number of fractions to try, uniform up to the cap."""
    k: int = 64
    """Rollouts per cut, at most."""
    cap: float = 0.25
    """Longest prefix as a fraction of the solution."""
    unit: Unit = "sentence"
    """Kind of boundary to cut at."""
    fallback: Fallback = "longest"
    """Prefix of a problem for which no cut works."""
    search: Strategy = "grid"
    """grid tries all cuts from the shortest on; bisect tries at most 1 + log2(cuts) of them, assuming that success is
    monotone in the length."""
    dry_run: FlagCreatePairsOff[bool] = False
    """Only print the number of rollouts, tokens and GPU-hours."""

    def run(self) -> int:
        problems = self.reading.read(self.problems, dry_run=self.dry_run, mined=True)
        if self.dry_run:
            most = self.cuts.bit_length() if self.search == "bisect" else self.cuts
            rollouts = len(problems) * most * self.k
            note = "less: sampling stops at a cut's first success, and longer cuts are then not tried"
            print(json.dumps(self.cost.of(rollouts, note)))
            return 0
        make_directory(self.out)
        sampler = self.sampling.sampler()
        with progress("searching") as told:
            found = search_prefixes(
                problems, sampler, self.cuts, self.k, cap=self.cap, unit=self.unit, fallback=self.fallback,
                strategy=self.search, journal=self.out / "search.jsonl", progress=told,
            )  # fmt: skip
        said(found.sampled, found.rollouts, self.out / "search.jsonl", sampler.grader)
        write_text(self.out / "prefixes.jsonl", lines(one.to_json() for one in found.found))
        statuses = [one.status for one in found.found]
        counts = ", ".join(f"{name} {statuses.count(name)}" for name in dict.fromkeys(statuses))
        bare = sum(one.bare > 0 for one in found.found)
        asked = sum(one.bare > 0 and one.in_question for one in found.found)
        print(f"{len(problems)} problems: {counts}. {found.rollouts:,} rollouts, {found.tokens:,} tokens.")
        for status, meaning in _UNSOLVED.items():
            some = [one.problem for one in found.found if one.status == status]
            if some:
                print(f"{status} ({meaning}): {', '.join(some[:5])}{' ...' if some[5:] else ''}")
        failed = [(one.problem, one.reason, one.outage) for one in found.found if one.status == "failed"]
        failures(failed, "prefixes.jsonl")
        print(f"{sum(one.leaks for one in found.found)} cuts state the answer and were left out; {bare} prefixes "
              f"contain the answer as a token, and so does the question of {asked} of them.")  # fmt: skip
        finer = sum(one.cut is not None and one.cut.unit != self.unit for one in found.found)
        if finer:
            print(f"{finer} prefixes end inside a {self.unit}, at a token, because no {self.unit} ends before the cap.")
        print(self.out / "prefixes.jsonl")
        return 0
