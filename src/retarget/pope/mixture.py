"""Mix the training rows: a guided and an unguided variant of each hard problem, both in the same batch."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retarget.errors import UserError
from retarget.extras import require
from retarget.files import make_directory, replace_file, write_text
from retarget.identity import fingerprint
from retarget.pope.prefixes import leak
from retarget.pope.problems import Problem
from retarget.pope.prompts import Prompts
from retarget.pope.search import Prefixes
from retarget.settings import choose

STRATA = ("unguided", "guided", "easy")
Order = Literal["paired", "stratified", "pool"]
Unpaired = Literal["leave out", "keep"]

_LOG = logging.getLogger(__name__)


def mix(
    hard: Iterable[Problem],
    prefixes: Mapping[str, str],
    prompts: Prompts | None = None,
    *,
    easy: Sequence[Problem] = (),
    ratio: float = 1.0,
    seed: int = 0,
    prompts_per_batch: int = 2,
    unpaired: Unpaired = "leave out",
    kind: Order = "paired",
    other_template: bool = False,
) -> list[dict[str, Any]]:
    """Make the rows for a trainer, in the order of one epoch.

    A row is one prompt, and so one group of rollouts with a baseline of its own.

    Args:
        hard: the hard problems; each gives one unguided row.
        prefixes: prefixes of hard problems, by id. Those from :func:`~retarget.pope.search.search_prefixes` must come
            from the problem's present solution and from a search with the present templates.
        prompts: the two prompts; by default :meth:`Prompts.load`.
        easy: easy problems to mix in, unguided.
        ratio: guided rows / unguided rows, at least 0; 1 in the paper. 0 gives no guided rows (plain GRPO on the same
            problems), ``inf`` only guided ones. Below 1, this share of the guided rows is kept; above 1, 1 / ratio of
            the unguided ones.
        seed: decides which rows a ratio keeps, and their order.
        prompts_per_batch: rows per generation batch; decides the order.
        unpaired: what to do with problems without a prefix. ``leave out`` achieves the ratio, and logs their number;
            ``keep`` gives more unguided rows than that. If no problem has a prefix, all problems stay.
        kind: see :func:`order`.
        other_template: also accept prefixes that were searched with other templates.

    Returns:
        Rows with ``id``, ``problem``, ``prompt``, ``answer``, ``meta`` (JSON text; in a guided row with the ``prefix``,
        for graders of continuations), ``guided`` and ``stratum``.

    Raises:
        UserError: there are no rows, a problem occurs twice, ``ratio`` is negative, a prefix is for a problem that is
            not in ``hard``, comes from another solution, was searched with other templates, or is a beginning of the
            solution that states the answer (also one of a search, after a correction of the label).
    """
    hard, prompts = list(hard), prompts or Prompts.load()
    choose("unpaired", unpaired, Unpaired)
    _check(hard, easy, prefixes, ratio)
    _check_origin(hard, prefixes, prompts, other_template)
    if prefixes and unpaired == "leave out":
        hard = _paired_only(hard, prefixes)
    unguided = [make_row(one, "unguided", prompts.without_prefix(one.prompt)) for one in hard]
    shown = [(one, prefixes[one.id]) for one in hard if one.id in prefixes]
    guided = [make_row(one, "guided", prompts.with_prefix(one.prompt, text), text) for one, text in shown]
    random = np.random.default_rng(seed)
    shown = len(guided)
    guided = _keep(guided, min(1.0, ratio), random)
    if ratio and shown and not guided:
        _LOG.warning("of %d guided rows, a ratio of %g keeps none: all rows are unguided", shown, ratio)
    paired = _keep(
        [row for row in unguided if row["problem"] in prefixes], min(1.0, 1 / ratio if ratio else 1.0), random
    )
    kept = {row["problem"] for row in paired}  # the others are kept whatever the ratio, and all stay in their order
    unguided = [row for row in unguided if row["problem"] in kept or row["problem"] not in prefixes]
    rows = [*unguided, *guided, *(make_row(one, "easy", prompts.without_prefix(one.prompt)) for one in easy)]
    if not rows:
        raise UserError("the mixture is empty: there is no hard problem with a row, and no easy problem")
    at = order([row["stratum"] for row in rows], min(prompts_per_batch, len(rows)), 1, seed, kind,
               [row["problem"] for row in rows])  # fmt: skip
    return [rows[index] for index in [*at, *sorted(set(range(len(rows))) - set(at))]]


def _check(hard: Sequence[Problem], easy: Sequence[Problem], prefixes: Mapping[str, str], ratio: float) -> None:
    """Refuse duplicate problems, prefixes of unknown problems and a negative ratio; warn if there is no prefix."""
    ids = [problem.id for problem in (*hard, *easy)]
    if len(set(ids)) < len(ids):
        twice = next(one for one, n in Counter(ids).items() if n > 1)
        raise UserError(f"problem {twice!r} is given twice: list each problem once, as hard or as easy")
    unknown = sorted(set(prefixes) - {problem.id for problem in hard})
    if unknown:
        raise UserError(
            f"{len(unknown)} prefixes are for problems that are not among the hard ones; the first: {unknown[0]!r}. "
            "Give the problems that were searched"
        )
    if not ratio >= 0:
        raise UserError(f"ratio (guided rows / unguided rows) must be at least 0, not {ratio}")
    if ratio and not prefixes:
        _LOG.warning("no hard problem has a prefix: all rows are unguided, as in plain GRPO")


def _paired_only(hard: Sequence[Problem], prefixes: Mapping[str, str]) -> list[Problem]:
    """The problems that have a prefix; the number of the others is logged."""
    without = [one.id for one in hard if one.id not in prefixes]
    if without:
        _LOG.warning(
            "%d of %d hard problems have no prefix and are left out; the first: %s. To keep them: --keep-unpaired, in "
            "Python unpaired='keep'", len(without), len(hard), without[0],
        )  # fmt: skip
    return [one for one in hard if one.id in prefixes]


def order(
    strata: Sequence[str],
    prompts_per_batch: int,
    epochs: int,
    seed: int,
    kind: Order = "stratified",
    problems: Sequence[str] = (),
) -> list[int]:
    """Row indices for several epochs, with each stratum at its share in every generation batch.

    - ``stratified``: each stratum is shuffled anew in every pass over it. Every batch of ``prompts_per_batch`` rows
      takes each stratum's share of it; fractions of a row are carried over to the next batch.
    - ``paired``: as ``stratified``, with the guided and the unguided row of a problem in the same batch (in batches of
      an odd size, one pair per batch may be divided). Needs ``problems``, the problem of each row.
    - ``pool``: one permutation of all rows per epoch, as in the paper; balanced in expectation only.

    The number of indices is a multiple of ``prompts_per_batch``, so a trainer that drops an incomplete last batch drops
    nothing. Rows left over in an epoch come first in the next (``stratified``, ``paired``) or are left out (``pool``).

    Raises:
        UserError: there are fewer rows than one batch, or ``prompts_per_batch`` or ``epochs`` is below 1.

    >>> labels = ["guided"] * 4 + ["unguided"] * 4
    >>> [sorted(labels[i] for i in order(labels, 4, 2, seed=0)[at : at + 4]) for at in (0, 4, 8, 12)][0]
    ['guided', 'guided', 'unguided', 'unguided']
    """
    total = len(strata)
    choose("order", kind, Order)
    if prompts_per_batch < 1 or epochs < 1:
        raise UserError(f"prompts_per_batch and epochs must be at least 1, not {prompts_per_batch} and {epochs}")
    if total < prompts_per_batch:
        raise UserError(
            f"{total} rows do not fill one generation batch of {prompts_per_batch} prompts: "
            "add problems or lower the batch size"
        )
    random = np.random.default_rng(seed)
    if kind == "pool":
        batches = total // prompts_per_batch
        return [int(i) for _ in range(epochs) for i in random.permutation(total)[: batches * prompts_per_batch]]
    if kind == "paired":
        return _paired(strata, problems, prompts_per_batch, epochs, random)
    names = [name for name in (*STRATA, *sorted(set(strata) - set(STRATA))) if name in strata]
    members = {name: np.flatnonzero([one == name for one in strata]) for name in names}
    queues: dict[str, list[int]] = {name: [] for name in names}
    taken = dict.fromkeys(names, 0)
    indices: list[int] = []
    for batch in range(1, epochs * total // prompts_per_batch + 1):
        quotas = _quotas({name: len(members[name]) / total for name in names}, taken, batch * prompts_per_batch)
        rows: list[int] = []
        for name in names:
            while len(queues[name]) < quotas[name]:
                queues[name].extend(int(i) for i in random.permutation(members[name]))
            rows += queues[name][: quotas[name]]
            del queues[name][: quotas[name]]
            taken[name] += quotas[name]
        indices += [rows[i] for i in random.permutation(len(rows))]
    return indices


def _paired(
    strata: Sequence[str], problems: Sequence[str], size: int, epochs: int, random: np.random.Generator
) -> list[int]:
    """See :func:`order`. Rows that stay together form a unit: a pair of rows, or a single row."""
    rows: dict[str, dict[str, int]] = {}
    for index, (problem, stratum) in enumerate(zip(problems, strata, strict=True)):
        rows.setdefault(problem, {})[stratum] = index
    units: dict[str, list[list[int]]] = {}
    for of in rows.values():
        both = [of[name] for name in ("unguided", "guided") if name in of]
        if len(both) == 2:
            units.setdefault("pair", []).append(both)
        for name, index in of.items():
            if index not in both or len(both) == 1:
                units.setdefault(name, []).append([index])
    total = len(strata)
    share = {name: sum(map(len, some)) / total for name, some in units.items()}
    queues: dict[str, list[list[int]]] = {name: [] for name in units}
    taken = dict.fromkeys(units, 0)
    indices: list[int] = []
    rest: list[int] = []  # the other half of a pair that a batch of odd size divided
    for batch in range(1, epochs * total // size + 1):
        rows_of, rest = rest, []
        while len(rows_of) < size:
            room = size - len(rows_of)
            due = {name: share[name] * batch * size - taken[name] for name in units}
            name = max(due, key=lambda one: due[one])
            if not queues[name]:
                queues[name] = [units[name][int(i)] for i in random.permutation(len(units[name]))]
            unit = queues[name].pop()
            taken[name] += len(unit)
            rows_of = [*rows_of, *unit[:room]]
            rest = unit[room:]
        indices += [rows_of[i] for i in random.permutation(size)]
    return indices


def _quotas(shares: dict[str, float], taken: dict[str, int], rows_so_far: int) -> dict[str, int]:
    """How many rows of each stratum the next batch takes: each row comes from the stratum furthest behind its share."""
    quotas = dict.fromkeys(shares, 0)
    for _ in range(rows_so_far - sum(taken.values())):
        due = {name: share * rows_so_far - taken[name] - quotas[name] for name, share in shares.items()}
        quotas[max(due, key=lambda name: due[name])] += 1
    return quotas


def _check_origin(hard: Sequence[Problem], prefixes: Mapping[str, str], prompts: Prompts, other_template: bool) -> None:
    """Refuse prefixes of a search that come from another solution or from other templates, and all that leak."""
    found = {one.problem: one for one in prefixes.found if one.prefix} if isinstance(prefixes, Prefixes) else {}
    for problem in hard:
        one = found.get(problem.id)
        if one is None:
            _refuse_leak(problem, prefixes.get(problem.id, ""))
            continue
        changed = one.solution is not None and one.solution != fingerprint(problem.solution)
        if changed or not problem.solution.startswith(one.prefix or ""):
            raise UserError(
                f"the prefix of problem {problem.id!r} was cut from another solution than its present one: run the "
                "search again"
            )
        if not other_template and one.template is not None and one.template != prompts.fingerprint:
            raise UserError(
                f"the prefix of problem {problem.id!r} was searched with other prompt templates (fingerprint "
                f"{one.template}, now {prompts.fingerprint}): mix with the templates of the search, run the search "
                "again, or accept the prefix with --other-template"
            )
        _refuse_leak(problem, one.prefix or "", "or, if the label was corrected, run the search again")


def _refuse_leak(problem: Problem, prefix: str, otherwise: str = "") -> None:
    """Refuse the beginning of a solution that states the answer: the row would reward copying it."""
    told = leak(problem, len(prefix)) if prefix and problem.solution.startswith(prefix) else None
    if told is not None:
        raise UserError(
            f"the prefix of problem {problem.id!r} states its answer {problem.answer!r}, in {told.statement!r}: end it "
            f"before character {told.start + 1}{f', {otherwise}' if otherwise else ''}"
        )


def write_rows(path: str | Path, rows: Sequence[dict[str, Any]], notes: Mapping[str, Any] | None = None) -> None:
    """Write the rows as Parquet, with a data card ``PATH.md`` that gives their counts and origin."""
    path = Path(path)
    write_parquet(path, rows)
    write_text(path.with_name(path.name + ".md"), data_card(rows, notes or {}))


def write_parquet(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write a Parquet file, completely or not at all."""
    pyarrow, parquet = require("pyarrow", "rl"), require("pyarrow.parquet", "rl")
    make_directory(path.parent)
    replace_file(path, lambda temporary: parquet.write_table(pyarrow.Table.from_pylist(list(records)), temporary))


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows that :func:`write_rows` wrote.

    Raises:
        UserError: there is no such file, or it is not such a file.
    """
    try:
        if not Path(path).exists():
            raise UserError(f"{path}: no such file; `retarget pope mix` writes it")
        rows = require("pyarrow.parquet", "rl").read_table(path).to_pylist()
    except UserError:
        raise
    except (ValueError, OSError) as error:  # pyarrow's errors are kinds of these
        raise UserError(
            f"{path}: not a Parquet file, so not a mixture that `retarget pope mix` wrote ({error})"
        ) from error
    needed = {"id", "problem", "prompt", "answer", "meta", "guided", "stratum"}
    if not rows or not needed <= set(rows[0]):
        missing = needed - set(rows[0] if rows else {})
        raise UserError(
            f"{path}: not a mixture that `retarget pope mix` wrote; missing columns: {', '.join(sorted(missing))}"
        )
    return rows


def data_card(rows: Sequence[dict[str, Any]], notes: Mapping[str, Any]) -> str:
    """A description of a mixture's rows, as Markdown."""
    counts = Counter(row["stratum"] for row in rows)
    problems = len({row["problem"] for row in rows})
    lines = ["# Mixture for training with GRPO", "", f"{len(rows)} rows of {problems} problems.", ""]
    lines += ["| stratum | rows |", "|---|---|", *(f"| {name} | {counts[name]} |" for name in STRATA if counts[name])]
    lines += ["", "Each row is one prompt and one group of rollouts. The prompt of a guided row contains the beginning"]
    lines += [
        "of an oracle solution; no token of a prompt has a loss. The rows are in the order of one epoch, with each"
    ]
    lines += [
        "stratum at its share of every batch: a trainer that shuffles them balances the strata in expectation only."
    ]
    if notes:
        lines += ["", "| made from | |", "|---|---|", *(f"| {key} | {value} |" for key, value in notes.items())]
    return "\n".join([*lines, "", f"Rows' fingerprint: {fingerprint(list(rows))}", ""])


def make_row(problem: Problem, stratum: str, prompt: Any, prefix: str | None = None) -> dict[str, Any]:
    """One row of a mixture: a prompt of a problem, and the data that its grader needs."""
    meta = {**problem.meta, "id": problem.id, **({"prefix": prefix} if prefix else {})}
    return {
        "id": f"{problem.id}/{stratum}",
        "problem": problem.id,
        "prompt": prompt,
        "answer": problem.answer,
        "meta": json.dumps(meta, ensure_ascii=False, sort_keys=True),
        "guided": stratum == "guided",
        "stratum": stratum,
    }


def _keep(rows: list[dict[str, Any]], share: float, random: np.random.Generator) -> list[dict[str, Any]]:
    count = round(len(rows) * share)
    kept = sorted(random.permutation(len(rows))[:count]) if count < len(rows) else range(len(rows))
    return [rows[index] for index in kept]
