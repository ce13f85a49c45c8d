"""Parts of a user's own in the image study: a loss in few lines, networks, data sets, arms and claims as tables."""

import json
import re

import numpy as np
import pytest
import torch

from retarget.cli import main
from retarget.data.images import read
from retarget.errors import UserError
from retarget.pskd.peers.own import own_peer
from retarget.pskd.study import plan

LOSS = """import torch.nn.functional as F

class Poly:
    def __init__(self, epsilon=1.0):
        self.epsilon = epsilon

    def __call__(self, logits, labels):
        p = F.softmax(logits, 1).gather(1, labels[:, None])[:, 0]
        return F.cross_entropy(logits, labels, reduction="none") + self.epsilon * (1 - p)
"""
MORE = """
from dataclasses import dataclass
import numpy as np, torch
from torch import nn
from retarget.pskd.peers import Peer

def net(num_classes, channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 63, num_classes))

def lazy(num_classes, channels):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

def ragged():
    return [np.zeros((4, 4)), np.zeros((5, 4))], [0, 1]

def shapes(count=150):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    images = rng.integers(0, 80, (count, 9, 7, 1)).astype(np.uint8)
    images[np.arange(count), labels * 2] += 150
    return {"x_train": images[50:], "y_train": labels[50:], "x_test": images[:50], "y_test": labels[:50]}

def saved():
    return dict(np.load("mine.npz"))

def pair():
    return shapes()["x_train"], shapes()["y_train"]

@dataclass(eq=False, repr=False)
class Whole(Peer):
    def _loss(self, logits, targets, labels, index, inputs):
        return self._hard(logits, targets)

class Learnt(nn.Linear):
    def __init__(self):
        super().__init__(1, 1)

def no_net(num_classes, channels): return 3
def failing(*any): raise RuntimeError("broken on purpose")
def constant(logits, labels): return torch.tensor(1.0)
def matrix(logits, labels): return logits
def nothing(): return None
def floats(): return np.zeros((9, 4, 4)), [0] * 9
def bad_loss(logits, labels): return logits[7].sum()
"""
QUICK = ["epochs=2", "validation_images=20", "batch_size=20"]


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    """The user's modules in a folder that can be imported from."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_losses.py").write_text(LOSS)
    (folder / "own_more.py").write_text(MORE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


def test_own_network_data_and_conditions_with_claims(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(
        """
network = "own_more:net"
dataset = "own_more:shapes"
loss = { method = "own_losses:Poly", epsilon = 2.0 }
[[arms]]
name = "adapted"
lr = 0.01
[[arms]]
name = "whole"
loss = "own_more:Whole"
[[arms]]
name = "pskd"
[[conditions]]
name = "few"
label = "wrong labels"
settings = { label_noise = 0.1 }
[[claims]]
sentence = "A smaller step does better."
metric = "nll"
direction = "lower"
arms = ["adapted", "cross_entropy"]
smallest_effect = 0.01
condition = "few"
"""
    )
    words = ["study", "pskd", "--config", "mine.toml", "--seeds", "0", "--out", "out", "--no-progress"]
    assert main([*words, "--set", *QUICK]) == 0
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    arms = found["conditions"]["few"]
    assert list(arms) == ["cross_entropy", "poly", "adapted", "whole", "pskd"]
    assert [claim["sentence"] for claim in found["claims"]] == ["A smaller step does better."]
    assert arms["whole"]["nll"]["values"] == arms["cross_entropy"]["nll"]["values"], "its loss is cross-entropy"
    assert arms["poly"]["nll"]["values"] != arms["cross_entropy"]["nll"]["values"]
    record = json.loads((tmp_path / "out" / "runs" / "few" / "poly" / "seed-0" / "config.json").read_text())
    assert list(record["content"]) == ["own_more.py", "own_losses.py"]
    text = (tmp_path / "mine.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace("lr = 0.01", "lr = 0.5"))
    assert main([*words, "--set", *QUICK]) == 1
    assert "arm adapted: lr = 0.01 (now 0.5)" in capsys.readouterr().err


def test_other_images_behind_an_own_function_are_refused(tmp_path, monkeypatch, capsys):
    """The function's source is the same; what it reads is not."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.npz"

    def study(shift, *seeds):
        rng = np.random.default_rng(0)
        images, labels = rng.integers(0, 200, (120, 9, 7)).astype(np.uint8) + np.uint8(shift), np.arange(120) % 3
        np.savez(file, images=images, labels=labels)
        words = ["study", "pskd", "--arms", "cross_entropy", "--out", "out", "--no-progress", "--seeds", *seeds]
        return main([*words, "--set", "dataset=own_more:saved", "network=own_more:net", *QUICK])

    assert study(0, "0") == 0
    assert study(1, "0", "1") == 1
    said = r"seed-0 was made with the training images = \w+ \(now \w+\), the validation images .* Restore the data of"
    assert re.search(said, capsys.readouterr().err)
    assert study(0, "0", "1") == 0
    for path in tmp_path.glob("out/runs/*/*/seed-*/data.json"):  # as earlier versions wrote it
        record = json.loads(path.read_text())
        path.write_text(json.dumps({name: value for name, value in record.items() if name != "content"}))
    assert study(1, "2") == 0


