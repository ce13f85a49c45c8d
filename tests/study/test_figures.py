import math

import pytest
from pydantic import TypeAdapter, ValidationError

from retarget.study.figures import Analysis, Bars, Figure, Images, Lines, Series, Table, Text

FRAME = dict(title="t", caption="c")
AXES = dict(x_label="x", y_label="y")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Series(label="PS-KD", x=[1, 2], y=[[1.0, 2.0], [1.0]]), r"'PS-KD': y\[1\] has 1 values for 2 of x"),
        (lambda: Series(label="a", x=[math.nan], y=[[1.0]]), "finite number"),
        (lambda: Bars(**FRAME, **AXES, groups=["g"], labels=["a", "b"], values=[[[1.0]]]), "2 labels but 1 values"),
        (lambda: Bars(**FRAME, **AXES, groups=["g", "h"], labels=["a"], values=[[[1.0]]]), "2 groups but 1 values"),
        (lambda: Table(**FRAME, columns=["a", "b"], rows=[["1"]]), "row 0: 2 columns but 1 cells"),
        (lambda: Images(**FRAME, files=["a.png"], labels=[]), "1 files but 0 labels"),
        (lambda: Text(**FRAME, labels=["a"], blocks=[]), "1 labels but 0 blocks"),
    ],
)
def test_a_figure_whose_parts_do_not_fit_is_refused(make, message):
    with pytest.raises(ValidationError, match=message):
        make()


def test_what_is_not_finite_is_missing():
    assert Series(label="a", x=[1, 2, 3], y=[[math.nan, math.inf, 1.0]]).y == [[None, None, 1.0]]
    analysis = Analysis(metrics={"clean": {"pskd": {"top1": [math.nan, 2.0]}}})
    assert analysis.metrics["clean"]["pskd"]["top1"] == [None, 2.0]


def test_an_analysis_survives_its_json_file():
    lines = Lines(**FRAME, **AXES, series=[Series(label="a", x=[1, 2], y=[[1.0, math.nan]])])
    images = Images(**FRAME, files=["sub/a.png"], labels=["one"])
    analysis = Analysis(figures=[lines, images], item_intervals={"accuracy": (-1.0, 2.0)}, notes=["n"])
    assert Analysis.model_validate_json(analysis.model_dump_json()) == analysis


def test_an_unknown_kind_of_figure_is_named():
    with pytest.raises(ValidationError, match="kind"):
        TypeAdapter(Figure).validate_python({"kind": "pie", **FRAME})
