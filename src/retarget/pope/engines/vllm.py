"""The vLLM engine, for GPUs: ``pip install 'retarget[vllm]'``."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from retarget.errors import UserError
from retarget.extras import require
from retarget.pope.answers import THINKING_ENDS
from retarget.pope.identity import base_of, tokenizer_of, weights_of
from retarget.pope.prompts import Prompt
from retarget.pope.rollouts import Refused, Rollout, Sampling, opened, tag_keeper, thinking_tokens

_HOW = frozenset({
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "gpu_memory_utilization",
    "kv_cache_memory_bytes", "swap_space", "cpu_offload_gb", "max_num_seqs", "max_num_batched_tokens", "enforce_eager",
    "enable_prefix_caching", "enable_chunked_prefill", "disable_custom_all_reduce", "disable_log_stats",
    "distributed_executor_backend", "max_parallel_loading_workers", "download_dir", "async_scheduling",
    "compilation_config", "trust_remote_code",
})  # fmt: skip
"""Options that say how vLLM works, and not what it samples. Rounding aside, as with another number of GPUs."""


class VLLMEngine:
    """Samples with vLLM in this process: all prompts in one call, each with its own seed.

    The calls were checked against the sources of vLLM 0.22.0 and 0.33.0. The extra allows 0.22 to 0.31, which TRL
    supports.

    Args:
        model: name or path of the model.
        template: switches of the chat template.
        options: options of ``vllm.LLM`` (``tensor_parallel_size``, ``max_model_len``, ...).

    Raises:
        UserError: vLLM is not installed, or cannot load the model.
    """

    def __init__(self, model: str, *, template: dict[str, Any] | None = None, **options: Any) -> None:
        self._vllm = require("vllm", "vllm")
        self.template = template or {}
        self.name = model
        switches = {"template": self.template} if self.template else {}
        self.identity = {
            "weights": weights_of(model), **tokenizer_of(model), **base_of(model), **switches,
            "options": deciding(options),
        }  # fmt: skip
        try:
            self._llm = self._vllm.LLM(model=model, **options)
        except (OSError, ValueError) as error:
            raise UserError(f"{model}: vLLM cannot load this model: {error}") from error
        except TypeError as error:
            if "unexpected keyword" not in str(error):
                raise
            raise UserError(
                f"--engine-options: vLLM refuses {', '.join(options) or 'its defaults'}: {error}"
            ) from error

    def sample(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[list[Rollout]]:
        """n rollouts of each prompt; see :class:`retarget.pope.rollouts.Engine`."""
        settings = [
            self._vllm.SamplingParams(
                n=n, max_tokens=params.max_tokens, temperature=params.temperature, top_p=params.top_p,
                top_k=params.top_k, seed=params.unit_seed(prompt),
            )
            for prompt in prompts
        ]  # fmt: skip
        chat = bool(prompts) and not isinstance(prompts[0], str)
        switches = {"chat_template_kwargs": self.template} if chat and self.template else {}
        call = self._llm.chat if chat else self._llm.generate
        try:
            outputs = call(list(prompts), settings, use_tqdm=False, **switches)
        except ValueError as error:  # the prompt is longer than the model's context
            raise Refused(f"vLLM refuses the prompt: {error}") from error
        return [[self._rollout(one, output) for one in output.outputs] for output in outputs]

    def _rollout(self, one: Any, output: Any) -> Rollout:
        tokens, tokenizer = len(one.token_ids), self._llm.get_tokenizer()
        keep = tag_keeper(tokenizer)  # vLLM's own text lacks thinking tags that are special tokens
        written = keep(one.token_ids) if keep else one.text
        text = opened(tokenizer.decode(list(output.prompt_token_ids or ())[-16:]), written)

        def count(some: str) -> int:
            return len(tokenizer.encode(some, add_special_tokens=False))

        thinking = thinking_tokens(written if THINKING_ENDS in written else text, tokens, count)
        return Rollout(text, tokens, one.finish_reason == "length", thinking)


def deciding(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that decide what is sampled, as JSON values.

    >>> deciding({"dtype": "float16", "tensor_parallel_size": 2})
    {'dtype': 'float16'}
    """
    return json.loads(json.dumps({name: one for name, one in options.items() if name not in _HOW}, default=str))
