"""Export a mixture in the formats of other trainers (hosts).

In hosts that shuffle the rows, batches balance the strata in expectation only.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retarget.errors import UserError
from retarget.files import make_directory, write_text
from retarget.pope.mixture import order, write_parquet
from retarget.pope.problems import Problem, utf8
from retarget.pope.prompts import TEMPLATES

Host = Literal["verl", "openrlhf", "prime-rl", "opsd"]
HOSTS: tuple[Host, ...] = ("verl", "openrlhf", "prime-rl", "opsd")
SUFFIXES: dict[Host, tuple[str, ...]] = {
    "verl": (".parquet",), "openrlhf": (".jsonl",), "prime-rl": (".jsonl",), "opsd": (".parquet", ".jsonl"),
}  # fmt: skip
_VERL_BATCH = 32
"""``data.train_batch_size`` of verl's launch script."""

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
    solutions: Mapping[str, str] | Sequence[Problem] | None = None,
) -> list[Path]:
    """Write the rows for a host, together with the files that it needs to train on them.

    Guided rows keep their stratum, so that a host's logs can tell them apart. Next to ``NAME.parquet`` or
    ``NAME.jsonl`` are written ``NAME.validation...`` (unguided rows only), the reward (``NAME.reward.py``; for prime-rl
    the taskset contains it) and ``NAME.launch.sh``.

    - ``verl``: Parquet with ``data_source`` (``pope/STRATUM``, so that verl logs each stratum separately), ``prompt``,
      ``ability``, ``reward_model`` and ``extra_info``.
    - ``openrlhf``: JSONL with ``prompt``, ``label``, ``datasource``, ``guided`` and ``meta``.
    - ``prime-rl``: JSONL with ``prompt``, ``answer`` and ``info``, and ``pope_NAME_taskset.py``: the taskset with which
      verifiers 0.4, the library that prime-rl trains on, reads and rewards the rows.
    - ``opsd``: rows for privileged self-distillation, in which the teacher is the same model with more in its prompt.
      One unguided row per problem. What only the teacher sees is in ``privileged_context``, the column that TRL's SDFT
      and SDPO read, and in ``info``, for hosts that read that. Parquet or JSONL, according to the file name;
      ``NAME.train.py`` runs either of TRL's trainers on it.

    Args:
        rows: the rows of a mixture.
        host: the trainer.
        path: file for the rows.
        split: written to verl's ``extra_info``.
        hold_out: share of the problems, in [0, 1), that are held out for validation. At 0, validation uses the unguided
            training rows.
        grader: for the reward file; a name or ``module:function``.
        seed: decides which problems are held out.
        solutions: for ``opsd``, each problem's privileged context by id, or problems whose solutions these are; by
            default the prefix of its guided row.

    Returns:
        The files that were written.

    Raises:
        UserError: unknown host, a file name that the host would misread, plain prompts for a host that needs messages,
            texts mixed with messages, a script of another export in the way, a ``hold_out`` outside [0, 1), a grader
            with a quote in its name, no problem left to train on or with a privileged context, ``solutions`` for
            another host than ``opsd``, or among them a problem with the id of a row and another prompt or answer.
    """
    rows, path = list(rows), Path(path)
    _check(host, hold_out, grader, solutions)
    if not rows:
        raise UserError("there are no rows to export")
    if path.suffix not in SUFFIXES[host]:
        raise UserError(f"{path}: {host} reads the format from the file's name, which must end in "
                        f"{' or '.join(SUFFIXES[host])}")  # fmt: skip
    rows = _with_context(rows, solutions) if host == "opsd" else rows
    train, check = _divided(rows, hold_out, seed)
    train = _together(train, seed) if host == "verl" else train
    if host == "verl" and not check:
        raise UserError("verl needs rows to validate on, but no unguided problem is held out: mix in unguided rows")
    if host == "verl" and len(train) % _VERL_BATCH:
        _LOG.warning(
            "verl would never train on the last %d of %d rows: it leaves out an incomplete batch of "
            "data.train_batch_size=%d (and does not start with fewer rows), and the launch script keeps their order. "
            "Launch with data.shuffle=True, or with a data.train_batch_size and "
            "actor_rollout_ref.actor.ppo_mini_batch_size that divide %d",
            len(train) % _VERL_BATCH, len(train), _VERL_BATCH, len(train),
        )  # fmt: skip
    validation = path.with_name(f"{path.stem}.validation{path.suffix}")
    kinds = {isinstance(row["prompt"], str) for row in rows}
    if host == "openrlhf" and len(kinds) > 1:
        raise UserError(
            "some prompts are texts and some are messages, but openrlhf applies a chat template to all or to none"
        )
    beside = _beside(host, path, validation, grader, kinds == {False})
    for file, text in beside.items():
        if file.suffix != ".py" or host == "opsd":  # the scripts name the rows that they train on
            _check_own(file, text, path)
    make_directory(path.parent)
    for file, some, name in ((path, train, split), (validation, check, "validation")):
        _write(host, file, _records(host, some, name))
    for file, text in beside.items():
        write_text(file, text)
    return [path, validation, *beside]


