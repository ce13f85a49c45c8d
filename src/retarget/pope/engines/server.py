"""Any OpenAI-compatible server as an engine: vLLM, SGLang, llama.cpp, or a hosted teacher."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import httpx

from retarget.errors import UserError
from retarget.pope.answers import after_thinking
from retarget.pope.prompts import Prompt
from retarget.pope.rollouts import Rollout, Sampling

_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}


class ServerEngine:
    """Samples over HTTP with bounded concurrency and retries.

    Messages go to ``/chat/completions``, texts to ``/completions``. Each request carries a seed of its own, so a
    server that honours seeds samples the same after a resume; whether one does under load is the server's affair.

    Args:
        url: base address, with ``/v1``.
        model: the name that the server knows.
        concurrency: requests in flight.
        per_request: completions asked for in one request (``n``); 1 works with every server.
        retries: further attempts after a failed connection or a status that promises better luck (429, 5xx), with
            waits that double from ``wait`` seconds, or as ``Retry-After`` says.
        timeout: seconds for one request.
        key_variable: environment variable that holds the API key.
        extra: further fields of the request (``{"chat_template_kwargs": {"enable_thinking": False}}``, ...).
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        concurrency: int = 32,
        per_request: int = 1,
        retries: int = 5,
        wait: float = 1.0,
        timeout: float = 3600.0,
        key_variable: str = "OPENAI_API_KEY",
        extra: dict[str, Any] | None = None,
    ) -> None:
        if concurrency < 1 or per_request < 1:
            raise UserError(f"concurrency and per_request are at least 1, not {concurrency} and {per_request}")
        self.url, self.model, self.name = url.rstrip("/"), model, model
        self.concurrency, self.per_request = concurrency, per_request
        self.retries, self.wait, self.timeout = retries, wait, timeout
        self.key_variable, self.extra = key_variable, extra or {}
        self.identity = {"per_request": per_request, "extra": self.extra}

    def sample(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[list[Rollout]]:
        """n rollouts of each prompt; see :class:`retarget.pope.rollouts.Engine`.

        Raises:
            UserError: the server cannot be reached, refuses the request, or answers in another form.
        """
        return asyncio.run(self._all(prompts, n, params))

    async def _all(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[list[Rollout]]:
        key = os.environ.get(self.key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=self.concurrency)
        gate = asyncio.Semaphore(self.concurrency)
        async with httpx.AsyncClient(headers=headers, timeout=self.timeout, limits=limits) as client:

            async def part(prompt: Prompt, first: int) -> list[Rollout]:
                async with gate:
                    return await self._request(client, prompt, first, min(self.per_request, n - first), params)

            starts = range(0, n, self.per_request)
            tasks = [asyncio.create_task(part(prompt, first)) for prompt in prompts for first in starts]
            try:
                parts = await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        size = len(starts)
        return [[one for some in parts[at * size : (at + 1) * size] for one in some] for at in range(len(prompts))]

    async def _request(
        self, client: httpx.AsyncClient, prompt: Prompt, first: int, count: int, params: Sampling
    ) -> list[Rollout]:
        chat = not isinstance(prompt, str)
        body: dict[str, Any] = {
            "model": self.model, "n": count, "max_tokens": params.max_tokens, "temperature": params.temperature,
            "top_p": params.top_p, "seed": (params.unit_seed(prompt) + first) % 2**31,
            ("messages" if chat else "prompt"): prompt,
            **({"top_k": params.top_k} if params.top_k else {}), **self.extra,
        }  # fmt: skip
        answer = await self._post(client, f"{self.url}/{'chat/completions' if chat else 'completions'}", body)
        try:
            choices = answer["choices"]
            usage = answer.get("usage") or {}
            total = int(usage.get("completion_tokens", 0))
            told = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
            thinking = int(told) if told is not None and len(choices) == 1 else None
            rollouts = [_rollout(choice, total // max(1, len(choices)), thinking) for choice in choices]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.url}: not an answer of an OpenAI-compatible server: {str(answer)[:200]}") from error
        if len(rollouts) != count:
            raise UserError(f"{self.url} returned {len(rollouts)} completions for n={count}: set per_request=1")
        return rollouts

    async def _post(self, client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> Any:
        for attempt in range(self.retries + 1):
            wait = self.wait * 2**attempt
            try:
                response = await client.post(url, json=body)
            except httpx.InvalidURL as error:
                raise UserError(f"{url}: not an address: {error}") from error
            except (httpx.TransportError, httpx.DecodingError) as error:
                fault = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    try:
                        return response.json()
                    except ValueError as error:  # a proxy's page, or an answer that was cut off
                        raise UserError(f"{url}: not an answer in JSON: {response.text[:200]!r}") from error
                fault = f"HTTP {response.status_code}: {response.text[:300]}"
                if response.status_code not in _RETRIED:
                    break
                after = response.headers.get("Retry-After", "")
                wait = float(after) if after.replace(".", "", 1).isdigit() else wait
            if attempt < self.retries:
                await asyncio.sleep(wait)
        raise UserError(f"{url} failed: {fault}. What was sampled before is in the journal: run the same command again")


def _rollout(choice: dict[str, Any], tokens: int, told: int | None) -> Rollout:
    message = choice.get("message")
    text = (message["content"] or "") if message is not None else choice["text"]
    # Servers that parse the thinking block out put it into a field of its own.
    thinking = (message or {}).get("reasoning_content") or (message or {}).get("reasoning")
    if thinking:
        # Without an answer the block was not closed either: such a completion has none, as in every other engine.
        text = f"<think>{thinking}</think>{text}" if text else f"<think>{thinking}"
    # Only the server can count: its tokenizer is not here.
    thought = told if after_thinking(text) != text else 0
    return Rollout(text, tokens, choice.get("finish_reason") == "length", thought)
