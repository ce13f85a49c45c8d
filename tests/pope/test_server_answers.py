"""What servers answer that is no rollout, or not all of one, and what is made of it."""

import pytest
from engines_for_tests import Cut
from pope_serving import serve

from retarget.errors import UserError
from retarget.pope.engines.server import ServerEngine
from retarget.pope.rollouts import Refused, Rollout, Sampling

PARAMS = Sampling(max_tokens=8, temperature=1.0, seed=5)


def test_what_a_server_did_not_finish_is_asked_for_again(engine, prompts):
    """Aborted completions, errors with status 200 and answers without completions are no rollouts of the model."""
    begun = {"text": "The answer is 4", "index": 0}
    faults = [
        {"choices": [{**begun, "finish_reason": "abort"}]}, {"choices": []}, {"error": {"code": 502}},
        {"choices": [{**begun, "finish_reason": "MAX_TOKENS"}], "usage": {"completion_tokens": 2}},
    ]  # fmt: skip
    with serve(engine, faults=faults) as (url, seen):
        asked = ServerEngine(url, "tiny", wait=0.0, fingerprint="w")
        (rollouts,) = asked.sample(prompts[:1], 1, PARAMS)
    assert [(one.text, one.truncated) for one in rollouts] == [("The answer is 4", True)]
    assert len(seen["bodies"]) == 4
    with (
        serve(engine, faults=faults[:1]) as (url, _),
        pytest.raises(UserError, match=r"1 of 1 .*abort"),
    ):
        ServerEngine(url, "tiny", retries=0, fingerprint="w").sample(prompts[:1], 1, PARAMS)


def test_a_page_in_place_of_json_is_asked_for_again(engine, prompts):
    with serve(engine, faults=["page"]) as (url, seen):
        ((rollout,),) = ServerEngine(url, "tiny", wait=0.01, fingerprint="w").sample(prompts[:1], 1, PARAMS)
    assert (bool(rollout.text), len(seen["bodies"])) == (True, 2)
    with serve(engine, faults=["page"]) as (url, _):
        asked = ServerEngine(url, "tiny", retries=0, fingerprint="w")
        with pytest.raises(UserError, match=r"not an answer in JSON: '<html>'.*Finished units are in the journal"):
            asked.sample(prompts[:1], 1, PARAMS)


def test_a_server_that_counts_no_tokens_is_told_once(engine, prompts, caplog):
    answer = {"choices": [{"text": "The answer is 4", "index": 0, "finish_reason": "stop"}]}
    with serve(engine, faults=[answer] * 3) as (url, _):
        ServerEngine(url, "tiny", fingerprint="w").sample(prompts[:1], 3, PARAMS)
    assert caplog.text.count("reports no token counts (usage): all figures of tokens are 0") == 1


def test_a_completion_cut_while_thinking_has_no_answer_through_a_server_either():
    with serve(Cut(), reasoning="perhaps \\boxed{4}") as (url, _):
        ((rollout,),) = ServerEngine(url, "m").sample([[{"role": "user", "content": "?"}]], 1, PARAMS)
    assert rollout.text == "<think>perhaps \\boxed{4}"
    assert rollout.answer_text == ""


class Halved:
    """An engine whose text holds half a surrogate pair, as JSON can."""

    def sample(self, prompts, n, params):
        return [[Rollout("#### \ud835", 8, False)] * n for _ in prompts]


def test_half_a_surrogate_pair_from_a_server_becomes_a_replacement_character():
    with serve(Halved()) as (url, _):
        ((rollout,),) = ServerEngine(url, "m").sample(["?"], 1, PARAMS)
    assert rollout.text == "#### \ufffd"


def test_a_refused_prompt_is_told_from_a_server_that_fails(engine, prompts):
    with serve(engine, faults=[400]) as (url, _), pytest.raises(Refused, match=r"refused the prompt: .*HTTP 400"):
        ServerEngine(url, "tiny").sample(prompts[:1], 1, PARAMS)
    with serve(engine, faults=[403]) as (url, _), pytest.raises(UserError, match="HTTP 403") as caught:
        ServerEngine(url, "tiny").sample(prompts[:1], 1, PARAMS)
    assert not isinstance(caught.value, Refused)
