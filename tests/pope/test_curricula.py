from dataclasses import astuple

import pytest

from retarget.errors import UserError
from retarget.pope.curricula import Adaptive, Annealed, Curriculum, Group, Guides, HintWhenWrong, Phases, UnsolvedOnly
from retarget.pope.mixture import mix
from retarget.pope.prefixes import cut_points
from retarget.pope.studies.chain import make_problems
from retarget.pope.studies.testbed import PROMPTS

PROBLEMS = make_problems(6, 8, seed=2)
PREFIXES = {one.id: one.solution.split("\n")[0] for one in PROBLEMS}
ROWS = mix(PROBLEMS, {}, PROMPTS, prompts_per_batch=2, kind="stratified")
FIRST = PROBLEMS[0].id


def guides():
    return Guides(PROBLEMS, PROMPTS, 4, 0.75, "line")


def row(problem=FIRST):
    return next(one for one in ROWS if one["problem"] == problem)


def group(cycle, correct, stratum="unguided", problem=FIRST):
    return Group(cycle, problem, stratum, 4, correct)


def shown(presented):
    """Lines of the solution in a row's prompt, and whether the row says so."""
    solution = next(one for one in PROBLEMS if one.id == presented["problem"]).solution
    text = presented["prompt"].partition(" hint ")[2].removesuffix(" =")
    assert solution.startswith(text)
    assert presented["guided"] == bool(text) == (presented["stratum"] == "guided")
    return text.count("\n") + 1 if text.count(" ") >= 2 else 0.5 if text else 0


def test_half_of_the_solution_then_a_quarter():
    curriculum = Phases(guides(), cycles=10)
    assert [shown(curriculum.present(row(), cycle)) for cycle in range(10)] == [2] * 5 + [1] * 5
    assert shown(curriculum.present(row(), 12)) == 1  # more cycles than were planned


def test_an_annealed_prefix_shrinks_to_nothing():
    found = [shown(Annealed(guides(), 20, 0.75).present(row(), cycle)) for cycle in range(20)]
    assert found[0] == 3
    assert found == sorted(found, reverse=True)
    assert found[-4:] == [0] * 4


@pytest.mark.parametrize(("cycles", "bare"), [(20, 0.2), (8, 0.25), (3, 0.9)])
def test_the_annealed_fraction_falls_in_a_line_until_the_bare_cycles(cycles, bare):
    solution, curriculum = PROBLEMS[0].solution, Annealed(guides(), cycles, 0.75, bare)
    known = {0.0: "", **{cut.fraction: solution[: cut.end] for cut in cut_points(solution, 4, 0.75, "line")}}
    for cycle in range(cycles):
        wanted = max(0.0, 0.75 - 0.75 * cycle / max(1.0, cycles - bare * cycles))
        text = curriculum.present(row(), cycle)["prompt"].partition(" hint ")[2].removesuffix(" =")
        assert text == known[min(known, key=lambda one: abs(one - wanted))]


@pytest.mark.parametrize(("cycles", "share", "whole"), [(40, 0.3, 28), (4, 0.5, 2), (9, 1.0, 0)])
def test_an_adaptive_prefix_is_withdrawn_in_a_line_over_the_last_cycles(cycles, share, whole):
    known, curriculum = guides(), Adaptive(guides(), cycles, withdrawn=share)
    most = known.levels(FIRST)
    assert most == 4
    for cycle in range(cycles):
        left = 1.0 if cycle < whole else (cycles - 1 - cycle) / (cycles - whole)
        level = next(one for one in range(most + 1) if one >= most * left - 1e-9)
        assert curriculum.present(row(), cycle) == known.level(FIRST, level), cycle


def test_a_hint_comes_after_an_all_wrong_group_and_goes_again():
    guided = {one["problem"]: one for one in mix(PROBLEMS, PREFIXES, PROMPTS) if one["guided"]}
    curriculum = HintWhenWrong(guided)
    assert shown(curriculum.present(row(), 0)) == 0
    curriculum.observe([group(0, 0)])
    assert shown(curriculum.present(row(), 1)) == 1
    assert shown(curriculum.present(row(PROBLEMS[1].id), 1)) == 0
    curriculum.observe([group(1, 0, "guided")])
    assert shown(curriculum.present(row(), 2)) == 0
    curriculum.observe([group(2, 1)])
    assert shown(curriculum.present(row(), 3)) == 0


