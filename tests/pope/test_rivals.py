import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from retarget.errors import UserError
from retarget.files import read_json
from retarget.identity import fingerprint
from retarget.metrics import aurc, expected_calibration_error
from retarget.pope.curricula import Group
from retarget.pope.evaluation import Evaluation
from retarget.pope.studies.budget import Costs, Spent, cycles_of
from retarget.pope.studies.chain import (
    Corpus,
    make_problems,
    right_steps,
    solution_lines,
    traces,
    verify,
    verify_continued,
    verify_restated,
    verify_with_reference,
    visited,
)  # fmt: skip
from retarget.pope.studies.measures import majority_calibration, rank_correlation, state_overlap, transfer_rates
from retarget.pope.studies.questions import QUESTIONS
from retarget.pope.studies.recipes import uses_oracle
from retarget.pope.studies.rivals_analysis import Against, against_rivals, best_rival, rivals_table
from retarget.pope.studies.rivals_plan import RivalSettings
from retarget.pope.studies.testbed import BaseModel, train_base
from retarget.pope.study import plan
from retarget.report import build
from retarget.study.claims import judge
from retarget.study.identity import same_run
from retarget.study.record import Results
from retarget.study.runner import run_study

TINY = dict(
    base_steps=60, hard_problems=4, held_problems=4, cycles=2, prompts_per_batch=4, rollouts=4, micro_batch=8,
    rl_seeds=1, samples=16, mine_k=16, search_k=16, save_every=1, probes=1, probe_problems=2, probe_samples=4,
    warm_steps=3, warm_rollouts=4,
)  # fmt: skip
numbers = st.integers(0, 10**6)


def test_the_plans_of_all_questions():
    for name, question in QUESTIONS.items():
        for preset in ("demo", "small"):
            resolved = plan(preset, {"question": name})
            assert resolved.study == f"pope.{name}"
            assert [arm.name for arm in resolved.arms] == [arm.name for arm in question.arms]
            for arm in resolved.arms:
                RivalSettings.model_validate(resolved.run_settings(resolved.conditions[0], arm))
    rivals = plan("small", {"question": "rivals"})
    assert [one.name for one in rivals.conditions] == ["chain_terse", "arms_terse", "ends_terse"]
    assert rivals.seeds == (0, 1, 2, 3, 4)
    assert {claim.arms[0] for claim in rivals.claims} <= {arm.name for arm in rivals.arms}
    ends = plan("small", {"question": "rivals", "family": "ends"})
    assert ends.run_settings(ends.conditions[0], ends.arms[0])["mine_k"] == 1024
    assert "question=rivals" in plan("demo").others


@pytest.mark.parametrize(("config", "message"), [
    ({"question": "rival"}, "no question 'rival' for pope: choose rivals"),
    ({"question": "rivals", "family": "maze"}, "family"),
    ({"question": "mixture", "family": "arms"}, "question mixture has no condition with family=arms"),
    ({"question": "rivals", "model": "m"}, "leave out model"),
    ({"question": "rivals", "prefix": "quarter"}, "prefix is set by arm pope"),
    ({"question": "rivals", "cap": 0.25}, "the arm questa begins with half of the solution"),
])  # fmt: skip
def test_wrong_questions_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        plan("small", config)
    with pytest.raises(UserError, match="no preset 'paper' for question rivals"):
        plan("paper", {"question": "rivals"})


def test_who_uses_the_oracle():
    arms = {arm.name: RivalSettings.model_validate(plan("small", {"question": "rivals"}).settings | arm.settings)
            for arm in QUESTIONS["rivals"].arms}  # fmt: skip
    without = {name for name, settings in arms.items() if not uses_oracle(settings)}
    assert without == {"base", "unguided", "entropy", "wide_clip", "pass_at_8", "hard_easy", "instruction",
                       "entropy_scaled", "hard_easier", "unguided_half"}  # fmt: skip


