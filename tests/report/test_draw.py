import re
from importlib import resources
from xml.etree import ElementTree

import pytest

from retarget.report.draw import TOGETHER, draw
from retarget.report.palette import DARK, INK, LIGHT, PAPER, TEXT, style, styles
from retarget.report.svg import standalone
from retarget.study.figures import Bars, Lines, Series

SVG = "{http://www.w3.org/2000/svg}"


def lines(count=2, seeds=3, label="arm {}", **more):
    series = [
        Series(label=label.format(i), x=[1, 2, 3, 4], y=[[1.0 + i, 0.5 + s, None, 0.1 * i] for s in range(seeds)])
        for i in range(count)
    ]
    texts = dict(title="t", caption="c", x_label="epoch", y_label="NLL") | more
    return Lines(series=series, **texts)


def bars(labels, groups, seeds=3):
    values = [[[g + 0.1 * s for s in range(seeds)] for g in range(len(groups))] for _ in labels]
    return Bars(title="t", caption="c", x_label="decile", y_label="share", groups=groups, labels=labels, values=values)


def parts(drawing):
    return list(ElementTree.fromstring(drawing.svg).iter())


def texts(drawing):
    return [element.text for element in parts(drawing) if element.tag == f"{SVG}text"]


COUNTED = Series(label="counted", x=[1, 2], y=[[1, 2]], counts=[[3, 40]])
ALL = [
    lines(),
    lines(TOGETHER + 1),
    lines(diagonal=True),
    lines(log_x=True, log_y=True),
    lines(log_x=True, log_y=True, diagonal=True),
    lines(label="_arm {}"),
    lines().model_copy(update={"series": [*lines().series, Series(label="all failed", x=[1, 2], y=[])]}),
    lines().model_copy(update={"series": [COUNTED, COUNTED.model_copy(update={"label": "not", "counts": None})]}),
    bars(["a", "b"], ["1", "2", "3"]),
    bars(["a"], ["a rather long name of a group", "another one that is as long"]),
    bars([f"arm {i}" for i in range(TOGETHER + 1)], ["1", "2"]),
]


@pytest.mark.parametrize("figure", ALL)
def test_every_reference_in_a_drawing_resolves_within_it_and_ids_are_unique(figure):
    ids = []
    for drawing in draw(figure, "p-01"):
        own = [element.get("id") for element in parts(drawing) if element.get("id")]
        used = re.findall(r"url\(#([^)]+)\)", drawing.svg) + re.findall(r'href="#([^"]+)"', drawing.svg)
        assert set(used) <= set(own)
        assert set(own) <= set(used)
        ids += own
    assert len(ids) == len(set(ids))
    assert all(name.startswith("p-01-") for name in ids)


@pytest.mark.parametrize("figure", ALL)
def test_a_drawing_takes_its_ink_from_the_page_and_its_hues_from_classes(figure):
    for drawing in draw(figure, "p"):
        assert INK not in drawing.svg
        assert "currentColor" in drawing.svg
        assert "font-family" not in drawing.svg
        for element in parts(drawing):
            for hue in LIGHT.values():
                assert hue not in element.get("style", "") or element.get("class")
        assert not any(element.tag in (f"{SVG}metadata", f"{SVG}style") for element in parts(drawing))


@pytest.mark.parametrize("figure", ALL)
def test_the_same_figure_gives_the_same_bytes(figure):
    assert draw(figure, "p") == draw(figure, "p")


def test_a_label_is_text_whatever_it_holds():
    label = '$x^2$ <script>alert(1)</script> & "quoted" {}'
    (drawing,) = draw(lines(1, label=label, x_label="$n$ <b>", y_label="a\\frac{1}{2}"), "p")
    assert label.format(0) in texts(drawing)
    assert "$n$ <b>" in texts(drawing)
    assert "a\\frac{1}{2}" in texts(drawing)
    assert "<script" not in drawing.svg


def test_letters_that_the_bundled_font_lacks_draw_without_a_warning(recwarn):
    (drawing,) = draw(lines(1, label="漢字 {}"), "p")
    assert "漢字 0" in texts(drawing)
    assert not [one for one in recwarn if "Glyph" in str(one.message)]


def test_more_series_than_fit_get_a_panel_each_on_one_scale():
    figure = lines(TOGETHER + 2, label="arm number {}")
    figure.series[0].y[0][0] = 40.0
    panels = draw(figure, "p")
    assert len(panels) == TOGETHER + 2
    for index, panel in enumerate(panels):
        assert f"arm number {index}" in texts(panel)
        assert f"arm number {index}: from" in panel.alt
        assert [one for one in texts(panel) if "arm number" in one] == [f"arm number {index}"]
    ticks = [[one for one in texts(panel) if re.fullmatch(r"[\d.]+", one)] for panel in panels]
    assert all(one == ticks[0] for one in ticks)


def test_bars_with_panels_share_one_scale_even_where_values_differ():
    figure = bars([f"arm {i}" for i in range(TOGETHER + 1)], ["1", "2"])
    figure.values[0][0][0] = 40.0
    ticks = [[one for one in texts(panel) if re.fullmatch(r"[\d.]+", one)] for panel in draw(figure, "p")]
    assert all(one == ticks[0] for one in ticks)


