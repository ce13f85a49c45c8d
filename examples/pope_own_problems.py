"""POPE on problems of your own: find the hard ones, find how much of each solution helps, train with and without it.

python examples/pope_own_problems.py [MODEL]     # name or path of a causal language model; by default a tiny random one
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from retarget.pope import mine, mix, read_problems, search_prefixes
from retarget.pope.engines import open_engine
from retarget.pope.evaluation import evaluate
from retarget.pope.grading import Grader, reward_function
from retarget.pope.prompts import Prompts
from retarget.pope.rollouts import Sampling
from retarget.pope.settings import TrainingSettings
from retarget.pope.trl import train

PROBLEMS = [
    {"id": f"sum-{a}-{b}", "prompt": f"What is {a} + {b} + 1?", "answer": str(a + b + 1),
     "solution": f"First add {a} and {b}, which gives {a + b}.\nThen add 1 to that.\nThe answer is {a + b + 1}."}
    for a, b in ((12, 30), (17, 25), (40, 9), (31, 31))
]  # fmt: skip


def main(model: str | None = None, cycles: int = 2) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model or tiny_model(folder / "tiny")
        file = folder / "problems.jsonl"
        file.write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS))

        problems = read_problems(file)
        engine = open_engine(model)
        prompts = Prompts.load(chat=False)  # chat=True for a model with a chat template
        # A grader of your own: Grader("my_module:my_function"), called with (completion, answer, meta).
        with Grader("numeric") as grader:
            asking: dict[str, Any] = dict(grader=grader, prompts=prompts, params=Sampling(max_tokens=16), chunk=4)
            mined = mine(problems, engine, k=8, journal=folder / "mine.jsonl", accepted=("hard", "truncated"), **asking)
            prefixes = search_prefixes(mined, engine, cuts=2, k=4, cap=0.8, journal=folder / "search.jsonl", **asking)
            rows = mix(mined, prefixes, prompts, prompts_per_batch=2)
            settings = TrainingSettings(
                cycles=cycles, prompts_per_batch=2, rollouts=4, micro_batch=8, max_completion_length=16, save_every=0,
                extra={"use_cpu": True, "disable_tqdm": True},
            )  # fmt: skip
            train(model, rows, reward_function(grader), settings, folder / "trained")
            trained = evaluate(problems, open_engine(str(folder / "trained")), 8, **{**asking, "chunk": 8})
    found = {"hard": len(mined), "prefixes": len(prefixes), "rows": len(rows), "pass@1": trained.pass_at(1)}
    print(found)
    return found


def tiny_model(folder: Path) -> str:
    """A random Llama that writes letters and digits; it solves nothing, so every problem is hard."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = {
        letter: index for index, letter in enumerate(["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    letter_by_letter = Tokenizer(models.BPE(letters, []))
    letter_by_letter.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letter_by_letter.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=letter_by_letter, pad_token="<pad>", eos_token="</s>", padding_side="left"
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(letters), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else None)