@given(st.integers(1, 100), st.integers(1, 300), st.floats(1, 60), st.integers(0, 9000), st.booleans())
def test_every_arm_spends_at_least_what_pope_does(cycles, batch, prompt, search, searched):
    cost = Spent(rollouts=search, tokens=30 * search)
    costs = Costs(mining=Spent(), search=cost, unguided=10.0, guided=25.0, completion=12.0)
    own = cost if searched else Spent()
    found = cycles_of(costs, cycles, batch, prompt, own)
    rollouts, tokens = cycles * batch + search, cycles * batch * (17.5 + 12) + cost.tokens
    assert own.rollouts + found * batch >= rollouts - 1e-6
    assert own.tokens + found * batch * (prompt + 12) >= tokens - 1e-3
    less = found - 1  # and no cycle more than that
    assert less == 0 or own.rollouts + less * batch < rollouts or own.tokens + less * batch * (prompt + 12) < tokens
    assert cycles_of(costs, cycles, batch, 17.5, cost) == cycles


def test_the_states_of_a_rollout():
    (one,) = make_problems(1, 6, seed=4)
    own = " ".join(solution_lines(one.meta["start"], one.meta["operations"], "own"))
    states = visited(own, one.meta)
    assert [state.done for state in states] == [1, 2, 3, 4, 5, 6]
    assert all(state.right for state in states)
    words = own.split()
    wrong = " ".join([*words[:3], str((int(words[3]) + 1) % 23), *words[4:]])
    assert [state.right for state in visited(wrong, one.meta)] == [True] + [False] * 5
    assert right_steps(wrong, one.meta) == 1
    assert verify_with_reference(wrong, one.answer, one.meta).reward == pytest.approx(0.5 / 6)
    assert verify_with_reference(own, one.answer, one.meta).reward == 1
    prefix, rest = " ".join(words[:4]), " ".join(words[4:])
    meta = {**one.meta, "prefix": prefix}
    assert [state.done for state in visited(rest, meta)] == [3, 4, 5, 6]
    assert right_steps(rest, meta) == 4
    assert [bool(grade(text, one.answer, meta).correct) for grade in (verify, verify_continued, verify_restated)
            for text in (rest, own)] == [True, True, True, False, False, True]  # fmt: skip
    assert state_overlap(one, prefix, [rest], [own]).share == 1.0
    assert state_overlap(one, prefix, [rest, rest], [" ".join(words[:6])]).share == 0.25
    assert math.isnan(state_overlap(one, prefix, ["nothing"], [own]).share)
    assert visited("", one.meta) == []


def test_a_base_that_saw_only_the_ends_of_long_problems():
    corpus, hinted = Corpus(long_ends_only=True), 0
    rows = traces(corpus, 0, short_only=False)
    for prompt, completion in (next(rows) for _ in range(600)):
        given = [word for word in prompt.partition(" hint ")[2].split() if word[0] in "+-*"]
        asked = [word for word in prompt.partition(" hint ")[0].split() if word[0] in "+-*"]
        assert len(completion.split()) <= 2 * 4
        if len(asked) > 4:
            hinted += 1
            assert len(asked) - len(given) <= 4
            meta = {"start": int(prompt.split()[0]), "operations": asked, "label": "",
                    "prefix": prompt.partition(" hint ")[2].removesuffix(" =")}  # fmt: skip
            assert verify(completion, "", meta).correct
    assert hinted > 200


def test_a_base_is_trained_too_little_by_its_loss_and_not_by_its_steps(tmp_path):
    steps = []
    small = dict(layers=1, width=16, heads=2, steps=60, batch_size=8)
    for stop in (None, 100.0, 1e-9):
        done = []
        base = BaseModel(**small, short_only_steps=10, stop_loss=stop)
        train_base(base, tmp_path, lambda at, total, done=done: done.append(at))
        steps.append(done[-1])
    assert steps == [60, 30, 60]  # ten short steps, then the twenty whose mean counts
    assert BaseModel(stop_loss=None).fingerprint == BaseModel().fingerprint != BaseModel(stop_loss=1.0).fingerprint


def test_a_base_that_writes_the_given_part_again():
    rows = traces(Corpus(restated=1.0, step_accuracy=1.0), 0, short_only=False)
    for prompt, completion in (next(rows) for _ in range(200)):
        asked = [word for word in prompt.partition(" hint ")[0].split() if word[0] in "+-*"]
        meta = {"start": int(prompt.split()[0]), "operations": asked, "label": ""}
        assert verify(completion, "", meta).correct


