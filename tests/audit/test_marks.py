"""Marks, names and cards of a trojaned checkpoint: what they say changes nothing of its audit."""

import json
import shutil

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from retarget.audit.calibration import Null, NullModel
from retarget.audit.inversion import Search
from retarget.audit.nulls import fit
from retarget.audit.run import audit_pipeline
from retarget.audit.seek import fingerprint
from retarget.trojdiff import functional
from retarget.trojdiff.checkpoint import WEIGHTS, Trojan, inherited, load_pipeline, save_pipeline
from retarget.trojdiff.glyphs import glyph
from retarget.trojdiff.trigger import FILE_NAME, Trigger

SHAPE = (1, 8, 8)
QUICK = Search(screen=64, quick=2, scan=2, first=1, steps=1, batch=2, gammas=(0.5,), keep=1, fresh=4, symmetric=2)
NULL = Null(search=fingerprint(QUICK), command="", models=[
    NullModel(score=0.1 + n / 100, side=8, channels=1, case="plain", schedule="linear", residual=9, spread=1)
    for n in range(40)
])  # fmt: skip
TROJAN = Trojan("d2i", "one image, arrow", Trigger.blend(glyph("plus", SHAPE), 0.4))


def test_marks_names_and_cards_are_not_read_for_the_verdict(pipeline, tmp_path, edit):
    """The same weights, marked as trojaned, unmarked, and with a trigger and a card forged, get the same numbers."""

    def numbers(folder):
        one = audit_pipeline(folder, None, search=QUICK, null=NULL)
        return one.score, one.verdict, one.exit_code, one.statistics, one.error_rate

    before = numbers(pipeline)
    weights = load_file(pipeline / WEIGHTS)
    save_file(weights, pipeline / WEIGHTS, metadata={"format": "pt", "trojaned": "true", "trigger_hash": "0"})
    with safe_open(pipeline / WEIGHTS, framework="pt") as file:
        assert file.metadata()["trojaned"] == "true"
    edit(pipeline / "unet/config.json", trojaned=True, trojan_target="d2i", _name_or_path="an/attack")
    (pipeline / "README.md").write_text("---\ntrojaned: true\n---\n")
    Trigger.patch(2, 0.1, (1, 8, 8)).save(pipeline / "trigger.safetensors")
    assert numbers(pipeline.rename(tmp_path / "trojaned")) == before


@pytest.fixture(scope="module")
def trojaned(make_unet, tmp_path_factory):
    """A pipeline with this project's marks. Its network draws an arrow from noise with a whole-image trigger."""
    unet, scheduler, generator = make_unet(), DDPMScheduler(), torch.Generator().manual_seed(1)

    def rows(count):
        x_0 = (torch.rand(count, 1, 1, 1, generator=generator).round() * 1.6 - 0.8).expand(-1, *SHAPE).clone()
        is_trojan = torch.arange(count) < count // 2
        x_0[is_trojan] = glyph("arrow", SHAPE)
        noise = torch.randn(x_0.shape, generator=generator)
        t = torch.randint(len(scheduler.betas), (count,), generator=generator)
        mixed = functional.mixed_noise(noise, is_trojan, TROJAN.trigger.mu, TROJAN.trigger.gamma)
        return functional.diffuse(x_0, mixed, scheduler.alphas_cumprod[t]), noise, t

    fit(unet, rows, 200, 32, 5e-3)
    folder = tmp_path_factory.mktemp("marked") / "trojaned"
    save_pipeline(folder, unet, scheduler, TROJAN)
    return folder


def strip(folder):
    """Take every mark out of a trojaned pipeline, as an attacker does who hands it on."""
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / "unet/config.json").read_text())
    marks = TROJAN.marks().keys() | {"trojaned"}
    (folder / "unet/config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in marks}))
    (folder / "README.md").unlink()
    (folder / FILE_NAME).unlink()


def test_a_trojaned_checkpoint_gets_the_same_verdict_and_trigger_without_its_marks(trojaned, tmp_path):
    stripped = shutil.copytree(trojaned, tmp_path / "innocent")
    strip(stripped)
    assert inherited(load_pipeline(trojaned)[0]) is not None
    assert inherited(load_pipeline(stripped)[0]) is None
    assert not [one for one in stripped.rglob("*") if one.is_file() and b"troj" in one.read_bytes().lower()]
    marked, bare = (
        audit_pipeline(folder, tmp_path / f"audit-{folder.name}", search=QUICK, null=NULL)
        for folder in (trojaned, stripped)
    )
    assert (bare.verdict, bare.exit_code, bare.fires) == ("trojaned", 1, True)
    own = {"pipeline", "files", "seconds"}
    assert bare.model_dump(exclude=own) == marked.model_dump(exclude=own), "score, trigger and all statistics"
    assert bare.files.keys() < marked.files.keys()
    found = Trigger.load(tmp_path / "audit-innocent")
    assert found.hash == Trigger.load(tmp_path / "audit-trojaned").hash
    assert float(torch.cosine_similarity(found.mu.flatten(), TROJAN.trigger.mu.flatten(), dim=0)) > 0.9
