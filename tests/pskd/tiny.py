"""Tiny real models of every kind, with data that fits them; nothing is downloaded."""

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    TrainingArguments,
)

PAD, EOS, VOCABULARY = 0, 1, 23


def generator(seed):
    return torch.Generator().manual_seed(seed)


def classifier(dropout=0.0, classes=3):
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=16, num_labels=classes, hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def translator(dropout=0.0):
    torch.manual_seed(0)
    return MarianMTModel(
        MarianConfig(
            vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, dropout=dropout, pad_token_id=PAD,
            eos_token_id=EOS, forced_eos_token_id=EOS, decoder_start_token_id=PAD, max_position_embeddings=16,
            max_length=8, num_beams=1,
        )
    )  # fmt: skip


def self_shifting_translator(dropout=0.0):
    """A translator without ``prepare_decoder_input_ids_from_labels``: it shifts labels in its forward pass only."""
    torch.manual_seed(0)
    return M2M100ForConditionalGeneration(
        M2M100Config(
            vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, dropout=dropout, pad_token_id=PAD,
            attention_dropout=0.0, encoder_layerdrop=0.0, decoder_layerdrop=0.0, bos_token_id=EOS, eos_token_id=EOS,
            decoder_start_token_id=EOS, max_position_embeddings=16, max_length=8, num_beams=1,
        )
    )  # fmt: skip


def language_model(dropout=0.0):
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=1, n_head=2, resid_pdrop=dropout,
            embd_pdrop=dropout, attn_pdrop=0.0, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD,
        )
    )  # fmt: skip


class Plain(nn.Module):
    """A classifier of the user's own: no keyword arguments, so the library does not count its targets."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 3)

    def forward(self, x, labels=None):
        logits = self.layer(x)
        out = {"logits": logits}
        if labels is not None:
            out["loss"] = nn.functional.cross_entropy(logits, labels)
        return out


class Normed(Plain):
    """With batch norm, whose statistics a forward pass moves."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.layer = nn.Sequential(nn.Dropout(dropout), nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


def vectors(n=8):
    g = generator(1)
    return [{"x": torch.randn(5, generator=g), "labels": i % 3} for i in range(n)]


def texts(n=8):
    g = generator(1)
    return [
        {"input_ids": torch.randint(2, VOCABULARY, (6,), generator=g), "labels": int(i % 3), "note": "unused"}
        for i in range(n)
    ]


def pairs(n=8):
    """Sequences of 1 to 6 targets."""
    g = generator(1)
    return [
        {
            "input_ids": torch.randint(2, VOCABULARY, (3 + i % 3,), generator=g).tolist(),
            "labels": [*torch.randint(2, VOCABULARY, (i % 6,), generator=g).tolist(), EOS],
        }
        for i in range(n)
    ]


def pad(features, left=False):
    """Collator for pairs and for language modelling."""

    def padded(rows, value):
        width = max(len(row) for row in rows)
        fill = [[value] * (width - len(row)) for row in rows]
        return torch.tensor([f + r if left else r + f for r, f in zip(map(list, rows), fill, strict=True)])

    ids = [feature["input_ids"] for feature in features]
    return {
        "input_ids": padded(ids, PAD),
        "attention_mask": padded([[1] * len(row) for row in ids], 0),
        "labels": padded([feature["labels"] for feature in features], -100),
    }


def sentences(n=8):
    """For a causal model: labels are the inputs, the first two not trained on."""
    g = generator(1)
    rows = [torch.randint(2, VOCABULARY, (4 + i % 5,), generator=g).tolist() for i in range(n)]
    return [{"input_ids": row, "labels": [-100, -100, *row[2:]]} for row in rows]


def pad_left(features):
    return pad(features, left=True)


def arguments(folder, **more):
    """Settings of a short run on the CPU, by plain gradient descent."""
    settings = dict(
        output_dir=str(folder), use_cpu=True, num_train_epochs=2, per_device_train_batch_size=4, learning_rate=0.2,
        optim="sgd", lr_scheduler_type="constant", max_grad_norm=0, report_to=[], disable_tqdm=True,
        logging_strategy="no", save_strategy="no", dataloader_pin_memory=False, seed=5,
    )  # fmt: skip
    return TrainingArguments(**{**settings, **more})
