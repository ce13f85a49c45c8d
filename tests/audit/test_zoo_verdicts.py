"""The verdicts that the zoo's study counts, and what its detectors are told."""

import pytest
import torch

from retarget.audit.calibration import shipped
from retarget.audit.studies.analysis import _cells, analyse
from retarget.audit.studies.build import build
from retarget.audit.studies.members import CELLS, STOCK, Recipe, draw, supposed
from retarget.audit.studies.plan import LABELS, Settings, plan
from retarget.audit.studies.run import detect
from retarget.audit.studies.verdicts import STRONG, Model, Split, said, verdicts
from retarget.cli import main
from retarget.errors import UserError
from retarget.study.record import Results

RECIPE = Recipe(sources=("digits",), widths=((8, 8),), steps=2, attack_steps=2, batch_size=8)


def test_the_command_s_verdicts_are_counted_by_sort_of_model():
    clean = {"trojaned": 0.0, "score_audit": 0.05, "undo_audit": 0.0, "residual_audit": 0.005}
    strong = {"trojaned": 1.0, "attack": 90.0, "base_rate": 0.0, "score_audit": 0.9, "undo_audit": 0.9,
              "strength_audit": 0.9, "residual_audit": 0.005}  # fmt: skip
    attacked = Model("evaluation", "d2i_blend", 0, strong)
    split = Split([], [Model("evaluation", "plain", 0, clean)] * 2, [attacked], [], [])
    assert said(split, shipped()) == {
        "clean": ["nothing found"] * 2, "strong attacks": ["trojaned"], "weak attacks": []
    }  # fmt: skip
    drawn = attacked._replace(metrics=strong | {"by_heart_audit": 1.0})
    assert said(split._replace(strong=[drawn]), shipped())["strong attacks"] == ["undecided"]
    rows = {row[0]: row[1:] for row in verdicts(split, shipped()).rows}
    assert [rows[one][:3] for one in ("clean", "strong attacks", "weak attacks")] \
        == [["2", "0", "0"], ["0", "0", "1"], ["0", "0", "0"]]  # fmt: skip
    assert rows["clean, trained well"][:4] == rows["clean"][:4]
    assert rows["clean, trained well"][4].startswith(f"{rows['clean'][3]}; undecided 0")
    assert rows["D2I, blend"][:4] == rows["strong attacks"][:4]
    assert rows["strong attacks"][4] == f"{rows['strong attacks'][3]} without whichever it is"
    assert len(rows) == 5


def test_a_kind_of_clean_model_is_judged_without_its_like_in_the_null():
    """If logos alone score high, a model with a logo is suspicious only where the null has none."""
    models = [one.model_copy(update={"score": 1.0 if one.case == "logo" else 0.05}) for one in shipped().models]
    null = shipped().model_copy(update={"models": models})
    metrics = {"trojaned": 0.0, "score_audit": 0.9, "undo_audit": 0.9, "strength_audit": 0.9, "residual_audit": 0.005}
    split = Split([], [Model("evaluation", "logo", 0, metrics)], [], [], [])
    table = verdicts(split, null)
    (row,) = [row for row in table.rows if row[0] == "clean, a logo in every image"]
    assert (row[3], row[5][:3]) == ("0", "1/1")
    assert row[5].endswith("; undecided 0; compared with others: 1"), "of its shape too few are left without logos"
    more = null.model_copy(update={"models": [*models, *(one for one in models if one.case == "plain")]})
    (row,) = [row for row in verdicts(split, more).rows if row[0] == "clean, a logo in every image"]
    assert row[5].endswith("; undecided 0")


def test_attacks_have_the_fewest_that_are_found_whichever_kind_the_null_lacks():
    """An attack that scores 1.3 times all clean models decides without firing, unless too few of its shape remain."""
    models = [one.model_copy(update={"score": 0.1, "side": 8, "channels": 1, "residual": 0.005})
              for one in shipped().models]  # fmt: skip
    kept = [one for one in models if one.case == "logo"][:2] + [one for one in models if one.case == "plain"][:20]
    null = shipped().model_copy(update={"models": kept})
    metrics = {"trojaned": 1.0, "attack": 90.0, "base_rate": 0.0, "score_audit": 0.4, "undo_audit": 0.4,
               "strength_audit": 0.1, "residual_audit": 0.005}  # fmt: skip
    split = Split([], [], [Model("evaluation", "d2i_blend", 0, metrics)], [], [])
    (row,) = [row for row in verdicts(split, null).rows if row[0] == STRONG]
    assert row[3] == "1"
    assert row[5] == f"0/1: 0 [0, 79] without {LABELS['plain']}"


