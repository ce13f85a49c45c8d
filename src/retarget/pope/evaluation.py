"""Evaluate unguided: pass@1 and pass@k with intervals over problems, and which problems are solved at all."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from jaxtyping import Float, Integer

from retarget.errors import UserError
from retarget.metrics.passk import pass_at_k
from retarget.pope.problems import Problem
from retarget.pope.rollouts import Engine, Sampling
from retarget.pope.sampler import Asking, Sampler
from retarget.pope.schedule import Work
from retarget.pope.work import Item, Progress, Unit, total_or_none

PAPER = Sampling(temperature=0.8, top_p=0.95, top_k=50)
"""How the authors' training configuration evaluates."""


@dataclass(frozen=True)
class Evaluation:
    """Successes of each problem among the same number of fresh, unguided samples.

    Attributes:
        problems: ids, in the order of ``correct``.
        correct: [P] successes.
        samples: rollouts of each problem.
        tokens: generated tokens in all; ``truncated``: completions that the budget ended.
        thinking: of all tokens those before the answers began (see :class:`~retarget.pope.rollouts.Rollout`); None
            where a server does not say.
        failed: problems whose prompt the engine refused, with its reason: they are in no other number.
        sampled: units of work that this call sampled; all others were in the journal.
        majority: the answer of each problem that was given most often and how often, ("", 0) where none was found.
    """

    problems: list[str]
    correct: Integer[np.ndarray, "problems"]
    samples: int
    tokens: int
    truncated: int
    thinking: int | None = 0
    failed: dict[str, str] = field(default_factory=dict)
    sampled: int = field(default=0, compare=False)
    majority: list[tuple[str, int]] = field(default_factory=list, compare=False)

    def pass_at(self, k: int) -> float:
        """Mean over problems of the unbiased estimator 1 - C(n - c, k) / C(n, k).

        Raises:
            UserError: k exceeds the samples.
        """
        return float(self.pass_of_problems(k).mean())

    def pass_of_problems(self, k: int) -> Float[np.ndarray, "problems"]:
        """[P] pass@k of each problem."""
        if not 1 <= k <= self.samples:
            raise UserError(f"pass@{k} needs at least {k} samples a problem, there are {self.samples}")
        return np.asarray(pass_at_k(self.samples, self.correct, k), dtype=np.float64)

    def interval(self, k: int, level: float = 0.95, resamples: int = 2000) -> tuple[float, float]:
        """Bootstrap interval of pass@k over problems (the problems are the sample; the model is fixed)."""
        values = self.pass_of_problems(k)
        draws = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
        low, high = np.quantile(values[draws].mean(1), [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    @property
    def solved(self) -> set[str]:
        """Problems with at least one success."""
        return {name for name, correct in zip(self.problems, self.correct, strict=True) if correct}

    def to_json(self, ks: Sequence[int] = (1, 16)) -> dict[str, Any]:
        """A summary for a results file."""
        return {
            "problems": len(self.problems), "samples": self.samples, "solved": len(self.solved),
            "tokens": self.tokens, "truncated": self.truncated, "thinking": self.thinking,
            "pass": {str(k): {"mean": self.pass_at(k), "interval": list(self.interval(k))}
                     for k in ks if k <= self.samples},
            **({"failed": self.failed} if self.failed else {}),
            "correct": dict(zip(self.problems, map(int, self.correct), strict=True)),
        }  # fmt: skip


def evaluate(
    problems: Sequence[Problem],
    engine: Engine | Sampler,
    samples: int = 32,
    *,
    journal: Path | None = None,
    progress: Progress | None = None,
    **asking: Unpack[Asking],
) -> Evaluation:
    """Sample every problem equally often, without guidance: prefixes have no way in here.

    After selection (0 of k) the *base* is sampled again with a fresh seed, and every gain is against that: 0 of 128
    leaves a true rate of up to 2.3 %, pass@16 up to .31.

    Args:
        samples: rollouts per problem.
        problems, engine, journal, progress, asking: as in :func:`retarget.pope.mining.mine`; ``params`` are
            :data:`PAPER` if not given.

    Raises:
        UserError: no problems, ids that occur twice, fewer than one sample, or a journal of other work.
    """
    sampler = Sampler.of(engine, "evaluate", PAPER, **asking)
    sampler.check(samples, "samples")
    if not problems or len({problem.id for problem in problems}) < len(problems):
        raise UserError("evaluation needs problems, each with an id of its own")
    items = [Item(problem) for problem in problems]

    def next_unit(item: Item) -> Unit | None:
        left = samples - item.rollouts
        if left <= 0 or item.refused:
            return None
        return Unit(sampler.unguided(item.problem), min(sampler.chunk, left), left, len(item.records))

    with sampler.journal("evaluate", journal, problems) as book:
        work = Work(items, next_unit, sampler, book, progress)
        work.run()
    whole = [item for item in items if not item.refused]
    return Evaluation(
        [item.problem.id for item in whole],
        np.array([sum(record.correct for record in item.records) for item in whole]),
        samples,
        sum(record.tokens for item in whole for record in item.records),
        sum(record.truncated for item in whole for record in item.records),
        total_or_none(record.thinking for item in whole for record in item.records),
        {item.problem.id: item.refused for item in items if item.refused},
        work.sampled,
        [_majority(item) for item in whole],
    )


def _majority(item: Item) -> tuple[str, int]:
    """Of equally frequent answers the one that came first."""
    answers: Counter[str] = Counter()
    for record in item.records:
        answers.update(record.answers)
    return next(iter(answers.most_common(1)), ("", 0))
