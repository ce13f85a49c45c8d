"""Every benchmark runs; pairs are interleaved, medians and reaches are right, unknown names and flags are refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/ is no part of the package

from benchmarks.__main__ import main
from benchmarks._pairs import Pairs, figure, interleaved


def test_pairs_are_interleaved_and_the_warm_up_does_not_count():
    calls = []
    pairs = interleaved(
        lambda: calls.append("a"), lambda: calls.append("b"), pairs=3, warmup=1, finish=lambda: calls.append(".")
    )
    assert "".join(calls) == "a.b." * 4
    assert len(pairs.a) == len(pairs.b) == len(pairs.ratios) == 3
    assert min(pairs.a + pairs.b) > 0


def test_a_figure_of_pairs_is_the_median_of_their_ratios():
    measured = figure("a over b", Pairs([2.0, 9.0, 4.0, 1.0, 3.0], [1.0, 1.0, 1.0, 1.0, 1.0]), "ratio", "<= 2.5")
    assert (measured["value"], measured["reached"], measured["pairs"]) == (3.0, False, 5)
    assert measured["detail"] == {"quartiles": [2.0, 4.0], "a_ms": 3000.0, "b_ms": 1000.0}


@pytest.mark.parametrize(
    ("value", "reach", "reached"), [(2.0, "<= 2", True), (2.1, "<= 2", False), (20.0, ">= 20", True), (1.0, None, None)]
)
def test_a_figure_of_one_number(value, reach, reached):
    measured = figure("size", value, "bytes", reach, {"rows": 8})
    assert (measured["value"], measured["reached"], measured["pairs"]) == (value, reached, None)
    assert measured["detail"] == {"rows": 8}


def test_a_reach_that_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="reach must read"):
        figure("size", 1.0, "bytes", "below 3")


def test_an_unknown_benchmark_is_refused_with_those_that_exist():
    run = benchmarks("nonsense")
    assert run.returncode == 2
    assert "there is no benchmark 'nonsense': choose from audit, audit_inputs, judge, metrics" in run.stderr


NAMES = sorted(path.stem for path in (Path(__file__).parents[1] / "benchmarks").glob("[!_]*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_runs_in_its_smallest_form(name, capsys):
    main([name, "--smallest"])
    printed = capsys.readouterr()
    figures = [json.loads(line) for line in printed.out.splitlines()]
    assert figures
    for one in figures:
        assert one.keys() >= {"figure", "value", "unit", "reach", "reached", "hardware", "commit"}
        assert one["value"] >= 0
        assert (one["reached"] is None) == (one["reach"] is None)
        assert one["command"] == f"python -m benchmarks {name} --smallest"
    assert len({one["figure"] for one in figures}) == len(figures)
    table = printed.err[printed.err.index("┏") :]
    assert all(heading in table for heading in ("figure", "value", "reach", "reached"))
    assert table.count("NO") == sum(one["reached"] is False for one in figures)


def test_an_unknown_flag_is_refused():
    run = benchmarks("metrics", "--tiny")
    assert run.returncode == 2
    assert "unrecognized arguments: --tiny" in run.stderr


def benchmarks(*words):
    command = [sys.executable, "-m", "benchmarks", *words]
    return subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
