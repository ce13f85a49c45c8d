"""A mixture in the form that other trainers read. Hosts that shuffle balance the strata in expectation only."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from retarget.errors import UserError
from retarget.files import make_directory, write_text
from retarget.pope.mixture import write_parquet

Host = Literal["verl", "openrlhf", "prime-rl"]
HOSTS: tuple[Host, ...] = ("verl", "openrlhf", "prime-rl")


def export(rows: Sequence[dict[str, Any]], host: Host, path: Path, *, split: str = "train") -> None:
    """Write the rows for a host; guided rows keep their stratum, so that its logs can tell them apart.

    - ``verl``: Parquet with ``data_source`` (``pope/STRATUM``, so that verl logs each by itself), ``prompt``,
      ``ability``, ``reward_model`` and ``extra_info``. Set ``data.shuffle=False`` to keep the order.
    - ``openrlhf``: JSONL with ``prompt``, ``label`` and ``datasource``; ``--input_key prompt --label_key label``.
    - ``prime-rl``: JSONL for a verifiers environment, with ``prompt``, ``answer`` and ``info``.

    Raises:
        UserError: an unknown host, or plain prompts for a host that wants messages.
    """
    if host not in HOSTS:
        raise UserError(f"no host {host!r}: choose {', '.join(HOSTS)}")
    if host == "verl":
        write_parquet(path, [_verl(row, index, split) for index, row in enumerate(rows)])
        return
    make = _openrlhf if host == "openrlhf" else _prime_rl
    lines = [json.dumps(make(row), ensure_ascii=False) for row in rows]
    make_directory(path.parent)
    write_text(path, "\n".join(lines) + "\n")


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
    return {"prompt": row["prompt"], "label": row["answer"], "datasource": f"pope/{row['stratum']}", "id": row["id"]}


def _prime_rl(row: dict[str, Any]) -> dict[str, Any]:
    info = {"id": row["id"], "problem": row["problem"], "stratum": row["stratum"], "meta": row["meta"]}
    return {"prompt": _messages(row), "answer": row["answer"], "info": info, "task": f"pope/{row['stratum']}"}


def _messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    if isinstance(row["prompt"], str):
        raise UserError("this host wants chat messages: mix without --no-chat")
    return row["prompt"]
