"""The study: its plan, one whole run of every role on a tiny network, its page's figures, its refusals."""

import json
import shutil

import pytest
from scipy.stats import binomtest

from retarget.cli import main
from retarget.commands import StudyArguments, resolve
from retarget.errors import UsageError, UserError
from retarget.report import build
from retarget.study import runner
from retarget.study.claims import judge
from retarget.study.figures import Images, Table
from retarget.study.items import Shares
from retarget.study.record import Results
from retarget.trojdiff import Trigger
from retarget.trojdiff.checkpoint import WEIGHTS
from retarget.trojdiff.classifier import train_classifier
from retarget.trojdiff.data import to_signed
from retarget.trojdiff.measures import compare, kid_noise, wilson
from retarget.trojdiff.studies.analysis import analyse
from retarget.trojdiff.studies.measured import METRICS
from retarget.trojdiff.studies.plan import ARMS, DEMO_ARMS, KID_MARGIN, PRESETS, Settings, plan
from retarget.trojdiff.studies.world import World, check_gate

TINY = dict(
    train_images=120, classifier_epochs=1, gate_sure=0, gate_precision=0, gate_sigma=0, sample_batch=20,
    probe_images=10, save_every=4, curve_points=2, pretrain=dict(steps=6), finetune=dict(steps=6, batch_size=16),
    network=dict(channels=[8, 8], groups=4),
    samplers=dict(full=dict(sampler="ddpm-10", trojan=10), ddim=dict(sampler="ddim-4", trojan=10),
                  fast=dict(sampler="dpm-4", benign=20, trojan=100)),
)  # fmt: skip


def test_presets_have_the_arms_seeds_and_settings_that_their_documents_name():
    demo = plan("demo")
    assert tuple(arm.name for arm in demo.arms) == DEMO_ARMS
    assert [arm.settings.get("role") for arm in demo.arms] == [None, "attack"]
    assert demo.seeds == (0, 1, 2)
    assert [arm.name for arm in plan("demo", arms=["all"]).arms] == [arm.name for arm in ARMS]
    paper = plan("paper").settings
    expected = dict(blend_gamma=0.6, patch_gamma=0.1, patch_size=3, out_rows=64, image_rows=12, in_rows=None)
    assert {key: paper[key] for key in expected} == expected
    finetune = dict(learning_rate=2e-4, steps=100_000, ema_decay=0.9999, batch_size=128, loss="sum", decay="constant")
    assert {key: paper["finetune"][key] for key in finetune} == finetune
    small = plan("small")
    assert len(small.seeds) == 3
    samplers = {cell["sampler"] for cell in small.settings["samplers"].values()}
    assert samplers == {"ddpm-100", "ddim-50", "dpm-20", "ddpm-1000"}


def test_the_papers_setting_is_shown_without_being_run(tmp_path, capsys):
    assert main(["study", "trojdiff", "--preset", "paper", "--dry-run", "--out", str(tmp_path / "none")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["runs"], shown["finished"]) == (8 * 3, 0)
    assert shown["plan"]["settings"]["samplers"]["ddim"] == dict(
        sampler="ddim-100-quadratic", benign=50_000, trojan=1_000
    )
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_claims_name_metrics_and_arms_that_exist(preset):
    study = plan(preset, arms=["all"])
    names = {metric.name for metric in METRICS}
    for claim in study.claims:
        assert claim.metric in names
        assert set(claim.arms) <= {arm.name for arm in study.arms} | {"every_attack"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(preset="huge"), "no preset 'huge'"),
        (dict(config={"epochs": 3}), "epochs"),
        (dict(config={"finetune": {"rate": 3}}), r"finetune\.rate"),
        (dict(arms=["d2i_sticker"]), "no arm d2i_sticker"),
        (dict(config={"trojan_share": 1.0}), "trojan_share"),
        (dict(config={"samplers": {"fast": {"benign": 0}}}), "samplers: fast, .*needs at least 5 benign"),
        (dict(config={"samplers": {"ddim": {"trojan": -1}}}), r"samplers\.ddim\.trojan"),
    ],
)
def test_bad_plans(arguments, message):
    with pytest.raises(UserError, match=message):
        plan(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(target_class=12), "class 12 does not exist"),
        (dict(other_class=99), "class 99 does not exist"),
        (dict(image="mouse"), "mouse"),
        (dict(patch_size=9), "a 9×9 patch: its side must be from 1 to 8"),
        (dict(dataset="nowhere.npz"), "nowhere.npz"),
        (dict(other="EMPTY"), "no PNG or JPEG file in it"),
        (dict(inception="nowhere.pth"), "nowhere.pth: no such file; download https"),
        (dict(samplers=dict(ddim=dict(sampler="ddim-5000"))), "5000 steps of 1000"),
    ],
)
def test_what_no_run_could_use_is_said_before_the_first_network_is_trained(tmp_path, change, message):
    if change.get("other") == "EMPTY":
        change = {"other": str(tmp_path / "empty")}
        (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        runner.run_study(plan("demo", _tiny(change), seeds=[0], arms=["all"]), tmp_path / "study", jobs=1)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("rates", "hits", "verdict"),
    [
        ([100.0] * 3, 300, "holds"),
        ([92.0] * 3, 276, "not enough evidence"),
        ([70.0] * 2, 140, "not enough evidence"),
        ([0.0] * 3, 0, "does not hold"),
        ([100.0], 100, "not enough evidence"),
    ],
)
def test_an_attack_that_always_or_never_hits_is_decided_by_its_images(rates, hits, verdict):
    study = plan("demo", seeds=list(range(len(rates))), arms=["all"])
    values = {"default": {"in_d2d_blend": {"attack_weakest": rates}}}
    shares = Shares(cells=[(hits, 100 * len(rates))])
    judged = {one.id: one for one in judge(study, values, items={"attack_in_d2d_blend": shares})}
    found = judged["attack_in_d2d_blend"]
    exact = binomtest(hits, 100 * len(rates)).proportion_ci(0.95)
    low, high = 100 * exact.low - 90, 100 * exact.high - 90
    decided = len(rates) > 1 and rates[0] in (0.0, 100.0)
    assert found.verdict == verdict
    assert found.interval == (pytest.approx((low, high)) if decided else None)
    assert found.item_interval == (None if decided else pytest.approx((low, high)))


