"""The command: its exit codes, the files it writes, and the files it must not read."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, PNDMScheduler, UNet2DModel
from pydantic_sarif.model import StaticAnalysisResultsFormatSarifVersion210JsonSchema as Sarif
from safetensors.torch import load_file, save_file

from retarget.audit.calibration import Null, NullModel
from retarget.audit.inversion import Search
from retarget.audit.outcome import Report
from retarget.audit.report import schema
from retarget.audit.run import audit_pipeline
from retarget.audit.seek import fingerprint
from retarget.cli import main

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
QUICK = Search(screen=64, quick=2, scan=2, first=1, steps=1, batch=2, gammas=(0.5,), keep=1, fresh=4, symmetric=2)


@pytest.fixture
def quick(monkeypatch):
    """The command with a search of seconds instead of the frozen one; it has no null, so its verdict is undecided."""
    monkeypatch.setattr("retarget.audit.run.Search", lambda: QUICK)


def read(folder):
    report = json.loads((folder / "audit.json").read_text())
    Report.model_validate(report)
    return report


def test_a_covered_checkpoint_without_a_null_is_undecided_and_leaves_its_files(pipeline, tmp_path, quick, capsys):
    out = tmp_path / "out"
    assert main(["audit", str(pipeline), "--out", str(out)]) == 3
    report = read(out)
    (one,) = report["audits"]
    assert (report["exit_code"], one["exit_code"], one["verdict"]) == (3, 3, "undecided")
    assert one["files"][WEIGHTS]
    assert one["evaluations"] > 0
    assert "<h1>" in (out / "report.html").read_text()
    assert (out / "plain.png").is_file()
    assert "UNDECIDED" in capsys.readouterr().out
    assert main(["audit", str(pipeline), "--out", str(out), "--allow-undecided"]) == 0
    assert "warning" in capsys.readouterr().err


def test_the_search_says_how_far_it_is(pipeline):
    seen: list[tuple[int, int]] = []
    audit_pipeline(pipeline, None, search=QUICK, watch=lambda done, total: seen.append((done, total)))
    assert len({total for _, total in seen}) == 1
    assert 0 < seen[0][0] < seen[-1][0] == seen[-1][1], "it begins below the total, and never exceeds it"
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


FOREIGN = {
    "two channels, 8×12, 60 steps": (
        dict(side=(8, 12), channels=2),
        DDPMScheduler(num_train_timesteps=60, beta_start=0.002, beta_end=0.3),
    ),
    "learnt variances, scale and shift, attention": (
        dict(
            side=12, channels=3, out_channels=6, resnet_time_scale_shift="scale_shift", attention_head_dim=4,
            down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        ),
        DDPMScheduler(variance_type="learned_range", beta_schedule="squaredcos_cap_v2"),
    ),
    "ten steps under DDIM": (dict(side=10), DDIMScheduler(num_train_timesteps=10, beta_end=0.9)),
    "PNDM, scaled linear": (
        dict(side=8, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)),
        PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.03),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_shapes_blocks_and_schedules_are_audited_and_have_no_error_rate(
    kind, make_unet, teach, tmp_path, quick, capsys
):
    """None of them belongs to a family of the null."""
    settings, scheduler = FOREIGN[kind]
    unet = teach(make_unet(**settings), scheduler, 90)
    DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(tmp_path / "odd")
    assert main(["audit", str(tmp_path / "odd"), "--out", str(tmp_path / "out")]) == 3
    (one,) = read(tmp_path / "out")["audits"]
    assert (one["verdict"], one["error_rate"]["known"]) == ("undecided", False)
    assert one["score"] is not None, one["reason"]
    assert (tmp_path / "out" / "plain.png").is_file()


def test_errors_are_2_and_what_is_not_covered_is_3(pipeline, tmp_path, edit, capsys):
    assert main(["audit", str(tmp_path / "nothing"), "--out", str(tmp_path / "a")]) == 2
    assert read(tmp_path / "a")["audits"][0]["verdict"] == "error"
    edit(pipeline / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    assert main(["audit", str(pipeline), "--out", str(tmp_path / "b")]) == 3
    assert read(tmp_path / "b")["audits"][0]["verdict"] == "not covered"
    assert "v_prediction" in capsys.readouterr().out
    assert main(["audit", str(pipeline), "--out", str(tmp_path / "c"), "--allow-undecided"]) == 0
    (one,) = read(tmp_path / "c")["audits"]
    assert (one["verdict"], one["exit_code"]) == ("not covered", 0)
    assert "is not covered; its exit code is 0 because of --allow-undecided" in capsys.readouterr().err
    assert main(["audit", str(tmp_path / "nothing"), "--out", str(tmp_path / "d"), "--allow-undecided"]) == 2


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["x", "--nothing"],
        ["x", "--seed", "-1"],
        ["x", "--preset", "demo"],
        ["x", "--fail-on", "y"],
    ],
)
def test_wrong_usage_is_2(words, capsys):
    assert main(["audit", *words]) == 2


@pytest.mark.parametrize(
    "words", [["--clean", "x"], ["--data", "digits"], ["--allow-undecided"], ["--fail-on", "warning"]]
)
def test_an_option_without_effect_on_the_demo_is_refused(words, tmp_path, capsys):
    assert main(["audit", "--preset", "demo", "--out", str(tmp_path / "out"), *words]) == 2
    assert f"{words[0]} has no effect on --preset demo" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_is_0(capsys):
    assert main(["audit", "--help"]) == 0
    assert "exit codes" in " ".join(capsys.readouterr().out.lower().split())


def test_whatever_is_not_foreseen_is_2_and_a_trojan_beside_it_still_1(pipeline, tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("retarget.audit.run.seek", broken)
    assert main(["audit", str(pipeline), "--out", str(tmp_path / "out")]) == 2
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert read(tmp_path / "out")["audits"][0]["exit_code"] == 2


def test_several_pipelines_have_a_code_each_and_one_over_all(pipeline, tmp_path, quick, capsys):
    out = tmp_path / "out"
    assert main(["audit", str(pipeline), str(tmp_path / "missing"), "--out", str(out)]) == 2
    report = read(out)
    assert [one["exit_code"] for one in report["audits"]] == [3, 2]
    assert (out / f"{pipeline.parent.name}-pipeline" / "report.html").is_file()
    assert (out / "missing" / "audit.sarif").is_file()
    Sarif.model_validate_json((out / "audit.sarif").read_text())


def test_static_findings_change_the_exit_code_only_when_asked(pipeline, tmp_path, quick, edit, capsys):
    (pipeline / "unet" / "extra.py").write_text("raise SystemExit")
    torch.save({}, pipeline / "unet" / "optimizer.bin")
    edit(pipeline / "model_index.json", _class_name="MyPipeline")
    out = tmp_path / "out"
    assert main(["audit", str(pipeline), "--out", str(out)]) == 3
    found = {one["rule"]: one for one in read(out)["audits"][0]["findings"]}
    assert found["custom-code"]["file"] == "unet/extra.py"
    assert found["pickle"]["level"] == "warning"
    assert found["non-stock-pipeline"]["level"] == "warning"
    assert found["signature"]["level"] == "note"
    assert main(["audit", str(pipeline), "--out", str(out), "--fail-on", "warning"]) == 1
    sarif = json.loads((out / "audit.sarif").read_text())
    Sarif.model_validate(sarif)
    (run,) = sarif["runs"]
    rules = {rule["id"]: rule for rule in run["tool"]["driver"]["rules"]}
    assert "AML.T0018.000" in rules["RT001"]["properties"]["tags"]
    assert {"RT101", "RT102", "RT103"} <= {one["ruleId"] for one in run["results"]}
    assert all(one["partialFingerprints"] for one in run["results"])
    assert all(len(one["hashes"]["sha-256"]) == 64 for one in run["artifacts"])


CLEAN_NULL = Null(search=fingerprint(QUICK), command="", models=[
    NullModel(score=10 + n, side=8, channels=1, case="plain", schedule="linear", residual=9, spread=1)
    for n in range(40)
])  # fmt: skip
"""With these clean models nothing is suspicious."""


def test_weights_that_were_not_audited_are_named_and_those_of_a_variant_leave_no_clean_verdict(pipeline, make_unet):
    def audited():
        one = audit_pipeline(pipeline, None, search=QUICK, null=CLEAN_NULL)
        return one.verdict, one.exit_code, [f.file for f in one.findings if f.rule == "unaudited-weights"]

    assert audited() == ("nothing found", 0, [])
    tensors = load_file(pipeline / WEIGHTS)
    variant = pipeline / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    save_file({name: one.half() for name, one in tensors.items()}, variant)  # the same network
    assert audited() == ("nothing found", 0, [])
    make_unet(seed=5).save_pretrained(pipeline / "unet_ema")
    ema = "unet_ema/diffusion_pytorch_model.safetensors"
    assert audited() == ("nothing found", 0, [ema])
    save_file({name: one.half() + 1 for name, one in tensors.items()}, variant)
    assert audited() == ("undecided", 3, ["unet/diffusion_pytorch_model.fp16.safetensors", ema])


def test_a_file_of_weights_beside_an_index_is_not_audited_and_leaves_no_clean_verdict(pipeline, stored):
    def audited():
        one = audit_pipeline(pipeline, None, search=QUICK, null=CLEAN_NULL)
        return one.verdict, [f.file for f in one.findings if f.rule == "unaudited-weights"]

    (pipeline / WEIGHTS).unlink()
    UNet2DModel.from_pretrained(stored / "unet").save_pretrained(pipeline / "unet", max_shard_size="10KB")
    assert len(list((pipeline / "unet").glob("*-of-*.safetensors"))) > 1
    assert audited() == ("nothing found", [])
    shutil.copy(stored / WEIGHTS, pipeline / WEIGHTS)  # the same network
    assert audited() == ("nothing found", [])
    tensors = load_file(stored / WEIGHTS)
    save_file({name: one + 1 for name, one in tensors.items()}, pipeline / WEIGHTS)
    assert audited() == ("undecided", [WEIGHTS])
    (pipeline / WEIGHTS).unlink()
    stray = pipeline / "unet" / "diffusion_pytorch_model-00009-of-00009.safetensors"
    save_file(dict([tensors.popitem()]), stray)
    assert audited() == ("undecided", [f"unet/{stray.name}"])


def test_what_is_behind_a_link_is_hashed_and_looked_at(pipeline, tmp_path, edit):
    shutil.move(pipeline / "unet", tmp_path / "blobs")
    (tmp_path / "blobs" / "evil.py").write_text("")
    (tmp_path / "blobs" / "again").symlink_to(tmp_path / "blobs")
    (pipeline / "unet").symlink_to(tmp_path / "blobs")
    edit(pipeline / "model_index.json", _class_name=["my_pipeline", "MyPipeline"])
    one = audit_pipeline(pipeline, None, search=QUICK, null=CLEAN_NULL)
    assert {WEIGHTS, "unet/evil.py"} <= one.files.keys()
    assert {"custom-code", "non-stock-pipeline"} <= {finding.rule for finding in one.findings}


def test_images_of_the_user_must_fit(pipeline, tmp_path, quick, capsys):
    assert main(["audit", str(pipeline), "--out", str(tmp_path), "--data", "digits"]) == 3
    assert main(["audit", str(pipeline), "--out", str(tmp_path), "--data", "no such file.npz"]) == 2


def test_the_schema_that_is_published_is_the_schema():
    from importlib.resources import files

    published = json.loads(files("retarget.audit").joinpath("audit.schema.json").read_text())
    assert published == schema()


SIGNED = (
    "valid", "relative", "links", "changed", "no key", "another key", "empty signature", "no object", "forged",
    "nested",
)  # fmt: skip


@pytest.mark.parametrize("case", SIGNED)
def test_a_signature_is_verified_where_a_key_is_given(pipeline, tmp_path, case, monkeypatch):
    signing = pytest.importorskip("model_signing.signing")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from retarget.audit.static import look

    keys = []
    for number in range(2):
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (tmp_path / f"{number}.pem").write_bytes(private)
        (tmp_path / f"{number}.pub").write_bytes(public)
        keys.append(tmp_path / f"{number}.pub")
    config = signing.Config().use_elliptic_key_signer(private_key=tmp_path / "0.pem")
    config.sign(pipeline, pipeline / "model.sig")
    if case == "changed":
        (pipeline / "unet" / "config.json").write_text("{}")
    damaged = {"empty signature": '{"signatures": []}', "no object": "[]", "nested": "[" * 100_000}
    if case in damaged:
        (pipeline / "model.sig").write_text(damaged[case])
    if case == "forged":
        text = json.loads((pipeline / "model.sig").read_text())
        text["dsseEnvelope"]["payload"] = "eA=="
        (pipeline / "model.sig").write_text(json.dumps(text))
    if case == "relative":
        monkeypatch.chdir(tmp_path)
        pipeline = Path(pipeline.name)
    if case == "links":  # as in a hub's cache
        blobs = shutil.copytree(pipeline, tmp_path / "blobs")
        for path in [one for one in pipeline.rglob("*") if one.is_file()]:
            path.unlink()
            path.symlink_to(blobs / path.relative_to(pipeline))
    key = {"no key": None, "another key": keys[1]}.get(case, keys[0])
    index = json.loads((pipeline / "model_index.json").read_text())
    (found,) = [one for one in look(pipeline, index, {}, key) if one.rule == "signature"]
    valid = case in ("valid", "relative", "links")
    assert found.level == ("note" if valid or case == "no key" else "warning")
    assert ("is valid for" if valid else "not verified" if case == "no key" else "is invalid for") in found.message


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("x", "has no public key in PEM"), ("rsa", "is not the key of an elliptic curve")],
)
def test_a_key_that_cannot_verify_is_refused_even_where_nothing_is_signed(pipeline, tmp_path, content, message):
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    if content is not None:
        form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        key = rsa.generate_private_key(65537, 2048).public_key().public_bytes(*form)
        (tmp_path / "key.pub").write_bytes(key if content == "rsa" else content.encode())
    one = audit_pipeline(pipeline, None, key=tmp_path / "key.pub", search=QUICK)
    assert (one.verdict, one.exit_code) == ("error", 2)
    assert message in one.reason


def test_unusable_places_are_refused_before_the_search(pipeline, tmp_path, quick, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    monkeypatch.chdir(pipeline)
    odd = shutil.copytree(pipeline, tmp_path / os.fsdecode(b"m\xff"))
    o, new = str(tmp_path / "o"), str(tmp_path / "new")
    for words, message in (
        ([str(odd), "--out", o], "its name is not UTF-8: rename it"),
        ([str(pipeline), "--out", new, "--clean", new], "in the cleaned pipeline's folder: give another --out"),
        (
            [str(pipeline), "--out", f"{new}/report", "--clean", new],
            "in the cleaned pipeline's folder: give another --out",
        ),
        ([str(pipeline), "--out", str(tmp_path / "file")], "file"),
        ([str(pipeline), "--out", str(tmp_path / "o"), "--clean", str(tmp_path / "full")], "full is not empty"),
        ([str(pipeline), "--out", str(tmp_path / "o"), "--clean", str(tmp_path / "file")], "file is a file: give"),
        ([str(pipeline), "--out", str(tmp_path / "o"), "--clean", "/proc/cleaned"], "cannot write /proc/cleaned"),
        (["."], "in the pipeline itself, whose files are hashed: give --out"),
    ):
        assert main(["audit", *words]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    assert not (pipeline / "audit").exists()
    assert main(["audit", str(tmp_path / "nowhere"), "--out", o, "--clean", new]) == 2
    assert read(tmp_path / "o")["audits"][0]["verdict"] == "error", "it is not looked up on the hub"


def test_an_earlier_audit_s_evidence_does_not_stand_beside_a_new_report(pipeline, tmp_path, quick):
    out, foreign = tmp_path / "out", tmp_path / "out" / "notes.txt"
    for _ in range(2):
        assert main(["audit", str(pipeline), "--out", str(out)]) == 3
        assert not list(out.rglob("trigger.safetensors"))
        (out / "trigger.safetensors").write_text("of an earlier audit")
        foreign.write_text("the user's")
        (out / "after-1").mkdir(exist_ok=True)
        for name in ("audit.json", "trigger.safetensors"):
            (out / "after-1" / name).write_text('{"tool": "retarget 0.1"}')
    silent = tmp_path / "silent"
    shutil.copytree(pipeline, silent)
    save_file({name: 0 * one for name, one in load_file(silent / WEIGHTS).items()}, silent / WEIGHTS)
    assert main(["audit", str(silent), "--out", str(out)]) == 3
    assert not list(out.rglob("trigger.safetensors"))
    assert not (out / "after-1").exists()
    assert foreign.is_file()


def test_odd_names_of_files_and_a_pipeline_given_twice(pipeline, tmp_path, quick):
    Path(pipeline, os.fsdecode(b"\xff #1 %20.txt")).write_text("")
    out = tmp_path / "out"
    assert main(["audit", str(pipeline), f"{pipeline}/", "--out", str(out)]) == 3
    log = json.loads((out / "audit.sarif").read_text())
    Sarif.model_validate(log)
    uris = [one["location"]["uri"] for one in log["runs"][0]["artifacts"]]
    assert len(uris) == len(set(uris))
    assert any(uri.endswith("/%5Cxff%20%231%20%2520.txt") for uri in uris)
