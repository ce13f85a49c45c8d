import contextlib
import json
import multiprocessing
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from retarget.cli import main
from retarget.errors import UserError
from retarget.pope.engines.local import TransformersEngine
from retarget.pope.evaluation import evaluate
from retarget.pope.grading import Grader
from retarget.pope.mining import graduates, kind_of, mine
from retarget.pope.problems import Problem
from retarget.pope.rollouts import Refused, Rollout, Sampling
from retarget.pope.search import search_prefixes
from retarget.pope.studies.chain import make_problems
from retarget.pope.studies.testbed import PROMPTS

PARAMS = Sampling(max_tokens=12, temperature=1.0, seed=1)
GRADER = "retarget.pope.studies.chain:verify"


@pytest.fixture
def common(tiny):
    return dict(
        engine=TransformersEngine(tiny.model, tiny.tokenizer, name="tiny"), grader=Grader(GRADER, workers=0),
        prompts=PROMPTS, params=PARAMS, chunk=8,
    )  # fmt: skip


def test_early_stopping_finds_the_same_hard_set_with_fewer_rollouts(tiny, common):
    problems = [*tiny.problems, *make_problems(4, 4, seed=8)]
    whole = mine(problems, k=32, stop_at_success=False, **common)
    early = mine(problems, k=32, **common)
    assert [one.kind for one in early.outcomes] == [one.kind for one in whole.outcomes]
    assert early.rollouts < whole.rollouts == 32 * 16
    assert early.tokens < whole.tokens
    assert 0 < whole.counts["solved"] < 16
    assert list(early) == early.hard == [one.problem for one in whole.outcomes if one.kind == "hard"]
    solved = next(one for one in whole.outcomes if one.kind == "solved")
    assert solved.rate == solved.correct / 32
    assert np.allclose(solved.interval(), proportion_confint(solved.correct, 32, method="wilson"))
    for one, other in zip(whole.outcomes, early.outcomes, strict=True):
        written, stopped = one.to_json(), other.to_json()
        assert written["rate"] == pytest.approx(one.correct / 32, abs=1e-6)
        # Stopped at a success: solved or not and with how many rollouts, but nothing that reads as a rate.
        assert other.rate is None
        assert not {"rate", "correct"} & stopped.keys()
        assert stopped["solved"] == (one.correct > 0)
        assert stopped["n"] == 32 or stopped["solved"]
        assert ("wilson" in stopped) == (not stopped["solved"])


def test_the_batch_does_not_change_what_is_found(tiny, common):
    assert mine(tiny.problems, k=16, batch=1, **common) == mine(tiny.problems, k=16, batch=5, **common)


def test_broken_labels_are_listed_and_never_sampled(tiny, common):
    wrong = tiny.problems[0].model_copy(update={"solution": tiny.problems[1].solution})
    found = mine([wrong, *tiny.problems[1:3]], k=8, **common)
    assert (found.outcomes[0].kind, found.outcomes[0].n) == ("broken", 0)
    assert wrong not in found.hard


def test_zero_of_k_is_split_by_its_reason(tiny, common):
    short = {**common, "params": PARAMS.model_copy(update={"max_tokens": 2})}
    assert mine(tiny.problems, k=8, **short).counts["truncated"] == 12
    assert kind_of(64, 0, 10, 30, Counter({"3": 5})) == "unparsed"
    assert kind_of(64, 0, 0, 0, Counter({"3": 33, "4": 31})) == "suspect"
    assert kind_of(64, 0, 0, 0, Counter({"3": 32, "4": 32})) == "hard"
    assert kind_of(64, 1, 60, 0, Counter()) == "solved"
    assert kind_of(1, 0, 0, 0, Counter({"3": 1})) == "hard"  # one answer agrees with none
    assert kind_of(2, 0, 0, 0, Counter({"3": 2})) == "suspect"
    assert kind_of(3, 0, 1, 1, Counter({"3": 1})) == "unparsed"