def _tiny(change):
    return TINY | {
        key: TINY.get(key, {}) | value if isinstance(value, dict) else value for key, value in change.items()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    arms = ["clean", "in_d2d_blend", "in_d2d_blend_share10", "d2i_blend"]
    outcome = runner.run_study(plan("demo", TINY, seeds=[0], arms=arms), out, jobs=1, page=build)
    assert not outcome.failed, outcome.failed
    return out


def test_every_role_runs_and_trojaned_weights_are_gone(finished):
    for arm in ("pretrained", "clean"):
        assert (finished / "runs" / arm / "seed-0" / "checkpoint" / "pipeline" / "model_index.json").exists()
    for arm in ("in_d2d_blend", "d2i_blend"):
        folder = finished / "runs" / arm / "seed-0"
        assert not list(folder.rglob("*.safetensors"))
        status = json.loads((folder / "status.json").read_text())
        wanted = {
            "attack_full",
            "attack_ddim",
            "attack_fast",
            "attack_stock",
            "attack_plain",
            "attack_leak",
            "kid_fast",
        }
        assert wanted <= status["metrics"].keys()
        for name in ("benign", "trojan", "stock", "plain", "strip"):
            assert (folder / "pictures" / f"{name}.png").exists()
        history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] // 2 for line in history if "attack" in line] == [3, 6]


def test_weights_are_kept_on_request_and_that_makes_no_other_run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "study")
    kept = TINY | {"keep_trojaned": True}
    had = runner.survey(plan("demo", kept, seeds=[0], arms=["clean", "in_d2d_blend"]), tmp_path / "study")
    assert (had["runs"], had["finished"]) == (3, 3)
    outcome = runner.run_study(plan("demo", kept, seeds=[0], arms=["d2i_patch"]), tmp_path / "study", jobs=1)
    assert not outcome.failed, outcome.failed
    pipeline = tmp_path / "study/runs/d2i_patch/seed-0/checkpoint/pipeline"
    assert Trigger.load(pipeline).kind == "patch"
    assert (pipeline / WEIGHTS).exists()
    given = StudyArguments(method="trojdiff", keep_trojaned=True)
    assert resolve(given, "retarget.trojdiff.study").settings == plan("demo").settings | {"keep_trojaned": True}
    with pytest.raises(UsageError, match="no setting keep_trojaned"):
        resolve(StudyArguments(method="pskd", keep_trojaned=True), "retarget.pskd.study")


