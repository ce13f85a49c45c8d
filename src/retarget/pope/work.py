"""Units of work: n rollouts of one prompt each. Mining, search, evaluation and the oracle consist of them."""

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
"""Called with (finished problems, all problems, rollouts so far) whenever units were journalled."""


class Record(Strict):
    """The journal's record of a unit: its identity, counts, the most frequent answers and one example.

    Attributes:
        problem: the problem's id.
        end: in a search, the length of the prefix in characters.
        chunk: number of the unit among those of this problem, or of this prefix.
        asks: fingerprint of prompt, answer and meta; None in journals of earlier versions.
        failed: rollouts on which the grader timed out, crashed or raised an error.
        solution: the solution that an oracle gave.
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
        """Identifies the unit: problem, prefix and chunk."""
        return self.problem, self.end, self.chunk

    @classmethod
    def read(cls, where: str, value: dict[str, Any]) -> "Record":
        """A record from a journal's JSON value.

        Args:
            where: file and line, for the message.
            value: the JSON value.

        Raises:
            UserError: the value is not a valid record.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            named = ", ".join(".".join(map(str, one["loc"])) for one in error.errors())
            raise UserError(
                f"{where} is damaged (fields: {named}); move the file away, or delete it from that line on"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """The JSON value for the journal; fields that were not set are left out."""
        return self.model_dump(mode="json", exclude_unset=True)


@dataclass(frozen=True)
class Unit:
    """One unit of work.

    Attributes:
        prompt: the prompt to sample.
        n: rollouts to sample if the journal does not have the unit.
        most: the most rollouts that a unit in the journal may have.
        chunk: decides the seed, together with the prompt.
        end, prefix: in a search, the prefix's length in characters and its text.
    """

    prompt: Prompt
    n: int
    most: int
    chunk: int | None
    end: int | None = None
    prefix: str | None = None

    def asks(self, problem: Problem) -> str:
        """Fingerprint of prompt, answer and meta."""
        return fingerprint([self.prompt, problem.answer, problem.meta])


@dataclass
class Item:
    """A problem with its records, and the reason if the engine refused it.

    ``outage`` says that it did not refuse the problem but failed on it (see :class:`~retarget.pope.rollouts.Failed`).
    """

    problem: Problem
    records: list[Record] = field(default_factory=list)
    refused: str | None = None
    outage: bool = False

    @property
    def rollouts(self) -> int:
        """Number of sampled rollouts."""
        return sum(record.n for record in self.records)


def total_or_none(values: Iterable[int | None]) -> int | None:
    """The sum; None if one of the values is None.

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