def test_missing_values_empty_series_and_no_series_at_all_can_be_drawn():
    nothing = Series(label="failed", x=[1, 2], y=[[None, None]])
    empty = Series(label="empty", x=[], y=[])
    (drawing,) = draw(lines(0).model_copy(update={"series": [nothing, empty]}), "p")
    assert drawing.alt.endswith("failed: no value. empty: no value.")
    assert len(draw(lines(0), "p")) == 1
    hollow = Bars(
        title="t", caption="c", x_label="x", y_label="y", groups=["1", "2"], labels=["a"], values=[[[None], []]]
    )
    assert "a: no value." in draw(hollow, "p")[0].alt
    assert len(draw(bars([], []), "p")) == 1


@pytest.mark.parametrize(("first", "points"), [(1, 3), (300, 4)])
def test_a_point_of_few_items_is_off_the_line_and_the_counts_are_shown(first, points):
    series = Series(label="a", x=[0.1, 0.2, 0.3, 0.4], y=[[0.0, 0.2, 0.3, 0.4]], counts=[[first, 300, 300, 300]])
    (drawing,) = draw(lines(0, diagonal=True).model_copy(update={"series": [series], "counted": "images"}), "p")
    thick = [one for one in parts(drawing) if "stroke-width:2.1" in one.get("style", "")]
    (mean,) = [one for one in thick if one.get("clip-path")]  # the other one is the legend's
    assert len(re.findall("[ML]", mean.get("d"))) == points
    assert "images" in " ".join(filter(None, texts(drawing)))


def test_the_alternative_text_says_where_each_curve_starts_and_ends():
    (drawing,) = draw(lines(2), "p")
    assert drawing.alt == (
        "Line chart of NLL against epoch. arm 0: from 1 at 1 to 0 at 4, mean of 3 seeds. "
        "arm 1: from 2 at 1 to 0.1 at 4, mean of 3 seeds."
    )


def test_a_file_has_its_size_its_colours_and_its_description():
    (drawing,) = draw(lines(), "p")
    root = ElementTree.fromstring(standalone(drawing.svg, drawing.width, drawing.height, drawing.alt))
    assert root.get("width") == str(drawing.width)
    assert root.find(f"{SVG}desc").text == drawing.alt
    assert "prefers-color-scheme:dark" in root.find(f"{SVG}style").text
    assert root.get("viewBox") == f"0 0 {drawing.width} {drawing.height}"


def contrast(one, other):
    """WCAG's contrast ratio of two colours."""

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("scheme", "hues"), [("light", LIGHT), ("dark", DARK)])
def test_hues_and_ink_stand_out_from_their_background(scheme, hues):
    assert all(contrast(hue, PAPER[scheme]) >= 3 for hue in hues.values())
    assert contrast(TEXT[scheme], PAPER[scheme]) >= 7
    assert hues.keys() == LIGHT.keys()


def test_the_style_sheet_has_the_paper_and_ink_that_the_hues_were_checked_on():
    sheet = (resources.files("retarget.report") / "templates" / "page.css").read_text()
    light, _, dark = sheet.partition("prefers-color-scheme: dark")
    for scheme, rules in (("light", light), ("dark", dark)):
        assert f"--paper: {PAPER[scheme]}; --ink: {TEXT[scheme]};" in rules


def test_arms_differ_without_colour():
    looks = [style(index) for index in range(14)]
    assert len({(one.dash, one.marker) for one in looks}) == len(looks)
    assert len({(one.colour, one.dash, one.marker) for one in map(style, range(84))}) == 84


def test_an_arm_looks_the_same_in_every_figure():
    arms = {"a": 0, "b": 1, "c": 2}
    assert styles(["c", "a"], arms)["c"] == styles(["b", "c"], arms)["c"] == style(2)
    mixed = styles(["other", "b", "new"], arms)
    assert len(set(mixed.values())) == 3


def test_a_label_that_begins_with_an_underscore_is_in_the_legend():
    (drawing,) = draw(lines(label="_arm {}"), "p")
    assert {"_arm 0", "_arm 1"} <= {(text or "").replace("\u200b", "") for text in texts(drawing)}


def test_a_logarithmic_axis_has_numbers_within_one_decade_and_is_not_made_up():
    series = Series(label="a", x=[12, 24, 64], y=[[0.8, 0.5, 0.31]])
    figure = lines(0, log_x=True, log_y=True).model_copy(update={"series": [series]})
    (drawing,) = draw(figure, "p")
    assert {"20", "50", "0.5"} <= set(texts(drawing))
    below = figure.model_copy(update={"series": [series.model_copy(update={"y": [[-1.0, -2.0, -3.0]]})]})
    assert "10" not in texts(draw(below, "p")[0]), "no value can be shown on a logarithmic axis: it is linear"


def test_a_value_between_gaps_is_a_point():
    def points(y):
        series = Series(label="a", x=list(range(13)), y=[y])
        (drawing,) = draw(lines(0).model_copy(update={"series": [series]}), "p")
        used = [one.get("y") for one in parts(drawing) if one.tag == f"{SVG}use"]
        return len(used)

    nothing = points([None] * 13)
    assert points([1.0 if at == 7 else None for at in range(13)]) == nothing + 1
    assert points([float(at) if at % 2 else None for at in range(13)]) == nothing + 6


def test_panels_of_negative_bars_have_a_scale_of_their_own():
    figure = bars([f"arm {i}" for i in range(TOGETHER + 1)], ["1", "2"])
    for series in figure.values:
        for group in series:
            group[:] = [-0.02, -0.03]
    scale = [text for text in texts(draw(figure, "p")[0]) if re.fullmatch(r"\S\d\.\d+", text)]
    assert scale == ["−0.03", "−0.02", "−0.01"]
