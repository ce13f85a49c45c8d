"""A server that fails on some prompts: the commands say that it failed, and not that it refused them."""

import re

import pytest
from pope_serving import serve

from retarget.errors import UserError
from retarget.pope.commands import pope
from retarget.pope.engines.server import ServerEngine
from retarget.pope.evaluation import evaluate
from retarget.pope.grading import Grader
from retarget.pope.problems import Problem, write_problems
from retarget.pope.rollouts import Failed, Refused, Rollout, Sampling
from retarget.pope.sampler import Sampler

FAILED = "http://[^ ]+ failed on this prompt 3 times, and answers another: HTTP 500: "
AGAIN = "The same command again samples what is missing."


class Stub:
    def sample(self, prompts, n, params):
        return [[Rollout("#### 7", 2, False)] * n for _ in prompts]


def problems(count=3):
    return [Problem(id=f"p{at}", prompt=f"q{at}", solution="First. Second. Third.\n#### 4", answer="4")
            for at in range(count)]  # fmt: skip


@pytest.mark.parametrize("verb", ["mine", "search", "evaluate"])
def test_a_server_that_fails_is_not_taken_for_one_that_refuses(verb, tmp_path, capsys):
    down, asked = {"q1": 500, "q2": 400}, []

    def of(body):
        asked.append(str(body))
        return next((status for name, status in down.items() if name in str(body)), None)

    write_problems(tmp_path / "problems.jsonl", problems())
    with serve(Stub(), fault_of=of) as (url, _):
        words = [
            verb, str(tmp_path / "problems.jsonl"), "--out", str(tmp_path / "out"), "--model", url, "--served", "tiny",
            "--fingerprint", "w", "--retries", "1", "--chunk", "2", "--max-tokens", "8", "--grader", "exact",
            "--temperature", "1.0", *(["--samples", "2"] if verb == "evaluate" else ["--k", "2"]),
            *(["--cap", "0.5", "--cuts", "2"] if verb == "search" else []),
        ]  # fmt: skip
        assert pope(words) == 0
        said = "".join(capsys.readouterr())
        down.clear()
        asked.clear()
        assert pope(words) == 0
    if verb == "evaluate":
        assert re.search(f"p1 has no rollouts, and is left out of all figures: {FAILED}", said)
        assert re.search("p2 has no rollouts, .* refused the prompt: HTTP 400", said)
        assert f"\n{AGAIN}\n" in said
    else:
        file = {"mine": "outcomes.jsonl", "search": "prefixes.jsonl"}[verb]
        assert f"failed (the engine refused the prompt; {file} has the reason): p2\n" in said
        told = rf"failed \(the engine failed on the prompt in all attempts\): p1\n  {FAILED}.*\n  {file} has the "
        assert re.search(rf"{told}reasons\. {AGAIN}\n", said)
    assert "failed" not in "".join(capsys.readouterr())
    assert asked
    assert not [body for body in asked if "q0" in body], "what was sampled is in the journal"


def test_the_two_failures_of_a_prompt_are_told_apart():
    for status, kind in ((500, Failed), (400, Refused)):
        with serve(Stub(), fault_of=lambda body, status=status: status if body["prompt"] == "q" else None) as (url, _):
            asked = ServerEngine(url, "tiny", wait=0.0, retries=1, fingerprint="w")
            with pytest.raises(Refused) as caught:
                asked.sample(["q"], 1, Sampling(max_tokens=8))
        assert type(caught.value) is kind


@pytest.mark.parametrize(("kind", "how"), [(Failed, "failed on"), (Refused, "refused")])
def test_an_engine_that_gives_nothing_is_said_to_have_failed_or_refused(kind, how):
    class Broken:
        name = "broken"

        def sample(self, prompts, n, params):
            raise kind("no")

    with pytest.raises(UserError, match=f"the engine {how} all 3 problems that it was given; the first, 'p0': no"):
        evaluate(problems(), Sampler(Broken(), Grader("exact")), 2)
