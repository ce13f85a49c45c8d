"""One model and everything that decides what its rollouts are and which are right: what mining and search are given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict, Unpack

from retarget.errors import UserError
from retarget.identity import fingerprint
from retarget.pope.graders import RULES, Grade
from retarget.pope.grading import Grader
from retarget.pope.identity import engine_header
from retarget.pope.journal import Journal
from retarget.pope.problems import Problem
from retarget.pope.prompts import Prompt, Prompts
from retarget.pope.rollouts import Engine, Rollout, Sampling


def _unknown_before(had: Any, now: Any) -> bool:
    """What an earlier version did not ask an engine says nothing against it."""
    return had is None


class Asking(TypedDict, total=False):
    """The fields of a :class:`Sampler` beside its engine, as keyword arguments."""

    grader: Grader
    prompts: Prompts
    params: Sampling | None
    chunk: int
    batch: int


@dataclass(frozen=True)
class Sampler:
    """A model, how it is asked, and how its answers are judged.

    Attributes:
        engine: samples the model.
        grader: default math-verify in a worker process.
        prompts: default the package's templates.
        params: how to sample; None takes what mining, search or evaluation does by default. Its seed, with each
            prompt, decides the rollouts.
        chunk: rollouts of one unit of work, each with a seed of its own.
        batch: problems in one call of the engine.
    """

    engine: Engine
    grader: Grader = field(default_factory=Grader)
    prompts: Prompts = field(default_factory=Prompts.load)
    params: Sampling | None = None
    chunk: int = 16
    batch: int = 16

    @classmethod
    def of(
        cls, engine: "Engine | Sampler", purpose: str, default: Sampling | None = None, **asking: Unpack[Asking]
    ) -> "Sampler":
        """A sampler for a purpose, from an engine and keywords or from a sampler.

        Args:
            engine: either.
            purpose: enters the rollouts' seeds (see :class:`~retarget.pope.rollouts.Sampling`).
            default: of ``params``.
            asking: fields that replace a sampler's own.
        """
        given: Any = {name: value for name, value in asking.items() if value is not None}
        made = replace(engine, **given) if isinstance(engine, Sampler) else cls(engine, **given)
        return replace(made, params=(made.params or default or Sampling()).of(purpose))

    @property
    def sampling(self) -> Sampling:
        """How to sample."""
        return self.params or Sampling()

    def header(self, verb: str) -> dict[str, Any]:
        """What identifies a work in the header of its journal: all that decides a unit beside its problem.

        How much is asked for (problems, k, cuts) is no part of it, so that a work may be extended.
        """
        return {
            "verb": verb, **engine_header(self.engine), "grader": self.grader.spec,
            **({"grader_rules": RULES[self.grader.spec]} if self.grader.spec in RULES else {}),
            "sampling": self.sampling.model_dump(mode="json"), "wording": self._wording(verb),
        }  # fmt: skip

    def _wording(self, verb: str) -> str:
        """Fingerprint of the template that a work's prompts are made with."""
        used = self.prompts.guided if verb == "search" else self.prompts.unguided
        return fingerprint([used, self.prompts.system, self.prompts.chat])

    def journal(
        self,
        verb: str,
        path: Path | None,
        problems: Sequence[Problem],
        prompt: Callable[[Problem], Prompt] | None = None,
    ) -> Journal:
        """The journal of a work with these problems.

        Args:
            verb: what is done.
            path: its file; None keeps it in memory.
            problems: all of them.
            prompt: what identified a problem's prompt in journals without checksums; default the unguided prompt.
        """

        def former() -> dict[str, str]:
            """Journals without checksums identified all problems together."""
            ask = prompt or self.unguided
            asked = [[one.former or one.id, one.answer, ask(one), one.meta] for one in problems]
            return {"problems": fingerprint(asked)}

        since = ("wording", *getattr(self.engine, "identity_since", ()))
        return Journal(path, self.header(verb), extends=dict.fromkeys(since, _unknown_before), former=former)

    def check(self, k: int, name: str = "k") -> None:
        """Refuse numbers of rollouts below 1.

        Raises:
            UserError: one is.
        """
        if k < 1 or self.chunk < 1 or self.batch < 1:
            raise UserError(f"{name}, chunk and batch are at least 1, not {k}, {self.chunk} and {self.batch}")

    def unguided(self, problem: Problem) -> Prompt:
        """The prompt of a problem alone."""
        return self.prompts.without_prefix(problem.prompt)

    def guided(self, problem: Problem, prefix: str) -> Prompt:
        """The prompt of a problem with the beginning of its solution."""
        return self.prompts.with_prefix(problem.prompt, prefix)

    def grade(self, problem: Problem, rollouts: Sequence[Rollout], prefix: str | None = None) -> list[Grade]:
        """The verdicts on rollouts of one problem.

        A grader of continuations finds the ``prefix`` in its meta, and ``truncated`` where the budget ended a rollout.
        """
        return self.grade_all([(problem, prefix, rollouts)])[0]

    def grade_all(self, asked: Sequence[tuple[Problem, str | None, Sequence[Rollout]]]) -> list[list[Grade]]:
        """The verdicts on rollouts of several problems, each with its prefix or without; see :meth:`grade`."""
        texts, answers, metas = [], [], []
        for problem, prefix, rollouts in asked:
            meta = {**problem.meta, "id": problem.id, **({"prefix": prefix} if prefix else {})}
            texts += [one.text for one in rollouts]
            answers += [problem.answer] * len(rollouts)
            metas += [{**meta, "truncated": True} if one.truncated else meta for one in rollouts]
        grades = iter(self.grader.grade(texts, answers, metas))
        return [list(islice(grades, len(rollouts))) for _, _, rollouts in asked]

    def graded(self, problem: Problem, prefix: str | None, n: int) -> list[tuple[Rollout, Grade]]:
        """n fresh rollouts of a problem, with a prefix or without, and their verdicts."""
        prompt = self.guided(problem, prefix) if prefix else self.unguided(problem)
        (rollouts,) = self.engine.sample([prompt], n, self.sampling)
        return list(zip(rollouts, self.grade(problem, rollouts, prefix), strict=True))
