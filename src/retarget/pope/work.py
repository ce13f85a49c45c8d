"""Units of work, n rollouts of one prompt each: what mining, search, evaluation and the oracle consist of."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, ValidationError

from retarget.errors import UserError
from retarget.identity import fingerprint
from retarget.pope.graders import Grade
from retarget.pope.problems import Problem
from retarget.pope.prompts import Prompt
from retarget.pope.rollouts import Rollout
from retarget.settings import Strict

EXAMPLE_CHARACTERS = 2000
_ANSWERS_KEPT, _ANSWER_CHARACTERS = 8, 200

Progress = Callable[[int, int, int], None]
"""Told (problems finished, problems in all, rollouts so far) whenever some were journalled."""


class Record(Strict):
    """What the journal keeps of a unit: which it was, counts, the answers seen most often, and one example.

    Attributes:
        problem: id.
        end: length of the prefix, in a search.
        chunk: number of the unit among those of this problem, or of this prefix.
        asks: fingerprint of prompt, answer and meta; None in journals of earlier versions.
        failed: rollouts on which the grader timed out, died or raised.
        solution: an oracle's.
    """

    problem: str
    end: int | None = None
    chunk: int | None = None
    asks: str | None = None
    n: int = Field(default=0, ge=0)
    correct: int = Field(default=0, ge=0)
    truncated: int = Field(default=0, ge=0)
    unparsed: int = Field(default=0, ge=0)
    failed: int = Field(default=0, ge=0)
    tokens: int = Field(ge=0)
    thinking: int | None = 0
    answers: dict[str, int] = Field(default={})
    example: str = ""
    solution: str | None = None

    @property
    def key(self) -> tuple[str, int | None, int | None]:
        """Which unit of which problem."""
        return self.problem, self.end, self.chunk

    @classmethod
    def read(cls, where: str, value: dict[str, Any]) -> "Record":
        """A journal's record.

        Raises:
            UserError: it is none.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            named = ", ".join(".".join(map(str, one["loc"])) for one in error.errors())
            raise UserError(f"{where} is damaged (fields: {named}); move the file away, or cut it before it") from error

    def to_json(self) -> dict[str, Any]:
        """As a line of the journal; what does not apply to the unit is left out."""
        return self.model_dump(mode="json", exclude_unset=True)


@dataclass(frozen=True)
class Unit:
    """One unit of work.

    Attributes:
        n: rollouts to draw where it is not in the journal; one there may have up to ``most``.
        chunk: with the prompt, it decides the seed.
        end, prefix: length and text of the prefix, in a search.
    """

    prompt: Prompt
    n: int
    most: int
    chunk: int | None
    end: int | None = None
    prefix: str | None = None

    def asks(self, problem: Problem) -> str:
        """Fingerprint of what is asked."""
        return fingerprint([self.prompt, problem.answer, problem.meta])


@dataclass
class Item:
    """A problem, what is known about it, and why the engine refused it, where it did."""

    problem: Problem
    records: list[Record] = field(default_factory=list)
    refused: str | None = None

    @property
    def rollouts(self) -> int:
        """Rollouts that were drawn."""
        return sum(record.n for record in self.records)


def total_or_none(values: Iterable[int | None]) -> int | None:
    """The sum; None where one is not known.

    >>> total_or_none([1, 2]), total_or_none([1, None])
    (3, None)
    """
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def summarise(problem: Problem, unit: Unit, rollouts: Sequence[Rollout], grades: Sequence[Grade]) -> Record:
    """The record of a unit of mining, search or evaluation."""
    answers = Counter(grade.extracted[:_ANSWER_CHARACTERS] for grade in grades if grade.extracted)
    shown = next((at for at, grade in enumerate(grades) if grade.correct), 0)
    where: dict[str, Any] = {"chunk": unit.chunk} if unit.end is None else {"end": unit.end, "chunk": unit.chunk}
    return Record(
        problem=problem.id, **where, asks=unit.asks(problem), n=len(rollouts),
        correct=sum(grade.correct for grade in grades), truncated=sum(one.truncated for one in rollouts),
        unparsed=sum(g.extracted is None and not one.truncated for g, one in zip(grades, rollouts, strict=True)),
        failed=sum(grade.status != "ok" for grade in grades), tokens=sum(one.tokens for one in rollouts),
        thinking=total_or_none(one.thinking for one in rollouts), answers=dict(answers.most_common(_ANSWERS_KEPT)),
        example=rollouts[shown].text[:EXAMPLE_CHARACTERS],
    )  # fmt: skip
