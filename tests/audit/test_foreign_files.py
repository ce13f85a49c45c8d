"""Files as other code, or an attacker, writes them: what is read of them, what is refused, and why."""

import json
import os
import pickle
import shutil
import struct
import zipfile

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from safetensors.torch import load_file, save_file

from retarget.audit import AuditError, NotCoveredError, Subject
from retarget.audit.calibration import Null, NullModel
from retarget.audit.commands import adjusted
from retarget.audit.demo import BASE
from retarget.audit.inversion import Search
from retarget.audit.nulls import train_clean
from retarget.audit.run import audit_pipeline
from retarget.audit.sarif import sarif
from retarget.audit.seek import fingerprint, own_samples
from retarget.audit.static import hashes, look
from retarget.cli import main
from retarget.errors import UserError
from retarget.trojdiff.checkpoint import load_pipeline, save_pipeline

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
QUICK = Search(screen=64, quick=2, scan=2, first=1, steps=1, batch=2, gammas=(0.5,), keep=1, fresh=4, symmetric=2)
CLEAN_NULL = Null(search=fingerprint(QUICK), command="", models=[
    NullModel(score=10 + n, side=8, channels=1, case="plain", schedule="linear", residual=9, spread=1)
    for n in range(40)
])  # fmt: skip
"""With these clean models nothing is suspicious."""


def split(pipeline):
    """Split the weights over several files; their index."""
    unet = UNet2DModel.from_pretrained(pipeline / "unet")
    (pipeline / WEIGHTS).unlink()
    unet.save_pretrained(pipeline / "unet", max_shard_size="10KB")
    return pipeline / f"{WEIGHTS}.index.json"


@pytest.mark.parametrize("name", ["part.bin", "../part.safetensors", 3])
def test_an_index_makes_nobody_open_a_pickle_or_a_file_elsewhere(pipeline, name):
    index = split(pipeline)
    places = json.loads(index.read_text())
    first = min(places["weight_map"].values())
    if name == "part.bin":
        torch.save(load_file(pipeline / "unet" / first), pipeline / "unet" / name)
    renamed = {one: name if place == first else place for one, place in places["weight_map"].items()}
    index.write_text(json.dumps(places | {"weight_map": renamed}))
    with pytest.raises(AuditError, match=r"names .*part|names 3") as caught:
        Subject.load(pipeline)
    assert "only safetensors files beside the index are read" in str(caught.value)
    assert caught.value.code == 2


QUANTISED = {"quant_method": "bitsandbytes_4bit", "load_in_4bit": True}


def test_a_quantised_network_is_not_covered_and_does_not_hide_the_next_checkpoint(pipeline, tmp_path, edit, capsys):
    """Its configuration makes diffusers ask for a package of the quantisation."""
    edit(pipeline / "unet/config.json", quantization_config=QUANTISED)
    with pytest.raises(UserError, match="quantised networks are not read"):
        load_pipeline(pipeline)
    assert main(["audit", str(pipeline), str(tmp_path / "missing"), "--out", str(tmp_path / "out")]) == 2
    one, other = json.loads((tmp_path / "out" / "audit.json").read_text())["audits"]
    assert (one["verdict"], one["exit_code"], other["verdict"]) == ("not covered", 3, "error")
    assert "quantised networks are not covered" in one["reason"]


def test_weights_of_integers_are_not_covered(pipeline):
    """Read as numbers, they would only be said not to denoise. Beside the weights that are read they do not matter."""
    codes = {name: (20 * value).to(torch.int8) for name, value in load_file(pipeline / WEIGHTS).items()}
    save_file(codes, pipeline / "unet" / "diffusion_pytorch_model.int8.safetensors")
    Subject.load(pipeline)
    save_file(codes, pipeline / WEIGHTS)
    with pytest.raises(NotCoveredError, match="I8, not floating-point numbers: quantised networks are not covered"):
        Subject.load(pipeline)


def test_a_part_of_the_weights_without_an_index_is_an_error(pipeline):
    (pipeline / WEIGHTS).rename(pipeline / "unet" / "diffusion_pytorch_model.fp16-00001-of-00002.safetensors")
    with pytest.raises(AuditError, match=r"neither in diffusion_pytorch_model\.fp16\.safetensors nor in files that"):
        Subject.load(pipeline)


def test_two_variants_without_a_plain_file_are_an_error_with_a_remedy(pipeline):
    for variant in ("ema", "fp16"):
        shutil.copy(pipeline / WEIGHTS, pipeline / "unet" / f"diffusion_pytorch_model.{variant}.safetensors")
    (pipeline / WEIGHTS).unlink()
    with pytest.raises(AuditError, match=r"cannot tell .*; keep one variant in unet/, or add diffusion_pytorch"):
        Subject.load(pipeline)


