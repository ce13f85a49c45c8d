"""The page of a finished study: what it shows, in which order, complete in itself."""

import base64
import hashlib
import json
import re
import shutil
from itertools import pairwise

import pytest
from page_reader import Page
from small_pages import claim, row_of, small

from retarget.report import build
from retarget.study.config import Condition
from retarget.study.figures import Analysis


@pytest.fixture(scope="module")
def page(finished):
    return Page(finished / "report.html")


def test_the_first_screen_says_what_was_asked_and_found(page):
    text = page.text
    title = text.index("PS-KD on image classification")
    asked = text.index("Do softened targets from the model's own past predictions help on this data?")
    found = text.index("1 of 6 claims holds here, 3 do not, 2 lack evidence.")
    plot, picture = text.index("Every measured claim"), text.index("Reliability")
    assert title < found < plot < picture < asked < text.index("Verdict") < text.index("Mean ± standard deviation")
    assert "3 arms × 2 conditions × 5 seeds" in text
    assert "1 of 30 runs failed; their seeds are missing below." in text


def test_every_claim_has_a_row_in_its_own_order_with_everything_that_decides(page, finished):
    claims = json.loads((finished / "summary.json").read_text())["claims"]
    rows = [row for row in page.rows if row[-1].startswith(("holds", "does not", "not enough", "not measured"))]
    run = [one for one in claims if one["verdict"] != "not measured"]
    assert [row[0] for row in rows] == [one["sentence"] for one in run]
    for row, one in zip(rows, run, strict=True):
        assert row[-1].startswith(one["verdict"])
        assert row[1].startswith("PS-KD against cross-entropy")
        assert f"{one['direction']} is better" in row[1]
        assert f"smallest effect that matters: {one['smallest_effect']:g}" in row[1]
        decimals = 3 if one["metric"] == "nll" else 2
        shown = f"{one['estimate']:+.{decimals}f}".replace("-", "−")
        assert row[2].startswith(shown)
        bounds = ", ".join(f"{end:+.{decimals}f}".replace("-", "−") for end in one["interval"])
        assert f"[{bounds}] {100 * one['level']:.1f}".removesuffix(".0") in row[2]
        assert row[3] == str(one["n"])
        if one["verdict"] == "not enough evidence":
            assert f"{one['seeds_needed']} seeds would decide with 80 % power" in row[-1]
    assert "Decides nothing: item bootstrap [−0.90, +0.10]" in rows[0][2]
    assert re.search(r"Decides nothing: ECE \+3\.\d\d points \[.*\]", rows[1][2])
    assert rows[0][3] == "4"


def test_conditions_head_their_claims(page):
    heads = [row[0] for row in page.rows if len(row) == 1]
    assert heads == ["clean labels", "20 % of the training labels wrong"]


def test_claims_that_were_not_run_are_one_folded_line_without_names_of_arms(page):
    assert "1 more claim was stated but not run here PS-KD improves object detection." in page.text
    assert "detection_pskd" not in page.text


def test_verdicts_differ_in_shape_and_word_not_only_in_colour(page):
    shapes = [attributes["href"] for tag, attributes in page.tags if tag == "use" and "mark-" in attributes["href"]]
    assert set(shapes) == {"#mark-holds", "#mark-fails", "#mark-lacks"}
    assert {shape[1:] for shape in shapes} <= set(page.ids)


def test_the_measurements_show_mean_and_sd_and_say_which_seeds_are_missing(page):
    clean, noisy = (row for row in page.rows if row[0].startswith("top-1 accuracy"))
    assert re.fullmatch(r"\d\d\.\d\d ± \d\.\d\d", clean[1])
    assert clean[2].endswith("4 of 5 seeds")
    assert "seeds" not in " ".join(noisy[1:])
    assert row_of(page, "Metric")[1:] == ["cross-entropy", "PS-KD", "label smoothing 0.1"]
    assert not [tag for tag, _ in page.tags if tag in ("b", "strong")]


def test_what_failed_what_it_cost_and_how_to_run_it_again(page):
    assert ["clean/pskd/seed-3", "RuntimeError: loss <nan>"] in page.rows
    assert row_of(page, "PS-KD", "9")[2:4] == ["7.5 s", "1 min 8 s"]
    assert row_of(page, "all arms")[1] == "29"
    assert "retarget study pskd --preset demo --out studies/demo/pskd" in page.text
    assert row_of(page, "commit")[1] == "0123456789abcdef0123456789abcdef01234567, with uncommitted changes"
    assert "torch 2.13.0" in row_of(page, "versions")[1]
    assert row_of(page, "drops")[1] == "0.5, 0.75"
    assert row_of(page, "20 % of the training labels wrong", "label_noise = 0.2")
    assert "there is little over-confidence to cure" in page.text
    assert page.count("details") == 4