def _together(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The rows in batches of verl's size that have both rows of a problem, as its launch script needs them."""
    if len(rows) < _VERL_BATCH:
        return rows
    batches: dict[str, set[int]] = {}
    for at, row in enumerate(rows):
        batches.setdefault(row["problem"], set()).add(at // _VERL_BATCH)
    if all(len(of) == 1 for of in batches.values()):
        return rows
    chosen = order([row["stratum"] for row in rows], _VERL_BATCH, 1, seed, "paired", [row["problem"] for row in rows])
    left = sorted(set(range(len(rows))) - set(chosen))
    return [rows[at] for at in (*chosen, *left)]


def _check_own(file: Path, text: str, path: Path) -> None:
    """Raise UserError if a script belongs to an export with rows of another name."""
    if file.is_file() and path.name not in file.read_text(encoding="utf-8"):
        raise UserError(
            f"{file} belongs to another export than {path.name}, which would replace it: choose another name or folder"
        )


def _check(host: Host, hold_out: float, grader: str, solutions: object) -> None:
    if host not in HOSTS:
        raise UserError(f"no host {host!r}: choose {', '.join(HOSTS)}")
    if not 0 <= hold_out < 1:
        raise UserError(f"hold_out is a share of the problems: it must be at least 0 and below 1, not {hold_out}")
    if set("\"'\\\n") & set(grader):
        raise UserError(f"grader {grader!r}: a name must not contain quotes, backslashes or line breaks")
    if solutions is not None and host != "opsd":
        raise UserError(f"solutions are only for the host opsd, as its privileged context, not for {host}")


def _with_context(
    rows: Sequence[dict[str, Any]], solutions: Mapping[str, str] | Sequence[Problem] | None
) -> list[dict[str, Any]]:
    """The unguided rows of problems that have a privileged context, each with its context."""
    if solutions is None:
        contexts = {row["problem"]: json.loads(row["meta"]).get("prefix", "") for row in rows if row["guided"]}
    elif isinstance(solutions, Mapping):
        contexts = dict(solutions)
    else:
        _check_same(rows, solutions)
        contexts = {one.id: one.solution for one in solutions}
    unguided = [row for row in rows if not row["guided"]]
    kept = [
        {**row, "privileged_context": contexts[row["problem"]]}
        for row in unguided
        if contexts.get(row["problem"], "").strip()
    ]
    if not kept:
        raise UserError(
            "no problem has both an unguided row and a privileged context: mix with prefixes, or give --solutions"
        )
    if len(kept) < len(unguided):
        _LOG.warning("%d of %d problems have no privileged context and are left out", len(unguided) - len(kept),
                     len(unguided))  # fmt: skip
    return kept


def _check_same(rows: Sequence[dict[str, Any]], problems: Sequence[Problem]) -> None:
    """Raise UserError if a problem has the id of a row, and another prompt or answer."""
    by_id = {one.id: one for one in problems}
    for row in rows:
        one = by_id.get(row["problem"])
        said = row["prompt"] if isinstance(row["prompt"], str) else "\n".join(part["content"] for part in row["prompt"])
        if one and (one.answer != row["answer"] or one.prompt not in said):
            other = "prompt" if one.answer == row["answer"] else "answer"
            raise UserError(
                f"problem {one.id!r} of the solutions has another {other} than in the rows: give the problems that "
                "were mixed, or mix again"
            )


def _records(host: Host, rows: Sequence[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    if host == "verl":
        return [_verl(row, index, split) for index, row in enumerate(rows)]
    return [{"openrlhf": _openrlhf, "prime-rl": _prime_rl, "opsd": _opsd}[host](row) for row in rows]


def _divided(
    rows: Sequence[dict[str, Any]], hold_out: float, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The training rows, and the validation rows."""
    problems = sorted({row["problem"] for row in rows})
    count = round(hold_out * len(problems)) or (1 if hold_out else 0)
    held = {problems[at] for at in np.random.default_rng(seed).permutation(len(problems))[:count]}
    train = [row for row in rows if row["problem"] not in held]
    if not train:
        raise UserError(f"hold_out={hold_out} leaves no problem to train on: lower --hold-out")
    return train, [row for row in rows if not row["guided"] and (not held or row["problem"] in held)]


def _write(host: Host, file: Path, records: list[dict[str, Any]]) -> None:
    if host == "verl" or (host == "opsd" and file.suffix == ".parquet"):
        if records:
            write_parquet(file, records)
    else:
        write_text(file, utf8("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records)))


def _beside(host: Host, path: Path, validation: Path, grader: str, chat: bool) -> dict[Path, str]:
    """The files beside the rows, with their texts; ``chat`` says whether the prompts are messages."""
    if host == "opsd":
        files = {"train.py": path.with_name(f"{path.stem}.train.py")}
        named = {"{train}": path.name, "{grader}": grader}
    else:
        module = re.sub(r"\W", "_", f"pope_{path.stem}_taskset".lower(), flags=re.ASCII)  # verifiers' ids are modules
        template = "taskset.py" if host == "prime-rl" else "reward.py"
        reward = path.with_name(f"{module}.py" if host == "prime-rl" else f"{path.stem}.reward.py")
        files = {template: reward, "launch.sh": path.with_name(f"{path.stem}.launch.sh")}
        named = {"{train}": path.name, "{validation}": validation.name, "{reward}": reward.name, "{grader}": grader,
                 "{module}": module, "{chat}": "--data.apply_chat_template " if chat else ""}  # fmt: skip
    texts = {}
    for source, file in files.items():
        text = (TEMPLATES / host / source).read_text(encoding="utf-8")
        for place, value in named.items():
            text = text.replace(place, value)
        texts[file] = text
    return texts


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
        raise UserError("this host needs chat messages, but the rows have plain prompts: mix without --no-chat")
    return row["prompt"]
