"""Text from a study is text on its page, whatever it contains."""

import numpy as np
from page_reader import Page
from small_pages import claim

from retarget.report import build
from retarget.study.config import Arm, Condition, Metric
from retarget.study.figures import Analysis, Bars, Images, Lines, Series, Table, Text

HOSTILE = "<script>alert('x')</script> \"&' </style></svg>]]> | `*_ {{ 7 * 7 }} {% raw %}"


def test_text_from_a_study_never_becomes_markup(study, plain_plan):
    arms = (
        Arm(name="cross_entropy", label=HOSTILE),
        Arm(name="pskd", label="PS-KD" + HOSTILE, settings={"k": HOSTILE}),
    )
    frame = dict(title=HOSTILE, caption=HOSTILE)
    axes = dict(x_label=HOSTILE, y_label=HOSTILE)
    found = Analysis(
        figures=[
            Lines(**frame, **axes, series=[Series(label=HOSTILE, x=[0, 1], y=[[1.0, 2.0]])]),
            Bars(**frame, **axes, groups=[HOSTILE, "b"], labels=[HOSTILE], values=[[[1.0], [2.0]]]),
            Table(**frame, columns=[HOSTILE], rows=[[HOSTILE]]),
            Images(**frame, files=["samples/a.png"], labels=[HOSTILE]),
            Text(**frame, labels=[HOSTILE], blocks=["</pre>" + HOSTILE + "\x00\x1b[31m\u202e"]),
        ],
        notes=[HOSTILE],
    )
    plan = plain_plan(
        study="x" + HOSTILE,
        title=HOSTILE,
        question=HOSTILE,
        preset=HOSTILE,
        settings={HOSTILE: HOSTILE},
        arms=arms,
        conditions=(Condition(name="default", label=HOSTILE),),
        metrics=(Metric(name="top1", label=HOSTILE, unit=HOSTILE, description=HOSTILE),),
        claims=(claim(sentence=HOSTILE),),
    )
    directory = study("hostile", plan, found)
    page = Page(build([directory]))
    allowed = {
        "html",
        "head",
        "body",
        "meta",
        "link",
        "style",
        "title",
        "main",
        "header",
        "footer",
        "nav",
        "section",
        "svg",
    }
    assert page.count("script") == 1
    assert allowed <= {tag for tag, _ in page.tags}
    assert page.text.count("alert('x')") > 20
    assert "49" not in page.text
    assert not [attribute for _, attributes in page.tags for attribute in attributes if attribute.startswith("on")]
    assert "\x00" not in page.text
    assert "\x1b" not in page.text
    names = [path.name for path in (directory / "report_files").iterdir()]
    assert all(name.startswith("x-script-") for name in names)
    for path in (directory / "report_files").glob("*.svg"):
        assert "<script" not in path.read_text()


PIECES = (
    "<", ">", "</", "<script>", "</script>", "<img src=x onerror=alert(1)>", "'", '"', "`", "&", "&lt;", "&#60;",
    "-->", "<!--", "]]>", "</style>", "</svg>", "</pre>", "</title>", "<svg/onload=alert(1)>", "javascript:alert(1)",
    "{{ 7*7 }}", "{% raw %}", "\\", "\\u003cscript>", "\x00", "\u202e", "\ufeff", " onmouseover=alert(1) ",
    "=cmd|' /C calc'!A1", "|",
)  # fmt: skip


def test_two_thousand_hostile_strings_are_two_thousand_texts(study, plain_plan):
    random = np.random.default_rng(0)
    strings = ["".join(random.choice(PIECES, size=random.integers(1, 6))) for _ in range(2000)]
    rows = [[f"row {at}", *strings[at : at + 4]] for at in range(0, 1600, 4)]
    titles = strings[1900:1940]

    def page(rows, notes, titles, words):
        found = Analysis(
            figures=[
                Table(title=words[0], caption=words[1], columns=["row", *words[2:6]], rows=rows),
                *(Text(title=title, caption=title, labels=[title], blocks=[title]) for title in titles),
            ],
            notes=notes,
        )
        claims = [claim(sentence=words[6])]
        labels = ("cross_entropy", words[7]), ("pskd", words[8])
        arms = tuple(Arm(name=name, label=label) for name, label in labels)
        whole = dict(title=words[9], question=words[10], arms=arms, claims=claims, settings={words[11]: words[12]})
        directory = study(f"s{len(notes)}{words[0] == 'plain'}", plain_plan(conditions=(Condition(),), **whole), found)
        return directory, Page(build([directory]))

    directory, hostile = page(rows, strings[1600:1900], titles, strings[1940:1960])
    _, plain = page(
        [[row[0], "a", "b", "c", "d"] for row in rows], ["plain"] * 300, [f"title {at}" for at in range(40)],
        ["plain", *(f"plain {at}" for at in range(19))],
    )  # fmt: skip
    allowed = {"href", "id", "class", "aria-label", "aria-labelledby", "style", "alt"}
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    for (_, own), (_, other) in zip(hostile.tags, plain.tags, strict=True):
        assert own.keys() == other.keys()
        assert {key for key in own if own[key] != other[key]} <= allowed | {"content"}
    assert not [one for one in hostile.references if one.startswith(("javascript", "http", "//"))]
    assert all("<script" not in path.read_text() for path in (directory / "report_files").glob("*.svg"))


def test_a_lone_surrogate_in_a_model_s_output_does_not_break_the_page(study, edit):
    directory = study()
    edit(directory / "analysis.json", lambda value: value["figures"][5].update(blocks=["half \ud800 a pair"]))
    assert "half \ufffd a pair" in Page(build([directory])).text
