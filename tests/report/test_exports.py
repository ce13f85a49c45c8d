import csv
import io
import re

import numpy as np
import pytest

from retarget.report import build
from retarget.report.exports import as_csv, as_latex
from retarget.report.pairs import _difference, pair_tables
from retarget.report.source import read_study
from retarget.study.config import SHARE, Arm, Condition, Metric
from retarget.study.figures import Analysis, Table
from retarget.study.results import Spread
from retarget.study.rows import read_rows as read_runs
from retarget.study.statistics import t_interval


def rows(path):
    return list(csv.reader(io.StringIO(path.read_text())))


def test_every_table_and_figure_lies_beside_the_page(finished):
    names = {path.name for path in (finished / "report_files").iterdir()}
    for stem in ("claims", "metrics-1", "metrics-2", "pairs-1", "pairs-2", "cost", "04-accuracy-by-decile"):
        assert {f"pskd-{stem}.csv", f"pskd-{stem}.tex"} <= names
    for stem in ("01-learning-curves", "02-reliability", "03-gradient-share-by-difficulty"):
        assert {f"pskd-{stem}.csv", f"pskd-{stem}.svg"} <= names
    assert {"pskd-forest.svg", "pskd-methods.txt", "pskd-methods.tex", "pskd-references.bib"} <= names


def test_the_values_are_what_the_summary_has_and_can_be_read_as_runs(finished):
    read = read_runs(finished / "report_files" / "pskd-values.csv")
    assert {row.condition for row in read} == {"clean", "noisy"}
    study = read_study(finished)
    value = study.summary.conditions["clean"]["pskd"]["top1"].values[0]
    (row,) = [one for one in read if (one.condition, one.arm, one.metric, one.seed) == ("clean", "pskd", "top1", 0)]
    assert row.value == value


def test_claims_keep_full_precision(finished):
    head, *body = rows(finished / "report_files" / "pskd-claims.csv")
    claims = {one.id: one for one in read_study(finished).summary.claims}
    assert len(body) == 6
    for cells in body:
        found = dict(zip(head, cells, strict=True))
        assert float(found["estimate"]) == claims[found["id"]].estimate
        assert (float(found["low"]), float(found["high"])) == claims[found["id"]].interval


def test_pairs_of_arms_are_paired_by_seed(finished):
    study = read_study(finished)
    table = pair_tables(study)[0]
    assert [name for name, _ in table.rows] == [
        "PS-KD − cross-entropy", "label smoothing 0.1 − cross-entropy", "label smoothing 0.1 − PS-KD",
    ]  # fmt: skip
    arms = study.summary.conditions["clean"]
    both = zip(arms["pskd"]["top1"].values, arms["cross_entropy"]["top1"].values, strict=True)
    differences = [a - b for a, b in both if a is not None and b is not None]
    assert len(differences) == 4
    low, high = t_interval(differences, 0.95)
    cell = table.rows[0][1][0]
    shown = [float(one) for one in re.findall(r"[-+]\d+\.\d+", f"{cell.estimate} {cell.interval}".replace("−", "-"))]
    assert shown == pytest.approx([np.mean(differences), low, high], abs=0.006)


def test_no_pair_differs_by_more_than_a_share_can():
    metric = Metric(name="solved", label="solved", **SHARE)
    arms = [{"solved": Spread(values=values)} for values in ([0.0, 1.0, 99.0], [0.0, 1.0, 0.0])]
    assert _difference(*arms, metric, 0.95).interval == "[−100.00, +100.00]"
    assert "−100" not in _difference(*arms, metric.model_copy(update={"bounds": None}), 0.95).interval


def test_a_cell_is_no_formula_and_a_number_stays_a_number():
    found = as_csv([["=1+1", "@x", "+cmd", "-0.5", "+1e-3", "-"]]).decode()
    assert next(csv.reader(io.StringIO(found))) == ["'=1+1", "'@x", "'+cmd", "-0.5", "+1e-3", "'-"]


def test_latex_has_no_letter_that_pdflatex_would_stumble_over(finished):
    for path in (finished / "report_files").glob("*.tex"):
        text = path.read_text()
        assert not re.search(r"(?<!\\)[#~^]|[−±×↑↓]", text.replace("%", "")), path
    assert (
        r"a\_b \& 50 \% \$x\$ \textbackslash{}input\{x\} $-$1"
        in as_latex([["n"], [r"a_b & 50 % $x$ \input{x} −1"]], "t").decode()
    )


def test_methods_say_what_was_run_what_was_asked_and_how_it_was_decided(finished):
    text = (finished / "report_files" / "pskd-methods.txt").read_text()
    for part in (
        "3 arms (cross-entropy, PS-KD and label smoothing 0.1)",
        "under 2 conditions (clean labels and 20 % of the training labels wrong)",
        "the same seeds 0, 1, 2, 3 and 4",
        "Of 30 runs, 29 finished.",
        "PS-KD: targets pskd.",
        "(1) PS-KD improves accuracy on image classification: top-1 accuracy of PS-KD against cross-entropy, higher is "
        "better, smallest effect 0.5 points, clean labels",
        "Holm's procedure [@holm1979] with a family-wise error of 2.5 %",
        "Retarget 0.1.0 at commit 0123456789 [@retarget], with python 3.11.9 and torch 2.13.0",
        "2 cores of A processor, without a GPU",
    ):
        assert part in text, part
    assert "detection" not in text
    assert r"\citep{holm1979}" in (finished / "report_files" / "pskd-methods.tex").read_text()
    entries = (finished / "report_files" / "pskd-references.bib").read_text()
    assert re.findall(r"@\w+\{(\w+),", entries) == ["retarget", "holm1979"]
    assert entries.count("{") == entries.count("}")


def test_many_arms_turn_the_table_and_metrics_beyond_eight_are_folded(study, plain_plan):
    arms = tuple(Arm(name=f"arm{place}", label=f"arm {place}") for place in range(9))
    from retarget.study.config import Metric

    metrics = tuple(Metric(name=f"m{place}", label=f"metric {place}", optional=True) for place in range(9))
    directory = study("many", plain_plan(arms=arms, claims=(), metrics=metrics, conditions=(Condition(),)), Analysis())
    build([directory])
    head, *body = rows(directory / "report_files" / "pskd-metrics-1.csv")
    assert head[0] == "Arm"
    assert [one[0] for one in body] == [arm.label for arm in arms]
    assert len(head) <= 9


def test_shades_and_folding_of_a_table(study):
    shaded = Table(
        title="Confusion", caption="c", columns=["true", "a", "b"], rows=[["a", "9", "1"], ["b", "", "10"]],
        shades=[[0.9, 0.1], [0.0, 1.0]], folded=True,
    )  # fmt: skip
    page = build([study("shaded", None, Analysis(figures=[shaded]))]).read_text()
    assert '<td class="num" style="--shade:0.90">9</td>' in page
    assert "<summary>Show the table</summary>" in page
    with pytest.raises(ValueError, match="shades have another shape"):
        Table.model_validate(shaded.model_dump() | {"shades": [[0.5]]})
