"""The rows to train on: guided and unguided variants of each hard problem, the two in one batch."""

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
from retarget.pope.problems import Problem
from retarget.pope.prompts import Prompts
from retarget.pope.search import Prefixes

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
    """Rows for a trainer, in the order of one epoch.

    Each row is one prompt, therefore one group of rollouts with its own baseline.

    Args:
        hard: the hard problems; each gives one unguided row.
        prefixes: prefix of each hard problem by id. What :func:`~retarget.pope.search.search_prefixes` returned is
            checked: a prefix must belong to this solution and to this wording of the prompts.
        prompts: the two prompts; default :meth:`Prompts.load`.
        easy: easy problems to mix in, unguided.
        ratio: guided rows to unguided ones: 1 is the paper's, 0 gives no guided row (plain GRPO), ``inf`` only
            guided rows. Below 1, that share of the guided rows is kept; above 1, that share of the unguided ones.
        seed: which rows a ratio keeps, and the order.
        prompts_per_batch: rows of a generation batch, for the order.
        unpaired: what becomes of problems without a prefix: to ``leave out`` is the only way to the ratio, and they are
            counted in the log; to ``keep`` them gives more unguided rows than guided ones. Without any prefix all stay.
        kind: see :func:`order`.
        other_template: take prefixes that were searched with another wording, too.

    Returns:
        Rows with ``id``, ``problem``, ``prompt``, ``answer``, ``meta`` (JSON text; a guided row's holds
        the ``prefix``, for graders of continuations), ``guided`` and ``stratum``.

    Raises:
        UserError: no row at all, duplicate problem ids, a prefix for a problem that is not in ``hard``, a prefix of
            another solution, or one that was searched with another wording.
    """
    hard, prompts = list(hard), prompts or Prompts.load()
    ids = [problem.id for problem in (*hard, *easy)]
    if len(set(ids)) < len(ids):
        raise UserError(f"a problem occurs twice: {next(one for one, n in Counter(ids).items() if n > 1)!r}")
    unknown = sorted(set(prefixes) - {problem.id for problem in hard})
    if unknown:
        raise UserError(f"{len(unknown)} prefixes belong to no hard problem, the first to {unknown[0]!r}")
    _check_origin(hard, prefixes, prompts, other_template)
    if prefixes and ratio and unpaired == "leave out":
        without = [one.id for one in hard if one.id not in prefixes]
        if without:
            _LOG.warning(
                "%d of %d hard problems have no prefix and are left out, the first is %s",
                len(without), len(hard), without[0],
            )  # fmt: skip
        hard = [one for one in hard if one.id in prefixes]
    if ratio < 0:
        raise UserError(f"ratio is guided rows over unguided rows, at least 0, not {ratio}")
    unguided = [make_row(one, "unguided", prompts.without_prefix(one.prompt)) for one in hard]
    guided = [
        make_row(one, "guided", prompts.with_prefix(one.prompt, prefixes[one.id]), prefixes[one.id])
        for one in hard
        if one.id in prefixes
    ]
    random = np.random.default_rng(seed)
    guided = _keep(guided, min(1.0, ratio), random)
    unguided = _keep(unguided, min(1.0, 1 / ratio if ratio else 1.0), random)
    rows = [*unguided, *guided, *(make_row(one, "easy", prompts.without_prefix(one.prompt)) for one in easy)]
    if not rows:
        raise UserError("the mixture is empty: no hard problem and no easy one")
    at = order([row["stratum"] for row in rows], min(prompts_per_batch, len(rows)), 1, seed, kind,
               [row["problem"] for row in rows])  # fmt: skip
    return [rows[index] for index in [*at, *sorted(set(range(len(rows))) - set(at))]]


def order(
    strata: Sequence[str],
    prompts_per_batch: int,
    epochs: int,
    seed: int,
    kind: Order = "stratified",
    problems: Sequence[str] = (),
) -> list[int]:
    """Row indices for several epochs, such that every generation batch holds each stratum at its share.

    ``stratified``: each stratum is an endless row of its own permutations, reshuffled every pass; every batch of
    ``prompts_per_batch`` rows takes its share from each, the fractions of a row carried over to the next batch.
    ``paired``: as ``stratified``, and the guided and the unguided row of a problem stand in the same batch (where a
    batch has an odd number of rows, one pair a batch may be divided); needs ``problems``, the problem of each row.
    ``pool``: one permutation of all rows an epoch, the paper's; balance in expectation only.

    The length is a multiple of ``prompts_per_batch``, so that a trainer that drops an incomplete tail drops nothing;
    rows that do not fill a batch come first in the next epoch (``stratified``) or are left out of this one (``pool``).

    Raises:
        UserError: fewer rows than one batch.

    >>> labels = ["guided"] * 4 + ["unguided"] * 4
    >>> [sorted(labels[i] for i in order(labels, 4, 2, seed=0)[at : at + 4]) for at in (0, 4, 8, 12)][0]
    ['guided', 'guided', 'unguided', 'unguided']
    """
    total = len(strata)
    if prompts_per_batch < 1 or epochs < 1:
        raise UserError(f"prompts_per_batch and epochs are at least 1, not {prompts_per_batch} and {epochs}")
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
    """See :func:`order`. What moves together is a unit: a pair of rows, or a row alone."""
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
    rest: list[int] = []  # the second half of a pair that an odd batch divided
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
    """How many rows of each stratum the next batch takes: every row goes to the stratum that is due most."""
    quotas = dict.fromkeys(shares, 0)
    for _ in range(rows_so_far - sum(taken.values())):
        due = {name: share * rows_so_far - taken[name] - quotas[name] for name, share in shares.items()}
        quotas[max(due, key=lambda name: due[name])] += 1
    return quotas


