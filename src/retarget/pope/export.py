"""A mixture in the form that other trainers read. Hosts that shuffle balance the strata in expectation only."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retarget.errors import UserError
from retarget.files import make_directory, write_text
from retarget.pope.mixture import write_parquet
from retarget.pope.problems import utf8
from retarget.pope.prompts import TEMPLATES

Host = Literal["verl", "openrlhf", "prime-rl", "opsd"]
HOSTS: tuple[Host, ...] = ("verl", "openrlhf", "prime-rl", "opsd")

_LOG = logging.getLogger(__name__)


def export(
    rows: Sequence[dict[str, Any]],
    host: Host,
    path: Path,
    *,
    split: str = "train",
    hold_out: float = 0.0,
    grader: str = "math",
    seed: int = 0,
    solutions: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write the rows for a host, and beside them what it needs to train on them.

    Guided rows keep their stratum, so that a host's logs can tell them apart. Beside ``NAME.parquet`` or
    ``NAME.jsonl`` stand ``NAME.validation...`` (unguided rows only), the reward (``NAME.reward.py``; for prime-rl it
    is in the taskset) and ``NAME.launch.sh``.

    - ``verl``: Parquet with ``data_source`` (``pope/STRATUM``, so that verl logs each by itself), ``prompt``,
      ``ability``, ``reward_model`` and ``extra_info``.
    - ``openrlhf``: JSONL with ``prompt``, ``label``, ``datasource``, ``guided`` and ``meta``.
    - ``prime-rl``: JSONL with ``prompt``, ``answer`` and ``info``, and ``pope_NAME_taskset.py``, the taskset by which
      verifiers 0.4, which prime-rl trains on, reads and rewards them.
    - ``opsd``: rows for privileged self-distillation, where the model that sees more in its prompt teaches itself.
      One unguided row per problem; what the teacher sees besides is in ``privileged_context``, the column of TRL's
      SDFT and SDPO, and in ``info``, for hosts that look there. Parquet or JSONL, by the file's name;
      ``NAME.train.py`` runs either of TRL's trainers on it.

    Args:
        rows: of a mixture.
        host: which trainer.
        path: file of the rows.
        split: named in verl's ``extra_info``.
        hold_out: share of the problems that are in the validation rows alone; without any, validation is on the
            unguided rows that are trained on.
        grader: for the reward file; a name or ``module:function``.
        seed: which problems are held out.
        solutions: of ``opsd``: what each problem's privileged context is, by id. Without, it is the prefix that the
            mixture gives the problem.

    Returns:
        The files that were written.

    Raises:
        UserError: an unknown host, plain prompts for a host that wants messages, a grader whose name holds quotes, or
            nothing left to train or to validate on; solutions for another host than ``opsd``.
    """
    if host not in HOSTS:
        raise UserError(f"no host {host!r}: choose {', '.join(HOSTS)}")
    if not 0 <= hold_out < 1 or set("\"'\\\n") & set(grader):
        raise UserError(f"hold_out is a share below 1 and a grader has no quotes, not {hold_out} and {grader!r}")
    if solutions is not None and host != "opsd":
        raise UserError(f"solutions are the privileged context of opsd, and {host} has none")
    rows = _with_context(rows, solutions) if host == "opsd" else rows
    held = _held_out(rows, hold_out, seed)
    train = [row for row in rows if row["problem"] not in held]
    check = [row for row in rows if not row["guided"] and (not held or row["problem"] in held)]
    if not train:
        raise UserError("no problem is left to train on: lower --hold-out")
    validation = path.with_name(f"{path.stem}.validation{path.suffix}")
    make_directory(path.parent)
    written = []
    for file, some, name in ((path, train, split), (validation, check, "validation")):
        records = _records(host, some, name)
        if host == "verl" or (host == "opsd" and path.suffix == ".parquet"):
            if records:
                write_parquet(file, records)
        else:
            write_text(file, utf8("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records)))
        written.append(file)
    return [*written, *_beside(host, path, validation, grader)]


def _with_context(rows: Sequence[dict[str, Any]], solutions: Mapping[str, str] | None) -> list[dict[str, Any]]:
    """The unguided row of each problem that has a privileged context, with it."""
    if solutions is None:
        contexts = {row["problem"]: json.loads(row["meta"]).get("prefix", "") for row in rows if row["guided"]}
    else:
        contexts = dict(solutions)
    unguided = [row for row in rows if not row["guided"]]
    kept = [
        {**row, "privileged_context": contexts[row["problem"]]}
        for row in unguided
        if contexts.get(row["problem"], "").strip()
    ]
    if not kept:
        raise UserError(
            "no problem has a privileged context and an unguided row: mix with prefixes, or give --solutions"
        )
    if len(kept) < len(unguided):
        _LOG.warning("%d of %d problems have no privileged context and are left out", len(unguided) - len(kept),
                     len(unguided))  # fmt: skip
    return kept


def _records(host: Host, rows: Sequence[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    if host == "verl":
        return [_verl(row, index, split) for index, row in enumerate(rows)]
    return [{"openrlhf": _openrlhf, "prime-rl": _prime_rl, "opsd": _opsd}[host](row) for row in rows]


def _held_out(rows: Sequence[dict[str, Any]], share: float, seed: int) -> set[str]:
    problems = sorted({row["problem"] for row in rows})
    count = round(share * len(problems)) or (1 if share else 0)
    return {problems[at] for at in np.random.default_rng(seed).permutation(len(problems))[:count]}


def _beside(host: Host, path: Path, validation: Path, grader: str) -> list[Path]:
    if host == "opsd":
        files = {"train.py": path.with_name(f"{path.stem}.train.py")}
        named = {"{train}": path.name, "{grader}": grader}
    else:
        module = re.sub(r"\W", "_", f"pope_{path.stem}_taskset".lower(), flags=re.ASCII)  # verifiers' ids are modules
        template = "taskset.py" if host == "prime-rl" else "reward.py"
        reward = path.with_name(f"{module}.py" if host == "prime-rl" else f"{path.stem}.reward.py")
        files = {template: reward, "launch.sh": path.with_name(f"{path.stem}.launch.sh")}
        named = {"{train}": path.name, "{validation}": validation.name, "{reward}": reward.name, "{grader}": grader,
                 "{module}": module}  # fmt: skip
    written = []
    for source, file in files.items():
        text = (TEMPLATES / host / source).read_text(encoding="utf-8")
        for place, value in named.items():
            text = text.replace(place, value)
        write_text(file, text)
        written.append(file)
    return written


def _verl(row: dict[str, Any], index: int, split: str) -> dict[str, Any]:
    return {
        "data_source": f"pope/{row['stratum']}",
        "prompt": _messages(row),
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": row["answer"]},
        "extra_info": {
            "split": split, "index": index, "id": row["id"], "problem": row["problem"], "stratum": row["stratum"],
            "guided": row["guided"], "meta": row["meta"],
        },
    }  # fmt: skip


def _openrlhf(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": row["prompt"], "label": row["answer"], "datasource": f"pope/{row['stratum']}", "id": row["id"],
            "guided": row["guided"], "meta": row["meta"]}  # fmt: skip


def _prime_rl(row: dict[str, Any]) -> dict[str, Any]:
    info = {"id": row["id"], "problem": row["problem"], "stratum": row["stratum"], "guided": row["guided"],
            "meta": row["meta"]}  # fmt: skip
    return {"prompt": _messages(row), "answer": row["answer"], "info": info}


def _opsd(row: dict[str, Any]) -> dict[str, Any]:
    context = row["privileged_context"]
    told = {"id": row["id"], "problem": row["problem"], "stratum": row["stratum"], "meta": row["meta"]}
    return {
        "prompt": row["prompt"], "privileged_context": context, "answer": row["answer"], **told,
        "info": {**told, "privileged_context": context},
    }  # fmt: skip


def _messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    if isinstance(row["prompt"], str):
        raise UserError("this host wants chat messages: mix without --no-chat")
    return row["prompt"]
