"""How units of work are done: recorded units are kept, missing ones are sampled, refusals are reported."""

import asyncio
import json
import os
import signal
import threading
from collections import Counter
from contextlib import asynccontextmanager, contextmanager, nullcontext

import numpy as np
import pytest
from test_journal import former_journal

from retarget.errors import UserError
from retarget.identity import fingerprint
from retarget.pope.engines.server import ServerEngine
from retarget.pope.evaluation import evaluate
from retarget.pope.graders import RULES
from retarget.pope.grading import Grader
from retarget.pope.mining import mine
from retarget.pope.oracle import ask_oracle
from retarget.pope.problems import Problem, parse_row
from retarget.pope.prompts import Prompts
from retarget.pope.rollouts import Refused, Rollout, Sampling, StreamingEngine, run_async
from retarget.pope.sampler import Sampler
from retarget.pope.search import search_prefixes

PROMPTS = Prompts("{problem}", "{problem} + {prefix}", chat=False)


class Guesser:
    """An engine that is right with a rate of its own, decided by the seed of each unit; it counts what it is asked."""

    name = "guesser"

    def __init__(self, rate=0.2, refuses=()):
        self.rate, self.refuses, self.asked, self.calls = rate, refuses, Counter(), []

    def one(self, prompt, n, params):
        if any(word in prompt for word in self.refuses):
            raise Refused(f"HTTP 400: {prompt!r} is too long")
        self.asked[prompt] += n
        right = np.random.default_rng(params.unit_seed(prompt)).random(n) < self.rate
        return [Rollout(f"#### {4 if one else 5}", 2, False) for one in right]

    def sample(self, prompts, n, params):
        self.calls.append(len(prompts))
        return [self.one(prompt, n, params) for prompt in prompts]

    @property
    def rollouts(self):
        return sum(self.asked.values())


class Streaming(Guesser):
    """The same, prompt by prompt; a prompt with the word ``slow`` is answered after every other one."""

    def __init__(self, *args, others=0, **kwargs):
        super().__init__(*args, **kwargs)
        self.others, self.answered, self.peak, self.open = others, 0, 0, 0

    def window(self, n):
        return 3

    @asynccontextmanager
    async def session(self):
        turn = asyncio.Condition()

        async def ask(prompt, n, params):
            self.open += 1
            self.peak = max(self.peak, self.open)
            async with turn:
                if "slow" in prompt:
                    await turn.wait_for(lambda: self.answered >= self.others)
                self.answered += 1
                turn.notify_all()
            self.open -= 1
            return self.one(prompt, n, params)

        yield ask


def problems(count, first=0):
    return [
        Problem(id=f"p{at}", prompt=f"question {at}.", solution=f"One {at}. Two. Three. Four. Five. So 4.", answer="4")
        for at in range(first, first + count)
    ]


def sampler(engine, **changes):
    return Sampler(engine, Grader("exact"), PROMPTS, Sampling(seed=3), **{"chunk": 4, "batch": 3, **changes})


def test_a_larger_k_and_more_problems_keep_what_is_there(tmp_path):
    few, many, fresh = Guesser(0.02), Guesser(0.02), Guesser(0.02)
    mine(problems(5), sampler(few), 8, journal=tmp_path / "j.jsonl")
    extended = mine(problems(9), sampler(many), 16, journal=tmp_path / "j.jsonl")
    whole = mine(problems(9), sampler(fresh), 16, journal=tmp_path / "fresh.jsonl")
    assert extended == whole
    assert many.rollouts == fresh.rollouts - few.rollouts > 0
    assert (tmp_path / "j.jsonl").read_bytes() == (tmp_path / "fresh.jsonl").read_bytes()
    less = Guesser(0.02)
    assert mine(problems(5), sampler(less), 8, journal=tmp_path / "j.jsonl").outcomes == (
        mine(problems(5), sampler(Guesser(0.02)), 8).outcomes
    )
    assert less.rollouts == 0


def test_rates_go_on_where_sampling_stopped_at_a_success(tmp_path):
    mine(problems(6), sampler(Guesser()), 16, journal=tmp_path / "j.jsonl")
    engine = Guesser()
    rates = mine(problems(6), sampler(engine), 16, stop_at_success=False, journal=tmp_path / "j.jsonl")
    assert [one.n for one in rates.outcomes] == [16] * 6
    assert 0 < engine.rollouts < 96
    assert rates == mine(problems(6), sampler(Guesser()), 16, stop_at_success=False)