def test_a_later_model_graduates_problems(tiny, common):
    before = mine(tiny.problems, k=8, **common)
    now = mine(before.hard, k=64, **{**common, "params": PARAMS.model_copy(update={"seed": 9})})
    gone = graduates(before, now)
    assert gone
    assert {p.id for p in gone} == {o.problem.id for o in now.outcomes if o.correct}


def test_bad_arguments_are_refused(tiny, common):
    with pytest.raises(UserError, match="k, chunk and batch must be at least 1, not 0, 8 and 16"):
        mine(tiny.problems, k=0, **common)
    with pytest.raises(UserError, match="same id"):
        mine([tiny.problems[0]] * 2, k=8, **common)
    no_solution = tiny.problems[0].model_copy(update={"solution": ""})
    with pytest.raises(UserError, match="no solution to cut"):
        search_prefixes([no_solution], k=8, **common)


@pytest.fixture
def longer():
    return make_problems(6, 4, seed=8)


def test_the_shortest_cut_with_a_success_is_found(tiny, common, longer):
    sizes = dict(cuts=3, k=16, cap=0.75, unit="token")
    found = search_prefixes(longer, **sizes, **common)
    assert len(found.found) == 6
    for problem, one in zip(longer, found.found, strict=True):
        ends = [end for end, _, _ in one.tried]
        assert ends == sorted(ends)
        assert all(correct == 0 and n == 16 for _, n, correct in one.tried[:-1])
        assert one.rollouts == sum(n for _, n, _ in one.tried)
        assert problem.solution.startswith(found[problem.id])
        last = one.tried[-1]
        if one.status == "found":
            assert last[2] > 0
            assert len(found[problem.id]) == last[0] == one.cut.end
        else:
            assert (one.status, last[2]) == ("fallback", 0)
    assert {one.status for one in found.found} == {"found", "fallback"}
    assert found.rollouts == sum(one.rollouts for one in found.found)
    strict = search_prefixes(longer, **sizes, fallback="none", **common)
    assert set(strict) == {one.problem for one in found.found if one.status == "found"}
    json.dumps([one.to_json() for one in found.found])


def test_cuts_that_state_the_answer_are_refused_and_counted(tiny, common, longer):
    found = search_prefixes(longer, cuts=10, k=8, cap=0.99, unit="token", **common)
    for problem, one in zip(longer, found.found, strict=True):
        assert one.leaks >= 1
        assert one.cut.end <= problem.solution.index("\n")


def work(tiny, problems, folder: Path, report) -> None:
    """Mining and then search, in a process that may be killed; each round writes a byte to ``report``."""
    common = dict(
        engine=TransformersEngine(tiny.model, tiny.tokenizer, name="tiny"), grader=Grader(GRADER, workers=0),
        prompts=PROMPTS, params=PARAMS, chunk=4, batch=2, progress=lambda *_: report.send(1),
    )  # fmt: skip
    hard = mine(problems, k=16, journal=folder / "mine.jsonl", **common)
    search_prefixes(hard, cuts=3, k=16, cap=0.75, unit="token", journal=folder / "search.jsonl", **common)


def interrupted(tiny, problems, folder: Path, kills: int, random: np.random.Generator) -> None:
    """Run the work, killing its process after a random number of rounds, ``kills`` times."""
    fork = multiprocessing.get_context("fork")
    for attempt in range(kills + 1):
        reader, writer = fork.Pipe(duplex=False)
        process = fork.Process(target=work, args=(tiny, problems, folder, writer))
        process.start()
        writer.close()
        for _ in range(int(random.integers(1, 6)) if attempt < kills else 0):
            with contextlib.suppress(EOFError):
                reader.recv()
        if attempt < kills:
            process.kill()
        process.join()
        reader.close()
        assert process.exitcode in (0, -signal.SIGKILL)