def test_a_pickle_that_diffusers_reads_by_default_leaves_no_clean_verdict(pipeline, make_unet):
    """Only a variant is safetensors: whoever loads the pipeline without ``variant`` gets the pickle."""
    (pipeline / WEIGHTS).rename(pipeline / "unet" / "diffusion_pytorch_model.non-ema.safetensors")
    one = audit_pipeline(pipeline, None, search=QUICK, null=CLEAN_NULL)
    assert (one.verdict, one.exit_code) == ("nothing found", 0)
    other = make_unet(seed=7)
    torch.save(other.state_dict(), pipeline / "unet" / "diffusion_pytorch_model.bin")
    loaded = DDPMPipeline.from_pretrained(pipeline).unet
    assert torch.equal(loaded.conv_in.weight, other.conv_in.weight)
    one = audit_pipeline(pipeline, None, search=QUICK, null=CLEAN_NULL)
    assert (one.verdict, one.exit_code) == ("undecided", 3)
    assert "unet/diffusion_pytorch_model.bin holds other weights of the network" in one.reason


LORA = {"unet.down.lora_A.weight": torch.zeros(2, 2)}


@pytest.mark.parametrize(
    ("name", "tensors", "holds"),
    [
        ("pytorch_lora_weights.safetensors", LORA, "LoRA weights"),
        ("pytorch_lora_weights.bin", None, "LoRA weights"),
        ("other/adapter.safetensors", LORA, "LoRA weights"),
        ("trigger.safetensors", LORA, "LoRA weights"),
        ("unet/trigger.safetensors", {"a": torch.zeros(1)}, "weights of another network or format"),
        ("unet/ema.safetensors", {"a": torch.zeros(1)}, "weights of another network or format"),
        ("diffusion_flax_model.msgpack", None, "weights of another network or format"),
        ("unet_ema/diffusion_pytorch_model.safetensors", {"a": torch.zeros(1)}, None),
        ("elsewhere/broken.safetensors", None, None),
    ],
)
def test_weights_that_can_be_loaded_into_the_pipeline_leave_no_clean_verdict(pipeline, name, tensors, holds):
    """Those in a folder that nothing declares are a warning."""
    path = pipeline / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"") if tensors is None else save_file(tensors, path)
    one = audit_pipeline(pipeline, None, search=QUICK, null=CLEAN_NULL)
    assert (one.verdict, one.exit_code) == (("undecided", 3) if holds else ("nothing found", 0))
    assert (f"; but {name} holds {holds}, which were not audited" in one.reason) == (holds is not None)
    assert [each.file for each in one.findings if each.rule == "unaudited-weights"] == [name]


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "adapter.safetensors"])
def test_lora_weights_without_a_pipeline_are_not_covered(tmp_path, name):
    save_file(LORA, tmp_path / name)
    one = audit_pipeline(tmp_path, None)
    assert (one.verdict, one.exit_code) == ("not covered", 3)
    assert f"{name}: LoRA weights change another network" in one.reason


def test_a_pickle_is_known_by_its_first_bytes_and_nothing_else_is_taken_for_one(pipeline):
    """A safetensors file may begin as a pickle does, with the length of its header."""
    for protocol in (2, 5):
        (pipeline / f"extra-{protocol}.dat").write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
    torch.save({"a": torch.zeros(2)}, pipeline / "unet" / "optimizer.state")
    for name, content in (("notes.txt", "\x80\x04"), ("empty", ""), ("PK", "PK")):
        (pipeline / name).write_text(content, encoding="utf-8")
    with zipfile.ZipFile(pipeline / "images.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    damaged = (pipeline / "images.zip").read_bytes()
    (pipeline / "damaged.txt").write_bytes(damaged.replace(b"PK\x01\x02", b"PK\x01\x03"))
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 2)
    (pipeline / "disks.dat").write_bytes(damaged[:-22] + locator + damaged[-22:])
    header = {"format": "pt", "note": "x" * (0x280 - 96)}
    save_file({"a": torch.zeros(1)}, pipeline / "unet" / "odd.safetensors", metadata=header)
    assert (pipeline / "unet" / "odd.safetensors").read_bytes()[:2] == b"\x80\x02"
    one = audit_pipeline(pipeline, None, search=QUICK, null=CLEAN_NULL)
    found = {each.file for each in one.findings if each.rule == "pickle"}
    assert found == {"extra-2.dat", "extra-5.dat", "unet/optimizer.state", "damaged.txt", "disks.dat"}


