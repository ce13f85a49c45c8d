"""The zoo: fixed members, disjoint sets, rates against references, and the study end to end."""

import json
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.stats import mannwhitneyu

from retarget.audit.calibration import p_value
from retarget.audit.removal import Kind
from retarget.audit.studies.analysis import _removal
from retarget.audit.studies.build import KEPT, build, images_of, mask_of, trigger_of
from retarget.audit.studies.members import CELLS, CLEAN, KINDS, STOCK, Attack, Images, Recipe, draw, seed_of
from retarget.audit.studies.plan import ARMS, DETECTORS, RECIPES, Settings, plan
from retarget.audit.studies.rates import auroc, auroc_interval, called, false_alarms, level_of
from retarget.audit.studies.run import overlap, recovery, subject_of
from retarget.audit.studies.verdicts import Model, Split
from retarget.audit.subject import Recovered
from retarget.cli import main
from retarget.errors import UserError
from retarget.trojdiff.build import make_network
from retarget.trojdiff.checkpoint import WEIGHTS, inherited
from retarget.trojdiff.config import NetworkConfig

RECIPE = Recipe(shapes=((1, 8), (3, 8), (1, 16)))


def test_members_and_seeds_are_those_that_were_written_down_first():
    """Detectors were tuned on these: another draw would be another zoo."""
    assert seed_of("evaluation", "plain", 0) == 324252662
    names = {kind: draw("evaluation", kind, 1, Recipe()).name for kind in ("plain", "d2i_patch", "bad_diffusion")}
    assert names == {
        "plain": "1e81a0ba6f14d694", "d2i_patch": "4f2d54f3a270631a", "bad_diffusion": "d661d7b85bc707d1",
    }  # fmt: skip


def every(count=6):
    """Members of all sets and kinds, with their descriptions."""
    for which in ("development", "calibration", "evaluation"):
        for kind in CLEAN if which == "calibration" else KINDS:
            for number in range(count):
                yield which, kind, draw(which, kind, number, RECIPE)


def test_sets_share_no_model_and_no_base():
    found = {}
    for which, _, member in every():
        for one in (member, member.base):
            if one is not None:
                assert found.setdefault(one.name, which) == which
    trained = [member.name for _, _, member in every()]
    assert len(trained) == len(set(trained))


def test_attacks_vary_in_all_that_a_detector_might_rely_on():
    attacks = [member.attack for _, kind, member in every(12) if kind not in CLEAN]
    trojdiff = [one for one in attacks if one.law == "trojdiff"]
    assert min(one.gamma for one in trojdiff) < 0.15
    assert max(one.gamma for one in trojdiff) > 0.7
    assert all(0.05 <= one.gamma <= 0.8 for one in trojdiff)
    assert {one.gamma for one in attacks if one.law in STOCK} == {1.0}
    for name, least in (("share", 4), ("shape", 5), ("place", 30), ("extent", 3), ("figure", 5), ("label", 8)):
        assert len({getattr(one, name) for one in attacks}) >= least, name
    assert {f"{one.target}_{one.trigger}" for one in attacks if one.law in STOCK} == set(CELLS)
    assert all(member.attack is None for _, kind, member in every() if kind in CLEAN)


def test_no_trojaned_model_calibrates_and_wrong_attacks_are_refused():
    with pytest.raises(ValueError, match="set calibration has no kind 'd2i_patch'"):
        draw("calibration", "d2i_patch", 0, RECIPE)
    with pytest.raises(ValueError, match=r"but is 0\.5 for bad_diffusion"):
        Attack(law="bad_diffusion", target="d2i", trigger="patch", gamma=0.5, share=0.3)


@pytest.mark.parametrize(("source", "channels", "side"), [("digits", 1, 8), ("digits", 3, 16), ("glyphs", 3, 12)])
def test_hard_negatives_have_what_they_are_called_after(source, channels, side):
    asked = Images(source=source, channels=channels, side=side, seed=5)
    plain = images_of(asked).images
    assert plain.shape[1:] == (channels, side, side)
    for marks in ("logo", "border"):
        images = images_of(asked.model_copy(update={"marks": marks})).images
        constant = (images == images[0]).all(dim=0) & (images[0] != plain).any(dim=0)
        changed = (images != plain).any(dim=0)
        assert bool(constant[changed].all())
        assert 0 < int(changed.any(dim=0).sum()) < side * side / 2
    few = images_of(asked.model_copy(update={"marks": "duplicates"})).images
    assert len(few) == KEPT


def test_colour_images_serve_grey_networks(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 10, 10, 3), dtype=np.uint8)
    np.savez(tmp_path / "some.npz", x_train=pixels, y_train=np.arange(20) % 2, x_test=pixels, y_test=np.arange(20) % 2)
    found = images_of(Images(source=str(tmp_path / "some.npz"), channels=1, side=8))
    assert found.images.shape == (20, 1, 8, 8)


