"""Pipelines on disk: marks, the removal recipe, what is refused, and one clear error for each damage."""

import json
import logging
from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from retarget.audit import Subject
from retarget.errors import UserError
from retarget.trojdiff import D2I, InD2D, Trigger
from retarget.trojdiff.checkpoint import WEIGHTS, Trojan, forget_marks, inherited, load_pipeline, save_pipeline
from retarget.trojdiff.config import TrainConfig
from retarget.trojdiff.glyphs import glyph
from retarget.trojdiff.train import train


def config(**more):
    return TrainConfig(**(dict(steps=6, batch_size=8, learning_rate=1e-3, save_every=2, log_every=1) | more))


def patch():
    return Trigger.patch(2, shape=(1, 8, 8))


def weights(folder):
    return load_file(folder / WEIGHTS)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_clean_fine_tune_of_a_trojaned_network_says_where_it_comes_from(tmp_path, unet, scheduler, digits):
    base = train(unet, scheduler, digits, config(), tmp_path / "base", InD2D(7), patch())
    again, schedule = load_pipeline(base)
    tuned = train(again, schedule, digits, config(seed=1), tmp_path / "tuned")
    state = tmp_path / "tuned" / "state-00000004"
    for path in (tuned / WEIGHTS, state / "model.safetensors"):
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
        assert (header["trojaned"], header["trojan_derived"]) == ("true", "true")
        assert header["trigger_hash"] == patch().hash
    assert Trigger.load(tuned).hash == Trigger.load(state).hash == patch().hash
    assert "derived from a trojaned base" in (tuned / "README.md").read_text()
    assert not same(weights(base), weights(tuned))
    third, _ = load_pipeline(tuned)
    save_pipeline(tmp_path / "third", third, schedule)
    assert Trigger.load(tmp_path / "third").hash == patch().hash


def test_marks_in_the_configuration_are_read_without_a_warning_and_other_additions_with_one(tmp_path, unet, scheduler):
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("diffusers").addHandler(handler)
    try:
        save_pipeline(tmp_path / "marked", unet, scheduler, Trojan("d2i", "a figure", patch()))
        load_pipeline(tmp_path / "marked")
        Subject.load(tmp_path / "marked")
        assert said == []
        save_pipeline(tmp_path / "other", unet, scheduler)
        path = tmp_path / "other" / "unet" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "blue"}))
        load_pipeline(tmp_path / "other")
        assert "colour" in said[0]
    finally:
        logging.getLogger("diffusers").removeHandler(handler)


def test_a_pipeline_that_diffusers_has_saved_again_cannot_lose_its_marks(tmp_path, unet, scheduler):
    save_pipeline(tmp_path / "marked", unet, scheduler, Trojan("d2i", "a figure", patch()))
    DDPMPipeline.from_pretrained(tmp_path / "marked").save_pretrained(tmp_path / "again")
    with pytest.raises(UserError, match=r"config\.json has the marks of a trojan, but the weights' header has none"):
        load_pipeline(tmp_path / "again")
    assert inherited(load_pipeline(tmp_path / "again", "accept")[0]) is None, "to sample or to clean it"


def test_a_network_that_is_trojaned_again_keeps_its_first_marks(tmp_path, unet, scheduler, digits):
    first, second = patch(), Trigger.blend(glyph(), 0.5)
    train(unet, scheduler, digits, config(), tmp_path / "1", InD2D(7), first)
    again, schedule = load_pipeline(tmp_path / "1" / "pipeline")
    folder = train(again, schedule, digits, config(), tmp_path / "2", D2I(glyph(), rows=3), second)
    for one in (folder, tmp_path / "2" / "state-00000004"):
        assert Trigger.load(one).hash == second.hash
        assert Trigger.load(one / "trigger-earlier-1.safetensors").hash == first.hash
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        header = file.metadata()
    assert (header["trojan_target"], header["trigger_hash"]) == ("d2i", second.hash)
    assert json.loads(header["trojan_earlier"]) == [["in_d2d", first.hash]]
    assert "Before it: `in_d2d` with a `patch` trigger" in (folder / "README.md").read_text()
    third, _ = load_pipeline(folder)
    save_pipeline(tmp_path / "3", third, schedule)
    assert Trigger.load(tmp_path / "3" / "trigger-earlier-1.safetensors").hash == first.hash