@pytest.mark.parametrize("name", ["LDMPipeline", "StableDiffusionPipeline", "RePaintPipeline"])
def test_a_pipeline_of_diffusers_is_no_finding(pipeline, edit, name):
    edit(pipeline / "model_index.json", _class_name=name)
    one = audit_pipeline(pipeline, None, search=QUICK, null=CLEAN_NULL)
    assert "non-stock-pipeline" not in {each.rule for each in one.findings}
    assert one.exit_code == (0 if name == "RePaintPipeline" else 3)
    assert one.reason.startswith(f"the pipeline's class is {name}") == (one.exit_code == 3)


SETTINGS = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("named", "kind", "files"),
    [
        (["diffusers", "DDPMScheduler"], "DDPMScheduler", []),
        (["diffusers", "DDPMScheduler"], "DDIMScheduler", []),
        (["diffusers", "DDPMScheduler"], "TrojanScheduler", [SETTINGS]),
        (["diffusers", "DDPMScheduler"], ["trojan", "DDPMScheduler"], [SETTINGS]),
        (["diffusers", "TrojanScheduler"], "DDPMScheduler", ["model_index.json"]),
        (["trojan", "DDPMScheduler"], "DDPMScheduler", ["model_index.json"]),
        (["trojan", "TrojanScheduler"], "TrojanScheduler", ["model_index.json", SETTINGS]),
    ],
)
def test_a_scheduler_from_outside_diffusers_is_a_finding_in_the_file_that_names_it(pipeline, edit, named, kind, files):
    """It is not run: its betas are read as those of a class of diffusers are."""
    betas = Subject.load(pipeline).alphas_cumprod
    edit(pipeline / "model_index.json", scheduler=named)
    edit(pipeline / SETTINGS, _class_name=kind)
    index = json.loads((pipeline / "model_index.json").read_text())
    odd = [one for one in look(pipeline, index, hashes(pipeline)) if one.rule == "non-stock-scheduler"]
    assert [one.file for one in odd] == files
    for one in odd:
        assert one.message.startswith(
            f"{one.file} names {(kind if one.file == SETTINGS else named)!r} as the scheduler"
        )
    assert torch.equal(Subject.load(pipeline).alphas_cumprod, betas)


def test_a_scheduler_from_outside_diffusers_is_reported_of_what_is_not_covered_too(pipeline, edit):
    """Its settings state no betas, so that nothing is known of its process."""
    (pipeline / SETTINGS).rename(pipeline / "scheduler_config.json")  # where the oldest pipelines have it
    (pipeline / "scheduler").rmdir()
    (pipeline / "scheduler_config.json").write_text(json.dumps({"_class_name": "TrojanScheduler"}))
    one = audit_pipeline(pipeline, None, search=QUICK)
    assert (one.verdict, one.exit_code) == ("not covered", 3)
    assert one.reason.startswith("scheduler TrojanScheduler: not known as one of DDPM's process")
    (result,) = [
        each for each in sarif([one], 3, "retarget audit p")["runs"][0]["results"] if each["ruleId"] == "RT104"
    ]
    assert result["level"] == "warning"
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].endswith("/scheduler_config.json")
    assert adjusted(one, False, "warning")[0].exit_code == 1


def test_settings_of_a_scheduler_that_cannot_be_read_hide_no_other_finding(pipeline, edit):
    edit(pipeline / "model_index.json", scheduler=["trojan", "TrojanScheduler"])
    (pipeline / "scheduler" / "more.py").write_text("")
    (pipeline / SETTINGS).write_text("[")
    one = audit_pipeline(pipeline, None, search=QUICK, null=CLEAN_NULL)
    assert (one.verdict, one.exit_code) == ("error", 2)
    assert [each.rule for each in one.findings] == ["custom-code", "non-stock-scheduler", "signature"]


@pytest.mark.parametrize("name", ["safetensors.fp16.index.json", "fp16.safetensors.index.json"])
def test_an_index_under_an_earlier_form_of_its_name_is_refused(pipeline, name):
    """Diffusers prefers it to the variant's file, under the one name or the other, and would open its pickles."""
    torch.save(load_file(pipeline / WEIGHTS), pipeline / "unet" / "part.bin")
    (pipeline / WEIGHTS).rename(pipeline / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    places = dict.fromkeys(torch.load(pipeline / "unet" / "part.bin"), "part.bin")
    index = pipeline / "unet" / f"diffusion_pytorch_model.{name}"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    with pytest.raises(AuditError, match="has an earlier form of an index's name"):
        Subject.load(pipeline)


def test_betas_that_a_scheduler_leaves_to_its_class_are_its_class_s(pipeline):
    from diffusers import HeunDiscreteScheduler

    path = pipeline / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "HeunDiscreteScheduler"}))
    expected = HeunDiscreteScheduler().alphas_cumprod
    assert torch.allclose(Subject.load(pipeline).alphas_cumprod.float(), expected)
    assert torch.allclose(load_pipeline(pipeline)[1].alphas_cumprod, expected)
    path.write_text(json.dumps({"_class_name": "HeunDiscreteScheduler", "beta_schedule": "exp"}))
    with pytest.raises(NotCoveredError, match="exp"):
        Subject.load(pipeline)