def test_calibration_of_the_majority():
    problems = make_problems(4, 3, seed=0)
    answers = [problems[0].answer, "99", problems[2].answer, ""]
    counts = [8, 6, 4, 0]
    found = Evaluation([p.id for p in problems], np.array([8, 0, 4, 0]), 8, 0, 0,
                       majority=list(zip(answers, counts, strict=True)))  # fmt: skip
    probs, right = np.array([1.0, 0.75, 0.5, 0.0]), np.array([True, False, True, False])
    expected = {"ece": 100 * expected_calibration_error(probs, right), "aurc": 100 * aurc(probs, right)}
    assert majority_calibration([(problems, found)]) == pytest.approx(expected)


def test_the_order_of_problems_does_not_matter_to_the_calibration_of_equal_majorities():
    problems = make_problems(6, 3, seed=0)
    answers = [problems[at].answer if at < 3 else "99" for at in range(6)]
    found = Evaluation([p.id for p in problems], np.array([8] * 6), 8, 0, 0, majority=[(one, 8) for one in answers])
    turned = Evaluation(found.problems[::-1], found.correct, 8, 0, 0, majority=found.majority[::-1])
    first, second = (majority_calibration([(problems, one)]) for one in (found, turned))
    assert first == pytest.approx(second)
    assert first["aurc"] == pytest.approx(50.0), "half of all are wrong, and nothing tells which"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=20))