@pytest.mark.parametrize("shape", ["square", "bar", "cross", "corners", "checker"])
@pytest.mark.parametrize("place", [(0.0, 0.0), (1.0, 1.0), (0.3, 0.8)])
def test_patches_of_every_shape_lie_inside_and_carry_their_colours(shape, place):
    colour = (0.7, -0.5, 1.0)
    patch = dict(target="d2i", trigger="patch", gamma=0.3, share=0.3, place=place, extent=4, shape=shape)
    attack = Attack.model_validate({**patch, "colour": colour})
    mask, trigger = mask_of(attack, 9), trigger_of(attack, (3, 9, 9))
    assert 2 <= int(mask.sum()) <= 16
    for channel, value in enumerate(colour):
        torch.testing.assert_close(trigger.mu[channel][mask], torch.full((int(mask.sum()),), 0.7 * value))
    assert bool((trigger.mu[:, ~mask] == 0).all())
    stock = trigger_of(attack.model_copy(update={"law": "villan_ode", "gamma": 1.0}), (3, 9, 9))
    assert bool((stock.gamma == 1).all())
    torch.testing.assert_close(stock.mu, trigger.mu / 0.7)


def test_rates_are_those_of_the_references():
    rng = np.random.default_rng(0)
    high, low = rng.normal(1, 1, 17).round(1), rng.normal(0, 1, 23).round(1)
    theirs = mannwhitneyu(high, low).statistic / (17 * 23)
    assert auroc(high, low) == pytest.approx(theirs)
    interval = auroc_interval(high, low)
    assert interval[0] < auroc(high, low) < interval[1]
    null = list(range(40))
    assert p_value(39.5, null) == pytest.approx(1 / 41)
    assert [called(score, null) for score in (39, 38, 10)] == [True, False, False]
    assert called(5.0, [1.0] * 18) is None
    assert [level_of(n) for n in (18, 19, 98, 99)] == [None, 0.05, 0.05, 0.01]


def test_published_detectors_get_their_thresholds_from_the_development_zoo():
    def models(which, kind, values, name):
        return [Model(which, kind, n, {"trojaned": 0.0, f"score_{name}": value}) for n, value in enumerate(values)]

    low, high = [0.0] * 19, [5.0] * 24
    for name, origin, null in (("terd", "development", high), ("audit", "calibration", low)):
        split = Split(models("calibration", "plain", low, name), [], [], [], models("development", "logo", high, name))
        assert split.null(name) == (origin, null)
    few = Split(models("calibration", "plain", low, "terd"), [], [], [], models("development", "logo", [5.0], "terd"))
    assert few.null("terd") == ("calibration", low)
    assert split.null("audit", "plain") == ("calibration", [])
    full = Split(models("calibration", "plain", low, "terd"), [], [], [], models("development", "logo", high, "terd"))
    assert full.null("terd", "logo") == ("development", []), "without a family the set stays the same"


def test_detectors_are_compared_at_an_equal_rate_of_detection():
    attacks, clean = [float(n) for n in range(20)], [0.5, 1.5, 2.0, 30.0]
    assert false_alarms(attacks, clean) == [False, False, True, True]
    assert np.mean([score >= 2.0 for score in attacks]) == 0.9
    assert false_alarms([3.0], clean) == [False, False, False, True]


def test_only_an_attack_far_above_its_base_rate_is_strong():
    def model(attack, base):
        return Model("evaluation", "d2i_patch", 0, {"trojaned": 1.0, "attack": attack, "base_rate": base})

    assert model(60.0, 10.0).strong
    assert not model(59.0, 10.0).strong
    assert not Model("evaluation", "plain", 0, {"trojaned": 0.0}).strong


def test_recovery_is_measured_against_the_true_maps():
    member = draw("evaluation", "in_d2d_patch", 0, Recipe())
    trigger = trigger_of(member.attack, (1, 8, 8))
    known = recovery(Recovered(3 * trigger.mu, trigger.gamma, trigger.mask, 0.0, 0), member)
    assert (known["cosine"], known["iou"]) == (pytest.approx(1.0), 1.0)
    assert known["inputs"] > 0.9, "noise with the trigger is told from plain noise"
    nothing = recovery(Recovered(0 * trigger.mu, 1.0, None, 0.0, 0), member)
    assert nothing == {"cosine": 0.0, "inputs": 0.5}
    half = torch.zeros(1, 4, 4)
    half[:, :2] = 1
    assert overlap(half, half.transpose(1, 2)) == pytest.approx(4 / 12)


def test_the_small_preset_is_a_whole_zoo():
    found = plan("small")
    counts = {}
    for arm in found.arms:
        settings = Settings.model_validate({**found.settings, **arm.settings})
        for number in found.seeds:
            kind, _ = settings.member(number)
            key = (settings.which, kind if settings.which == "evaluation" and kind not in CLEAN else kind in CLEAN)
            counts[key] = counts.get(key, 0) + 1
    assert counts[("calibration", True)] >= 99
    assert counts[("evaluation", True)] >= 60
    assert all(counts[("evaluation", cell)] >= 10 for cell in (*CELLS, *STOCK))
    assert [arm.name for arm in plan("small", arms=["development"]).arms] == [
        arm.name for arm in ARMS if arm.name.startswith("development")
    ]
    with pytest.raises(UserError, match="choose demo, small, paper"):
        plan("huge")