def test_k_need_not_be_a_multiple_of_the_chunk(tmp_path):
    engine = Guesser(0.0)
    mine(problems(2), sampler(engine), 6, journal=tmp_path / "j.jsonl")
    assert set(engine.asked.values()) == {6}
    mine(problems(2), sampler(engine), 14, journal=tmp_path / "j.jsonl")
    assert set(engine.asked.values()) == {14}
    assert evaluate(problems(2), sampler(Guesser(1.0), chunk=16), 8).correct.tolist() == [8, 8]
    with pytest.raises(UserError, match="has 4 rollouts, but only 2 more are asked for"):
        mine(problems(2), sampler(engine), 2, journal=tmp_path / "j.jsonl")


def test_a_search_takes_more_cuts_and_evaluation_more_samples(tmp_path):
    few, many = Guesser(0.05), Guesser(0.05)
    search_prefixes(problems(4), sampler(few), 2, 8, cap=0.8, journal=tmp_path / "s.jsonl")
    wide = search_prefixes(problems(4), sampler(many), 2, 16, cap=0.8, journal=tmp_path / "s.jsonl")
    assert wide.found == search_prefixes(problems(4), sampler(Guesser(0.05)), 2, 16, cap=0.8).found
    assert many.rollouts < wide.rollouts
    evaluate(problems(2), sampler(few), 8, journal=tmp_path / "e.jsonl")
    more = evaluate(problems(3), sampler(Guesser(0.05)), 16, journal=tmp_path / "e.jsonl")
    assert more.sampled == 2 + 2 + 4
    assert evaluate(problems(3), sampler(Guesser(0.05)), 16, journal=tmp_path / "e.jsonl").sampled == 0


def test_a_problem_that_has_changed_is_refused_by_name(tmp_path):
    mine(problems(3), sampler(Guesser()), 4, journal=tmp_path / "j.jsonl")
    for change in ({"prompt": "another question"}, {"answer": "7"}, {"meta": {"level": 5}}):
        other = [problems(3)[0], problems(3)[1].model_copy(update=change)]
        with pytest.raises(UserError, match="problem 'p1', unit 0 was sampled for another prompt, answer or meta"):
            mine(other, sampler(Guesser()), 4, journal=tmp_path / "j.jsonl", check="none")


@pytest.mark.parametrize("kind", [Guesser, Streaming])
def test_a_refused_prompt_fails_its_own_problem_and_is_asked_again_next_time(tmp_path, kind):
    engine = kind(0.0, refuses=["question 4."])
    found = mine(problems(7), sampler(engine), 8, journal=tmp_path / "j.jsonl")
    assert found.counts["failed"] == 1
    assert found.outcomes[4].to_json()["reason"] == "HTTP 400: 'question 4.' is too long"
    assert [one.n for one in found.outcomes] == [8, 8, 8, 8, 0, 8, 8]
    again = kind(0.0)
    assert mine(problems(7), sampler(again), 8, journal=tmp_path / "j.jsonl").counts["failed"] == 0
    assert again.asked == {"question 4.": 8}
    judged = evaluate(problems(7), sampler(engine), 4)
    assert (len(judged.problems), list(judged.failed)) == (6, ["p4"])
    found = search_prefixes(problems(7), sampler(engine), 2, 4, cap=0.8).found
    assert [one.status for one in found] == ["fallback"] * 4 + ["failed"] + ["fallback"] * 2
    bare = [one.model_copy(update={"solution": ""}) for one in problems(7)]
    solved, left = ask_oracle(bare, sampler(kind(1.0, refuses=["question 4."])), 2)
    assert (len(solved), [one.id for one in left]) == (6, ["p4"])


def test_more_attempts_are_asked_for_what_is_still_without_a_solution(tmp_path):
    bare, path = [one.model_copy(update={"solution": ""}) for one in problems(3)], tmp_path / "oracle.jsonl"
    assert len(ask_oracle(bare, sampler(Guesser(0.0)), 2, journal=path)[1]) == 3
    again = Guesser(1.0)
    solved, left = ask_oracle(bare, sampler(again), 6, journal=path)
    assert (len(solved), left, set(again.asked.values())) == (3, [], {4})
    assert ask_oracle(bare, sampler(Guesser(0.0)), 6, journal=path)[0] == solved


@pytest.mark.parametrize("kind", [Guesser, Streaming])
def test_a_request_that_is_wrong_for_every_problem_stops_the_work(kind):
    for count in (2, 40):
        with pytest.raises(UserError, match="that it was given; the first, 'p0': HTTP 400"):
            mine(problems(count), sampler(kind(refuses=["question"])), 8)


