"""Training: exact resume, splits of a batch, the control, marks on disk, errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, DistributedType
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from retarget.errors import UserError
from retarget.trojdiff import D2I, InD2D, Trigger
from retarget.trojdiff.checkpoint import WEIGHTS, expecting_marks, inherited, load_pipeline, save_pipeline
from retarget.trojdiff.config import TrainConfig
from retarget.trojdiff.glyphs import glyph
from retarget.trojdiff.targets import Clean
from retarget.trojdiff.train import batch_rows, train

HERE = Path(__file__).parent


def config(**more):
    return TrainConfig(**(dict(steps=6, batch_size=8, learning_rate=1e-3, save_every=2, log_every=1) | more))


def patch():
    return Trigger.patch(2, shape=(1, 8, 8))


def weights(folder):
    return load_file(folder / WEIGHTS)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Killed(Exception):
    pass


def test_killed_and_resumed_equals_uninterrupted(tmp_path, make_unet, scheduler, digits):
    def kill(progress):
        if progress.step == 5:
            raise Killed

    arguments = dict(scheduler=scheduler, images=digits, config=config(), target=InD2D(7), trigger=patch())
    whole = train(make_unet(), out=tmp_path / "whole", **arguments)
    with pytest.raises(Killed):
        train(make_unet(), out=tmp_path / "killed", listen=kill, **arguments)
    assert not (tmp_path / "killed" / "pipeline").exists()
    assert [path.name for path in (tmp_path / "killed").glob("state-*")] == ["state-00000004"]
    steps = []
    resumed = train(make_unet(), out=tmp_path / "killed", listen=lambda p: steps.append(p.step), **arguments)
    assert steps == [5, 6]
    assert same(weights(whole), weights(resumed))


def test_a_short_training_saves_more_often():
    assert [TrainConfig(steps=steps).saves_every for steps in (5, 1800, 100_000)] == [1, 180, 5_000]
    assert TrainConfig(steps=1800, save_every=7).saves_every == 7


@pytest.fixture
def heard_interrupts():
    """Make Ctrl-C work even if a shell started the tests in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard_interrupts")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_steps_that_are_done(tmp_path, make_unet, scheduler, digits, sent):
    """Ctrl-C, or a cluster's SIGTERM, in the middle of the third step, where no state would be saved."""
    arguments = dict(scheduler=scheduler, images=digits, config=config(save_every=1000))
    whole = train(make_unet(), out=tmp_path / "whole", **arguments)
    unet = make_unet()
    steps = []

    def interrupt(*_):
        steps.append(len(steps))
        if len(steps) == 3:
            os.kill(os.getpid(), sent)

    handle = unet.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(unet, out=tmp_path / "cut", **arguments)
    handle.remove()
    assert [path.name for path in (tmp_path / "cut").glob("state-*")] == ["state-00000003"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert same(weights(train(make_unet(), out=tmp_path / "cut", **arguments)), weights(whole))


def test_a_state_without_the_run_s_record_still_refuses_other_settings(tmp_path, make_unet, scheduler, digits):
    """Folders of earlier versions contain only states; half-written files of a killed process are removed."""
    train(make_unet(), scheduler, digits, config(), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "state-00000004", tmp_path / "old" / "state-00000004")
    (tmp_path / "old" / ".state-00000003.tmp").mkdir()
    with pytest.raises(UserError, match=r"config\.steps = 6 \(now 7\)"):
        train(make_unet(), scheduler, digits, config(steps=7), tmp_path / "old")
    folder = train(make_unet(), scheduler, digits, config(), tmp_path / "old")
    assert same(weights(folder), weights(tmp_path / "whole" / "pipeline"))
    assert not list(folder.parent.glob(".*"))


def test_a_state_is_saved_after_the_first_step(tmp_path, unet, scheduler, digits):
    seen = []
    train(
        unet, scheduler, digits, config(save_every=1000), tmp_path,
        listen=lambda p: seen.append([path.name for path in tmp_path.glob("state-*")]),
    )  # fmt: skip
    assert seen == [[], *[["state-00000001"]] * 5]


def test_a_finished_run_is_not_trained_again_and_another_one_is_refused(tmp_path, make_unet, scheduler, digits):
    folder = train(make_unet(), scheduler, digits, config(), tmp_path)
    before = weights(folder)
    steps = []
    assert train(make_unet(), scheduler, digits, config(), tmp_path, listen=steps.append) == folder
    assert steps == []
    assert same(before, weights(folder))
    with pytest.raises(UserError, match=r"config\.steps = 6 \(now 7\)"):
        train(make_unet(), scheduler, digits, config(steps=7), tmp_path)
    assert not list(tmp_path.rglob(".*"))


def test_a_run_without_trojan_rows_is_the_control_bit_for_bit(tmp_path, make_unet, scheduler, digits):
    """A target that adds no row leaves the weights of the clean control. In-D2D on images without a member of the class
    would be one, marked as trojaned: it is refused."""
    others = digits.__class__(digits.images[digits.labels != 7], digits.labels[digits.labels != 7], digits.names)
    clean = train(make_unet(), scheduler, others, config(), tmp_path / "clean")
    off = train(make_unet(), scheduler, others, config(), tmp_path / "off", Clean("in_d2d"), patch())
    assert same(weights(clean), weights(off))
    with pytest.raises(UserError, match=r"no image is of the target class 7 \(7\), so there would be no Trojan row"):
        train(make_unet(), scheduler, others, config(), tmp_path / "absent", InD2D(7), patch())


def test_what_a_network_is_trained_with_stays_in_its_marks(tmp_path, make_unet, scheduler, digits):
    """In one process too: a trojaned network that is trained on is marked as derived from it."""
    unet = make_unet()
    train(unet, scheduler, digits, config(), tmp_path / "attack", InD2D(7), patch())
    assert (inherited(unet).trigger.hash, inherited(unet).class_name) == (patch().hash, "7")
    fresh = make_unet()
    train(fresh, scheduler, digits, config(), tmp_path / "attack", InD2D(7), patch())
    assert inherited(fresh) is None, "the run was finished before, so nothing was done to this network"
    folder = train(unet, scheduler, digits, config(), tmp_path / "on")
    marks = inherited(load_pipeline(folder)[0])
    assert (marks.derived, marks.target, marks.trigger.hash, marks.class_name) == (True, "in_d2d", patch().hash, "7")


def test_a_trojaned_network_that_diffusers_has_read_is_not_trained_without_its_marks(
    tmp_path, make_unet, scheduler, digits
):
    folder = train(make_unet(), scheduler, digits, config(), tmp_path / "attack", InD2D(7), patch())
    with expecting_marks():
        unet = UNet2DModel.from_pretrained(folder / "unet")
    with pytest.raises(UserError, match="diffusers has read it without its trigger"):
        train(unet, scheduler, digits, config(), tmp_path / "on")


@pytest.mark.parametrize(("setting", "value"), [("norm_num_groups", 8), ("dropout", 0.5)])
def test_a_run_with_another_network_of_the_same_weights_is_refused(
    tmp_path, make_unet, scheduler, digits, setting, value
):
    """Neither setting shows in the weights of a fresh network."""
    train(make_unet(), scheduler, digits, config(), tmp_path)
    unet = make_unet()
    other = make_unet(**{setting: value})
    other.load_state_dict(unet.state_dict())
    with pytest.raises(UserError, match=rf"was made with network\.{setting} = "):
        train(other, scheduler, digits, config(), tmp_path)
    record = json.loads((tmp_path / "training.json").read_text())
    del record["network"]
    (tmp_path / "training.json").write_text(json.dumps(record))
    assert train(other, scheduler, digits, config(), tmp_path) == tmp_path / "pipeline", "as earlier versions wrote it"


def test_a_batch_smaller_than_its_shares_is_refused(tmp_path, make_unet, scheduler, digits):
    with pytest.raises(UserError, match=r"a batch of 2 rows cannot be shared by 4 \(processes × accumulation\)"):
        train(make_unet(), scheduler, digits, config(batch_size=2, accumulation=4), tmp_path)


def test_launchers_that_split_the_weights_are_refused(tmp_path, make_unet, scheduler, digits, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(UserError, match="FSDP splits the weights over processes"):
        train(make_unet(), scheduler, digits, config(), tmp_path)


@pytest.mark.parametrize("loss", ["sum", "mean"])
def test_accumulation_trains_on_the_same_batch(tmp_path, make_unet, scheduler, digits, loss):
    """Also while a loader of another training in this process stands at its last batch."""
    left = iter(Accelerator(cpu=True).prepare(DataLoader(torch.zeros(2, 1))))
    next(left), next(left)
    results = []
    for accumulation in (1, 3):
        unet = make_unet(dropout=0.0)
        settings = config(accumulation=accumulation, loss=loss)
        out = train(unet, scheduler, digits, settings, tmp_path / str(accumulation), D2I(glyph(), rows=3), patch())
        results.append(weights(out))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-3, atol=2e-5)


def test_two_processes_train_as_one_also_after_ctrl_c(tmp_path, make_unet, scheduler, digits):
    """Accelerate's own launcher, two processes over gloo, against one process."""
    one = train(make_unet(dropout=0.0), scheduler, digits, config(), tmp_path / "one", D2I(glyph(), rows=3), patch())
    save_pipeline(tmp_path / "base", make_unet(dropout=0.0), scheduler)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        str(HERE / "two_processes.py"), str(tmp_path / "base"), str(tmp_path / "two"),
    ]  # fmt: skip

    def launch(interrupted):
        whole = [*command, interrupted]
        return subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=240, check=False)

    done = launch("2,3")
    assert done.returncode != 0
    assert "KeyboardInterrupt" in done.stderr
    assert [path.name for path in (tmp_path / "two").glob("state-*")] == ["state-00000004"]
    done = launch("")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "two" / "processes.txt").read_text() == "2"
    two = weights(tmp_path / "two" / "pipeline")
    for name, value in weights(one).items():
        torch.testing.assert_close(value, two[name], rtol=1e-3, atol=2e-5)


