"""POPE's tasks and their reward for verifiers 0.4: taskset id `{module}`, with this folder on PYTHONPATH."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import verifiers.v1 as vf

from retarget.pope.grading import Grader

__all__ = ["PopeTaskset"]

HERE = Path(__file__).parent


@lru_cache(maxsize=1)
def _grader():
    return Grader("{grader}"), ThreadPoolExecutor(max_workers=1)  # its workers belong to the thread that started them


class PopeData(vf.TaskData):
    """One row. Every field must be declared: verifiers drops the others."""

    answer: str
    problem: str
    stratum: str
    guided: bool
    meta: str = "{}"


class PopeTask(vf.Task[PopeData]):
    """The reward is 1 for a correct answer, otherwise 0."""

    @vf.reward(weight=1.0)
    async def correct(self, trace: vf.Trace) -> float:
        meta = json.loads(self.data.meta or "{}") | {"truncated": trace.is_truncated}
        grader, thread = _grader()
        grades = await asyncio.wrap_future(thread.submit(grader.grade, [trace.last_reply], [self.data.answer], [meta]))
        return grades[0].reward

    @vf.metric
    async def guided(self) -> float:
        return float(self.data.guided)


class PopeConfig(vf.TasksetConfig):
    """`path` is the file of rows: `{train}`, `{validation}`, or another; relative paths are in this folder."""

    path: Path = Path("{train}")


class PopeTaskset(vf.Taskset[PopeTask, PopeConfig]):
    def load(self) -> list[PopeTask]:
        tasks = []
        for line in (HERE / self.config.path).read_text(encoding="utf-8").split("\n"):
            if not line:
                continue
            row = json.loads(line)
            *system, last = row["prompt"]
            if [one["role"] for one in (*system, last)] in (["user"], ["system", "user"]):
                said = {"prompt": last["content"], "system_prompt": system[0]["content"] if system else None}
            else:
                said = {"prompt": row["prompt"]}
            info = row["info"]
            data = PopeData(
                id=info["id"], answer=row["answer"], problem=info["problem"], stratum=info["stratum"],
                guided=info["guided"], meta=info["meta"] or "{}", **said,
            )  # fmt: skip
            tasks.append(PopeTask(data, self.config.task))
        return tasks
