"""Curricula: methods related to POPE that only change which prompt a row has in each cycle. Free of torch.

Pass a curriculum to :class:`retarget.pope.trl.PopeTrainer`. It chooses each row's prompt before the row is sampled, and
receives the result of every group. Its state consists of these results only, so a resumed training continues exactly.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from retarget.errors import UserError
from retarget.identity import fingerprint
from retarget.pope.grading import Grader
from retarget.pope.mixture import make_row
from retarget.pope.prefixes import Unit, cut_points
from retarget.pope.problems import Problem
from retarget.pope.prompts import Prompts
from retarget.pope.search import clean_cuts

Row = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """The result of one group of rollouts: ``correct`` of ``n``; cycles are counted from 0."""

    cycle: int
    problem: str
    stratum: str
    n: int
    correct: int


class Guides:
    """Rows of each problem that show more and more of its solution; the first shows nothing.

    Args:
        problems: hard problems with solutions.
        prompts: templates of both prompts.
        cuts, cap, unit: as in :func:`retarget.pope.search.search_prefixes`; cuts that state the answer are left out.
        grader: of the training; finds answers in another form, see :func:`retarget.pope.search.clean_cuts`.
    """

    def __init__(
        self, problems: Iterable[Problem], prompts: Prompts, cuts: int, cap: float, unit: Unit = "sentence",
        grader: Grader | None = None,
    ) -> None:  # fmt: skip
        self._rows: dict[str, list[tuple[float, Row]]] = {}
        self.cap = cap
        problems = list(problems)
        clean = clean_cuts(problems, {one.id: cut_points(one.solution, cuts, cap, unit) for one in problems}, grader)
        for one in problems:
            rows = [(0.0, make_row(one, "unguided", prompts.without_prefix(one.prompt)))]
            for cut in clean[one.id]:
                prefix = one.solution[: cut.end]
                rows.append((cut.fraction, make_row(one, "guided", prompts.with_prefix(one.prompt, prefix), prefix)))
            self._rows[one.id] = rows

    def __contains__(self, problem: object) -> bool:
        return problem in self._rows

    @property
    def identity(self) -> str:
        """Fingerprint of all rows."""
        return fingerprint(self._rows)

    def levels(self, problem: str) -> int:
        """Number of prefixes of a problem; 0 if all of its cuts state the answer."""
        return len(self._rows[problem]) - 1

    def level(self, problem: str, level: int) -> Row:
        """The row with the ``level``-th prefix, counted from 1; level 0 shows nothing."""
        return self._rows[problem][level][1]

    def at(self, problem: str, fraction: float) -> Row:
        """The row whose prefix is closest to this fraction of the solution."""
        return min(self._rows[problem], key=lambda one: abs(one[0] - fraction))[1]


class Curriculum:
    """The base class: leaves every row as it is and records the groups. A subclass derives its state from them alone.

    Attributes:
        strata: strata of the rows that it may present in place of another.
        groups: every group so far, in order.
    """

    strata: tuple[str, ...] = ()

    def __init__(self, **parameters: Any) -> None:
        self.groups: list[Group] = []
        self.identity = fingerprint([type(self).__name__, parameters])

    def present(self, row: Row, cycle: int) -> Row:
        """The row to sample in place of ``row``. Equal arguments give the same row until the next :meth:`observe`."""
        return row

    def observe(self, groups: Sequence[Group]) -> None:
        """Record the groups of one cycle."""
        self.groups += groups

    def state(self) -> list[list[Any]]:
        """The groups as JSON values."""
        return [list(astuple(one)) for one in self.groups]

    def load(self, state: Any) -> None:
        """Restore the groups of an interrupted training.

        Raises:
            UserError: ``state`` is not a list of groups.
        """
        try:
            groups = [Group(int(cycle), str(p), str(s), int(n), int(c)) for cycle, p, s, n, c in state]
        except (TypeError, ValueError) as error:
            raise UserError(
                f"the state of a curriculum must be a list of [cycle, problem, stratum, n, correct]: {error}"
            ) from error
        for cycle in dict.fromkeys(one.cycle for one in groups):
            self.observe([one for one in groups if one.cycle == cycle])


def _check_shown(fraction: float, guides: Guides) -> None:
    if fraction > guides.cap:
        raise UserError(
            f"the curriculum shows {fraction:g} of a solution, but the longest prefixes end at cap = {guides.cap:g}: "
            "set cap higher"
        )


class Phases(Curriculum):
    """Show fixed fractions of the solution one after another, each for an equal share of the cycles.

    (0.5, 0.25) is the order of QuestA (Li et al., *QuestA*, 2025): first half of the solution, then a quarter.
    """

    strata = ("guided", "unguided")

    def __init__(self, guides: Guides, cycles: int, fractions: Sequence[float] = (0.5, 0.25)) -> None:
        super().__init__(guides=guides.identity, cycles=cycles, fractions=list(fractions))
        _check_shown(max(fractions), guides)
        self._guides, self._cycles, self._fractions = guides, cycles, fractions

    def present(self, row: Row, cycle: int) -> Row:
        if row["problem"] not in self._guides:
            return row  # an easy one
        phase = min(len(self._fractions) - 1, cycle * len(self._fractions) // self._cycles)
        return self._guides.at(row["problem"], self._fractions[phase])


class Annealed(Curriculum):
    """A reverse curriculum: the fraction shown falls linearly from the longest prefix to nothing.

    After Xi et al., *Training LLMs for Reasoning through Reverse Curriculum RL* (R3), 2024. The last cycles, a share
    ``bare`` of all, show nothing.
    """

    strata = ("guided", "unguided")

    def __init__(self, guides: Guides, cycles: int, cap: float, bare: float = 0.2) -> None:
        super().__init__(guides=guides.identity, cycles=cycles, cap=cap, bare=bare)
        _check_shown(cap, guides)
        self._guides, self._cap, self._until = guides, cap, max(1.0, cycles * (1 - bare))

    def present(self, row: Row, cycle: int) -> Row:
        if row["problem"] not in self._guides:
            return row  # an easy one
        return self._guides.at(row["problem"], self._cap * max(0.0, 1 - cycle / self._until))


class HintWhenWrong(Curriculum):
    """Show the prefix of a problem once after an unguided group of it in which every rollout was wrong.

    Scaf-GRPO (Zhang et al., 2025) and GHPO (Liu et al., 2025) also give hints only after such a group. Here the hint
    comes when the problem is next sampled: no group is sampled twice in one step.
    """

    strata = ("guided", "unguided")

    def __init__(self, guided: Mapping[str, Row]) -> None:
        super().__init__(guided=dict(guided))
        self._guided, self._wrong = guided, set[str]()

    def present(self, row: Row, cycle: int) -> Row:
        problem = row["problem"]
        return self._guided.get(problem, row) if problem in self._wrong else row

    def observe(self, groups: Sequence[Group]) -> None:
        super().observe(groups)
        for one in groups:
            self._wrong.discard(one.problem)
            if one.stratum == "unguided" and not one.correct:
                self._wrong.add(one.problem)


class UnsolvedOnly(Curriculum):
    """Replace rows of solved problems (by any unguided rollout) by rows of unsolved ones, while there are any.

    Args:
        rows: all rows of the mixture.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__(rows=[row["id"] for row in rows])
        self._rows: dict[str, dict[str, Row]] = {}
        for row in rows:
            self._rows.setdefault(row["stratum"], {})[row["problem"]] = row
        self._places = {name: {one: at for at, one in enumerate(some)} for name, some in self._rows.items()}
        self._solved: set[str] = set()

    def present(self, row: Row, cycle: int) -> Row:
        if row["problem"] not in self._solved:
            return row
        stratum = self._rows[row["stratum"]]
        left = [one for one in stratum if one not in self._solved]
        if not left:
            return row
        place = self._places[row["stratum"]][row["problem"]]
        return stratum[left[int(np.random.default_rng([cycle, place]).integers(len(left)))]]

    def observe(self, groups: Sequence[Group]) -> None:
        super().observe(groups)
        self._solved |= {one.problem for one in groups if one.stratum == "unguided" and one.correct}


