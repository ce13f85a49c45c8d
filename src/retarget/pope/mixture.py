"""The rows to train on: guided and unguided variants of each hard problem, in an order that keeps them together."""

import json
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

STRATA = ("unguided", "guided", "easy")
Order = Literal["stratified", "pool"]


def mix(
    hard: Iterable[Problem],
    prefixes: Mapping[str, str],
    prompts: Prompts | None = None,
    *,
    easy: Sequence[Problem] = (),
    ratio: float = 1.0,
    seed: int = 0,
    prompts_per_batch: int = 2,
) -> list[dict[str, Any]]:
    """Rows for a trainer, in the stratified order of one epoch.

    Each row is one prompt, therefore one group of rollouts with its own baseline.

    Args:
        hard: the hard problems; each gives one unguided row.
        prefixes: prefix of each hard problem by id; a problem without one has no guided row.
        prompts: the two prompts; default :meth:`Prompts.load`.
        easy: easy problems to mix in, unguided.
        ratio: guided rows to unguided ones: 1 is the paper's, 0 gives no guided row (plain GRPO), ``inf`` only
            guided rows. Below 1, that share of the guided rows is kept; above 1, that share of the unguided ones.
        seed: which rows a ratio keeps, and the order.
        prompts_per_batch: rows of a generation batch, for the order.

    Returns:
        Rows with ``id``, ``problem``, ``prompt``, ``answer``, ``meta`` (JSON text; a guided row's holds
        the ``prefix``, for graders of continuations), ``guided`` and ``stratum``.

    Raises:
        UserError: no row at all, duplicate problem ids, or a prefix for a problem that is not in ``hard``.
    """
    hard, prompts = list(hard), prompts or Prompts.load()
    ids = [problem.id for problem in (*hard, *easy)]
    if len(set(ids)) < len(ids):
        raise UserError(f"a problem occurs twice: {next(one for one, n in Counter(ids).items() if n > 1)!r}")
    unknown = sorted(set(prefixes) - {problem.id for problem in hard})
    if unknown:
        raise UserError(f"{len(unknown)} prefixes belong to no hard problem, the first to {unknown[0]!r}")
    if ratio < 0:
        raise UserError(f"ratio is guided rows over unguided rows, at least 0, not {ratio}")
    unguided = [_row(one, "unguided", prompts.without_prefix(one.prompt)) for one in hard]
    guided = [
        _row(one, "guided", prompts.with_prefix(one.prompt, prefixes[one.id]), prefixes[one.id])
        for one in hard
        if one.id in prefixes
    ]
    random = np.random.default_rng(seed)
    guided = _keep(guided, min(1.0, ratio), random)
    unguided = _keep(unguided, min(1.0, 1 / ratio if ratio else 1.0), random)
    rows = [*unguided, *guided, *(_row(one, "easy", prompts.without_prefix(one.prompt)) for one in easy)]
    if not rows:
        raise UserError("the mixture is empty: no hard problem and no easy one")
    at = order([row["stratum"] for row in rows], min(prompts_per_batch, len(rows)), 1, seed)
    return [rows[index] for index in [*at, *sorted(set(range(len(rows))) - set(at))]]


def order(
    strata: Sequence[str],
    prompts_per_batch: int,
    epochs: int,
    seed: int,
    kind: Order = "stratified",
) -> list[int]:
    """Row indices for several epochs, such that every generation batch holds each stratum at its share.

    ``stratified``: each stratum is an endless row of its own permutations, reshuffled every pass; every batch of
    ``prompts_per_batch`` rows takes its share from each, the fractions of a row carried over to the next batch.
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


def _quotas(shares: dict[str, float], taken: dict[str, int], rows_so_far: int) -> dict[str, int]:
    """How many rows of each stratum the next batch takes: every row goes to the stratum that is due most."""
    quotas = dict.fromkeys(shares, 0)
    for _ in range(rows_so_far - sum(taken.values())):
        due = {name: share * rows_so_far - taken[name] - quotas[name] for name, share in shares.items()}
        quotas[max(due, key=lambda name: due[name])] += 1
    return quotas


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
    if not Path(path).exists():
        raise UserError(f"{path}: no such file; `retarget pope mix` writes it")
    try:
        rows = require("pyarrow.parquet", "rl").read_table(path).to_pylist()
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
    lines += ["oracle solution; no token of a prompt has a loss. The order is stratified for one epoch: a trainer that"]
    lines += ["shuffles the rows balances the strata in expectation only."]
    if notes:
        lines += ["", "| made from | |", "|---|---|", *(f"| {key} | {value} |" for key, value in notes.items())]
    return "\n".join([*lines, "", f"Rows' fingerprint: {fingerprint(list(rows))}", ""])


def _row(problem: Problem, stratum: str, prompt: Any, prefix: str | None = None) -> dict[str, Any]:
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
