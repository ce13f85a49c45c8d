"""A mixture in the form that other trainers read. Hosts that shuffle balance the strata in expectation only."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retarget.errors import UserError
from retarget.files import make_directory, write_text
from retarget.pope.mixture import write_parquet
from retarget.pope.problems import utf8
from retarget.pope.prompts import TEMPLATES

Host = Literal["verl", "openrlhf", "prime-rl"]
HOSTS: tuple[Host, ...] = ("verl", "openrlhf", "prime-rl")


def export(
    rows: Sequence[dict[str, Any]],
    host: Host,
    path: Path,
    *,
    split: str = "train",
    hold_out: float = 0.0,
    grader: str = "math",
    seed: int = 0,
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

    Args:
        rows: of a mixture.
        host: which trainer.
        path: file of the rows.
        split: named in verl's ``extra_info``.
        hold_out: share of the problems that are in the validation rows alone; without any, validation is on the
            unguided rows that are trained on.
        grader: for the reward file; a name or ``module:function``.
        seed: which problems are held out.

    Returns:
        The files that were written.

    Raises:
        UserError: an unknown host, plain prompts for a host that wants messages, a grader whose name holds quotes, or
            nothing left to train or to validate on.
    """
    if host not in HOSTS:
        raise UserError(f"no host {host!r}: choose {', '.join(HOSTS)}")
    if not 0 <= hold_out < 1 or set("\"'\\\n") & set(grader):
        raise UserError(f"hold_out is a share below 1 and a grader has no quotes, not {hold_out} and {grader!r}")
    held = _held_out(rows, hold_out, seed)
    train = [row for row in rows if row["problem"] not in held]
    check = [row for row in rows if not row["guided"] and (not held or row["problem"] in held)]
    if not train:
        raise UserError("no problem is left to train on: lower --hold-out")
    validation = path.with_name(f"{path.stem}.validation{path.suffix}")
    make_directory(path.parent)
    written = []
    for file, some, name in ((path, train, split), (validation, check, "validation")):
        if host == "verl":
            records = [_verl(row, index, name) for index, row in enumerate(some)]
            if records:
                write_parquet(file, records)
        else:
            make = _openrlhf if host == "openrlhf" else _prime_rl
            write_text(file, utf8("".join(json.dumps(make(row), ensure_ascii=False) + "\n" for row in some)))
        written.append(file)
    return [*written, *_beside(host, path, validation, grader)]


def _held_out(rows: Sequence[dict[str, Any]], share: float, seed: int) -> set[str]:
    problems = sorted({row["problem"] for row in rows})
    count = round(share * len(problems)) or (1 if share else 0)
    return {problems[at] for at in np.random.default_rng(seed).permutation(len(problems))[:count]}


def _beside(host: Host, path: Path, validation: Path, grader: str) -> list[Path]:
    module = re.sub(r"\W", "_", f"pope_{path.stem}_taskset".lower(), flags=re.ASCII)  # an id of verifiers is a module
    template = "taskset.py" if host == "prime-rl" else "reward.py"
    reward = path.with_name(f"{module}.py" if host == "prime-rl" else f"{path.stem}.reward.py")
    named = {"{train}": path.name, "{validation}": validation.name, "{reward}": reward.name, "{grader}": grader,
             "{module}": module}  # fmt: skip
    written = []
    for source, file in ((template, reward), ("launch.sh", path.with_name(f"{path.stem}.launch.sh"))):
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


def _messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    if isinstance(row["prompt"], str):
        raise UserError("this host wants chat messages: mix without --no-chat")
    return row["prompt"]
