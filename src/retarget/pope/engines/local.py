"""The transformers engine: generate in this process, on the CPU or a GPU."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from retarget.errors import UserError
from retarget.pope.answers import THINKING_ENDS
from retarget.pope.identity import base_name, base_of, tokenizer_of, weights_of
from retarget.pope.prompts import Prompt, templated
from retarget.pope.rollouts import Refused, Rollout, Sampling, opened, tag_keeper, thinking_tokens

_TEMPLATE_END = 16
"""Number of tokens at the end of a prompt in which the template may open a thinking block."""


class TransformersEngine:
    """Samples with ``model.generate``.

    Each prompt has its own seed, and its n rollouts are the rows of its own batches. So nothing is padded, and the
    rollouts of a prompt do not depend on the other prompts.

    Args:
        model: a causal language model; it is in evaluation mode while it samples.
        tokenizer: the model's tokenizer; prompts that are messages need a chat template.
        batch_size: rows per call of ``generate``; decides the rollouts, together with the seed.
        name: identifies the model in journals.
        weights: hash of the weights, if the model was loaded from a path; also identifies the model.
        template: switches of the chat template.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 64,
        name: str = "model",
        weights: str | None = None,
        template: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.batch_size, self.name = model, tokenizer, batch_size, name
        self.template = template or {}
        switches = {"template": self.template} if self.template else {}
        dtype = {"dtype": str(model.dtype)} if hasattr(model, "dtype") else {}
        self.identity = {"weights": weights, "batch_size": batch_size, **dtype, **switches}
        ends: Any = model.generation_config.eos_token_id
        own: Any = tokenizer.eos_token_id
        self._ends: set[int] = {own, *(ends if isinstance(ends, list) else [ends])} - {None}
        self._decode = tag_keeper(tokenizer)

    @classmethod
    def load(
        cls,
        model: str,
        *,
        batch_size: int = 64,
        dtype: str = "auto",
        device: str | None = None,
        template: dict[str, Any] | None = None,
    ) -> "TransformersEngine":
        """Load a model or an adapter, and its tokenizer, by name or path; by default on a GPU if there is one.

        Raises:
            UserError: there is no such model on this machine or the hub, its files cannot be loaded, or an option has a
                wrong value.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size must be a whole number of at least 1, not {batch_size!r}")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device = {device!r} cannot be used: {str(error).splitlines()[0]}") from error
        try:
            network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError, SafetensorError) as error:
            base = base_name(model)
            what = f"this adapter of the model {base}" if base else "this model"
            raise UserError(f"{model}: {what} cannot be loaded: {error}") from error
        network = network.to(device)
        made = cls(network, tokenizer, batch_size=batch_size, name=model, weights=weights_of(model), template=template)
        made.identity |= {**tokenizer_of(model), **base_of(model)}
        return made

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; a list of messages goes through the chat template.

        Raises:
            UserError: the prompt is a list of messages, but the tokenizer has no chat template, or its template refuses
                them.
        """
        tokenizer: Any = self.tokenizer
        if isinstance(prompt, str):
            return tokenizer(prompt)["input_ids"]
        return templated(tokenizer, prompt, tokenize=True, return_dict=True, **self.template)["input_ids"]

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[list[Rollout]]:
        """n rollouts of each prompt; see :class:`retarget.pope.rollouts.Engine`."""
        training, own = self.model.training, self.model.generation_config
        self.model.eval()
        # Otherwise the model's own repetition penalty, min_p and so on would be applied on top of ``params``.
        self.model.generation_config = GenerationConfig()
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                return [self._one(prompt, n, params) for prompt in prompts]
        finally:
            self.model.train(training)
            self.model.generation_config = own

    def _one(self, prompt: Prompt, n: int, params: Sampling) -> list[Rollout]:
        ids = torch.tensor([self.encode(prompt)], device=self.model.device)
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
        if ids.shape[1] >= context:
            raise Refused(f"a prompt of {ids.shape[1]} tokens leaves no room in the model's context of {context}")
        budget = min(params.max_tokens, context - ids.shape[1])
        torch.manual_seed(params.unit_seed(prompt))
        sampled = params.temperature > 0
        choice = dict(temperature=params.temperature, top_p=params.top_p, top_k=params.top_k) if sampled else {}
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        config = GenerationConfig(
            max_new_tokens=budget, do_sample=sampled, pad_token_id=pad, eos_token_id=sorted(self._ends) or None,
            bos_token_id=self.tokenizer.bos_token_id, **choice,
        )  # fmt: skip
        rendered: Any = self.tokenizer.decode(ids[0, -_TEMPLATE_END:].tolist())
        rollouts: list[Rollout] = []
        while len(rollouts) < n:
            rows = min(self.batch_size, n - len(rollouts))
            batch = ids.expand(rows, -1)
            out = self.model.generate(input_ids=batch, attention_mask=torch.ones_like(batch), generation_config=config)
            rollouts += [self._rollout(row, budget, rendered) for row in out[:, ids.shape[1] :].tolist()]
        return rollouts

    def _rollout(self, row: list[int], budget: int, rendered: str) -> Rollout:
        stop = next((at for at, token in enumerate(row) if token in self._ends), None)
        kept = row if stop is None else row[:stop]
        decode = self._decode
        written: Any = decode(kept) if decode else self.tokenizer.decode(kept, skip_special_tokens=True)
        text, tokens = opened(rendered, written), len(kept) + (stop is not None)
        thinking = thinking_tokens(written if THINKING_ENDS in written else text, tokens, self._count)
        return Rollout(text, tokens, stop is None and len(row) >= budget, thinking)

    def _count(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
