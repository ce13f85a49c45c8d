import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retarget.errors import UserError
from retarget.pope.studies.run import guided_scores
from retarget.pope.studies.worlds import check, make_world
from retarget.pope.study import PRESETS, Settings, plan
from retarget.report import build
from retarget.study.claims import judge
from retarget.study.runner import run_study

TINY = dict(
    base_steps=60, hard_problems=4, held_problems=4, cycles=2, prompts_per_batch=4, rollouts=4, micro_batch=8,
    rl_seeds=2, samples=16, mine_k=16, search_k=16, cuts=2, save_every=1,
)  # fmt: skip


def test_the_plans_of_all_presets():
    given = {"real": {"model": "m", "problems": "p.jsonl", "held_out": "h.jsonl"}}
    assert [len(plan(name, given.get(name)).conditions) for name in PRESETS] == [1, 4, 1, 1]
    small = plan("small")
    assert small.seeds == (0, 1, 2, 3, 4)
    assert small.settings["rl_seeds"] == 3
    assert {one.name for one in small.conditions} == {"chain_terse", "chain_own", "arms_terse", "arms_own"}
    assert {claim.condition for claim in small.claims} == {one.name for one in small.conditions}
    assert [one.name for one in plan("small", {"family": "arms"}).conditions] == ["arms_terse", "arms_own"]
    paper = Settings.model_validate(plan("paper").settings)
    assert (paper.rollouts, paper.prompts_per_batch, paper.mine_k, paper.lr, paper.max_grad_norm) == (
        8,
        32,
        128,
        1e-6,
        0.3,
    )
    assert plan("demo", {"cycles": 7}, [3], ["base"]).settings["cycles"] == 7
    assert [arm.name for arm in plan("demo").arms] == ["base", "unguided", "pope"]
    assert [claim.id for claim in plan("demo").claims][:5] == [
        "no_signal", "guided_reward", "transfer", "more_solved", "held_out",
    ]  # fmt: skip


@pytest.mark.parametrize("question", ["first", "rivals"])
def test_a_model_that_solves_nothing_is_no_test_of_the_missing_signal(question):
    """The claim of zero rewards is about a model that can solve something."""
    study = plan("small", {"family": "chain", "question": question} if question != "first" else {"family": "chain"})
    claims = tuple(one for one in study.claims if one.id.startswith("no_signal"))[:1]
    study = study.model_copy(update={"claims": claims})
    short = "easy_pass1" if question == "first" else "far_pass1"
    nothing = {"signal": [0.0, 0.0, 0.1, 0.0, 0.0], short: [0.0] * 5}
    able = {**nothing, short: [90.0, 91.0, 92.0, 89.0, 93.0]}
    for found, verdict in ((nothing, "not measured"), (able, "holds")):
        (judged,) = judge(study, {claims[0].condition: {"unguided": found}})
        assert judged.verdict == verdict
        assert judged.reason.startswith("Not a test of the claim: ") == (verdict == "not measured")


def test_a_real_models_problems_are_data_whose_bytes_a_run_remembers():
    """What is replaced under a begun study is refused: tests/study/test_identity.py."""
    files = ("mine.jsonl", "other.jsonl")
    assert plan("paper", dict(zip(("problems", "held_out"), files, strict=True))).data[:2] == files
    assert plan("small").data == ()


