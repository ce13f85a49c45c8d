"""What arms of the rivals' study train on, and what a control's grader accepts."""

import json
import math

import numpy as np
import pytest

from retarget.files import write_json
from retarget.pope.grading import Grader
from retarget.pope.rollouts import Sampling
from retarget.pope.studies.budget import Costs, Spent
from retarget.pope.studies.chain import MODULUS, Style, make_problems, solution_lines, verify
from retarget.pope.studies.measures import state_overlap
from retarget.pope.studies.probes import log_probability, teacher_and_student
from retarget.pope.studies.recipes import recipe_of
from retarget.pope.studies.rivals_plan import RivalSettings
from retarget.pope.studies.testbed import PROMPTS
from retarget.pope.studies.worlds import World
from retarget.pope.study import plan

COSTS = Costs(mining=Spent(), search=Spent(rollouts=9, tokens=90), unguided=10.0, guided=18.0, completion=12.0)


def recipe(folder, hard, prefixes, **arm):
    """The recipe of an arm whose search found these prefixes."""
    settings = RivalSettings.model_validate(plan("demo", {"question": "rivals"}).settings | arm)
    world = World(model="", candidates=[], held_candidates=[], easy=[], grader=Grader("exact", workers=0),
                  prompts=PROMPTS, mining=Sampling(), sampling=Sampling(), evaluation=Sampling(), chunk=1,
                  settings=settings)  # fmt: skip
    write_json(folder / "prefixes.json", [{"id": name, "prefix": text} for name, text in prefixes.items()])
    return recipe_of(settings, world, {"hard": hard}, folder, COSTS, 0)


@pytest.mark.parametrize("family", ["chain", "arms"])
@pytest.mark.parametrize("prefix", ["unrelated", "scrambled"])
def test_a_control_s_completion_may_go_on_from_the_true_prefix(tmp_path, family, prefix):
    hard = make_problems(16, 6, 0, family)
    cut = {one.id: "\n".join(one.solution.split("\n")[: 1 + at % 2]) for at, one in enumerate(hard)}
    found = recipe(tmp_path, hard, cut, prefix=prefix)
    rows = {row["problem"]: row for row in found.rows if row["guided"]}
    assert len(rows) == 16
    for one in hard:
        shown, meta = found.prefixes[one.id], json.loads(rows[one.id]["meta"])
        assert shown != cut[one.id]
        assert " ".join(shown.split()) in " ".join(rows[one.id]["prompt"].split())
        words = one.solution.split()
        rest = " ".join(words[len(shown.split()) :])
        assert verify(rest, one.answer, meta).correct, "right, from where the true prefix of that length ends"
        assert verify(one.solution, one.answer, meta).correct, "a solution by itself"
        longer = " ".join(words[len(shown.split()) + 1 :])
        assert not verify(longer, one.answer, meta).correct
        assert meta["prefix"] == " ".join(words[: len(shown.split())])


def test_a_completion_after_the_instruction_alone_may_go_on_after_the_first_operation(tmp_path):
    hard = make_problems(8, 6, 0)
    rows = {row["problem"]: row for row in recipe(tmp_path, hard, {}, prefix="instruction").rows if row["guided"]}
    for one in hard:
        own = " ".join(solution_lines(one.meta["start"], one.meta["operations"], "own")).split()
        meta = json.loads(rows[one.id]["meta"])
        assert verify(" ".join(own[2:]), one.answer, meta).correct
        assert verify(" ".join(own), one.answer, meta).correct
        assert not verify(" ".join(own[4:]), one.answer, meta).correct
        assert own[1] not in rows[one.id]["prompt"].partition("hint")[2].split(), "the prompt tells no result"


def test_a_minimal_prefix_is_still_the_grader_s(tmp_path):
    hard = make_problems(4, 6, 0)
    cut = {one.id: one.solution.split("\n")[0] for one in hard}
    for row in recipe(tmp_path, hard, cut, prefix="minimal").rows:
        assert json.loads(row["meta"]).get("prefix") == (cut[row["problem"]] if row["guided"] else None)


def test_self_distillation_shows_its_teacher_what_pope_shows_and_pays_for_the_search(tmp_path):
    hard = make_problems(4, 6, 0)
    cut = {one.id: one.solution.split("\n")[0] for one in hard[:3]}
    found = recipe(tmp_path, hard, cut, learner="distil")
    assert (found.prefixes, found.own) == (cut, COSTS.search)
    other = recipe(tmp_path, hard, cut, learner="distil", prefix="unrelated")
    assert sorted(other.prefixes.values()) == sorted(cut.values())
    assert all(other.prefixes[name] != text for name, text in cut.items())


@pytest.mark.parametrize("style", ["terse", "own"])
def test_whether_a_teacher_knows_more_is_the_likelihood_of_the_right_solution(tiny, style: Style):
    problems = make_problems(3, 2, 5, style=style)
    asked = {one.id: tuple(str(prompt) for prompt in (PROMPTS.without_prefix(one.prompt), PROMPTS.with_prefix(
        one.prompt, one.solution.split("\n")[0]))) for one in problems[:2]}  # fmt: skip
    found = teacher_and_student(tiny.directory, problems, asked)
    expected = []
    for one in problems[:2]:
        right = " ".join(solution_lines(one.meta["start"], one.meta["operations"], "own"))
        expected.append([log_probability(tiny.model, tiny.tokenizer, prompt, [right])[0] for prompt in asked[one.id]])
    student, teacher = np.mean(expected, 0)
    assert found == pytest.approx(
        {"student_right": student, "teacher_right": teacher, "teacher_gain": teacher - student}, abs=1e-6
    )


def test_self_distillation_counts_the_tokens_that_it_samples(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from retarget.pope.studies.distil import distil

    settings = RivalSettings.model_validate(plan("demo", {"question": "rivals"}).settings | dict(
        prompts_per_batch=2, rollouts=4, micro_batch=8, updates_per_batch=1, max_completion_length=12))  # fmt: skip
    asked = [(str(PROMPTS.without_prefix(one.prompt)),) * 2 for one in tiny.problems[:4]]
    sampled = distil(tiny.directory, asked, settings, 3, 0, 3, tmp_path)
    assert 3 * 8 * 2 <= sampled < 0.9 * 3 * 8 * 12, "completions of two operations end long before the limit"


def test_only_right_states_meet_and_chance_is_that_of_random_results():
    (one,) = make_problems(1, 6, seed=4)
    own = " ".join(solution_lines(one.meta["start"], one.meta["operations"], "own")).split()
    prefix, rest = " ".join(own[:4]), " ".join(own[4:])
    wrong = " ".join([own[0], str((int(own[1]) + 1) % MODULUS), *own[2:]])
    assert state_overlap(one, prefix, [rest], [wrong] * 500).share == 0, "its later values are right by luck alone"
    assert math.isnan(state_overlap(one, "", [wrong], [" ".join(own)]).share), "nothing on a correct path"
    both = state_overlap(one, prefix, [rest], [wrong, " ".join(own[:6])])
    assert both.share == 0.25
    # Four states, after 3 to 6 operations; the second rollout writes three results, the first all six.
    three, later = 1 - (1 - 23**-3) ** 2, [23.0**-at for at in (4, 5, 6)]
    assert both.chance == pytest.approx(np.mean([three, *later]), rel=1e-9)
    every = [" ".join([own[0], str(value)]) for value in range(MODULUS)]
    assert state_overlap(one, "", [" ".join(own[:2])], every) == (1.0, pytest.approx(1 - (22 / 23) ** 23))