class Adaptive(Curriculum):
    """Lengthen a problem's prefix after a group with a success rate below ``target``; shorten it after one above.

    After AdaPrefix-GRPO (2026), which keeps guided success near one half and then withdraws the prefix. Here a prefix
    begins as the longest and changes by one cut at a time; over the last cycles, a share ``withdrawn`` of all, it is
    withdrawn linearly.
    """

    strata = ("guided", "unguided")

    def __init__(self, guides: Guides, cycles: int, target: float = 0.5, withdrawn: float = 0.3) -> None:
        super().__init__(guides=guides.identity, cycles=cycles, target=target, withdrawn=withdrawn)
        self._guides, self._target = guides, target
        self._cycles, self._from = cycles, cycles * (1 - withdrawn)
        self._level: dict[str, int] = {}

    def _of(self, problem: str) -> int:
        return self._level.get(problem, self._guides.levels(problem))

    def present(self, row: Row, cycle: int) -> Row:
        problem = row["problem"]
        if problem not in self._guides:
            return row  # an easy one
        left = 1.0 if cycle < self._from else (self._cycles - 1 - cycle) / max(1.0, self._cycles - self._from)
        most = int(np.ceil(self._guides.levels(problem) * max(0.0, left)))
        return self._guides.level(problem, min(self._of(problem), most))

    def observe(self, groups: Sequence[Group]) -> None:
        super().observe(groups)
        for one in groups:
            if one.problem not in self._guides:
                continue
            step = -1 if one.correct > self._target * one.n else 1 if one.correct < self._target * one.n else 0
            level = self._of(one.problem) + step
            self._level[one.problem] = min(self._guides.levels(one.problem), max(0, level))
