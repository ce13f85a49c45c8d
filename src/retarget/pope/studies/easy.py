"""The easy problems of a rivals' study: ``near`` ones, which the base model solves sometimes, and ``far`` ones.

Free of torch.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from retarget.pope.problems import Problem
from retarget.pope.studies.chain import Corpus, make_problems

EASY_RANGE = (0.2, 0.8)
"""Success rates of the base model on near problems: neither mastered nor out of reach."""
EASY_RATE = 0.45
"""The middle of the 30 to 60 % that readers of the paper report for its easy problems."""
ROUNDS = 6
RECORD = "near.json"
"""The file of a base model's run that says how many near candidates were tried and found."""
_SEED = 2_000_003


@dataclass(frozen=True)
class Near:
    """The near problems of a base model; none if too few candidates are within the range.

    Attributes:
        problems: as many as asked for, or none.
        candidates, within: number of candidates that were tried, and of those within :data:`EASY_RANGE`.
    """

    problems: list[Problem]
    candidates: int
    within: int


def near_problems(
    corpus: Corpus, count: int, seed: int, rates: Callable[[list[Problem]], Float[np.ndarray, "problems"]]
) -> Near:
    """Problems longer than the shortest and shorter than the hard ones that the base model solves sometimes.

    The first candidates have all lengths alike. Later ones, up to :data:`ROUNDS` rounds, have the lengths of those that
    were within the range. Too few are not filled up with problems that are always or never solved: a mixture with
    those asks another question.

    Args:
        corpus: of the base model.
        count: number of problems to choose, those with rates closest to :data:`EASY_RATE`.
        seed: of the problems.
        rates: success rates of the base model on problems; called with all candidates of the rounds so far.
    """
    lengths = range(corpus.short[0] + 1, corpus.long[1])
    asked, drawn = dict.fromkeys(lengths, -(-2 * count // len(lengths))), Counter[int]()
    candidates: list[Problem] = []
    chosen: list[int] = []
    for _ in range(ROUNDS):
        for length, more in asked.items():
            drawn[length] += more
            candidates += make_problems(drawn[length], length, seed + _SEED, corpus.family, corpus.style)[-more:]
        found = rates(candidates)
        order = np.argsort(np.abs(found - EASY_RATE), kind="stable")
        chosen = [int(at) for at in order if EASY_RANGE[0] <= found[at] <= EASY_RANGE[1]]
        if len(chosen) >= count or not chosen:
            break
        hits = Counter(_length(candidates[at]) for at in chosen)
        asked = {length: -(-2 * count * n // len(chosen)) for length, n in sorted(hits.items())}
    problems = [candidates[at] for at in sorted(chosen[:count])] if len(chosen) >= count else []
    return Near(problems, len(candidates), len(chosen))


def far_problems(corpus: Corpus, count: int, seed: int) -> list[Problem]:
    """The shortest problems."""
    return make_problems(count, corpus.short[0], seed + _SEED + 1, corpus.family, corpus.style)


def _length(problem: Problem) -> int:
    operations: Sequence[str] = problem.meta["operations"]
    return len(operations)