def check_kills(tiny, tmp_path, kills):
    problems = [*tiny.problems, *make_problems(4, 4, seed=8)]
    interrupted(tiny, problems, tmp_path / "whole", 0, np.random.default_rng(0))
    interrupted(tiny, problems, tmp_path / "killed", kills, np.random.default_rng(kills))
    for name in ("mine.jsonl", "search.jsonl"):
        expected = (tmp_path / "whole" / name).read_bytes()
        assert expected.count(b"\n") > 5
        assert (tmp_path / "killed" / name).read_bytes() == expected


def test_killed_mining_and_search_leave_the_same_journals(tiny, tmp_path):
    check_kills(tiny, tmp_path, kills=3)


@pytest.mark.slow
def test_killed_twenty_times(tiny, tmp_path):
    check_kills(tiny, tmp_path, kills=20)


class Saying:
    """Answers in turn what it is given."""

    name, identity = "saying", {}

    def __init__(self, *answers):
        self.answers = answers

    def sample(self, prompts, n, params):
        return [
            [Rollout(f"\\boxed{{{self.answers[at % len(self.answers)]}}}", 2, False) for at in range(n)]
            for _ in prompts
        ]


HALVES = ("\\frac{1}{2}", "\\dfrac{1}{2}", "\\frac12", "0.5", "1/2")
ANGLES = ("120", "120^\\circ", "120\\text{ degrees}")


@pytest.mark.parametrize(
    ("spec", "label", "said", "kind"),
    [
        ("math", "1/3", HALVES, "suspect"),
        ("boxed", "1/3", HALVES, "suspect"),
        ("numeric", "1/3", HALVES, "suspect"),
        ("exact", "1/3", HALVES, "hard"),
        ("math", "121", ANGLES, "suspect"),
        ("math", "121", ("5", "7", *ANGLES[:2]), "hard"),
        ("math", "1/3", ("1/2", "5\\foo{", "((", "0.5", "\\frac12"), "suspect"),
        ("math", "1/3", tuple(map(str, range(40))), "hard"),
    ],
)
def test_answers_that_are_written_otherwise_agree_against_the_label(spec, label, said, kind):
    problems = [Problem(id="p", prompt="?", solution="Do it.", answer=label)]
    with Grader(spec) as grader:
        (found,) = mine(problems, Saying(*said), k=40, grader=grader, chunk=20).outcomes
        assert (found.kind, grader.failures) == (kind, "")
        assert set(found.answers) <= set(said)


class Refusing:
    """Answers each prompt's first unit rightly, and refuses every further one."""

    name, identity = "refusing", {}

    def __init__(self):
        self.asked = Counter()

    def sample(self, prompts, n, params):
        self.asked.update(map(str, prompts))
        if max(self.asked.values()) > 1:
            raise Refused("too long")
        return [[Rollout("#### 4", 2, False)] * n for _ in prompts]


def test_what_was_sampled_before_a_refusal_counts():
    problems = [Problem(id="p", prompt="2 + 2?", solution="s", answer="4")]
    asking = dict(grader=Grader("exact"), chunk=4)
    (found,) = mine(problems, Refusing(), k=8, stop_at_success=False, **asking).outcomes
    assert (found.kind, found.n, found.correct, found.rate, found.reason) == ("solved", 4, 4, 1.0, "too long")
    with pytest.raises(UserError, match="the engine refused every problem before its 8 rollouts; the first: too long"):
        evaluate(problems, Refusing(), 8, **asking)


def test_nothing_to_sample_is_no_error(tiny, tmp_path, capsys):
    """Every label is broken: all are listed, and none is sampled."""
    row = {"id": "p", "prompt": "?", "solution": "It is five", "answer": "five"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    common = ["pope", "mine", str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "w"), "--grader", "numeric",
              "--model", str(tiny.directory), "--no-chat"]  # fmt: skip
    assert main(common) == 0
    assert "1 problems: broken 1" in capsys.readouterr().out
    assert main([*common, "--limit", "-1"]) == 2
    assert "--limit must be at least 1" in capsys.readouterr().err
