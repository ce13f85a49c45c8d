"""The reward for OpenRLHF: `--reward.remote_url THIS_FILE`."""

import json
import sys
from functools import lru_cache
from pathlib import Path

import torch

from retarget.pope.grading import Grader

OPENS_THINKING = False  # set True if the model's chat template ends in <think>: then answers inside it do not count
ROWS = Path(__file__).parent / "{train}"


@lru_cache(maxsize=1)
def _rows():
    """The user message and the row of every row, longest messages first."""
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").split("\n") if line]
    said = [(row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"], row) for row in rows]
    return sorted(said, key=lambda one: -len(one[0]))


@lru_cache(maxsize=1)
def _grader():
    return Grader("{grader}")


def reward_func(queries, prompts, labels, **_):
    """Rewards, and as extra logs whether rows are guided. OpenRLHF only logs errors raised here: read its log."""
    try:
        rows = [next((row for text, row in _rows() if text in prompt), {}) for prompt in prompts]
        opening = "<think>" * OPENS_THINKING
        texts = [opening + query[len(prompt) :] for query, prompt in zip(queries, prompts, strict=True)]
        metas = [json.loads(row.get("meta") or "{}") for row in rows]
        rewards = torch.tensor([one.reward for one in _grader().grade(texts, labels, metas)])
    except Exception as error:
        print(f"{__file__}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise
    guided = torch.tensor([float(row.get("guided", False)) for row in rows])
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"guided": guided, "guided_reward": guided * rewards}}