def _check_origin(hard: Sequence[Problem], prefixes: Mapping[str, str], prompts: Prompts, other_template: bool) -> None:
    """Refuse prefixes of the search that belong to another solution or to another wording."""
    found = {one.problem: one for one in prefixes.found if one.prefix} if isinstance(prefixes, Prefixes) else {}
    for problem in hard:
        one = found.get(problem.id)
        if one is None:
            continue
        changed = one.solution is not None and one.solution != fingerprint(problem.solution)
        if changed or not problem.solution.startswith(one.prefix or ""):
            raise UserError(
                f"the prefix of {problem.id!r} was cut from another solution than the one that it has now: search again"
            )
        if not other_template and one.template is not None and one.template != prompts.fingerprint:
            raise UserError(
                f"the prefix of {problem.id!r} was searched with another wording of the prompts (fingerprint "
                f"{one.template}, now {prompts.fingerprint}): mix with the templates of the search, search again, or "
                "take it as it is with --other-template"
            )


def write_rows(path: str | Path, rows: Sequence[dict[str, Any]], notes: Mapping[str, Any] | None = None) -> None:
    """Write the rows as Parquet, and beside them a data card ``PATH.md`` with counts and where they came from."""
    path = Path(path)
    write_parquet(path, rows)
    write_text(path.with_name(path.name + ".md"), data_card(rows, notes or {}))


def write_parquet(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write a Parquet file, whole or not at all."""
    pyarrow, parquet = require("pyarrow", "rl"), require("pyarrow.parquet", "rl")
    make_directory(path.parent)
    replace_file(path, lambda temporary: parquet.write_table(pyarrow.Table.from_pylist(list(records)), temporary))


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows that :func:`write_rows` wrote.

    Raises:
        UserError: no such file, or columns missing.
    """
    try:
        if not Path(path).exists():
            raise UserError(f"{path}: no such file; `retarget pope mix` writes it")
        rows = require("pyarrow.parquet", "rl").read_table(path).to_pylist()
    except UserError:
        raise
    except (ValueError, OSError) as error:  # pyarrow's errors are kinds of these
        raise UserError(f"{path}: not a mixture of `retarget pope mix`, which is a Parquet file ({error})") from error
    needed = {"id", "problem", "prompt", "answer", "meta", "guided", "stratum"}
    if not rows or not needed <= set(rows[0]):
        missing = needed - set(rows[0] if rows else {})
        raise UserError(f"{path}: not a mixture of `retarget pope mix`; missing columns: {', '.join(sorted(missing))}")
    return rows


def data_card(rows: Sequence[dict[str, Any]], notes: Mapping[str, Any]) -> str:
    """What a mixture holds, as Markdown."""
    counts = Counter(row["stratum"] for row in rows)
    problems = len({row["problem"] for row in rows})
    lines = ["# Mixture for training with GRPO", "", f"{len(rows)} rows of {problems} problems.", ""]
    lines += ["| stratum | rows |", "|---|---|", *(f"| {name} | {counts[name]} |" for name in STRATA if counts[name])]
    lines += ["", "Each row is one prompt and one group of rollouts. A guided row's prompt holds the beginning of an"]
    lines += ["oracle solution; no token of a prompt has a loss. The order is one epoch's, with both rows of a problem"]
    lines += ["in one batch: a trainer that shuffles the rows balances the strata in expectation only."]
    if notes:
        lines += ["", "| made from | |", "|---|---|", *(f"| {key} | {value} |" for key, value in notes.items())]
    return "\n".join([*lines, "", f"Rows' fingerprint: {fingerprint(list(rows))}", ""])


def make_row(problem: Problem, stratum: str, prompt: Any, prefix: str | None = None) -> dict[str, Any]:
    """One row of a mixture: a prompt of a problem, and what its grader is told."""
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