def asked(**config):
    return plan("demo", config)


def test_claims_and_sources_are_fixed_before_the_run():
    one = asked(loss="own_losses:Poly")
    assert one.own_parts == ("own_losses:Poly",)
    assert [arm.name for arm in one.arms] == ["cross_entropy", "poly"]
    assert [claim.sentence for claim in one.claims] == [
        "Poly improves accuracy.",
        "Poly improves confidence calibration.",
        "Poly gives better confidence estimates.",
        "Poly improves the ordinal ranking of confidence.",
    ]
    claim = dict(sentence="S", metric="top1", direction="higher", arms=["poly", "cross_entropy"], smallest_effect=1)
    hashes = {asked(loss="own_losses:Poly", claims=[{**claim, "smallest_effect": e}]).claims_hash() for e in (1, 2)}
    assert len(hashes | {one.claims_hash()}) == 3
    among = asked(loss="own_losses:Poly", peers=True)
    assert among.study == "pskd-peers"
    peers = asked(peers=True)
    assert [arm.name for arm in among.arms] == [*(arm.name for arm in peers.arms), "poly"]
    assert len(among.claims) == len(peers.claims) + 4
    assert asked(network="own_more:net", dataset="own_more:pair").own_parts == ("own_more:net", "own_more:pair")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(arms=3), "arms must be tables: write \\[\\[arms\\]\\]"),
        (dict(arms=[{"label": "x"}]), r"\[\[arms\]\], number 1: name must be a text, not None"),
        (dict(loss="own_losses:Poly", arms=[{"label": "x"}]), r"\[\[arms\]\], number 1: name must be a text, not None"),
        (dict(loss="own_losses:_Poly"), r"^loss = 'own_losses:_Poly': name must match"),
        (dict(arms=[{"name": "A b"}]), r"\[\[arms\]\], number 1: name must match"),
        (dict(arms=[{"name": "a", "lr": 1}, {"name": "a", "lr": 2}]), r"\[\[arms\]\]: the arm a appears twice"),
        (dict(arms=[{"name": "a", "epoch": 1}]), "arm a: .*no setting epoch, did you mean epochs"),
        (dict(arms=[{"name": "a", "dataset": "digits"}]), "number 1: all arms share dataset"),
        (dict(arms=[{"name": "a", "loss": 3}]), "loss = 3: it must be module:Class"),
        (dict(loss="own_losses:Poly", question="alpha"), "question brings its own arms and claims"),
        (dict(claims=[{"metric": "top1"}]), r"\[\[claims\]\], number 1: sentence is missing"),
        (
            dict(claims=[dict(sentence="S", metric="top2", direction="higher", arms=["pskd", "cross_entropy"],
                              smallest_effect=1)]),
            "claim claim-1 names the metric top2, but the study has top1, ",
        ),
        (
            dict(claims=[dict(sentence="S", metric="top1", direction="higher", arms=["poly", "cross_entropy"],
                              smallest_effect=1)]),
            "claim claim-1 names the arm poly, but the study has cross_entropy",
        ),
        (dict(network="mynet"), None),
    ],
)  # fmt: skip
def test_tables_that_are_wrong(config, message):
    if message is None:
        assert plan("demo", config).own_parts == ()
        return
    with pytest.raises(UserError, match=message):
        plan("demo", config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(network="own_more:no_net"), "network = 'own_more:no_net' returned a int, not a torch.nn.Module"),
        (
            dict(network="own_more:failing"),
            "failed\n .*own_more.py.*line .* in failing\n .*RuntimeError: broken on pur",
        ),
        (dict(network="own_more:absent"), "own_more.py has no absent"),
        (dict(network="own_more:net"), "does not accept images of 1 channels, 8×8 pixels"),
        (dict(network="own_more:lazy"), "network 'own_more:lazy' has lazy layers: give its layers their numbers of in"),
        (dict(dataset="own_more:nothing"), "gave a NoneType: it gives arrays by name"),
        (dict(dataset="own_more:floats"), "images are uint8 .* got float64"),
        (dict(dataset="own_more:ragged"), "gave images that make no array .*: give images of one size"),
        (dict(loss="FocalLos"), "arm focallos: no peer 'FocalLos': choose one of .*FocalLoss"),
        (
            dict(loss={"method": "FocalLoss", "gama": 2}),
            "arm focalloss: FocalLoss has no setting gama; its settings: ga",
        ),
        (dict(loss={"method": "FocalLoss", "gamma": "x"}), "FocalLoss: gamma = 'x' is not a number"),
        (dict(loss={"method": "FocalLoss", "gamma": -1}), "FocalLoss: gamma must not be negative: got -1"),
        (dict(dataset="none_such:load"), "there is no module none_such"),
        (dict(arms=[{"name": "a", "network": "own_more:net"}]), "arm a: network 'own_more:net' does not accept images"),
        (dict(loss="own_more:Learnt"), "arm learnt: own_more:Learnt has trainable parameters"),
        (dict(loss="own_more:constant"), "does not depend on the logits"),
        (dict(loss="own_more:matrix"), r"own_more:matrix returned \[4, 3\] for logits \[4, 3\]"),
        (dict(loss="own_more:bad_loss"), "line .* in bad_loss\n .*\nIndexError"),
        (dict(loss={"method": "own_losses:Poly", "epsilom": 2}), "unexpected keyword argument 'epsilom'"),
        (
            dict(loss={"method": "own_more:constant", "a": 2}),
            r"is a function and takes no settings \(a\): make it a class",
        ),
    ],
)
def test_parts_that_are_wrong_are_said_by_a_dry_run(config, message, tmp_path):
    from retarget.pskd.studies.images.prepare import check

    with pytest.raises(UserError, match=f"(?s){message}"):
        check(plan("demo", config))