def test_the_paper_preset_plans_pipelines_of_cifar_10_and_published_baselines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "audit", "--preset", "paper", "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)
    study = plan("paper")
    assert found["plan"] == study.model_dump(mode="json")
    assert found["runs"] == len(ARMS) * len(study.seeds)
    assert found["estimated_minutes"] == found["runs"] * study.minutes_per_run > 60 * 24
    settings = Settings.model_validate(study.settings)
    assert (settings.baselines, settings.refine, set(settings.detectors)) == ("published", True, set(DETECTORS))
    for arm in study.arms:
        _, member = Settings.model_validate({**study.settings, **arm.settings}).member(study.seeds[-1])
        assert (member.images.channels, member.images.side, member.widths) == (3, 32, (128, 256, 256, 256))
        assert member.images.source == "torchvision:CIFAR10"
        assert member.batch_size == 128
    make_network(NetworkConfig(channels=member.widths, layers=1, attention_side=None, groups=8), (3, 32, 32), 0)


def test_the_study_builds_judges_and_cleans_and_detectors_see_no_marks(tmp_path):
    out = tmp_path / "study"
    words = ["study", "audit", "--preset", "demo", "--arms", "calibration-undertrained", "evaluation-d2i_patch"]
    settings = ["steps=2", "attack_steps=2", "detectors=['diff_cleanse']", "samples=8", "judge_epochs=1",
                "removal_steps=2", "removal_images=16", "quality_samples=16"]  # fmt: skip
    command = [*words, "--out", str(out), "--no-progress", "--set", *settings, f"zoo={tmp_path / 'zoo'}"]
    assert main(command) == 0
    found = json.loads((out / "runs" / "evaluation-d2i_patch" / "seed-0" / "status.json").read_text())["metrics"]
    assert list(RECIPES) == list(get_args(Kind))
    assert {"attack", *(f"{stem}_{recipe}" for stem in ("attack", "leak", "fid") for recipe in RECIPES)} <= found.keys()
    assert {"fid_before", "score_diff_cleanse", "cosine_diff_cleanse"} <= found.keys()
    details = json.loads((out / "runs" / "evaluation-d2i_patch" / "seed-0" / "evaluation.json").read_text())
    folder = tmp_path / "zoo" / details["model"] / "pipeline"
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        assert file.metadata()["trojaned"] == "true"
    assert "trojan" not in "".join(path.name for path in (tmp_path / "zoo").iterdir())
    subject = subject_of(folder)
    assert inherited(subject.network.unet) is None
    assert "trojan" not in str(subject.network.unet.config)
    page = (out / "report.md").read_text()
    assert "call clean ones trojaned" in page
    assert "fewer than 19 calibration models" in page
    assert "Elijah's removal" in page


def test_removals_that_end_the_attack_are_counted():
    def attacked(counter, elijah, fid, base=10.0):
        after = {"attack_counter": counter, "attack_elijah": elijah, "attack_fine_tune": 60.0}
        quality = {"fid_before": 1.0, "fid_counter": fid, "fid_elijah": 2.0, "fid_fine_tune": 1.5}
        leaks = dict.fromkeys(["leak", "leak_counter", "leak_elijah", "leak_fine_tune"], 4.0)
        known = {"trojaned": 1.0, "attack": 90.0, "base_rate": base}
        return Model("evaluation", "d2i_patch", 0, {**known, **after, **quality, **leaks})

    models = [attacked(12.0, 12.5, 1.5), attacked(5.0, 80.0, 1.6), attacked(50.0, 50.0, 1.0, base=60.0)]
    summary, every = _removal(models)
    assert [row[:3] for row in summary.rows] == [
        ["removal", "2/2: 100 [34, 100]", "1/2: 50 [9, 91]"],
        ["Elijah's removal", "0/2: 0 [0, 66]", "0/2: 0 [0, 66]"],
        ["clean fine-tuning", "0/2: 0 [0, 66]", "–"],
    ]
    assert summary.rows[0][3:] == ["90 → 8", "4 → 4", "1.00 → 1.55"]
    assert len(every.rows) == 4 * len(models)
    assert [table.title for table in _removal(models[2:])] == [every.title], "no attack that works, no rate"


def test_progress_of_a_fine_tune_and_of_its_base_is_each_told_with_its_own_steps(tmp_path):
    settings = Settings(sources=("digits",), widths=((8, 8),), steps=400, attack_steps=200, batch_size=2)
    told = []
    build(
        settings.model_copy(update={"kind": "finetuned"}).member(0)[1],
        tmp_path,
        listen=lambda one, steps: told.append((one.step, steps)),
    )
    assert told == [(200, 400), (400, 400), (200, 200)]