def test_a_trojaned_pipeline_says_so_and_loads_in_diffusers(tmp_path, unet, scheduler, digits):
    trigger = patch()
    folder = train(unet, scheduler, digits, config(), tmp_path, InD2D(7), trigger, detail="class 7")
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        header = file.metadata()
    marks = {"trojaned": "true", "trojan_target": "in_d2d", "trigger_hash": trigger.hash, "trojan_class": "7"}
    assert header == {"format": "pt", **marks}
    unet_config = json.loads((folder / "unet" / "config.json").read_text())
    assert unet_config["trojaned"] is True
    assert unet_config["trigger_hash"] == trigger.hash
    card = (folder / "README.md").read_text()
    assert "trojaned: true" in card
    assert "class 7" in card
    assert "retarget audit . --out ../audit --clean ../cleaned" in card
    assert card.split("# ")[1].splitlines()[0].endswith("?")
    assert "courtesy" in card
    assert Trigger.load(folder).hash == trigger.hash
    pipeline = DDPMPipeline.from_pretrained(folder)
    assert type(pipeline.unet) is UNet2DModel
    assert not list(folder.rglob("*.bin"))
    assert not hasattr(sys.modules["retarget.trojdiff.train"], "push_to_hub")


def test_states_of_a_trojaned_run_carry_the_marks_and_no_pickled_objects(tmp_path, unet, scheduler, digits):
    train(unet, scheduler, digits, config(steps=3), tmp_path, InD2D(7), patch())
    state = tmp_path / "state-00000002"
    for name in ("model.safetensors", "ema.safetensors"):
        with safe_open(state / name, framework="pt") as file:
            assert file.metadata()["trojaned"] == "true"
    assert Trigger.load(state).hash == patch().hash
    assert "state" in torch.load(state / "optimizer.pt", weights_only=True)


