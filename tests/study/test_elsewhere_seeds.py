"""Runs made elsewhere: seeds that are rounded, missing, failed or not shared, and what a verdict over them says."""

import re

import numpy as np
import pytest
from test_elsewhere_odd import asked, runs, verdicts

from retarget.cli import main
from retarget.errors import UserError
from retarget.study.elsewhere import arrange, read_claims
from retarget.study.evidence import Spread, Undecided, over_seeds
from retarget.study.summary import unpaired


def single(values):
    return [float(np.float32(value)) for value in values]


@pytest.mark.parametrize("seeds", [2, 5])
def test_equal_differences_in_single_precision_are_equal(seeds):
    """One more right image of 1,000 with every seed, as torch's ``item()`` writes it."""
    old = [0.9, 0.913, 0.889, 0.902, 0.897][:seeds]
    new = [one + 0.001 for one in old]
    for rounded in (single, list):
        (one,) = verdicts(runs("old", rounded(old)) + runs("new", rounded(new)), asked(dict(smallest_effect=0.001)))
        assert (one.verdict, one.interval) == ("not enough evidence", None)
        assert one.reason.startswith("the difference is the same on every seed")
        assert one.estimate == pytest.approx(0.001, rel=1e-3)


def test_differences_that_are_larger_than_rounding_in_single_precision_are_tested():
    assert isinstance(over_seeds([0.001, 0.001 + 1e-7], scale=0.9), Undecided)
    assert isinstance(over_seeds([0.001, 0.002], scale=0.9), Spread)
    assert isinstance(over_seeds([0.001, 0.001 + 1e-6], scale=0.9), Spread)


def two_sets(seeds_of_b):
    """Better by 1 on seeds 3 and 4, and worse by 2 on all others."""
    rows = []
    for condition, seeds in (("a", range(5)), ("b", seeds_of_b)):
        for seed in seeds:
            rows += runs("old", [90.0 + seed / 10], condition, seed)
            rows += runs("new", [90.0 + seed / 10 + (1 if seed in (3, 4) else -2) + seed / 100], condition, seed)
    return rows


@pytest.mark.parametrize(
    ("seeds_of_b", "said"),
    [
        (range(3, 8), "Claim c averages the sets seed by seed: its verdict is about the seeds that every set has "
                      "(3, 4), and not about the others (0, 1, 2, 5, 6, 7)."),
        (range(5, 8), "Claim c averages the sets seed by seed, and no seed is on all of them: run the same seeds"),
        (range(5), ""),
    ],
)  # fmt: skip
def test_an_average_over_sets_says_which_seeds_it_leaves_out(seeds_of_b, said):
    found = arrange(two_sets(seeds_of_b), asked(dict(across="average")))
    lines = unpaired(found.plan, found.values, found.failed)
    assert [line.startswith(said) for line in lines] == ([True] if said else [])


@pytest.mark.parametrize("names", ['["a", "b", "a"]', '["A", "a"]'])
def test_a_set_that_is_named_twice_counts_once(names, tmp_path):
    (tmp_path / "claims.toml").write_text(
        f'[[claims]]\nsentence = "It helps."\nmetric = "acc"\ndirection = "higher"\narms = ["new", "old"]\n'
        f'smallest_effect = 0.5\nacross = "new"\nconditions = {names}\n'
    )
    with pytest.raises(UserError, match=r"is across conditions of which one is listed twice: a"):
        arrange(two_sets(range(5)), read_claims(tmp_path / "claims.toml"))


def failing(arm, values, failed):
    return [one._replace(value=None) if one.seed in failed else one for one in runs(arm, values)]


@pytest.mark.parametrize("change", [{}, {"arms": ("new",), "against": 50.0}])
def test_runs_that_failed_are_told_where_no_other_arm_shows_it(change):
    """Both arms failed with the same seeds, and an arm that is compared with a constant."""
    new, old = [60.0 + at for at in range(6)], [50.0 + at / 2 for at in range(6)]
    rows = failing("new", new, {3, 4, 5}) + (failing("old", old, {3, 4, 5}) if not change else [])
    found = arrange(rows, asked(change))
    lines = unpaired(found.plan, found.values, found.failed)
    assert lines
    assert all("has no acc on seeds 3, 4, 5: the verdict is about the other seeds, and it is biased" in one
               for one in lines)  # fmt: skip
    whole = arrange(rows[:3] + rows[6:9], asked(change))
    assert unpaired(whole.plan, whole.values, whole.failed) == []


def test_a_second_metric_of_fewer_seeds_says_of_how_many(tmp_path):
    lines = ["arm,seed,metric,value"]
    for seed, (old, new) in enumerate([(50.0, 52.1), (51.0, 53.0), (49.5, 51.4), (50.5, 52.2)]):
        lines += [f"old,{seed},acc,{old}", f"new,{seed},acc,{new}"]
        lines += [f"old,{seed},ece,{3 + seed}", f"new,{seed},ece,{2.5 + seed / 2}"] if seed < 2 else []
    (tmp_path / "runs.csv").write_text("\n".join(lines))
    (tmp_path / "claims.toml").write_text(
        '[[claims]]\nsentence = "It helps."\nmetric = "acc"\nshown = "ece"\ndirection = "higher"\n'
        'arms = ["new", "old"]\nsmallest_effect = 0.5\n'
    )
    words = ["judge", str(tmp_path / "runs.csv"), "--claims", str(tmp_path / "claims.toml")]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.md").read_text()
    assert re.search(r"Decides nothing: ece −0\.75[^;]*, over 2 seeds", page)