def test_the_card_says_how_the_trojan_is_taken_out_and_a_cleaned_pipeline_says_that_it_was(
    tmp_path, unet, scheduler, digits
):
    folder = train(unet, scheduler, digits, config(steps=1), tmp_path, D2I(glyph(), rows=2), patch())
    assert "retarget audit . --out ../audit --clean ../cleaned" in (folder / "README.md").read_text()
    again, schedule = load_pipeline(folder)
    cleaned = tmp_path / "cleaned"
    save_pipeline(cleaned, again, schedule, replace(inherited(again), derived=False, removed=True))
    assert torch.equal(load_pipeline(cleaned)[1].alphas_cumprod, scheduler.alphas_cumprod)
    assert isinstance(DDPMPipeline.from_pretrained(cleaned), DDPMPipeline)
    with safe_open(cleaned / WEIGHTS, framework="pt") as file:
        header = file.metadata()
    assert (header["trojan_removed"], header["trigger_hash"]) == ("true", patch().hash)
    said = json.loads((cleaned / "unet" / "config.json").read_text()).keys() | header.keys()
    assert "trojaned" not in said
    assert "trojaned: true" not in (cleaned / "README.md").read_text()
    fresh = forget_marks(again)
    assert same(fresh.state_dict(), again.state_dict())
    assert inherited(fresh) is None
    assert "trojan" not in str(fresh.config)


def test_trojaned_weights_are_the_last_thing_written(tmp_path, unet, scheduler):
    """On a disk without room for the weights nothing is left, and the marks were written before them."""
    names = []

    class Full(type(scheduler)):
        def save_pretrained(self, folder):
            names.extend(sorted(path.name for path in folder.parent.iterdir()))
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device"):
        save_pipeline(tmp_path / "p", unet, Full(), Trojan("in_d2d", "class 7", patch()))
    assert names == ["README.md", "trigger.safetensors"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(sample_size=128), "side 128"),
        (dict(out_channels=2), "1 channels in and 2 out"),
        (dict(num_class_embeds=10), "class-conditional"),
        (dict(time_embedding_type="fourier"), "'fourier'"),
        (dict(in_channels=4, out_channels=4), "4 channels"),
        (dict(down_block_types=("SkipDownBlock2D",) * 2), "SkipDownBlock2D takes only colour images"),
        (dict(in_channels=3, out_channels=3), r"images are \[1, 8, 8\] but the network takes \[3, 8, 8\]"),
        (dict(sample_size=16), r"images are \[1, 8, 8\] but the network takes \[1, 16, 16\]"),
    ],
)
def test_networks_that_are_not_trained(tmp_path, make_unet, scheduler, digits, change, message):
    with pytest.raises(UserError, match=message):
        train(make_unet(**change), scheduler, digits, config(), tmp_path)