def test_a_small_model_of_ones_own_is_mined_guided_and_measured(tmp_path, monkeypatch):
    """A base model without a chat template, and files of many more problems than the study needs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    rows = [{"question": f"What is {n} - {n - n % 9}?", "answer": f"It is {n % 9}.\n#### {n % 9}"} for n in range(60)]
    write(tmp_path / "learnt.jsonl", rows)
    words = "learnt.jsonl model --epochs 400 --batch-size 60 --width 64 --layers 1 --vocabulary 300"
    importlib.import_module("pope_small_language_model").main(words.split())
    for name, first in (("training", 100), ("held-out", 200)):
        rows = [{"question": f"What is {n} - 1?", "answer": f"Take {n}.\nIt is {n - 1}.\n#### {n - 1}"}
                for n in range(first, first + 40)]  # fmt: skip
        write(tmp_path / f"{name}.jsonl", rows)
    given = dict(
        model="model", templates="model/templates", chat=False, problems="training.jsonl", held_out="held-out.jsonl",
        mine_tokens=24, max_completion_length=24, hard_problems=4, held_problems=3, mine_k=4, search_k=4,
    )  # fmt: skip
    outcome = run_study(plan("real", given), tmp_path / "study", page=build)
    assert not outcome.failed
    found = outcome.summary["conditions"]["default"]
    assert set(found) == {"base"}
    assert found["base"]["hard_pass1"]["values"] == [0.0]
    run = tmp_path / "study" / "runs" / "base" / "seed-0"
    training, held = json.loads((run / "mined.json").read_text())
    assert training["hard"] >= 4
    assert held["hard"] >= 3
    assert sum(training.values()) < 40, "mining ends when enough problems are hard"
    assert len((run / "hard.jsonl").read_text().splitlines()) == 4
    page = outcome.page.read_text()
    assert "mined in a random order" in page
    assert "the model is the same, so nothing is known about others" in page

    settings = Settings.model_validate(given | {"cap": 0.75, "cycles": 1})
    same = settings.model_copy(update={"held_out": "training.jsonl"})
    with pytest.raises(UserError, match=r"40 problems of training\.jsonl are in training\.jsonl too"):
        make_world(same, 0, tmp_path, print)
    write(tmp_path / "held-out.jsonl", [{"question": "?", "answer": "no marker"}, *rows])
    with pytest.raises(UserError, match="in a study it is --set skip_invalid=true"):
        make_world(settings, 0, tmp_path, print)
    world = make_world(settings.model_copy(update={"skip_invalid": True}), 0, tmp_path, print)
    asked = [one.prompt for one in world.candidates]
    assert len(world.held_candidates) == len(set(asked)) == 40
    assert asked != sorted(asked), "files are often sorted by kind"
    assert asked != [one.prompt for one in make_world(world.settings, 1, tmp_path, print).candidates]
    assert not list(tmp_path.glob("*.rejects.jsonl"))


def test_what_would_fail_after_hours_is_refused_at_once(tmp_path, monkeypatch):
    """A real model's base run can take hours: files, templates and the arms' batches are looked at before it."""
    monkeypatch.chdir(tmp_path)
    for name, first in (("a", 0), ("b", 10)):
        write(
            tmp_path / f"{name}.jsonl",
            [{"question": f"{n} + 1?", "answer": f"#### {n + 1}"} for n in range(first, first + 9)],
        )
    (tmp_path / "model").mkdir()
    given = {"model": "model", "problems": "a.jsonl", "held_out": "b.jsonl"}
    check(plan("real", given))
    (tmp_path / "tpl").mkdir()
    (tmp_path / "tpl" / "unguided.txt").write_text("Q: {question}")
    for wrong, said in (
        ({"held_out": "none.jsonl"}, "none.jsonl"),
        ({"model": "./none"}, "no such folder of a model"),
        ({"templates": "tpl"}, r"it has: \{question\}"),
        ({"grader": "foo"}, "foo"),
    ):
        with pytest.raises(UserError, match=said):
            check(plan("real", given | wrong))
    renamed = [{"Aufgabe": f"{n} + 2?", "Lösung": f"{n} and 2 make {n + 2}.", "Zahl": n + 2} for n in range(9)]
    write(tmp_path / "renamed.jsonl", renamed)
    write(tmp_path / "renamed-2.jsonl", [one | {"Aufgabe": f"3 + {one['Aufgabe']}"} for one in renamed])
    with pytest.raises(UserError, match=r"""in a study, --set 'fields=\{"answer": "FIELD"\}'"""):
        check(plan("real", given | {"held_out": "renamed.jsonl"}))
    german = {"prompt": "Aufgabe", "solution": "Lösung", "answer": "Zahl"}
    check(plan("real", given | {"problems": "renamed.jsonl", "held_out": "renamed-2.jsonl", "fields": german}))
    spaced = [{"question": f" {n}  + 1?\u00a0", "answer": f"#### {n + 1}"} for n in range(3)]
    write(tmp_path / "spaced.jsonl", spaced)
    with pytest.raises(UserError, match=r"3 problems of spaced\.jsonl are in a\.jsonl too"):
        check(plan("real", given | {"held_out": "spaced.jsonl"}))
    for wrong, said in (
        ({"mine_k": 1}, "nothing tells a hard problem from a wrong label"),
        ({"family": "arms"}, "family: for generated problems only"),
        ({"prompts_per_batch": 2, "rollouts": 2}, "does not divide into 1 processes"),
        ({"hard_problems": 5}, "hard_problems = 5 do not fill one generation batch of 8 prompts"),
    ):
        with pytest.raises(UserError, match=said):
            plan("real", given | wrong, arms=["base", "unguided", "pope"])
    study = plan("real", given | {"templates": "tpl"})
    assert {"tpl", "model"} <= set(study.data), "a run remembers their bytes"
    assert "family" not in study.settings


def test_a_problem_without_a_prefix_is_no_failure_of_guidance():
    """No guided sample of it exists, so that it says nothing of the effect of prefixes."""
    guided, unguided = np.array([0.5, np.nan]), np.array([0.25, 0.25])
    assert guided_scores(guided, unguided, np.array([True, False])) == {
        "found": 50.0, "guided_all": 50.0, "guided_all_helped": 100.0, "guided_gain": 25.0, "guided_start": 50.0,
        "guided_helped": 100.0, "unguided_start": 25.0,
    }  # fmt: skip
    assert guided_scores(guided[1:], unguided[1:], np.array([False])) == {"found": 0.0}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_wrong_plans_are_refused():
    with pytest.raises(UserError, match="no preset 'large'"):
        plan("large")
    with pytest.raises(UserError, match="there is no setting cycle, did you mean cycles"):
        plan("demo", {"cycle": 3})
    with pytest.raises(UserError, match="preset real needs a model and its problems: --set model=DIR"):
        plan("real", {"problems": "mine.jsonl"})
    with pytest.raises(UserError, match="no arm popes"):
        plan("demo", arms=["popes"])


def test_a_plan_needs_no_torch():
    code = "import sys, retarget.pope.commands, retarget.pope.study as s; s.plan(); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_tiny_study_end_to_end(tmp_path):
    outcome = run_study(plan("demo", TINY, seeds=[0]), tmp_path / "study", page=build)
    assert not outcome.failed
    found = outcome.summary["conditions"]["default"]
    assert found["base"]["hard_solved"]["values"][0] is not None
    assert found["unguided"]["train_rollouts"]["values"][0] >= found["pope"]["train_rollouts"]["values"][0]
    assert found["pope"]["search_rollouts"] == found["base"]["search_rollouts"]
    verdicts = {claim["id"]: claim["verdict"] for claim in outcome.summary["claims"]}
    assert verdicts["entropy"] == "not measured"
    page = outcome.page.read_text()
    shown = json.loads((tmp_path / "study" / "runs" / "base" / "seed-0" / "samples.json").read_text())
    said = {
        "found": "Prefix that the search found",
        "fallback": "Longest prefix allowed, since none helped in the search",
    }
    expected = (said[shown["status"]], "Reward while training", "the unit of replication", "pass@k, hard problems")
    for one in expected:
        assert one.lower() in page.lower()
    base = found["base"]
    assert base["guided_gain"]["mean"] == pytest.approx(base["guided_all"]["mean"] - base["hard_pass1"]["mean"])