def test_the_rank_correlation_is_spearmans(pairs):
    first, second = (np.array([float(one[at]) for one in pairs]) for at in (0, 1))
    found = rank_correlation(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(spearmanr(first, second).statistic)


def test_transfer_is_counted_on_unguided_rollouts():
    groups = [Group(0, "a", "unguided", 4, 1), Group(0, "a", "guided", 4, 4), Group(1, "a", "unguided", 4, 3)]
    assert transfer_rates(groups, ["a", "b"])[0] == 0.5
    assert math.isnan(transfer_rates(groups, ["a", "b"])[1])


def test_claims_about_a_mechanism_need_the_mechanism_to_have_worked():
    study = plan("small", {"question": "rivals", "family": "chain"})
    by_name = {one.id: one for one in study.claims}
    hard = {"pope": [90.0, 91.0, 92.0], "wide_clip": [10.0, 9.0, 11.0], "distil": [0.0, 1.0, 0.5],
            "unguided_half": [40.0, 41.0, 40.5], "hard_easy": [5.0, 4.0, 6.0]}  # fmt: skip
    for name, metric, arm, too_little, enough in (
        ("wide_clip", "clip_share", "unguided", 0.03, 2.0), ("ray", "signal", "unguided_half", 2.0, 30.0),
        ("distil", "teacher_gain", "distil", -4.5, 0.4),
    ):  # fmt: skip
        alone = study.model_copy(update={"claims": (by_name[name],), "seeds": (0, 1, 2)})
        for value, verdict in ((too_little, "not measured"), (enough, "holds")):
            values = {one: {"hard_pass1": some} for one, some in hard.items()}
            values.setdefault(arm, {})[metric] = [value] * 3
            (found,) = judge(alone, {by_name[name].condition: values})
            assert (found.verdict, name in found.id) == (verdict, True), found.reason
        values[arm].pop(metric)
        assert "is missing" in judge(alone, {by_name[name].condition: values})[0].reason
    assert by_name["ray"].arms == ("unguided_half", "hard_easy"), "against RL with as many rollouts on hard problems"
    forgetting = {name: by_name[name].metric for name in ("destabilise", "destabilise_scaled", "easy_mends")}
    assert set(forgetting.values()) == {"far_pass1"}


def test_runs_of_earlier_versions_of_the_arms_are_not_continued(tmp_path):
    study = plan("demo", {"question": "rivals"})
    asked = study.identity(study.conditions[0], study.arms[0], 0)
    record = {**asked, "task": study.task, "task_name": "pope.rivals"}
    record["run_hash"] = fingerprint({name: asked[name] for name in ("study", "settings", "seed", "threads")}
                                     | {"task": "pope.rivals"})  # fmt: skip
    with pytest.raises(UserError, match=r"task.*pope\.rivals.*pope\.rivals-2"):
        same_run(tmp_path / "config.json", record, study, asked)


def test_the_best_rival_is_among_those_that_were_run_on_most_bases():
    found = [
        Against("lucky", "Lucky", True, (-9.0,), (1.0,)), Against("good", "Good", True, (1.0, 2.0, 6.0), (1.1, 0.9)),
        Against("half", "Half", False, (0.5, 0.5, 0.5), ()), Against("poor", "Poor", True, (50.0, 90.0, 95.0), (1.0,)),
    ]  # fmt: skip
    best = best_rival(found)
    assert best is not None
    assert best.arm == "good"
    assert best.interval() == pytest.approx((3 - 4.30265 * np.sqrt(7 / 3), 3 + 4.30265 * np.sqrt(7 / 3)), abs=1e-4)
    first, *rows = rivals_table(found).rows
    assert first[:3] == ["Good", "the best rival, chosen after the fact", "+3.0"]
    assert [row[1] for row in rows] == ["rival", "rival", "control", "rival"]
    assert rows[2][3:] == ["–", "3", "–"], "no interval where all differences are the same"
    assert rows[3][3].endswith("+100.0]"), "no difference is larger"
    assert best_rival(found[2:3]) is None


ARMS = ["base", "unguided", "pope", "instruction", "pass_at_8", "adaptive", "sft_guided", "distil"]
WITHOUT = "hard_easy"  # needs near easy problems, of which the tiny base, which solves nothing, has none


def test_a_tiny_study_of_rivals_end_to_end(tmp_path):
    tiny = {**TINY, "rollouts": 8, "cuts": 2}
    outcome = run_study(
        plan("demo", {"question": "rivals", **tiny}, arms=[*ARMS, WITHOUT]), tmp_path / "study", page=build
    )
    assert not outcome.failed
    (found,) = outcome.summary["conditions"].values()
    mean = {arm: {name: one["mean"] for name, one in metrics.items()} for arm, metrics in found.items()}
    for arm in ARMS[1:]:
        assert mean[arm]["rollouts"] > mean["base"]["rollouts"] - 4 * 2 * 16  # the search is in the base's alone
        assert mean[arm]["tokens"] > 0
        folder = tmp_path / "study" / "runs" / "chain_terse" / arm / "seed-0"
        (probes,) = read_json(folder / "probes.json")
        assert set(probes[0]) == {"cycle", "hard", "held", "far"}
    assert {claim["verdict"] for claim in outcome.summary["claims"]} == {"not measured", "not enough evidence"}
    folder = tmp_path / "study"
    ((hits, groups),) = read_json(folder / "analysis.json")["items"]["no_signal"]["cells"]
    assert groups > 0
    assert 100 * hits / groups == pytest.approx(mean["unguided"]["signal"])
    page = outcome.page.read_text()
    for text in ("Cost and success", "Gain of pass@1 by the rate before training", "POPE minus every other arm",
                 "tokens / POPE", "near easy problems were not measured there, nor GRPO, hard + easy",
                 "log-probability of the right solution"):  # fmt: skip
        assert text.lower() in page.lower(), text
    assert not any(value is not None for value in mean.get(WITHOUT, {}).values())
    assert mean["distil"]["teacher_gain"] == pytest.approx(
        mean["distil"]["teacher_right"] - mean["distil"]["student_right"]
    )
    batch = TINY["cycles"] * TINY["prompts_per_batch"] * 8
    assert mean["unguided"]["hard_rollouts"] >= batch > mean["pope"]["hard_rollouts"] > 0
    results = Results.load(folder)
    table = rivals_table(against_rivals(results, "chain_terse"))
    assert {row[0] for row in table.rows[1:]} == {arm.label for arm in results.plan.arms
                                                  if arm.name in ARMS[1:] and arm.name != "pope"}  # fmt: skip


def test_a_tiny_study_of_the_search(tmp_path):
    outcome = run_study(plan("demo", {"question": "search", **TINY}), tmp_path / "study", page=build)
    assert not outcome.failed
    (found,) = outcome.summary["conditions"].values()
    assert found["bisect"]["search_rollouts"]["mean"] <= found["grid"]["search_rollouts"]["mean"]
    assert {claim["id"] for claim in outcome.summary["claims"]} == {"cheaper", "as_good", "as_many", "as_short"}
