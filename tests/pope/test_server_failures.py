"""Failures of a server, told from those of one prompt, with what to do; and what is sent to whom."""

import json
from pathlib import Path

import pytest
from pope_serving import serve

from retarget.errors import UserError
from retarget.pope.engines import open_engine
from retarget.pope.engines.requests import pause
from retarget.pope.engines.server import ServerEngine
from retarget.pope.grading import Grader
from retarget.pope.mining import mine
from retarget.pope.problems import Problem
from retarget.pope.prompts import Prompts
from retarget.pope.rollouts import Refused, Rollout, Sampling
from retarget.pope.sampler import Sampler

PARAMS = Sampling(max_tokens=8, temperature=1.0, seed=5)
PROMPTS = Prompts("{problem}", "{problem} + {prefix}", chat=False)
CERTIFICATE = Path(__file__).parent.parent / "fixtures" / "self_signed.pem"


class Stub:
    """An engine whose answers depend only on the seed."""

    def sample(self, prompts, n, params):
        return [[Rollout(f"#### {params.seed}", 2, False)] * n for _ in prompts]


def problems(count):
    return [Problem(id=f"p{at}", prompt=f"q{at}", answer="4") for at in range(count)]


def mined(engine, count=12, **more):
    return mine(problems(count), Sampler(engine, Grader("exact"), PROMPTS, PARAMS, chunk=4), 4, **more)


def test_a_refused_prompt_is_told_from_a_server_that_fails(engine, prompts):
    with serve(engine, faults=[400]) as (url, _), pytest.raises(Refused, match=r"refused the prompt: .*HTTP 400"):
        ServerEngine(url, "tiny").sample(prompts[:1], 1, PARAMS)
    with serve(engine, faults=[403]) as (url, _), pytest.raises(UserError, match="HTTP 403") as caught:
        ServerEngine(url, "tiny").sample(prompts[:1], 1, PARAMS)
    assert not isinstance(caught.value, Refused)


@pytest.mark.parametrize("fault", [500, "drop", {"choices": []}])
@pytest.mark.parametrize("many", [1, 2])
def test_a_prompt_that_no_server_completes_fails_alone(many, fault):
    def of(body):
        return fault if body["prompt"] == "q3" else None

    with serve(Stub(), fault_of=of) as (one, seen), serve(Stub(), fault_of=of) as (two, _):
        url = one if many == 1 else f"{one},{two}"
        options = dict(wait=0.0, retries=2, fingerprint="w", concurrency=1, per_request=4)
        found = mined(open_engine(url, model="tiny", **options))
    failed = [one for one in found.outcomes if one.kind == "failed"]
    assert [one.problem.id for one in failed] == ["p3"]
    assert "failed on this prompt 4 times, and answers another: " in failed[0].reason
    if many == 1:
        assert sum(body["prompt"] == "q3" for body in seen["bodies"]) == 4


def test_a_server_that_is_back_is_asked_once_more():
    """It fails in all attempts, then answers a short prompt: the prompt is not to blame."""
    with serve(Stub(), faults=[500] * 3) as (url, seen):
        asked = ServerEngine(url, "tiny", wait=0.0, retries=2, fingerprint="w")
        assert asked.sample(["q"], 1, PARAMS)
    assert [body["prompt"] == "q" for body in seen["bodies"]] == [True, True, True, False, True]


@pytest.mark.parametrize("status", [429, 500])
def test_a_limit_of_requests_and_a_server_that_answers_nothing_are_no_fault_of_a_prompt(status):
    def of(body):
        return status if status == 500 or body["prompt"] == "q" else None

    with (
        serve(Stub(), fault_of=of) as (url, _),
        pytest.raises(UserError, match=f"HTTP {status}.* are in the journal: .*run the same command") as caught,
    ):
        ServerEngine(url, "tiny", wait=0.0, retries=2, fingerprint="w").sample(["q"], 1, PARAMS)
    assert not isinstance(caught.value, Refused)
    assert ("lower --concurrency" in str(caught.value)) == (status == 429)


@pytest.mark.parametrize(("statuses", "told"), [((503, 404), "HTTP 503"), ((404, 404), None), ((503, None), None)])
def test_a_probe_that_fails_is_not_taken_for_a_server_without_the_route(statuses, told):
    def of(body):
        return statuses["prompt" in body]

    with serve(Stub(), fault_of=of) as (url, _):
        asked = ServerEngine(url, "tiny", wait=0.0, retries=1)
        if told is None:
            assert (asked.identity["probe"] is None) == (statuses == (404, 404))
        else:
            with pytest.raises(UserError, match=f"chat/completions failed: {told}.*run the same command"):
                print(asked.identity)


PAID_OUT = {"error": {"code": "billing_hard_limit_reached"}}


@pytest.mark.parametrize(("status", "options"), [(400, {"fingerprint": "w"}), (429, {"fingerprint": "w"}), (400, {})])
def test_an_account_that_ends_in_the_middle_ends_the_run(status, options, tmp_path):
    """The problems are not refused: the next call goes on with them."""
    with serve(Stub(), faults=[None] * 9, fault_of=lambda body: (status, PAID_OUT)) as (url, _):
        asked = ServerEngine(url, "tiny", wait=1e9, concurrency=1, per_request=4, **options)
        with pytest.raises(
            UserError, match=f"HTTP {status}: .*billing.*: settle the account, and run the same"
        ) as told:
            mined(asked, journal=tmp_path / "mine.jsonl")
    assert not isinstance(told.value, Refused)
    assert len((tmp_path / "mine.jsonl").read_text().splitlines()) == 1 + (9 if options else 7)
    if not options:
        with (
            serve(Stub(), fault_of=lambda body: (status, PAID_OUT)) as (url, _),
            pytest.raises(UserError, match="settle the account"),
        ):
            mined(ServerEngine(url, "tiny"), journal=tmp_path / "mine.jsonl")


