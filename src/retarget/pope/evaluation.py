"""Evaluate without guidance: pass@1 and pass@k with intervals over problems, and the set of solved problems."""

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
from retarget.study.statistics import wilson_interval

PAPER = Sampling(temperature=0.8, top_p=0.95, top_k=50)
"""Sampling for evaluation in the authors' training configuration."""


@dataclass(frozen=True)
class Evaluation:
    """Successes of each problem among the same number of fresh, unguided samples.

    Attributes:
        problems: ids, in the order of ``correct``.
        correct: [P] successes.
        samples: rollouts per problem.
        tokens: total of generated tokens; ``truncated``: completions that the token budget cut off.
        thinking: how many of the tokens came before the answers (see :class:`~retarget.pope.rollouts.Rollout`); None
            if a server does not report it.
        failed: problems whose prompt the engine refused or failed on, with the reason; no other figure includes them.
        sampled: units of work that this call sampled; all others were in the journal.
        majority: for each problem its most frequent answer and how often it was given; ("", 0) if none was found.
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
            UserError: k is below 1 or above the number of samples.
        """
        return float(self.pass_of_problems(k).mean())

    def pass_of_problems(self, k: int) -> Float[np.ndarray, "problems"]:
        """[P] pass@k of each problem."""
        if not 1 <= k <= self.samples:
            raise UserError(f"pass@{k}: k must be between 1 and the {self.samples} samples per problem")
        return np.asarray(pass_at_k(self.samples, self.correct, k), dtype=np.float64)

    def interval(self, k: int, level: float = 0.95, resamples: int = 2000) -> tuple[float, float]:
        """Bootstrap interval of pass@k, resampling the problems; the model and its rollouts are fixed.

        If all problems have the same value, as before training on hard ones, resampling shows no spread: then it is
        Wilson's interval with one trial per problem, which is wide enough, as no share varies more than a yes or no.
        """
        values = self.pass_of_problems(k)
        if (values == values[0]).all():
            return wilson_interval(float(values.sum()), len(values), level)
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
    """Sample every problem equally often, without guidance: this function takes no prefixes.

    Problems selected by 0 of k are not at 0: after 0 of 128 the true rate can be up to 2.3 %, and pass@16 up to .31.
    So sample the *base* model again with a fresh seed, and measure every gain against that.

    Args:
        samples: rollouts per problem.
        problems, engine, journal, progress, asking: as in :func:`retarget.pope.mining.mine`; ``params`` defaults to
            :data:`PAPER`.

    Raises:
        UserError: there are no problems, an id occurs twice, ``samples`` is below 1, or the journal belongs to other
            work.
    """
    sampler = Sampler.of(engine, "evaluate", PAPER, **asking)
    sampler.check(samples, "samples")
    problems = list(problems)
    if not problems or len({problem.id for problem in problems}) < len(problems):
        raise UserError("evaluation needs at least one problem, and every problem needs an id of its own")
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
    if not whole:
        how = "failed on" if all(item.outage for item in items) else "refused"
        raise UserError(f"the engine {how} every problem before its {samples} rollouts; the first: {items[0].refused}")
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
    """The most frequent answer and its count; among equally frequent ones, the first."""
    answers: Counter[str] = Counter()
    for record in item.records:
        answers.update(record.answers)
    return next(iter(answers.most_common(1)), ("", 0))