def test_every_peer_of_the_study_passes_the_dry_run():
    from retarget.pskd.studies.images.prepare import check

    check(plan("demo", {"peers": True}, None, ["all"]))


def test_own_data_is_read_as_arrays_are():
    found = read("own_more:shapes")
    assert (len(found.train), len(found.test), found.names) == (100, 50, ("0", "1", "2"))
    assert found.train.pixels.shape == (100, 1, 9, 7)
    assert read("own_more:pair").test is None


def test_an_own_loss_equals_its_formula_and_saves_its_settings(tmp_path):
    method = own_peer("own_losses:Poly", 8, 3, 2, epsilon=0.5)
    method.set_epoch(0)
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(8, 3)).astype(np.float32), rng.integers(0, 3, 8)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p_y = p[np.arange(8), labels]
    expected = np.mean(-np.log(p_y) + 0.5 * (1 - p_y))
    found = method.loss(torch.tensor(logits), torch.tensor(labels), torch.arange(8))
    assert float(found) == pytest.approx(expected, rel=1e-6)
    method.save(tmp_path / "state.safetensors")
    own_peer("own_losses:Poly", 8, 3, 2, epsilon=0.5).load(tmp_path / "state.safetensors")
    with pytest.raises(UserError, match="epsilon"):
        own_peer("own_losses:Poly", 8, 3, 2, epsilon=0.7).load(tmp_path / "state.safetensors")
