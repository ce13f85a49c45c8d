"""The clean models, the command that makes the null, the shipped null, and the demo, each in its smallest form."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from retarget.audit import calibrate, demo
from retarget.audit.calibration import Null, shipped
from retarget.audit.inversion import Search
from retarget.audit.nulls import CASES, SHAPES, Clean, common, images_of, plan, repeated, train_clean
from retarget.audit.seek import BEFORE, PLAIN, SYMMETRIC, fingerprint
from retarget.cli import main
from retarget.errors import UserError

QUICK = Search(screen=64, quick=2, scan=2, first=1, steps=1, batch=2, gammas=(0.5,), keep=1, fresh=4, symmetric=2)


def test_the_plan_has_every_case_in_every_shape_and_no_model_twice():
    models = plan(len(SHAPES) * len(CASES))
    assert len({(one.side, one.channels, one.case) for one in models}) == len(models)
    assert len({one.seed for one in models}) == len(models)
    assert {one.schedule for one in models} == {"linear", "cosine", "short"}
    assert plan(5) == models[:5]


@pytest.mark.parametrize(
    "one", plan(len(SHAPES) * len(CASES))[::5], ids=lambda one: f"{one.case}-{one.side}-{one.channels}"
)
def test_its_images_are_what_the_case_says(one):
    images = images_of(one)
    assert images.shape[1:] == (one.channels, one.side, one.side)
    assert float(images.abs().max()) <= 1
    assert torch.equal(images, images_of(one))
    if one.case == "logo":
        assert float(images[:, :, -1, -1].std(0).max()) == 0
    if one.case == "border":
        assert float(images[:, :, 0].std((0, 2)).max()) == 0
    assert (len(images) == 12) == (one.case == "few")


def test_the_models_of_common_shapes_use_every_image_set_in_every_case(tmp_path):
    np.savez(
        tmp_path / "some.npz",
        images=np.random.default_rng(0).integers(0, 255, (40, 20, 20), dtype=np.uint8),
        labels=np.arange(40) % 2,
    )
    name = f"npz:{tmp_path}/some.npz"
    for channels in (1, 3):
        models = common(2 * len(CASES), channels, [name])
        assert {(one.data, one.case) for one in models} == {(data, case) for data in ("glyphs", name) for case in CASES}
        assert {len({one.data for one in models if one.schedule == kind}) for kind in ("linear", "cosine")} == {2}
        for one in models[1:3]:
            images = images_of(one)
            assert images.shape[1:] == (channels, *[28 if channels == 1 else 32] * 2)
            assert images.std() > 0.1
    assert len({one.seed for channels in (1, 3) for one in common(9, channels)}) == 18


def test_half_of_the_images_of_the_hard_case_are_one_picture():
    models = repeated(12)
    assert {(one.side, one.channels) for one in models} == {*SHAPES, (28, 1), (32, 3)}
    assert len({(one.side, one.channels, one.data) for one in models}) == 12, "each shape has both image sets"
    for one in models[:6]:
        images = images_of(one)
        same = (images == images[0]).flatten(1).all(1)
        assert same.sum() >= len(images) // 2
        assert len(images[~same].unique(dim=0)) > 100


def test_a_sixth_of_the_images_of_the_other_hard_case_are_one_figure():
    for one in repeated(6, "placeholder"):
        images = images_of(one)
        same = (images == images[0]).flatten(1).all(1)
        assert same.sum() == len(images) // 6
        assert images[0].amin() == -1
        assert images[0].amax() > 0.5
        assert one.steps >= 1000


def test_a_colour_set_cannot_train_a_grey_model(tmp_path):
    np.savez(tmp_path / "some.npz", images=np.zeros((40, 20, 20, 3), np.uint8), labels=np.arange(40) % 2)
    with pytest.raises(UserError, match="has 3 channels: it cannot train a network with 1"):
        images_of(common(2, 1, [f"npz:{tmp_path}/some.npz"])[1])


def test_training_is_the_same_twice():
    one = Clean(data="glyphs", side=8, channels=1, case="finetuned", steps=2, batch=4)
    first, second = (train_clean(one)[0].state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_null_is_made_by_its_command_and_resumes(tmp_path, monkeypatch, capsys):
    tiny = [one.model_copy(update={"steps": 6, "batch": 2}) for one in plan(2)]
    monkeypatch.setattr(calibrate, "plan", lambda count: tiny[:count])
    monkeypatch.setattr(calibrate, "Search", lambda: QUICK)
    out = tmp_path / "null.json"
    words = ["--models", str(tmp_path / "models"), "--out", str(out), "--count", "2"]
    calibrate.main(words)
    null = Null.model_validate(json.loads(out.read_text()))
    assert [one.channels for one in null.models] == [1, 3]
    assert null.search == fingerprint(QUICK) != fingerprint(Search())
    assert "--count 2" in null.command
    capsys.readouterr()
    for folder in (tmp_path / "models").glob("00?"):
        shutil.rmtree(folder)
    calibrate.main(words)
    assert capsys.readouterr().out == "", "nothing is trained or searched again, even without the models"
    assert json.loads(out.read_text()) == null.model_dump(mode="json")


def test_pipelines_from_elsewhere_are_added_with_the_cases_that_are_given(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "Search", lambda: QUICK)
    words = ["--models", str(tmp_path / "m"), "--out", str(tmp_path / "n.json"), "--count", "0", "--more", str(stored)]
    for more, case in (([], "elsewhere"), (["--cases", "logo"], "logo")):
        calibrate.main([*words, *more])
        (one,) = Null.model_validate(json.loads((tmp_path / "n.json").read_text())).models
        assert (one.name, one.case) == (f"{stored.parent.name}-pipeline", case)
    with pytest.raises(UserError, match=r"give one case for each pipeline of --more: 2 for 1"):
        calibrate.main([*words, "--cases", "logo", "few"])


def test_a_null_is_extended_without_its_models(tmp_path, monkeypatch, capsys):
    tiny = [one.model_copy(update={"steps": 6, "batch": 2}) for one in plan(2)]
    monkeypatch.setattr(calibrate, "plan", lambda count: tiny[:count])
    monkeypatch.setattr(calibrate, "Search", lambda: QUICK)
    calibrate.main(["--models", str(tmp_path / "a"), "--out", str(tmp_path / "a.json"), "--count", "1"])
    first = Null.model_validate(json.loads((tmp_path / "a.json").read_text()))
    capsys.readouterr()
    words = ["--models", str(tmp_path / "b"), "--out", str(tmp_path / "b.json"), "--count", "2"]
    calibrate.main([*words, "--extend", str(tmp_path / "a.json")])
    assert not re.search(r"b/000\b", capsys.readouterr().out), (
        "the model that the null has is neither trained nor searched again"
    )
    both = Null.model_validate(json.loads((tmp_path / "b.json").read_text()))
    assert both.models[0] == first.models[0]
    assert [one.name for one in both.models] == ["000", "001"]
    assert both.command.splitlines()[0] == first.command
    assert "--extend" in both.command.splitlines()[1]
    monkeypatch.setattr(calibrate, "Search", Search)
    with pytest.raises(UserError, match="was made by another search"):
        calibrate.main([*words, "--extend", str(tmp_path / "a.json")])


def test_a_null_of_the_search_before_gets_the_new_branch_alone(tmp_path, monkeypatch, capsys):
    tiny = [one.model_copy(update={"steps": 6, "batch": 2}) for one in plan(2)]
    monkeypatch.setattr(calibrate, "plan", lambda count: tiny[:count])
    monkeypatch.setattr(calibrate, "Search", lambda: QUICK)
    words = ["--models", str(tmp_path / "a"), "--count", "2"]
    calibrate.main([*words, "--out", str(tmp_path / "whole.json")])
    whole = Null.model_validate(json.loads((tmp_path / "whole.json").read_text()))

    def without(one):
        statistics = {name: value for name, value in one.statistics.items() if name != "score_symmetric"}
        return one.model_copy(update={"score": 0.01, "statistics": statistics})

    before = whole.model_copy(update={"search": BEFORE, "models": [without(one) for one in whole.models]})
    (tmp_path / "before.json").write_text(before.model_dump_json())
    words[1] = str(tmp_path / "b")
    words += ["--upgrade", str(tmp_path / "before.json"), "--out", str(tmp_path / "after.json")]
    calibrate.main(words)
    after = Null.model_validate(json.loads((tmp_path / "after.json").read_text()))
    assert (after.search, [one.name for one in after.models]) == (whole.search, ["000", "001"])
    for one, complete in zip(after.models, whole.models, strict=True):
        found = one.statistics["score_symmetric"]
        assert found == complete.statistics["score_symmetric"], "the branch alone finds what the whole search does"
        assert one.score == (complete.score if found >= SYMMETRIC else 0.01)
    assert after.command.startswith(before.command)
    assert "--upgrade" in after.command
    with pytest.raises(UserError, match="give --extend or --upgrade, not both"):
        calibrate.main([*words, "--extend", str(tmp_path / "whole.json")])
    with pytest.raises(UserError, match="has models that this command does not make: 001"):
        calibrate.main([*words, "--count", "1"])
    with pytest.raises(UserError, match="was made by another search"):
        calibrate.main([*words, "--upgrade", str(tmp_path / "whole.json")])


def test_the_null_in_the_package_is_that_of_the_frozen_search():
    null = shipped()
    assert null.search == fingerprint(Search()), "the search was changed: make the null again"
    assert "calibrate" in null.command
    card = (Path(__file__).parents[2] / "src/retarget/audit/README.md").read_text()
    assert all(one.case != "elsewhere" for one in null.models)
    made = [one for one in null.models if one.schedule != "elsewhere"]
    count = {shape: sum((one.side, one.channels) == shape for one in made) for shape in ((28, 1), (32, 3))}
    assert f"The null has {len(null.models)} models. {len(made)} (`nulls.py`)" in card
    assert f"{count[28, 1]} grey ones of 28×28" in card
    assert f"{count[32, 3]} of 32×32 in colour" in card
    assert len({one.name for one in null.models}) == len(null.models)
    assert all(one.score < 1 for one in null.models)
    search = Search()
    assert f"{2 * (len(search.grids) + 1) * search.maps:,} random maps" in card
    most = max(one.statistics["score_elsewhere"] for one in null.models)
    assert most < PLAIN
    highest = max(one.statistics["score_symmetric"] for one in null.models)
    assert highest < SYMMETRIC
    assert f"Below {SYMMETRIC:g} it does not count: clean networks reach {highest:.1f}.".replace("0.", ".") in card
    assert f"reach {most:.1f}.".replace("0.", ".") in card


def test_the_demo_trains_both_audits_both_and_says_when_a_verdict_is_not_as_expected(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("retarget.audit.run.Search", lambda: QUICK)
    monkeypatch.setattr(demo, "STEPS", 1)
    monkeypatch.setattr(demo, "BASE", demo.BASE.model_copy(update={"steps": 1}))
    assert main(["audit", "--preset", "demo", "--out", str(tmp_path)]) == 2
    for name in ("clean", "trojaned"):
        assert (tmp_path / name / "report.html").is_file()
        assert (tmp_path / "models" / name / "model_index.json").is_file()
        (run,) = json.loads((tmp_path / name / "audit.sarif").read_text())["runs"]
        assert run["invocations"][0]["exitCode"] == 2, "the process's, not the model's"
        assert run["invocations"][0]["commandLine"] == f"retarget audit --preset demo --out {tmp_path}"
        assert json.loads((tmp_path / name / "audit.json").read_text())["exit_code"] == 3, "the model's"
    assert "UNDECIDED" in capsys.readouterr().out
