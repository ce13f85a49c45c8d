"""Prefixes for control arms: another problem's prefix, one with scrambled numbers, one of another length.

Free of torch.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from retarget.errors import UserError
from retarget.pope.grading import Grader
from retarget.pope.prefixes import Cut, Unit, cut_points
from retarget.pope.problems import Problem
from retarget.pope.search import clean_cuts

Length = Literal["quarter", "random", "longest"]

_NUMBER = re.compile(r"(?<![\w.])(?<!\s[+*-])(?<!\A[+*-])\d+(?:\.\d+)?(?!\w)")
"""Signed words such as ``+3`` do not count as numbers: in the generated problems they are operations."""


def unrelated(prefixes: Mapping[str, str], seed: int) -> dict[str, str]:
    """Give each problem the prefix of another problem's solution; every prefix is used once.

    This tells "the oracle helped" apart from "some context helped": lengths and style are those of the real prefixes.

    Raises:
        UserError: there are fewer than two prefixes.

    >>> unrelated({"a": "1", "b": "2"}, seed=0)
    {'a': '2', 'b': '1'}
    """
    if len(prefixes) < 2:
        raise UserError(f"unrelated prefixes: at least two problems must have a prefix, but {len(prefixes)} do")
    known = sorted(prefixes)
    names = [known[at] for at in np.random.default_rng(seed).permutation(len(known))]
    taken = dict(zip(names, [*names[1:], names[0]], strict=True))
    return {name: prefixes[taken[name]] for name in prefixes}


def scrambled(prefixes: Mapping[str, str], seed: int) -> dict[str, str]:
    """Replace every number in a prefix by another number that occurs in some prefix; words and form stay.

    Raises:
        UserError: the prefixes contain fewer than two different numbers.

    >>> scrambled({"a": "+3 *5 4", "b": "-2 2"}, seed=0)
    {'a': '+3 *5 2', 'b': '-2 4'}
    """
    pool = sorted({number for text in prefixes.values() for number in _NUMBER.findall(text)})
    if len(pool) < 2:
        raise UserError(
            f"scrambled prefixes: the prefixes must contain at least two different numbers, but have {len(pool)}"
        )
    random = np.random.default_rng(seed)

    def another(found: re.Match[str]) -> str:
        others = [one for one in pool if one != found[0]]
        return others[int(random.integers(len(others)))]

    return {name: _NUMBER.sub(another, text) for name, text in prefixes.items()}


def of_length(
    problems: Iterable[Problem], length: Length, cuts: int, cap: float, unit: Unit, seed: int,
    grader: Grader | None = None,
) -> dict[str, str]:  # fmt: skip
    """Prefixes whose length a rule fixes, without a search. Problems without a cut before the answer get no prefix.

    Args:
        problems: with solutions.
        length: the cut nearest to a ``quarter`` of the solution, a ``random`` cut, or the ``longest``.
        cuts, cap, unit: define the cuts to choose from, as in :func:`retarget.pope.search.search_prefixes`.
        seed: of the random choice.
        grader: of the training; finds answers in another form, see :func:`retarget.pope.search.clean_cuts`.
    """
    random, chosen, problems = np.random.default_rng(seed), {}, list(problems)
    clean = clean_cuts(problems, {one.id: cut_points(one.solution, cuts, cap, unit) for one in problems}, grader)
    for one in problems:
        if clean[one.id]:
            chosen[one.id] = one.solution[: _choose(clean[one.id], length, random).end]
    return chosen


def _choose(cuts: list[Cut], length: Length, random: np.random.Generator) -> Cut:
    if length == "quarter":
        return min(cuts, key=lambda cut: abs(cut.fraction - 0.25))
    return cuts[-1] if length == "longest" else cuts[int(random.integers(len(cuts)))]
