"""A study of fine-tuning: PS-KD against cross-entropy on a Hugging Face model and rows of your own.

    retarget study own_study_fine_tuning.py --set model=DIR data=rows.jsonl

Rows with ``text`` and ``label`` (0, 1, ...) fine-tune a classifier; rows with ``prompt`` and ``completion`` fine-tune a
causal language model on its completions. One fifth of the rows, the same for every seed, is held out.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    TrainingArguments,
    set_seed,
)

from retarget.errors import UserError
from retarget.pskd import PSKDTrainer, TopK
from retarget.study import Arm, Claim, Metric, Run, StudyPlan
from retarget.study.config import choose_arms

SETTINGS = {"model": "", "data": "", "epochs": 3, "lr": 5e-5, "batch_size": 16, "listed": 20, "alpha_T": 0.0}
ARMS = (Arm(name="hard", label="cross-entropy"), Arm(name="pskd", label="PS-KD", settings={"alpha_T": 0.5}))
BETTER = Claim(id="nll", sentence="PS-KD gives better likelihoods on held-out rows.", metric="nll", direction="lower",
               arms=("pskd", "hard"), smallest_effect=0.01)  # fmt: skip


def plan(preset: str, config: dict[str, Any] | None, seeds: list[int] | None, arms: list[str] | None) -> StudyPlan:
    settings = SETTINGS | (config or {})
    if unknown := settings.keys() - SETTINGS.keys():
        raise UserError(f"there is no setting {', '.join(sorted(unknown))}: choose from {', '.join(SETTINGS)}")
    if not (settings["model"] and settings["data"]):
        raise UserError("give --set model=DIR data=FILE.jsonl")
    return StudyPlan(
        study="fine-tuning", title="Fine-tuning", question="Does PS-KD help to fine-tune this model on these rows?",
        preset=preset, settings=settings, data=(settings["model"], settings["data"]), arms=choose_arms(ARMS, arms),
        seeds=tuple(seeds or range(5)), claims=(BETTER,),
        metrics=(Metric(name="nll", label="NLL of held-out rows", better="lower", decimals=3),),
    )  # fmt: skip


def run(run: Run) -> dict[str, float]:
    s = run.settings
    rows = [json.loads(line) for line in Path(s["data"]).read_text(encoding="utf-8").splitlines()]
    rows = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    tokenizer = AutoTokenizer.from_pretrained(s["model"])
    set_seed(run.seed)
    if "label" in rows[0]:
        classes = 1 + max(row["label"] for row in rows)
        model = AutoModelForSequenceClassification.from_pretrained(s["model"], num_labels=classes)
        samples = [{**tokenizer(row["text"], truncation=True), "labels": row["label"]} for row in rows]
        collate, store = DataCollatorWithPadding(tokenizer), "dense"
    else:
        model = AutoModelForCausalLM.from_pretrained(s["model"])
        samples = [completed(tokenizer, row["prompt"], row["completion"]) for row in rows]
        collate, store = DataCollatorForSeq2Seq(tokenizer), TopK(s["listed"])
    held = len(samples) // 5
    trainer = PSKDTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(run.checkpoint), num_train_epochs=s["epochs"], per_device_train_batch_size=s["batch_size"],
            learning_rate=s["lr"], seed=run.seed, save_strategy="no", report_to=[], disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(samples[held:]),
        eval_dataset=Dataset.from_list(samples[:held]),
        data_collator=collate,
        alpha_T=s["alpha_T"],
        store=store,
    )  # fmt: skip
    trainer.train()
    return {"nll": trainer.evaluate()["eval_loss"]}


def completed(tokenizer: Any, prompt: str, completion: str) -> dict[str, list[int]]:
    """Tokens of prompt and completion; the loss is taken over those of the completion."""
    begin, end = tokenizer(prompt)["input_ids"], tokenizer(completion, add_special_tokens=False)["input_ids"]
    end = end + [tokenizer.eos_token_id] * (tokenizer.eos_token_id is not None)
    return {"input_ids": begin + end, "attention_mask": [1] * len(begin + end), "labels": [-100] * len(begin) + end}
