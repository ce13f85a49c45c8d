"""The reward for verl: `reward.custom_reward_function.path=THIS_FILE`, name compute_score.

verl does not say whether the token budget cut a completion off. One that was, but has marked an answer before, is paid
for it, unlike in `retarget pope train`.
"""

import json

from retarget.pope.grading import Grader

_GRADERS = {}
OPENS_THINKING = False  # set True if the model's chat template ends in <think>: then answers inside it do not count


def compute_score(data_source, solution_str, ground_truth, extra_info=None, grader="{grader}", **_):
    """1 for a correct answer, otherwise 0. verl logs metrics per data_source, so guided and unguided rows apart."""
    if grader not in _GRADERS:
        _GRADERS[grader] = Grader(grader)
    meta = json.loads((extra_info or {}).get("meta") or "{}")
    text = f"<think>{solution_str}" if OPENS_THINKING else solution_str
    (grade,) = _GRADERS[grader].grade([text], [ground_truth], [meta])
    return {"score": grade.reward, "answered": float(grade.extracted is not None)}