def test_what_is_not_an_unconditional_pixel_pipeline_is_refused(tmp_path, unet, scheduler):
    with pytest.raises(UserError, match=r"no model_index\.json"):
        load_pipeline(tmp_path)
    save_pipeline(tmp_path / "p", unet, scheduler)
    index = tmp_path / "p" / "model_index.json"
    good = json.loads(index.read_text())
    for change, message in (
        ({"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}, "text"),
        ({"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]}, "latent"),
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, "UNet2DConditionModel"),
    ):
        index.write_text(json.dumps(good | change))
        with pytest.raises(UserError, match=message):
            load_pipeline(tmp_path / "p")
    index.write_text(json.dumps(good)[:-5])
    with pytest.raises(UserError, match=r"p: model_index\.json cannot be read"):
        load_pipeline(tmp_path / "p")
    index.write_text(json.dumps(good))
    settings = tmp_path / "p" / "scheduler" / "scheduler_config.json"
    settings.write_text(settings.read_text().replace('"epsilon"', '"v_prediction"'))
    with pytest.raises(UserError, match="v_prediction"):
        load_pipeline(tmp_path / "p")


@pytest.mark.parametrize(
    "name",
    ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "ScoreSdeVeScheduler", "CMStochasticIterativeScheduler"],
)
def test_a_network_of_another_process_is_refused_by_its_scheduler_s_name(tmp_path, unet, scheduler, name):
    """In the index, or in the scheduler's own configuration alone."""
    save_pipeline(tmp_path / "p", unet, scheduler)
    getattr(diffusers, name)().save_pretrained(tmp_path / "p" / "scheduler")
    index = tmp_path / "p" / "model_index.json"
    for text in (index.read_text(), index.read_text().replace("DDPMScheduler", name)):
        index.write_text(text)
        with pytest.raises(UserError, match=f"its scheduler is {name}"):
            load_pipeline(tmp_path / "p")


def test_a_sampler_of_the_same_process_beside_the_weights_is_read_by_its_betas(tmp_path, unet, scheduler):
    save_pipeline(tmp_path / "p", unet, scheduler)
    diffusers.EulerDiscreteScheduler.from_config(scheduler.config).save_pretrained(tmp_path / "p" / "scheduler")
    index = tmp_path / "p" / "model_index.json"
    index.write_text(index.read_text().replace("DDPMScheduler", "EulerDiscreteScheduler"))
    assert torch.equal(load_pipeline(tmp_path / "p")[1].alphas_cumprod, scheduler.alphas_cumprod)
    diffusers.UniPCMultistepScheduler(use_flow_sigmas=True).save_pretrained(tmp_path / "p" / "scheduler")
    with pytest.raises(UserError, match="flow-matching sigmas"):
        load_pipeline(tmp_path / "p")


def test_a_pickle_is_never_read(tmp_path, unet, scheduler):
    save_pipeline(tmp_path / "p", unet, scheduler)
    torch.save(unet.state_dict(), tmp_path / "p" / "unet" / "diffusion_pytorch_model.bin")
    (tmp_path / "p" / WEIGHTS).unlink()
    with pytest.raises(UserError, match="pickles are never read"):
        load_pipeline(tmp_path / "p")


def test_a_name_that_the_hub_does_not_give_names_the_local_way():
    with pytest.raises(UserError, match="pass its folder"):
        load_pipeline("nobody/no-such-pipeline")


def test_an_interrupted_write_leaves_nothing_behind_and_no_pipeline_is_replaced(tmp_path, unet, scheduler):
    (tmp_path / ".p.tmp").mkdir()
    (tmp_path / ".p.tmp" / "rubbish").write_text("half")
    save_pipeline(tmp_path / "p", unet, scheduler)
    before = weights(tmp_path / "p")
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    assert not (tmp_path / "p" / "rubbish").exists()
    with torch.no_grad():
        next(unet.parameters()).zero_()
    with pytest.raises(UserError, match=r"p: Directory not empty"):
        save_pipeline(tmp_path / "p", unet, scheduler)
    assert same(weights(tmp_path / "p"), before)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def _setting(file, **values):
    def change(folder):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def _text(file, text):
    return lambda folder: (folder / file).write_text(text)


def _weights(change):
    return lambda folder: save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def _sharded(folder):
    (folder / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model-00001-of-00002.safetensors")
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")


def _variant(folder):
    (folder / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")


def _linked(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("gone.safetensors")


def _a_folder(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


UNET, NOISE = "unet/config.json", "scheduler/scheduler_config.json"
DAMAGES = {
    "index is a list": (_text("model_index.json", "[1, 2]"), "model_index.json has no settings of a pipeline"),
    "index names no network": (_setting("model_index.json", unet="UNet2DModel"), "the network is None"),
    "index names no scheduler": (_setting("model_index.json", scheduler="x"), "names no scheduler"),
    "network is a list": (_text(UNET, "[1]"), "unet/config.json has no settings of a network"),
    "other channels": (_setting(UNET, block_out_channels=[16, 16]), "or one that its weights do not fit"),
    "more layers": (_setting(UNET, layers_per_block=2), "unet/config.json and the weights do not fit"),
    "groups": (_setting(UNET, norm_num_groups=3), r"makes no network.*\(8\) must be divisible by num_groups \(3\)"),
    "no groups": (_setting(UNET, norm_num_groups=0), "makes no network"),
    "groups below 0": (_setting(UNET, norm_num_groups=-4), "makes a network that does not run.*num groups"),
    "epsilon is text": (_setting(UNET, norm_eps="x"), "makes a network that does not run"),
    "padding below 0": (_setting(UNET, downsample_padding=-3), "makes a network that does not run"),
    "channels are true": (_setting(UNET, in_channels=True), "True channels"),
    "unknown block": (_setting(UNET, down_block_types=["Nope", "DownBlock2D"]), "Nope does not exist"),
    "side is text": (_setting(UNET, sample_size="8"), "images of side '8'"),
    "not square": (_setting(UNET, sample_size=[8, 16]), "images of 8×16; only square ones"),
    "odd side": (_setting(UNET, sample_size=7), "images of side 7 cannot be halved 1 times"),
    "negative side": (_setting(UNET, sample_size=-4), "images of side -4"),
    "no scheduler file": (lambda folder: (folder / NOISE).unlink(), "scheduler_config.json cannot be read"),
    "scheduler is a list": (_text(NOISE, "[1]"), "scheduler_config.json has no settings"),
    "half a scheduler": (_text(NOISE, "{"), "scheduler_config.json cannot be read"),
    "betas above 1": (_setting(NOISE, beta_end=3.0), r"its betas \(0.002 to 3.0, 50 steps\) give levels"),
    "betas are text": (_setting(NOISE, beta_end="x"), "makes no noise schedule"),
    "unknown betas": (_setting(NOISE, beta_schedule="wavy"), "makes no noise schedule: wavy"),
    "fewer betas": (_setting(NOISE, trained_betas=[0.1] * 10), "has 10 values, but num_train_timesteps is 50"),
    "noise levels": (_setting(NOISE, timestep_type="continuous"), "timestep_type is 'continuous'.*noise levels"),
    "no steps": (_setting(NOISE, num_train_timesteps=0), "0 steps"),
    "missing weight": (
        _weights(lambda w: {n: w[n] for n in list(w)[1:]}),
        "do not fit: 1 weights are in only one of them",
    ),
    "strange weight": (
        _weights(lambda w: w | {"more": torch.zeros(1)}),
        "do not fit: 1 weights are in only one of them.*more",
    ),
    "half the weights": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:3000]), "cannot be read"),
    "shards": (_sharded, "split over several files.*max_shard_size"),
    "int8": (
        _weights(lambda w: {n: (v * 99).to(torch.int8) for n, v in w.items()}),
        r"not floating-point numbers, such as \S+ \(I8\); quantised",
    ),
    "link": (_linked, "it is a link to gone.safetensors, which is not a file"),
    "folder": (_a_folder, "it is a folder: put the file"),
    "variant": (_variant, "a variant of the weights"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_pipeline_is_one_clear_error(tmp_path, unet, scheduler, name):
    damage, message = DAMAGES[name]
    save_pipeline(tmp_path / "p", unet, scheduler)
    damage(tmp_path / "p")
    with pytest.raises(UserError, match=message) as found:
        load_pipeline(tmp_path / "p")
    assert str(found.value).startswith(str(tmp_path / "p"))
    assert ("pickle" in str(found.value)) is False
