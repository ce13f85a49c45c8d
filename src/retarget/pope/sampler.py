"""A sampler: a model with its prompts, sampling settings and grader, as used by mining, search and evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict, Unpack

from retarget.errors import UserError
from retarget.identity import fingerprint
from retarget.pope.graders import Grade
from retarget.pope.grading import Grader
from retarget.pope.identity import ADDED, engine_header, grader_of, unknown_before
from retarget.pope.journal import Journal
from retarget.pope.problems import Problem
from retarget.pope.prompts import Prompt, Prompts
from retarget.pope.rollouts import Engine, Rollout, Sampling


class Asking(TypedDict, total=False):
    """The fields of a :class:`Sampler` except its engine, as keyword arguments."""

    grader: Grader
    prompts: Prompts
    params: Sampling | None
    chunk: int
    batch: int


@dataclass(frozen=True)
class Sampler:
    """A model with its prompts, its sampling settings and a grader.

    Attributes:
        engine: samples the model.
        grader: judges the rollouts; by default math-verify in a worker process.
        prompts: by default the package's templates.
        params: sampling settings; None means the defaults of mining, search or evaluation. The seed, together with the
            prompt, decides the rollouts.
        chunk: rollouts per unit of work; each unit has its own seed.
        batch: number of problems in one call of the engine.
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
        """A sampler for a purpose, from an engine and keyword arguments or from another sampler.

        Args:
            engine: an engine, or a sampler.
            purpose: part of the rollouts' seeds (see :class:`~retarget.pope.rollouts.Sampling`).
            default: ``params`` if none are given.
            asking: fields that replace those of a given sampler.
        """
        given: Any = {name: value for name, value in asking.items() if value is not None}
        made = replace(engine, **given) if isinstance(engine, Sampler) else cls(engine, **given)
        return replace(made, params=(made.params or default or Sampling()).of(purpose))

    @property
    def sampling(self) -> Sampling:
        """The sampling settings."""
        return self.params or Sampling()

    def header(self, verb: str) -> dict[str, Any]:
        """The header of a journal: everything that decides a unit's rollouts and grades, except the problem.

        The amount of work (problems, k, cuts) is not part of it, so that a journal can be extended.
        """
        return {
            "verb": verb, **engine_header(self.engine), **grader_of(self.grader.spec),
            "sampling": self.sampling.model_dump(mode="json"), "wording": self._wording(verb),
        }  # fmt: skip

    def _wording(self, verb: str) -> str:
        """Fingerprint of the templates that the verb uses."""
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
            """Journals without checksums have one fingerprint of all problems."""
            ask = prompt or self.unguided
            asked = [[one.former or one.id, one.answer, ask(one), one.meta] for one in problems]
            return {"problems": fingerprint(asked)}

        since = (*ADDED, *getattr(self.engine, "identity_since", ()))
        extends = {**dict.fromkeys(since, unknown_before), **getattr(self.engine, "identity_extends", {})}
        return Journal(path, self.header(verb), extends=extends, former=former)

    def check(self, k: int, name: str = "k") -> None:
        """Refuse numbers of rollouts below 1, and several rollouts of a greedy model.

        Raises:
            UserError: k, ``chunk`` or ``batch`` is below 1, or k is above 1 at temperature 0.
        """
        if k < 1 or self.chunk < 1 or self.batch < 1:
            raise UserError(f"{name}, chunk and batch must be at least 1, not {k}, {self.chunk} and {self.batch}")
        if k > 1 and self.sampling.temperature == 0:
            raise UserError(
                f"at temperature 0 all {k} rollouts of a prompt are the same: set {name} to 1, or temperature above 0"
            )

    def unguided(self, problem: Problem) -> Prompt:
        """The prompt of a problem without guidance."""
        return self.prompts.without_prefix(problem.prompt)

    def guided(self, problem: Problem, prefix: str) -> Prompt:
        """The prompt of a problem with the beginning of its solution."""
        return self.prompts.with_prefix(problem.prompt, prefix)

    def grade(self, problem: Problem, rollouts: Sequence[Rollout], prefix: str | None = None) -> list[Grade]:
        """Grade rollouts of one problem.

        The grader's ``meta`` has the ``prefix``, if there is one, and ``truncated`` for rollouts that the token budget
        cut off.
        """
        return self.grade_all([(problem, prefix, rollouts)])[0]

    def grade_all(self, asked: Sequence[tuple[Problem, str | None, Sequence[Rollout]]]) -> list[list[Grade]]:
        """Grade rollouts of several problems, each given with its prefix or None; see :meth:`grade`."""
        texts, answers, metas = [], [], []
        for problem, prefix, rollouts in asked:
            meta = {**problem.meta, "id": problem.id, **({"prefix": prefix} if prefix else {})}
            texts += [one.text for one in rollouts]
            answers += [problem.answer] * len(rollouts)
            metas += [{**meta, "truncated": True} if one.truncated else meta for one in rollouts]
        grades = iter(self.grader.grade(texts, answers, metas))
        return [list(islice(grades, len(rollouts))) for _, _, rollouts in asked]

    def graded(self, problem: Problem, prefix: str | None, n: int) -> list[tuple[Rollout, Grade]]:
        """Sample n rollouts of a problem, with a prefix or without, and grade them."""
        prompt = self.guided(problem, prefix) if prefix else self.unguided(problem)
        (rollouts,) = self.engine.sample([prompt], n, self.sampling)
        return list(zip(rollouts, self.grade(problem, rollouts, prefix), strict=True))
