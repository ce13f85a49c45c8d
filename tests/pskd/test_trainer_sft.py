"""PSKDMixin before TRL's SFTTrainer among the bases; with LoRA, and packed."""

import sys
from pathlib import Path

import datasets
import pytest
import torch
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from retarget.errors import UserError
from retarget.pskd import PreviousModel, PSKDMixin, TopK

sys.path.insert(0, str(Path(__file__).parent))
import tiny

CASES = [
    {},
    {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    {"packing": True, "packing_strategy": "wrapped", "max_length": 8},
]


class PSKDSFT(PSKDMixin, SFTTrainer):
    """The class as a user writes it."""


def model(dropout=0.0):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tiny.VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=64, attention_dropout=dropout, pad_token_id=tiny.PAD,
            bos_token_id=None, eos_token_id=tiny.EOS,
        )
    )  # fmt: skip


def tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {"<pad>": tiny.PAD, "<eos>": tiny.EOS, **{f"w{i}": i for i in range(2, tiny.VOCABULARY)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<eos>")), pad_token="<pad>", eos_token="<eos>"
    )


def make(kind, folder, *, pskd=None, lora=False, **more):
    settings = dict(
        output_dir=str(folder), use_cpu=True, bf16=False, num_train_epochs=2, per_device_train_batch_size=4,
        learning_rate=0.2, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0, report_to=[], disable_tqdm=True,
        logging_steps=1, save_strategy="no", dataloader_pin_memory=False, seed=5, max_length=16,
        gradient_checkpointing=False,
    )  # fmt: skip
    rows = datasets.Dataset.from_list([{"input_ids": one["input_ids"]} for one in tiny.sentences(8)])
    return kind(
        model=model(), args=SFTConfig(**{**settings, **more}), train_dataset=rows, eval_dataset=rows,
        processing_class=tokenizer(), peft_config=LoraConfig(r=2, target_modules=["q_proj"]) if lora else None,
        **(pskd or {}),
    )  # fmt: skip


def weights(trainer):
    return [p.detach().clone() for p in trainer.model.parameters()]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("more", CASES, ids=str)
def test_with_alpha_0_it_trains_and_measures_as_trls_does(more, lora, tmp_path):
    plain, off = (
        make(SFTTrainer, tmp_path, lora=lora, **more),
        make(PSKDSFT, tmp_path, pskd={"alpha_T": 0.0}, lora=lora, **more),
    )
    plain.train(), off.train()
    for p, q in zip(weights(plain), weights(off), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
    theirs, ours = plain.state.log_history, off.state.log_history
    assert len(theirs) == len(ours)
    for line, mine in zip(theirs[:-1], ours[:-1], strict=True):
        assert {"entropy", "mean_token_accuracy", "num_tokens"} < set(line)
        assert {name: mine[name] for name in line} == pytest.approx(line, abs=1e-5)
    assert off.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-5)
    on = make(PSKDSFT, tmp_path, pskd={"store": TopK(4)}, lora=lora, **more)
    on.train()
    assert max((p - q).abs().max() for p, q in zip(weights(on), weights(off), strict=True)) > 1e-6
    assert on.pskd.fallbacks == 0


def test_another_loss_type_is_refused(tmp_path):
    with pytest.raises(UserError, match=r'the trainer.s own loss.*loss_type of the trainer other than "nll"'):
        make(PSKDSFT, tmp_path, loss_type="dft").train()


def test_padding_free_batches_take_the_previous_model(tmp_path):
    more = {"packing": True, "max_length": 16}
    with pytest.raises(UserError, match=r"PreviousModel\(\)"):
        make(PSKDSFT, tmp_path, **more).train()
    plain = make(SFTTrainer, tmp_path, **more)
    off = make(PSKDSFT, tmp_path, pskd={"store": PreviousModel(), "alpha_T": 0.0}, **more)
    on = make(PSKDSFT, tmp_path, pskd={"store": PreviousModel()}, **more)
    plain.train(), off.train(), on.train()
    for p, q in zip(weights(plain), weights(off), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
    assert max((p - q).abs().max() for p, q in zip(weights(on), weights(off), strict=True)) > 1e-6


def test_the_pretrained_model_is_the_past_of_the_adapters_first_epoch(tmp_path):
    first = {"store": PreviousModel(first_past="pretrained")}
    on = make(PSKDSFT, tmp_path, pskd=first, lora=True, num_train_epochs=1)
    on.train()
    plain = make(SFTTrainer, tmp_path, lora=True, num_train_epochs=1)
    plain.train()
    assert on.pskd.alpha == 0.8
    assert max((p - q).abs().max() for p, q in zip(weights(on), weights(plain), strict=True)) > 1e-6
