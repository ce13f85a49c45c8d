"""The reward for OpenRLHF: `--reward.remote_url THIS_FILE`."""

import json
import re
import sys
from functools import lru_cache
from pathlib import Path

import torch

from retarget.pope.grading import Grader

OPENS_THINKING = False  # set True if the model's chat template ends in <think>: then answers inside it do not count
END = r"<\|[^|<>]+\|>|</s>|<eos>|<end_of_turn>|<｜end▁of▁sentence｜>"
# How the model's end token is written. A completion without one was cut off by the token budget, and its reward is 0.
FILES = ("{train}", "{validation}")
_ENDS = re.compile(rf"(?:\s*(?:{END}))+\s*$")
_PROMPT_END = 200  # characters by which a prompt is found if its beginning was cut off


@lru_cache(maxsize=1)
def _rows():
    """The user message and the row of every row, longest messages first."""
    files = [Path(__file__).parent / name for name in FILES]
    lines = [line for file in files if file.exists() for line in file.read_text(encoding="utf-8").split("\n") if line]
    rows = [json.loads(line) for line in lines]
    said = [(row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"], row) for row in rows]
    return sorted(((text.strip(), row) for text, row in said), key=lambda one: -len(one[0]))


@lru_cache(maxsize=100_000)
def _row(prompt):
    """The row of a prompt, to which the chat template has added something."""
    for text, row in _rows():
        if text in prompt:
            return row
    raise ValueError(f"no row of {' or '.join(FILES)} has this prompt: {prompt[:200]!r}")


def _completion(query, prompt):
    """What follows the prompt, and whether the model ended it."""
    end = prompt[-_PROMPT_END:]
    at = query.find(end)
    if at < 0:
        raise ValueError(f"the query does not contain its prompt's end, {end!r}")
    text = query[at + len(end) :]
    ended = _ENDS.search(text)
    return ("<think>" * OPENS_THINKING + (text[: ended.start()] if ended else text)), ended is not None


@lru_cache(maxsize=1)
def _grader():
    return Grader("{grader}")


def reward_func(queries, prompts, labels, **_):
    """Rewards, and as extra logs whether rows are guided. OpenRLHF only logs errors raised here: read its log."""
    try:
        rows = [_row(prompt) for prompt in prompts]
        said = [_completion(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
        metas = [json.loads(row.get("meta") or "{}") for row in rows]
        metas = [meta if ended else {**meta, "truncated": True} for meta, (_, ended) in zip(metas, said, strict=True)]
        grades = _grader().grade([text for text, _ in said], labels, metas)
        rewards = torch.tensor([one.reward for one in grades])
    except Exception as error:
        print(f"{__file__}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise
    guided = torch.tensor([float(row.get("guided", False)) for row in rows])
    cut = torch.tensor([float(not ended) for _, ended in said])
    logs = {"guided": guided, "guided_reward": guided * rewards, "cut_off": cut}
    return {"rewards": rewards, "scores": rewards, "extra_logs": logs}
