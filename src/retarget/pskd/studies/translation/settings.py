"""Settings of the translation study, a strict model."""

from typing import Literal

from pydantic import Field

from retarget.settings import Strict

_IWSLT = "fairseq's transformer_iwslt_de_en, its documented training command"


class Settings(Strict):
    """Settings of one training run; an arm overrides those of its method."""

    task: Literal["translation"] = "translation"
    dataset: str = Field(
        default="grammar", pattern=r"^(grammar|files:.+)$",
        description="grammar (generated) | files:DIR with train, val and the test files as NAME.LANGUAGE[.gz]",
    )  # fmt: skip
    source: str = Field(default="en", description="LANGUAGE to translate from")
    target: str = Field(default="de", description="LANGUAGE to translate to")
    test: str = Field(default="test_2016_flickr", description="NAME of the test files, NAME.LANGUAGE[.gz]")
    train_sentences: int | None = Field(default=None, ge=10, description="use only this many pairs, from the first on")
    test_sentences: int | None = Field(default=None, ge=1, description="use only this many pairs, from the first on")
    data_seed: int = Field(default=2021, ge=0, description="draws the generated sentences, the same for every seed")
    vocabulary: int = Field(ge=50, description=f"joint byte-pair encoding; 10,000: {_IWSLT}")
    max_tokens: int = Field(default=80, ge=8, description="longer sentences are cut")
    d_model: int = Field(default=512, ge=8, description=_IWSLT)
    ffn: int = Field(default=1024, ge=8, description=_IWSLT)
    heads: int = Field(default=4, ge=1, description=_IWSLT)
    layers: int = Field(default=6, ge=1, description=f"layers of the encoder, and of the decoder: {_IWSLT}")
    dropout: float = Field(default=0.3, ge=0, lt=1, description=_IWSLT)
    norm: Literal["post", "pre"] = Field(
        default="post", description=f"layer norm after each block: {_IWSLT}; pre learns in fewer steps"
    )
    epochs: int = Field(ge=1)
    batch_sentences: int = Field(ge=2, description="sentences of similar length; fairseq counts tokens (4096)")
    accumulate: int = Field(default=1, ge=1, description="batches per update")
    lr: float = Field(default=5e-4, gt=0, description=f"Adam (0.9, 0.98): {_IWSLT}")
    lr_schedule: Literal["inverse_sqrt", "cosine"] = Field(default="inverse_sqrt", description=_IWSLT)
    warmup_steps: int = Field(default=4000, ge=0, description=_IWSLT)
    weight_decay: float = Field(default=1e-4, ge=0, description=_IWSLT)
    beams: int = Field(default=5, ge=1, description=_IWSLT)
    accelerator: Literal["auto", "cpu"] = Field(default="auto", description="auto: a GPU if there is one | cpu")
    bf16: bool = Field(default=False, description="bfloat16 autocast, in training and in evaluation")
    # The arm
    targets: Literal["hard", "pskd"] = "hard"
    smoothing: float = Field(default=0.0, ge=0, lt=1, description=f"0.1 where an arm smooths: {_IWSLT}")
    alpha_T: float = Field(default=0.8, ge=0, le=1, description="the paper's value for translation is unpublished")
    schedule: Literal["linear", "constant"] = Field(
        default="linear", description="how alpha grows to alpha_T: linear, as in the paper | constant"
    )
    topk: int = Field(default=10, ge=1, description="likeliest tokens stored in each target's row")