def test_each_cell_has_the_rate_and_the_area_of_its_own_attacks():
    def models(kind, scores, **more):
        return [Model("evaluation", kind, number, {"trojaned": float(bool(more)), "score_terd": score, **more})
                for number, score in enumerate(scores)]  # fmt: skip

    works = {"attack": 90.0, "base_rate": 0.0}
    strong = [*models("d2i_patch", [3.0, 4.0], **works), *models("d2i_blend", [0.5, -1.0], **works)]
    clean = models("plain", [0.0, 1.0])
    development = models("logo", [2.0 - number / 50 for number in range(24)])
    rows = {row[0]: row[2] for row in _cells(Split([], clean, strong, [], development), ["terd"]).rows}
    assert rows["D2I, patch"].startswith("2/2: 100 [34, 100]; 1.000 (no two overlap")
    assert rows["D2I, blend"].startswith("0/2: 0 [0, 66]; 0.250 [")
    assert rows["In-D2D, blend"].endswith("; –")


def test_a_clean_model_is_told_of_an_attack_that_is_drawn_for_it():
    clean = [draw("evaluation", "plain", number, RECIPE) for number in range(2)]
    told = [supposed(one, number) for number, one in enumerate(clean)]
    assert [f"{one.target}_{one.trigger}" for one in told] == list(CELLS[:2])
    assert told[0] == supposed(clean[0], 0)
    attacked = draw("evaluation", "bad_diffusion", 0, RECIPE)
    assert supposed(attacked, 0) is attacked.attack


@pytest.mark.parametrize("kind", ["d2i_patch", STOCK[0]])
def test_a_detector_that_is_told_uses_the_trigger_or_the_family(kind, tmp_path):
    """Under a stock sampler's law there is no trigger to tell of, only TERD's family."""
    member = draw("evaluation", kind, 0, RECIPE)
    folder, settings = build(member, tmp_path), Settings(baselines="short")
    blind, told = (detect("elijah", folder, settings, 0, attack)[0] for attack in (None, member.attack))
    assert torch.equal(blind.mu, told.mu), "the inversion is blind in the released code, too"
    assert (blind.score == told.score) == (kind in STOCK)
    small = settings.model_copy(update={"refine": False})
    families = [detect("terd", folder, small, 0, one)[0].details["family"] for one in (None, member.attack)]
    assert families == ["trojdiff, blind", "bad_diffusion" if kind in STOCK else "trojdiff"]


def test_told_reaches_the_detectors_and_is_said_in_the_tables(tmp_path):
    """Of a clean member and of an attacked one: their samples are of a Trojan sampler, and so is the page's text."""
    common = ['detectors=["elijah"]', "steps=2", "attack_steps=2", "samples=8", "removals=0", f"zoo={tmp_path / 'zoo'}"]
    arms = ["--arms", "evaluation-plain", "evaluation-d2i_patch", f"evaluation-{STOCK[0]}", "--seeds", "0"]
    scores = {}
    for told in ("false", "true"):
        out = tmp_path / told
        words = ["study", "audit", "--preset", "demo", "--set", *common, f"told={told}", *arms, "--out", str(out)]
        assert main([*words, "--no-progress"]) == 0
        runs = Results.load(out)
        scores[told] = [runs.run("default", arm.name, 0).metrics["score_elijah"] for arm in runs.plan.arms]
        (notes,) = [figure.caption for figure in analyse(runs).figures if figure.title.startswith("Does it find them")]
        assert ("are told what their papers tell them" in notes) == (told == "true")
        assert ("Blind: " in notes) == (told == "false")
    same = [blind == told for blind, told in zip(scores["false"], scores["true"], strict=True)]
    assert same == [False, False, True], "a stock sampler's attack has no trigger to tell of"


def test_another_search_of_the_same_member_has_another_seed(tmp_path):
    common = ['detectors=["elijah"]', "steps=2", "removals=0", f"zoo={tmp_path / 'zoo'}"]
    words = ["study", "audit", "--preset", "demo", "--arms", "evaluation-plain", "--seeds", "0", "--no-progress"]
    scores = []
    for seed in (0, 3):
        out = tmp_path / str(seed)
        assert main([*words, "--set", *common, f"search_seed={seed}", "--out", str(out)]) == 0
        scores.append(Results.load(out).run("default", "evaluation-plain", 0).metrics["score_elijah"])
    (folder,) = (path.parent for path in (tmp_path / "zoo").rglob("model_index.json"))
    settings = Settings(baselines="short")
    assert scores == [detect("elijah", folder, settings, seed)[0].score for seed in (0, 3)]
    assert scores[0] != scores[1]


def test_told_needs_a_detector_that_can_be_told():
    with pytest.raises(UserError, match="told=true is for detectors from papers"):
        plan("small", {"told": True, "detectors": ["audit"]})