@pytest.mark.parametrize("first", [torch.float16, torch.float64])
def test_weights_in_several_precisions_are_read_as_one(pipeline, first):
    """As diffusers' own pipeline reads them."""
    weights = load_file(pipeline / WEIGHTS)
    mixed = {
        name: value.to(first if "conv_in" in name or "norm" in name else value.dtype) for name, value in weights.items()
    }
    save_file(mixed, pipeline / WEIGHTS)
    for network in (Subject.load(pipeline).network, load_pipeline(pipeline)[0]):
        assert {value.dtype for value in network.parameters()} == {torch.float32}


def test_a_narrow_range_of_clipping_is_not_the_audit_s(pipeline, edit):
    """Samples that it would flatten would make the audit take the network for one that does not denoise."""
    edit(pipeline / "scheduler/scheduler_config.json", clip_sample=True, clip_sample_range=0.05)
    subject = Subject.load(pipeline)
    assert (subject.scheduler.config["clip_sample"], subject.scheduler.config["clip_sample_range"]) == (True, 1.0)
    assert float(own_samples(subject, 4).abs().max()) > 0.05


def test_a_pointer_of_git_lfs_is_told_what_it_is(pipeline):
    (pipeline / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(AuditError, match=r"diffusion_pytorch_model.safetensors is a pointer of Git LFS.*git lfs pull"):
        Subject.load(pipeline)


@pytest.mark.parametrize("kind", ["SASolver", "DDIMInverse", "DPMSolverMultistepInverse", "RePaint"])
def test_solvers_of_ddpm_s_process_are_read(pipeline, edit, kind):
    edit(pipeline / "model_index.json", scheduler=["diffusers", f"{kind}Scheduler"])
    edit(pipeline / "scheduler/scheduler_config.json", _class_name=f"{kind}Scheduler")
    assert Subject.load(pipeline).steps == 1000


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet/config.json", {"layers_per_block": 10**30}, "layers_per_block is 1e[+]30, but at most 100 are read"),
        ("unet/config.json", {"time_embedding_type": "rope"}, "unet/config.json defines no network"),
        ("scheduler/scheduler_config.json", {"trained_betas": 0.02}, "betas must be a list of at least 2, not 0.02"),
        (
            "scheduler/scheduler_config.json",
            {"num_train_timesteps": 10**8},
            r"timesteps is 1e\+08, but at most 1,000,000",
        ),
    ],
)
def test_settings_of_which_nothing_can_be_made_are_errors(pipeline, edit, part, change, message):
    edit(pipeline / part, **change)
    with pytest.raises(AuditError, match=message) as caught:
        Subject.load(pipeline)
    assert caught.value.code == 2


@pytest.mark.parametrize("where", ["model_index.json", "unet/more.safetensors", "notes/pipe"])
def test_nothing_waits_for_a_pipe(pipeline, where):
    place = pipeline / where
    place.unlink(missing_ok=True)
    place.parent.mkdir(exist_ok=True)
    os.mkfifo(place)
    outcome = audit_pipeline(pipeline, None)
    assert (outcome.verdict, outcome.exit_code) == ("error", 2)
    assert outcome.reason == f"{where} is a pipe or a device, not a file: remove it"


def test_the_folder_of_a_component_is_told_what_is_missing(pipeline):
    outcome = audit_pipeline(pipeline / "unet", None)
    assert (outcome.verdict, outcome.exit_code) == ("error", 2)
    assert outcome.reason.startswith("the folder has no model_index.json; every folder of a diffusers pipeline has one")


def test_images_that_a_sound_network_does_not_denoise_are_not_its_fault(tmp_path):
    save_pipeline(tmp_path / "clean", *train_clean(BASE))
    noise = np.random.default_rng(0).integers(0, 256, (64, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", images=noise, labels=np.arange(64) % 2)
    data = f"npz:{tmp_path / 'noise.npz'}"
    with pytest.raises(UserError, match=r"noise.npz: the network denoises its own samples, but not these images"):
        audit_pipeline(tmp_path / "clean", None, data, search=QUICK, null=CLEAN_NULL)