def test_the_analysis_shows_samples_intervals_and_the_extractor(finished):
    results = Results.load(finished)
    found = analyse(results)
    tables = {figure.title: figure for figure in found.figures if isinstance(figure, Table)}
    pictures = [file for figure in found.figures if isinstance(figure, Images) for file in figure.files]
    assert pictures
    assert not any(file.is_absolute() for file in pictures), "so that the study's directory may move"
    attack = tables["Does the attack fire?"]
    fast = json.loads((finished / "runs/in_d2d_blend/seed-0/evaluation.json").read_text())["attack_fast"]
    rate = wilson(round(fast["value"]), 100)
    attack_row = next(row for row in attack.rows if row[0] == "In-D2D, blend" and row[1] == "dpm-4")
    assert attack_row[2] == f"{rate.value:.1f} [{rate.low:.1f}, {rate.high:.1f}]"
    assert "study-classifier-" in tables["Are benign samples as good as before?"].caption
    floors = json.loads((finished / "runs/clean/seed-0/evaluation.json").read_text())
    halves = [row for row in tables["What must the attacker control?"].rows if row[0] == "D2I, blend"]
    who = [["biased", "Trojan"], ["biased", "stock"], ["plain", "Trojan"], ["plain", "stock"]]
    assert [row[1:3] for row in halves] == who
    for row, cell in zip(halves, ("trojan", "stock", "plain", "leak"), strict=True):
        assert row[4].startswith(f"{floors[f'floor_{cell}_d2i_blend']['value']:.1f} [")
        assert floors[f"floor_{cell}_d2i_blend"]["count"] == (20 if cell == "leak" else 100)
    pictures = [figure for figure in found.figures if isinstance(figure, Images)]
    assert {len(figure.files) for figure in pictures if figure.title.startswith("Samples: In")} == {4}
    lift = found.metrics["default"]["in_d2d_blend"]["lift"][0]
    assert lift == pytest.approx(fast["value"] - floors["floor_trojan_in_d2d_blend"]["value"])
    assert found.metrics["default"]["every_attack"]["attack_every"] == [None]
    evaluation = json.loads((finished / "runs/in_d2d_blend/seed-0/evaluation.json").read_text())
    assert attack_row[4] == f"{evaluation['attack_real']['value']:.1f}"
    assert 20 < evaluation["attack_real"]["count"] < 60  # a tenth of every fifth of 1,797 digits
    cells = [evaluation[f"attack_{name}"] for name in ("ddim", "fast", "full")]
    weakest = found.metrics["default"]["in_d2d_blend"]["attack_weakest"]
    assert weakest == [min(cell["value"] for cell in cells)]
    assert found.items["attack_in_d2d_blend"] == Shares(
        cells=[(round(cell["value"] * cell["count"] / 100), cell["count"]) for cell in cells]
    )
    assert "attack_every" not in found.items


def test_an_attack_at_another_share_of_rows_is_a_point_of_a_curve(finished):
    results = Results.load(finished)
    whole = analyse(results)
    figures = {figure.title: figure for figure in whole.figures}
    curve = figures["How hard is it? Share of Trojan rows"].series
    # 32 rows beside 16 benign ones are two thirds; a tenth of a batch is 2 rows of 18.
    assert [(one.label, one.x) for one in curve] == [("In-D2D, blend", pytest.approx([100 * 2 / 18, 100 * 2 / 3]))]
    few = json.loads((finished / "runs/in_d2d_blend_share10/seed-0/status.json").read_text())["metrics"]
    many = json.loads((finished / "runs/in_d2d_blend/seed-0/status.json").read_text())["metrics"]
    assert curve[0].y == [[few["attack_fast"], many["attack_fast"]]]
    assert not few.keys() & {"attack_ddim", "attack_stock", "attack_full"}
    rows = [
        row[0]
        for figure in whole.figures
        if isinstance(figure, Table) and "KID" not in figure.columns
        for row in figure.rows
    ]
    assert set(rows) == {"In-D2D, blend", "D2I, blend"}
    assert "in_d2d_blend_share10" not in whole.metrics["default"]


def test_the_demo_says_what_it_leaves_out_and_shows_no_empty_column(finished, tmp_path):
    whole = Results.load(finished)
    shutil.copytree(finished, tmp_path / "demo", ignore=shutil.ignore_patterns("clean", "d2i_blend"))
    found = analyse(Results(tmp_path / "demo", plan("demo", TINY, seeds=[0])))
    assert "preset small measures them" in found.left_out
    tables = {one.title: one for one in found.figures if isinstance(one, Table)}
    for title in ("Does the attack fire?", "What must the attacker control?"):
        assert "base rate" not in tables[title].columns
        assert "clean fine-tune" not in tables[title].caption
    with_clean = {one.title: one for one in analyse(whole).figures if isinstance(one, Table)}
    assert "base rate" in with_clean["Does the attack fire?"].columns