def test_figures_stand_in_their_order_and_say_what_they_show(page):
    titles = [
        "Reliability",
        "Learning curves",
        "Gradient share by difficulty",
        "Accuracy by decile",
        "Samples",
        "Rollouts",
    ]
    places = [page.text.index(title) for title in titles]
    assert places == sorted(places)
    alternatives = [attributes["aria-label"] for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(alternatives) == 4
    assert alternatives[0].startswith("Forest plot of 6 claims, better to the right. PS-KD improves accuracy on image ")
    assert alternatives[1].startswith("Line chart of accuracy against confidence. cross-entropy: from ")
    assert "mean of 5 seeds weighted by their counts" in alternatives[1]
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [(one["alt"], one["width"], one["height"]) for one in images] == [
        ("Samples: benign noise", "256", "256"), ("Samples: biased noise", "320", "80"),
    ]  # fmt: skip


def test_the_page_is_complete_in_itself(page, finished):
    beside = [one for one in page.references if not one.startswith(("#", "data:"))]
    assert {f"report_files/{path.name}" for path in (finished / "report_files").iterdir()} >= set(beside)
    assert len(beside) == len(set(beside)) > 20
    targets = [reference[1:] for reference in page.references if reference.startswith("#")]
    assert set(targets) <= set(page.ids)
    assert page.count("script") == 1
    source = (finished / "report.html").read_text()
    assert "@import" not in source
    assert not re.search(r"url\((?!#)", source)
    script = re.search("<script>(.*?)</script>", source, re.DOTALL)[1]
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'" in source
    picture = base64.b64encode((finished / "samples" / "a.png").read_bytes()).decode()
    assert f"data:image/png;base64,{picture}" in source
    assert len(source.encode()) < 200_000


def test_ids_are_unique_and_every_label_exists(page):
    assert len(page.ids) == len(set(page.ids))
    for _, attributes in page.tags:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in page.ids


def test_headings_nest_and_tables_head_their_rows_and_columns(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    assert ("html", {"lang": "en"}) in page.tags


def test_the_same_study_gives_the_same_bytes(finished, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "report_files")
    build([copy])
    for path in sorted(finished.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (copy / path.relative_to(finished)).read_bytes(), path


def test_a_study_without_claims_metrics_or_notes_is_a_page(study, plain_plan):
    page = small(study, plain_plan, settings={})
    assert page.text.count("This study judges no claim.") == 2
    assert "Notes" not in page.text


def test_a_study_all_of_whose_runs_failed_is_a_page(study, plain_plan):
    seeds = (0, 1)
    failed = tuple(("default", arm, seed) for arm in ("cross_entropy", "pskd", "smoothing") for seed in seeds)
    whole = plain_plan(conditions=(Condition(),), claims=(claim(),), seeds=seeds)
    directory = study("s", whole, Analysis(), failed)
    page = Page(build([directory]))
    assert "6 of 6 runs failed" in page.text
    assert row_of(page, "It helps.")[2] == "No seed has both values."
    assert "Measurements" not in page.text


def test_runs_that_are_not_finished_are_counted(study):
    directory = study()
    (directory / "runs" / "clean" / "pskd" / "seed-0" / "status.json").unlink()
    assert "1 of 30 runs are not finished." in Page(build([directory])).text


def test_several_studies_share_a_page(study, plain_plan, tmp_path):
    one = study("one")
    two = study("two", plain_plan(title="Another study", study="trojdiff"), Analysis())
    three = study("three", plain_plan(title="The first again"), failed=(("noisy", "smoothing", 0),))
    path = build([one, two, three], tmp_path / "all")
    assert path == tmp_path / "all" / "report.html"
    page = Page(path)
    assert "3 of 18 claims hold here, 9 do not, 6 lack evidence." in page.text
    overview = [row for row in page.rows if len(row) == 8]
    assert overview[0][3:] == ["Holds here", "Does not hold here", "Not enough evidence", "Not measured", "Failed runs"]
    assert overview[2][3:] == ["1", "3", "2", "0", "0 of 30"]
    assert overview[3][-1] == "1 of 30"
    assert {"pskd-1", "trojdiff", "pskd-3"} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.references if reference.startswith("#")} <= set(page.ids)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels.count(2) == 6
    source = path.read_text()
    first = source.partition('class="overview"')[0]
    assert first.count("1 of 6 claims holds here") == 3
    assert first.count('role="img"') == 3
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert (tmp_path / "all" / "report.md").is_file()
    assert (tmp_path / "all" / "report_files" / "pskd-3-01-learning-curves.svg").is_file()


def test_the_page_may_be_given_its_own_path(study, tmp_path):
    path = build([study(found=Analysis())], tmp_path / "pages" / "pskd.html")
    assert path == tmp_path / "pages" / "pskd.html"
    assert sorted(one.name for one in path.parent.iterdir()) == ["pskd.html", "pskd.md", "pskd_files"]