def test_solved_problems_give_way_to_unsolved_ones():
    rows = mix(PROBLEMS, PREFIXES, PROMPTS)
    curriculum = UnsolvedOnly(rows)
    curriculum.observe([group(0, 2, "guided"), *(group(0, 1, problem=one.id) for one in PROBLEMS[1:4])])
    unsolved = {PROBLEMS[at].id for at in (0, 4, 5)}
    for one in rows:
        presented = curriculum.present(one, 3)
        assert presented["stratum"] == one["stratum"]
        assert presented["problem"] in unsolved
        assert (presented == one) == (one["problem"] in unsolved)
        assert presented == curriculum.present(one, 3)
    curriculum.observe([group(4, 1, problem=one) for one in unsolved])
    assert [curriculum.present(one, 5) for one in rows] == rows  # nothing is left: all stay


def test_an_adaptive_prefix_follows_its_success_and_is_withdrawn():
    curriculum = Adaptive(guides(), cycles=40)
    start = shown(curriculum.present(row(), 0))
    assert start == 3
    curriculum.observe([group(0, 4, "guided")])
    assert shown(curriculum.present(row(), 1)) == 2
    curriculum.observe([group(1, 2, "guided")])  # one half: as it is
    assert shown(curriculum.present(row(), 2)) == 2
    curriculum.observe([group(2, 0, "guided")])
    curriculum.observe([group(3, 0, "guided")])
    assert shown(curriculum.present(row(), 4)) == 3
    late = [shown(curriculum.present(row(), cycle)) for cycle in range(28, 40)]
    assert late == sorted(late, reverse=True)
    assert late[-1] == 0


@pytest.mark.parametrize("make", [
    Curriculum, lambda: Phases(guides(), 10), lambda: Annealed(guides(), 10, 0.75), lambda: Adaptive(guides(), 10),
    lambda: UnsolvedOnly(ROWS), lambda: HintWhenWrong({FIRST: row()}),
])  # fmt: skip
def test_a_curriculum_that_is_told_of_the_past_goes_on_alike(make):
    lived, told = make(), make()
    for cycle in range(6):
        lived.observe([group(cycle, cycle % 5, one.stratum, p.id) for p in PROBLEMS for one in (group(0, 0),)])
    told.load([list(astuple(one)) for one in lived.groups])
    assert told.state() == lived.state()
    assert [told.present(one, 6) for one in ROWS] == [lived.present(one, 6) for one in ROWS]
    assert told.identity == lived.identity == make().identity


def test_other_parameters_are_another_curriculum_and_damage_is_named():
    assert Phases(guides(), 10).identity != Phases(guides(), 12).identity != Annealed(guides(), 12, 0.75).identity
    for damaged in ([[1, "p"]], [["x", "p", "unguided", 4, 1]], 3, None):
        with pytest.raises(UserError, match="must be a list of"):
            Curriculum().load(damaged)


@pytest.mark.parametrize("make", [lambda g: Phases(g, 10), lambda g: Annealed(g, 10, 0.75), lambda g: Adaptive(g, 10)])
def test_easy_rows_pass_every_curriculum_unchanged(make):
    easy = {**ROWS[0], "problem": "easy-1", "stratum": "easy"}
    curriculum = make(guides())
    curriculum.observe([group(0, 4, "easy", "easy-1")])
    assert curriculum.present(easy, 1) is easy


def test_a_curriculum_that_shows_more_than_the_prefixes_have_is_refused():
    short = Guides(PROBLEMS, PROMPTS, 4, 0.25, "line")
    with pytest.raises(UserError, match=r"shows 0\.5 of a solution, but the longest prefixes end at cap = 0\.25"):
        Phases(short, 10)
    with pytest.raises(UserError, match=r"shows 0\.75 of a solution"):
        Annealed(short, 10, 0.75)
    Phases(short, 10, (0.25, 0.1))
