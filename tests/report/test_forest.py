from xml.etree import ElementTree

import pytest

from retarget.report.claims import ClaimGroup, ClaimRow, Scaled
from retarget.report.forest import MANY, REACH, forest

SVG = "{http://www.w3.org/2000/svg}"


def row(scaled=Scaled(0.5, -0.2, 1.2, 1.0, False), mark="lacks", **changes):  # noqa: B008
    whole = dict(
        id="a", sentence="It helps.", compared="A against B", metric="top-1", threshold="", estimate="+0.50 points",
        interval="[−0.20, +1.20]", level="95 % interval", n="5", missing="", verdict="not enough evidence",
        verdict_words="not enough evidence", symbol="?", mark=mark, remark="", beside="", scaled=scaled,
    ) | changes  # fmt: skip
    return ClaimRow(**whole)


def parsed(rows, condition=""):
    plot = forest([ClaimGroup(condition, tuple(rows))])
    return [ElementTree.fromstring(one.svg) for one in (plot.wide, plot.narrow)]


def spans(svg):
    """Left and right end of every thick bar."""
    bars = [path.get("d") for path in svg.iter(f"{SVG}path") if path.get("stroke-width") == "3"]
    return [(float(d[1:].split()[0]), float(d.partition("H")[2])) for d in bars]


def texts(svg):
    return [element.text for element in svg.iter(f"{SVG}text")]


def place_of(svg, value):
    """Where the axis has this number."""
    label = next(one for one in svg.iter(f"{SVG}text") if one.text == value and one.get("class") == "muted")
    return float(label.get("x"))


@pytest.mark.parametrize("layout", [0, 1])
def test_ends_and_estimate_stand_where_the_axis_says(layout):
    svg = parsed([row(Scaled(1.0, -1.0, 2.0, 1.0, False))])[layout]
    (span,) = spans(svg)
    assert span == pytest.approx((place_of(svg, "−1"), place_of(svg, "2")), abs=0.2)
    (dot,) = [float(one.get("cx")) for one in svg.iter(f"{SVG}circle")]
    assert dot == pytest.approx(place_of(svg, "1"), abs=0.2)


def test_what_lies_beyond_the_scale_ends_in_an_arrow_within_the_drawing():
    for svg in parsed([row(Scaled(4e6, 3e6, 5e6, 1.0, False), mark="holds")]):
        (span,) = spans(svg)
        assert span[0] == span[1] == place_of(svg, f"{REACH[1]:g}")
        arrows = [one for one in svg.iter(f"{SVG}path") if one.get("d").endswith("Z")]
        assert len(arrows) == 1
        assert float(svg.get("viewBox").split()[2]) > span[1] + 6


def test_a_scale_that_reaches_far_narrows_and_says_so():
    plot = forest([ClaimGroup("", (row(Scaled(86.0, 80.0, 92.0, 1.0, False)),))])
    svg = ElementTree.fromstring(plot.wide.svg)
    places = [place_of(svg, value) for value in ("−10", "−1", "0", "1", "10")]
    assert places == sorted(places)
    assert places[4] - places[3] < 9 * (places[3] - places[2])
    (span,) = spans(svg)
    assert places[4] < span[0] < span[1]
    assert "compressed" in plot.caption


def test_a_margin_stands_at_the_left_and_a_smallest_effect_at_the_right():
    svg = parsed(
        [row(Scaled(0.0, -0.5, 0.5, 1.0, False)), row(Scaled(0.0, -0.5, 0.5, -1.0, False), sentence="No worse.")]
    )[0]
    dotted = [float(p.get("d")[1:].split()[0]) for p in svg.iter(f"{SVG}path") if p.get("stroke-dasharray") == "2 3"]
    assert dotted == pytest.approx([place_of(svg, "1"), place_of(svg, "−1")], abs=0.2)


def test_each_verdict_has_a_shape_of_its_own():
    shapes = {}
    for mark in ("holds", "fails", "lacks", "unmeasured"):
        svg = parsed([row(mark=mark)])[0]
        group = [one for one in svg.iter(f"{SVG}g") if one.get("class") == mark][-1]
        shapes[mark] = ElementTree.tostring(next(iter(group)))
    assert len(set(shapes.values())) == 4


def test_claims_that_say_the_same_name_what_they_compare():
    wide, _ = parsed([row(), row(compared="C against B"), row(sentence="Other.")])
    assert "It helps (A against B)" in texts(wide)
    assert "It helps (C against B)" in texts(wide)
    assert "Other." in texts(wide)


def test_many_claims_stay_low_and_a_long_sentence_is_whole_in_its_title():
    long = "A sentence that goes on and on and on for longer than the two lines of the plot's label can ever hold " * 2
    long += "{}."
    wide, _ = parsed([row(sentence=long.format(at)) for at in range(MANY + 7)])
    assert int(wide.get("viewBox").split()[3]) < 37 * (MANY + 7) + 40
    assert long.format(3) in [one.text for one in wide.iter(f"{SVG}title")]


def test_hostile_text_is_text_and_an_empty_study_has_no_plot():
    hostile = '<script>alert(1)</script> & "quoted" ]]>'
    for svg in parsed([row(sentence=hostile, estimate=hostile)], condition=hostile):
        assert hostile in texts(svg)
        assert not list(svg.iter(f"{SVG}script"))
    assert forest([ClaimGroup("", (row(scaled=None),))]) is None
    assert forest([]) is None


def test_intervals_over_items_are_dashed_and_said_to_be_no_verdict():
    plot = forest([ClaimGroup("", (row(Scaled(0.5, 0.1, 0.9, 1.0, True), mark="once", verdict_words="", verdict=""),))])
    assert 'stroke-dasharray="5 2"' in plot.wide.svg
    assert "not the method" in plot.caption
    assert plot.wide.alt == "Forest plot of 1 claim, better to the right. It helps: +0.50 points [−0.20, +1.20]."


def test_a_unit_without_room_is_left_out_and_wide_letters_take_two_places():
    for svg in parsed([row(estimate="+20198.4 tokens per second"), row(estimate="−94.83 points")]):
        assert "+20198.4" in texts(svg)
        assert "−94.83 points" in texts(svg)
        assert not any("tokens" in text for text in texts(svg))
    for svg, width in zip(parsed([row(sentence="\u8a13" * 60)]), (430, 358), strict=True):
        (size,) = {float(one.get("font-size")) for one in svg.iter(f"{SVG}text") if "\u8a13" in one.text}
        assert all(len(text) * size <= width * 1.15 for text in texts(svg) if "\u8a13" in text)