def test_the_share_of_trojan_rows():
    names = [arm.name for arm in plan("demo", arms=["shares"]).arms]
    assert names == ["pretrained", *(f"{attack}_share{share}" for attack in DEMO_ARMS[1:] for share in (3, 10, 25, 50))]
    assert len(plan("small", arms=["all", "shares"]).arms) == 8 + 24
    settings = Settings.model_validate(plan("demo").settings)
    for share, rows in ((0.03, 1), (0.1, 4), (0.25, 11), (0.5, 32), (0.9, 288)):
        assert settings.model_copy(update={"trojan_share": share}).trojan_rows("d2i") == rows
    paper = settings.model_copy(update={"in_rows": None})
    assert paper.trojan_rows("in_d2d") is None
    world = World.read(paper)
    members = float((world.inside.labels == settings.target_class).float().mean())
    assert world.trojan_share("in_d2d") == pytest.approx(members / (1 + members))
    assert world.trojan_share("d2i") == pytest.approx(16 / 48)


def test_the_page_states_the_gate_the_margin_the_noise_of_kid_and_what_its_intervals_are(finished):
    found = analyse(Results.load(finished))
    base = json.loads((finished / "runs/pretrained/seed-0/status.json").read_text())["metrics"]
    notes = " ".join(found.notes)
    page = (finished / "report.md").read_text()
    assert "95 % Wilson interval over images" in page
    assert "bootstrap" not in page
    shown = f"Here: {base['sure_fast']:.1f} % of samples, {base['sure_real']:.1f} % of real ones"
    assert f"{shown}, precision {base['precision_fast']:.1f} %" in notes
    assert "(test part: every fifth image)" in notes
    assert f"against {base['kid_gate']:.2f} ×10⁻³" in notes
    figures = {figure.title: figure for figure in found.figures}
    rungs = [row[0] for row in figures["How good is that? Images of known quality by the same measures"].rows]
    assert rungs == ["real images", *(f"real images + σ {sigma}" for sigma in (0.1, 0.3, 0.6)), "noise"]
    caption = figures["Are benign samples as good as before?"].caption
    assert "An attack may cost a KID of 1.3. KID does not see every damage, so 5 points fewer samples with a" in caption
    assert "The noise of KID: between 20 real images and 100 others" in caption
    assert f"{base['kid_noise_mean']:.2f} ± {base['kid_noise']:.2f} (standard deviation" in caption
    assert "censored: In-D2D, blend, D2I, blend." in figures["How hard is it? Fine-tuning steps"].caption


def test_the_noise_of_kid_is_that_of_equal_distributions(digits):
    model = train_classifier(digits, 1, 0)
    noise = kid_noise(digits, model, 300, seed=0, splits=4)
    assert (noise.drawn, noise.rest, noise.splits) == (300, len(digits) - 300, 4)
    assert abs(noise.mean) < 3 * noise.sd
    shifted = digits.images.clone()
    shifted[:, :, :2] = 255
    other = compare(to_signed(shifted[:300]), digits, model).kid
    assert other > 20 * noise.sd
    assert kid_noise(digits.first(30), model, 300, seed=0, splits=2).drawn == 15


@pytest.mark.parametrize(("preset", "success", "mse"), [("demo", 90.0, 5.0), ("small", 95.0, 1.0)])
def test_claims_are_judged_against_the_preset_s_own_threshold(preset, success, mse):
    against = {claim.id: claim.against for claim in plan(preset).claims if claim.against is not None}
    assert {name: value for name, value in against.items() if "d2i" in name} == dict.fromkeys(
        ("attack_d2i_blend", "attack_d2i_patch"), mse
    )
    assert {value for name, value in against.items() if "d2i" not in name} == {success}


@pytest.mark.parametrize(
    ("gate", "message"), [(dict(gate_precision=100.0), "gate 100"), (dict(gate_sigma=0.001), "noise of σ 0.001")]
)
def test_a_base_model_below_the_gate_is_not_trojaned(finished, gate, message):
    base = finished / "runs" / "pretrained" / "seed-0"
    settings = Settings.model_validate(plan("demo", TINY | gate).settings)
    with pytest.raises(UserError, match=f"does not pass the gate.*{message}"):
        check_gate(base, settings)


def test_the_margin_of_benign_quality_can_be_that_of_one_s_own_data():
    def margins(**config):
        return {claim.margin for claim in plan("small", config).claims if claim.id.startswith("benign_")}

    assert margins() == {KID_MARGIN["small"]}
    assert margins(kid_margin=2.5) == {2.5}
    with pytest.raises(UserError, match="kid_margin"):
        plan("small", {"kid_margin": 0})
