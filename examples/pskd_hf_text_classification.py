"""PS-KD in the Hugging Face Trainer: a small BERT learns whether more words of a text are good or bad.

The texts are generated here; one training label in ten is wrong. The trainer drops columns that the model does not
accept, as always, but keeps the index.
"""

import random

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import WordLevelTrainer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    TrainingArguments,
    set_seed,
)

from retarget.pskd import PSKDTrainer

GOOD, BAD = ["fine", "warm", "clear", "kind", "bright"], ["dull", "cold", "vague", "rude", "dark"]
OTHER = ["the", "a", "day", "house", "road", "book", "story", "was", "is", "with"]


def texts(number: int, wrong: float, seed: int) -> Dataset:
    draw = random.Random(seed)
    rows = []
    for _ in range(number):
        words = [draw.choice(draw.choice([GOOD, BAD, OTHER])) for _ in range(draw.randint(5, 15))]
        label = sum(w in GOOD for w in words) > sum(w in BAD for w in words)
        rows.append({"text": " ".join(words), "label": int(label != (draw.random() < wrong))})
    return Dataset.from_list(rows)


def main(epochs: int = 6, folder: str = "bert-texts") -> float:
    set_seed(0)
    train, test = texts(1500, 0.1, seed=0), texts(500, 0.0, seed=1)
    words = Tokenizer(WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.train_from_iterator(train["text"], WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    train, test = (data.map(lambda row: tokenizer(row["text"])) for data in (train, test))

    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_labels=2, max_position_embeddings=32,
        )
    )  # fmt: skip
    trainer = PSKDTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=50, learning_rate=2e-3,
            save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
        ),
        train_dataset=train,
        eval_dataset=test,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(1) == p.label_ids))},
        alpha_T=0.8,
    )  # fmt: skip
    trainer.train()
    accuracy = trainer.evaluate()["eval_accuracy"]
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