def test_a_straggler_holds_nothing_up_and_the_journal_is_the_same(tmp_path):
    some = problems(8)
    some[2] = some[2].model_copy(update={"prompt": "slow question"})
    engine = Streaming(0.0, others=7 * 4)
    assert isinstance(engine, StreamingEngine)
    found = mine(some, sampler(engine), 16, journal=tmp_path / "stream.jsonl")
    assert engine.peak <= 3
    assert found == mine(some, sampler(Guesser(0.0)), 16, journal=tmp_path / "batches.jsonl")
    assert (tmp_path / "stream.jsonl").read_bytes() == (tmp_path / "batches.jsonl").read_bytes()


class Dying(Streaming):
    """A server that stops answering."""

    def one(self, prompt, n, params):
        if self.rollouts >= 20:
            raise UserError("the server has gone")
        return super().one(prompt, n, params)


def test_what_was_finished_before_a_failure_is_journalled(tmp_path):
    engine = Dying(0.0)
    with pytest.raises(UserError, match="has gone"):
        mine(problems(8), sampler(engine), 8, journal=tmp_path / "j.jsonl")
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 1 + 5
    rest = Streaming(0.0)
    mine(problems(8), sampler(rest), 8, journal=tmp_path / "j.jsonl")
    assert rest.rollouts == 64 - 20


def test_engines_that_answer_prompt_by_prompt_work_where_a_loop_runs_as_in_a_notebook(tmp_path):
    async def cell(engine):
        return mine(*work(engine))

    def work(engine):
        return problems(3), sampler(engine), 8

    assert asyncio.run(cell(Streaming())) == mine(*work(Streaming()))
    with pytest.raises(UserError, match="has gone"):
        asyncio.run(cell(Dying(0.0)))
    with pytest.raises(UserError, match="failed: ConnectError"):
        asyncio.run(cell(ServerEngine("http://127.0.0.1:9/v1", "none", retries=0)))


@contextmanager
def one_processor():
    """This thread, and those that it starts, on one processor."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize("processors", ["all", "one"])
def test_an_interrupt_of_a_cell_ends_its_work(processors):
    """With one processor the signal often comes between the decision to wait and the wait, which it does not end."""
    ended = []
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    async def work():
        try:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def cell():
        run_async(work())

    loop = asyncio.new_event_loop()  # asyncio.run would handle the signal itself; a notebook's kernel does not
    rounds = 1 if processors == "all" else 10
    try:
        with one_processor() if processors == "one" else nullcontext():
            for _ in range(rounds):
                with pytest.raises(KeyboardInterrupt):
                    loop.run_until_complete(cell())
    finally:
        signal.signal(signal.SIGINT, former)
        loop.close()
    assert len(ended) == rounds


def test_journals_of_earlier_versions_go_on_under_their_old_ids(tmp_path, monkeypatch):
    monkeypatch.delitem(RULES, "exact")  # as long as its grader's rules are the same
    rows = [{"question": f"question {at}.", "answer": "Four.\n#### 4"} for at in range(2)]
    now = [parse_row(row, line) for line, row in enumerate(rows, 1)]
    assert [one.former for one in now] == ["gsm8k-1", "gsm8k-2"]
    assert len({one.id for one in now} | {one.former for one in now}) == 4
    header = {
        "verb": "mine", "model": "guesser", "k": 4, "chunk": 4, "stop_at_success": True, "grader": "exact",
        "sampling": Sampling(seed=3, purpose="mine").model_dump(mode="json"),
        "problems": fingerprint([[one.former, one.answer, one.prompt, one.meta] for one in now]),
    }  # fmt: skip
    record = {"chunk": 0, "n": 4, "correct": 0, "truncated": 0, "unparsed": 0, "failed": 0, "tokens": 8, "thinking": 0,
              "answers": {"5": 4}, "example": "#### 5"}  # fmt: skip
    former_journal(tmp_path / "j.jsonl", header, [{"problem": "gsm8k-1", **record}])
    engine = Guesser(0.0)
    found = mine(now, sampler(engine), 8, journal=tmp_path / "j.jsonl")
    assert engine.asked == {"question 0.": 4, "question 1.": 8}
    assert [one.n for one in found.outcomes] == [8, 8]
    with pytest.raises(UserError, match="was made with problems = "):
        mine(now[:1], sampler(engine), 8, journal=tmp_path / "j.jsonl")
    lines = (tmp_path / "j.jsonl").read_text().splitlines()
    damaged = json.loads(lines[1]) | {"n": -4}
    (tmp_path / "j.jsonl").write_text("\n".join([lines[0], json.dumps(damaged)]) + "\n")
    with pytest.raises(UserError, match=r"line 2 is damaged \(fields: n\)"):
        mine(now, sampler(engine), 8, journal=tmp_path / "j.jsonl")
