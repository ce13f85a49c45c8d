"""What servers answer that is no rollout, or not all of one, and what is made of it."""

import pytest
from engines_for_tests import Cut
from pope_serving import serve

from retarget.errors import UserError
from retarget.pope.engines.server import ServerEngine
from retarget.pope.rollouts import Rollout, Sampling

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


def answer(*texts, **more):
    choices = [{"text": text, "index": at, "finish_reason": "stop"} for at, text in enumerate(texts)]
    return {"choices": choices, "usage": {"completion_tokens": 7}, **more}


def test_the_tokens_of_a_request_are_divided_without_a_remainder(prompts):
    with serve(Halved(), faults=[answer("a", "b", "c")]) as (url, _):
        asked = ServerEngine(url, "tiny", fingerprint="w", per_request=3)
        (rollouts,) = asked.sample(prompts[:1], 3, PARAMS)
    assert [one.tokens for one in rollouts] == [3, 2, 2]


def test_no_count_of_tokens_and_a_text_in_parts_are_read(caplog):
    parts = [{"type": "text", "text": "The answer"}, {"type": "text", "text": " is 4"}]
    message = {"message": {"role": "assistant", "content": parts}, "finish_reason": "stop"}
    faults = [{"choices": [message], "usage": {"completion_tokens": None}}]
    with serve(Halved(), faults=faults) as (url, _):
        asked = ServerEngine(url, "tiny", fingerprint="w")
        ((rollout,),) = asked.sample([[{"role": "user", "content": "?"}]], 1, PARAMS)
    assert rollout == Rollout("The answer is 4", 0, False)
    assert caplog.text.count("reports no token counts (usage): all figures of tokens are 0") == 1


def test_an_answer_of_another_model_is_told_once_and_recorded(prompts, caplog):
    with serve(Halved(), fault_of=lambda body: answer("The answer is 4", model="else-2024-08-06")) as (url, _):
        asked = ServerEngine(url, "tiny")
        assert asked.identity["answered_by"] == "else-2024-08-06"
        asked.sample(prompts, 2, PARAMS)
    assert caplog.text.count("answers as the model else-2024-08-06, not as tiny (--served)") == 1
    with serve(Halved(), fault_of=lambda body: answer("The answer is 4", model="tiny")) as (url, _):
        assert "answered_by" not in ServerEngine(url, "tiny").identity


def test_a_name_that_the_server_does_not_list_is_told(caplog):
    with serve(Halved(), models="w") as (url, _):
        assert ServerEngine(url, "tiny").identity["served"]
        assert "does not list" not in caplog.text
        assert ServerEngine(url, "tini").identity["served"] is None
    assert caplog.text.count("does not list the model tini (--served) among its models: tiny") == 1


LONG = "The answer is 4, as 2 and 2 are 4."


@pytest.mark.parametrize(
    ("text", "n", "temperature", "told"),
    [(LONG, 4, 0.8, 1), (LONG, 3, 0.8, 0), (LONG, 1, 0.8, 0), (LONG, 4, 0.0, 0), ("#### 4", 4, 0.8, 0)],
)
def test_a_cache_that_answers_every_seed_alike_is_told_once(text, n, temperature, told, prompts, caplog):
    """Three units of four rollouts; not two of them, single rollouts, greedy ones, or answers too short to differ."""
    with serve(Halved(), fault_of=lambda body: answer(text)) as (url, _):
        asked = ServerEngine(url, "tiny", fingerprint="w")
        asked.sample(prompts, n, Sampling(temperature=temperature))
        assert caplog.text.count("in 3 units in a row all rollouts are the same text") == told


def test_units_that_differ_between_equal_ones_are_no_cache(prompts, caplog):
    equal = [True, True, False] * 3

    def of(body):
        same = equal[prompts.index(body["prompt"])]
        return answer(LONG if same else f"{LONG} {body['seed']}")

    with serve(Halved(), fault_of=of) as (url, _):
        asked = ServerEngine(url, "tiny", fingerprint="w", concurrency=1)
        asked.sample(prompts, 8, PARAMS)
    assert "one text each" not in caplog.text