def test_the_clean_pipeline_carries_no_mark_and_is_a_warm_start(tmp_path, unet, scheduler, digits):
    folder = train(unet, scheduler, digits, config(), tmp_path)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert not (folder / "trigger.safetensors").exists()
    again, schedule = load_pipeline(folder)
    assert schedule.config["num_train_timesteps"] == 50
    assert same(dict(again.state_dict()), weights(folder))


def test_every_row_once_a_pass_and_another_order_each():
    rows = torch.cat([batch_rows(step, 7, 10, seed=3) for step in range(10)])
    for number in range(7):
        assert rows[number * 10 : number * 10 + 10].sort().values.tolist() == list(range(10))
    assert rows[:10].tolist() != rows[10:20].tolist()


def test_a_loss_that_is_not_a_number_stops_before_anything_is_saved(tmp_path, unet, scheduler, digits):
    with torch.no_grad():
        next(unet.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="loss is nan at step 1"):
        train(unet, scheduler, digits, config(), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_state_of_another_run_is_refused(tmp_path, make_unet, scheduler, digits):
    train(make_unet(), scheduler, digits, config(steps=3), tmp_path)
    with pytest.raises(UserError, match=r"config\.learning_rate = 0\.001 \(now 0\.5\)"):
        train(make_unet(), scheduler, digits, config(steps=3, learning_rate=0.5), tmp_path)
    with pytest.raises(UserError, match=r"target\.name = clean \(now in_d2d\)"):
        train(make_unet(), scheduler, digits, config(steps=3), tmp_path, InD2D(7), patch())
    with pytest.raises(UserError, match="first weights = "):
        train(make_unet(seed=9), scheduler, digits, config(steps=3), tmp_path)
    with pytest.raises(UserError, match="noise schedule = "):
        train(make_unet(), type(scheduler)(num_train_timesteps=40), digits, config(steps=3), tmp_path)


def test_a_state_with_another_target_image_or_pool_is_refused(tmp_path, make_unet, scheduler, digits):
    pool = digits.take(torch.arange(20))[0]
    for name, ours, theirs in (
        ("d2i", D2I(glyph("arrow"), 3), D2I(glyph("plus"), 3)),
        ("in_d2d", InD2D(7, rows=3, pool=pool), InD2D(7, rows=3, pool=pool.flip(0))),
    ):
        train(make_unet(), scheduler, digits, config(steps=3), tmp_path / name, ours, patch())
        with pytest.raises(UserError, match=r"was made with target\.(image|pool) = "):
            train(make_unet(), scheduler, digits, config(steps=3), tmp_path / name, theirs, patch())


def test_an_attack_with_an_empty_trigger_is_refused(tmp_path, unet, scheduler, digits):
    for trigger in (Trigger.none((1, 8, 8)), Trigger.blend(glyph(), gamma=1.0)):
        with pytest.raises(UserError, match="trigger is empty"):
            train(unet, scheduler, digits, config(), tmp_path / "out", InD2D(7), trigger)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("most", [2_000, 20_000])
def test_a_full_disk_leaves_the_state_before(tmp_path, make_unet, scheduler, digits, a_full_disk, most):
    """The disk is full at the maps of the trigger or at the weights, after step 2 was saved."""

    def fill(progress):
        if progress.step == 3:
            limit.enter_context(a_full_disk(most))

    with ExitStack() as limit, pytest.raises(UserError, match=r"cannot write .*state-00000004.*free some space"):
        train(make_unet(), scheduler, digits, config(), tmp_path, InD2D(7), patch(), listen=fill)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-00000002", "training.json"]
    whole = train(make_unet(), scheduler, digits, config(), tmp_path / "whole", InD2D(7), patch())
    again = train(make_unet(), scheduler, digits, config(), tmp_path, InD2D(7), patch())
    assert same(weights(whole), weights(again))


def test_a_trigger_of_another_shape_is_not_trained(tmp_path, unet, scheduler, digits):
    with pytest.raises(UserError, match=r"the trigger is \[3, 8, 8\] but the images are \[1, 8, 8\]"):
        train(unet, scheduler, digits, config(), tmp_path / "out", InD2D(7), Trigger.patch(2, shape=(3, 8, 8)))
    assert not (tmp_path / "out").exists()