@pytest.mark.parametrize(("fingerprint", "refusals"), [(None, 1), ("w", 8)])
def test_refusals_of_everything_end_the_run(fingerprint, refusals, tmp_path):
    """A short prompt that was answered at the start and is not any more tells it at once; else eight in a row do."""
    with serve(Stub(), faults=[None] * 4, fault_of=lambda body: (400, "no more today")) as (url, seen):
        asked = ServerEngine(url, "tiny", concurrency=1, per_request=4, fingerprint=fingerprint)
        with pytest.raises(UserError, match=r"HTTP 400: .*no more today.*run the same command") as told:
            mined(asked, 20, journal=tmp_path / "mine.jsonl")
    assert not isinstance(told.value, Refused)
    assert len(seen["bodies"]) == 4 + 2 * refusals
    assert (tmp_path / "mine.jsonl").is_file()


def test_many_prompts_that_are_too_long_are_refused_one_by_one():
    def of(body):
        return 400 if body["prompt"][1:].isdecimal() and int(body["prompt"][1:]) > 2 else None

    with serve(Stub(), fault_of=of) as (url, _):
        found = mined(ServerEngine(url, "tiny", concurrency=1, fingerprint="w"), 20)
    assert sum(one.kind == "failed" for one in found.outcomes) == 17


def test_a_wait_is_never_shorter_than_the_attempts_ask_for():
    for after, least in (
        ("0", 8.0),
        ("0.0", 8.0),
        ("", 8.0),
        ("20", 20.0),
        ("9999", 600.0),
        ("soon", 8.0),
        ("\u00b2", 8),
    ):
        waits = {pause(8.0, after, f"request {number}") for number in range(20)}
        assert least <= min(waits) < max(waits) <= 1.25 * least
        assert pause(8.0, after, "request 3") in waits


def test_a_certificate_that_is_not_trusted_is_told_at_once(prompts, monkeypatch, caplog):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with serve(Stub(), certificate=CERTIFICATE) as (url, _):
        asked = ServerEngine(url, "tiny", wait=1e9, fingerprint="w")
        told = (
            "CERTIFICATE_VERIFY_FAILED.*: set SSL_CERT_FILE to a file with the certificate of its authority, or its own"
        )
        with pytest.raises(UserError, match=told):
            asked.sample(prompts[:1], 1, PARAMS)
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        assert asked.sample(prompts[:1], 1, PARAMS)
    assert "retry" not in caplog.text


def test_a_server_that_leads_elsewhere_is_told_with_the_place(prompts):
    told = "HTTP 307 to http://elsewhere.example/v1: .*: give the address that it leads to, and run the same command"
    with serve(Stub(), faults=[307]) as (url, _), pytest.raises(UserError, match=told):
        ServerEngine(url, "tiny", fingerprint="w").sample(prompts[:1], 1, PARAMS)


def test_the_query_of_an_address_stays_at_its_end(prompts):
    with serve(Stub()) as (url, seen):
        asked = ServerEngine(f"{url}/?api-version=2024", "tiny", fingerprint="w")
        asked.sample([prompts[0], [{"role": "user", "content": "?"}]], 1, PARAMS)
    assert sorted(seen["paths"]) == ["/v1/chat/completions?api-version=2024", "/v1/completions?api-version=2024"]


def test_no_proxy_is_asked_for_this_machine(prompts, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve(Stub()) as (url, seen), serve(Stub()) as (proxy, caught):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.removesuffix("/v1"))
        assert ServerEngine(url, "tiny").identity["probe"]
        assert ServerEngine(url, "tiny").sample(prompts[:1], 1, PARAMS)
        assert caught["keys"] == []
        assert set(seen["keys"]) == {"Bearer secret"}
        elsewhere = ServerEngine("http://elsewhere.example/v1", "tiny", key_variable="none", retries=0)
        assert elsewhere.sample(prompts[:1], 1, PARAMS)  # another machine is asked through it, without a key
        assert caught["keys"] == [None]


def header_of(path):
    return json.loads(path.read_text().splitlines()[0])


def varying(*texts):
    """Answers a probe with the texts, in turn, and everything else as :class:`Stub` does."""
    left = list(texts)

    def of(body):
        if body["temperature"]:
            return None
        return {"choices": [{"text": left.pop(0), "message": None, "finish_reason": "stop"}], "usage": {}}

    return of


def test_a_greedy_completion_that_varies_identifies_nothing(tmp_path, caplog):
    path = tmp_path / "mine.jsonl"

    def work(*texts, **options):
        with serve(Stub(), fault_of=varying(*texts)) as (url, _):
            return mined(ServerEngine(url, "tiny", **options), 2, journal=path).sampled

    assert work("a", "b") == 2
    assert header_of(path)["probe"] == "varies"
    assert "--fingerprint can" in caplog.text
    assert work("c", "d") == work("e", "e") == 0  # equal by chance
    path.unlink()
    assert work("a", "a") == 2
    assert work("b", "c") == 0
    told = r"was made with probe = \w+ \(now \w+\).*started with, or --fingerprint if the weights are the same"
    with pytest.raises(UserError, match=told):
        work("b", "b")
    assert work(fingerprint="step 10") == 0
    assert header_of(path)["probe"] != "varies", "the header is that of the start"


def test_servers_whose_completions_vary_are_of_the_same_model():
    with serve(Stub(), fault_of=varying("a", "a")) as (one, _), serve(Stub(), fault_of=varying("b", "c")) as (two, _):
        assert open_engine(f"{one},{two}", model="tiny").identity["probe"] == "varies"
