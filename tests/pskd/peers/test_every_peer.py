"""What holds for every peer: off is cross-entropy, a resumed run is the whole run, bad input is refused."""

import re
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from peers_for_tests import EPOCHS, MAKE, OFF, C, N, data, fresh, logits_and_labels, network, same_weights, train
from torch import nn

from retarget.errors import UserError
from retarget.pskd import peers


@pytest.mark.parametrize("name", MAKE)
def test_off_trains_as_cross_entropy_does_bit_for_bit(name):
    model = network()
    method = MAKE[name](model, network(9), **OFF[name])
    assert method.needs == peers.Needs(), "a method that is off needs nothing"
    assert method.evaluated is None
    assert same_weights(train(method, model), train(None, network()))


@pytest.mark.parametrize("name", MAKE)
def test_on_differs_from_cross_entropy(name):
    model = network()
    method = MAKE[name](model, network(9))
    trained = train(method, model)
    found = method.evaluated or trained
    assert not same_weights(found, train(None, network()))


@pytest.mark.parametrize("name", MAKE)
def test_resumed_equals_uninterrupted_bit_for_bit(name, tmp_path):
    def make():
        model = network()
        return MAKE[name](model, network(9)), model

    straight, model = make()
    train(straight, model)
    first, half = make()
    kept = {}
    train(first, half, epochs=range(4), after=lambda epoch, optimizer: kept.update(optimizer=optimizer.state_dict()))
    first.save(tmp_path / "peer.safetensors")
    second, other = make()
    other.load_state_dict(half.state_dict())
    optimizer = torch.optim.SGD(other.parameters(), 0.3, momentum=0.9)
    optimizer.load_state_dict(kept["optimizer"])
    second.load(tmp_path / "peer.safetensors")
    train(second, other, optimizer, epochs=range(4, EPOCHS))
    assert same_weights(model, other)
    assert second.state_dict() == straight.state_dict()
    mine, theirs = second.tensors(), straight.tensors()
    assert set(mine) == set(theirs)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert [path.name for path in tmp_path.iterdir()] == ["peer.safetensors"]


@pytest.mark.parametrize("name", ["ols", "temporal", "self_adaptive", "bsd", "dlb"])
def test_an_epoch_begun_again_reads_what_it_read_before(name):
    method = MAKE[name](None, None)
    model = network()
    x, y = data()
    for epoch in range(4):
        method.set_epoch(epoch)
        method.loss(model(x) * (epoch + 1), y, torch.arange(N))
    found = []
    for _ in range(2):
        method.set_epoch(4)
        found.append(method.loss(model(x), y, torch.arange(N)).item())
    assert found[0] == found[1]


def test_a_state_of_another_run_is_refused(tmp_path):
    method = MAKE["temporal"](None, None)
    method.set_epoch(0)
    method.loss(logits_and_labels(0, N)[0], data()[1], torch.arange(N))
    method.save(tmp_path / "state")
    for other, message in [
        (peers.TemporalEnsembling(N + 1, C, EPOCHS), "num_samples = 12 (now 13)"),
        (peers.TemporalEnsembling(N, C, EPOCHS, momentum=0.5), "momentum = 0.6 (now 0.5)"),
        (peers.TemporalEnsembling(N, C, EPOCHS, weight=1.0), "weight = 100.0 (now 1.0)"),
        (peers.LabelSmoothing(N, C, EPOCHS), "not a state of LabelSmoothing"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            other.load(tmp_path / "state")
    with pytest.raises(UserError, match="no state of"):
        method.load(tmp_path / "missing")
    wide = deepcopy(network())
    wide[1] = nn.Linear(16, 13)
    ema = MAKE["weight_ema"](network(), None)
    ema.save(tmp_path / "ema")
    with pytest.raises(UserError, match=r"1\.weight is \[12, 16\] .* \[13, 16\]"):
        MAKE["weight_ema"](wide, None).load(tmp_path / "ema")


@pytest.mark.parametrize("name", MAKE)
def test_bad_batches_are_refused_by_name(name):
    method = fresh(name)
    x, y = data()
    at = torch.arange(4).repeat(2) if method.needs.sampler == "same_class_pairs" else torch.arange(4)
    z, x, y = torch.zeros(len(at), C), x[at], y[at]
    bad = at.clone()
    bad[2] = N
    with pytest.raises(UserError, match=f"sample index {N} in row 2"):
        method.loss(z, y, bad, inputs=x)
    labels = y.clone()
    labels[3] = C
    with pytest.raises(UserError, match=f"label {C} of sample 3, row 3"):
        method.loss(z, labels, at, inputs=x)
    with pytest.raises(UserError, match=r"logits are \[B, C\]"):
        method.loss(torch.zeros(len(at), C + 1), y, at, inputs=x)
    logits = z.clone()
    logits[1, 2] = torch.nan
    with pytest.raises(UserError, match="logit nan for class 2 of sample 1, row 1"):
        method.loss(logits, y, at, inputs=x)
    if method.needs.inputs:
        with pytest.raises(UserError, match="inputs=x"):
            method.loss(z, y, at)
    probs = F.one_hot(y, C).float()
    if method.labels_only:
        with pytest.raises(UserError, match="not probabilities"):
            method.loss(z, probs, at, inputs=x)
    else:
        assert method.loss(z, probs, at, inputs=x).isfinite()
        with pytest.raises(UserError, match="is not a probability distribution"):
            method.loss(z, 2 * probs, at, inputs=x)


@pytest.mark.parametrize("name", MAKE)
def test_ignored_samples_have_no_loss(name):
    method = fresh(name, epoch=3)
    x, y = data()
    labels = y[:6].clone()
    labels[2] = -100
    at = torch.arange(6)
    if method.needs.sampler == "same_class_pairs":
        x, labels, at = x[:6].repeat(2, 1, 1, 1), labels.repeat(2), at.repeat(2)
    z = torch.randn(len(at), C, requires_grad=True)
    method.loss(z, labels, at, inputs=x[: len(at)]).backward()
    assert z.grad[2].abs().sum() == 0
    assert z.grad[0].abs().sum() > 0


@pytest.mark.parametrize("name", MAKE)
def test_bfloat16_logits_give_a_float32_loss(name):
    method = fresh(name)
    x, y = data()
    at = torch.tensor([0, 1, 4, 5])  # two classes, pairs in the second half
    z = torch.randn(4, C).bfloat16().requires_grad_()
    loss = method.loss(z, y[at], at, inputs=x[at])
    loss.backward()
    assert loss.dtype == torch.float32
    assert z.grad.isfinite().all()


def test_epochs_are_checked():
    method = MAKE["ols"](None, None)
    with pytest.raises(UserError, match="call set_epoch"):
        method.loss(torch.zeros(2, C), torch.tensor([0, 1]), torch.tensor([0, 1]))
    method.set_epoch(3)
    with pytest.raises(UserError, match="outside"):
        method.set_epoch(EPOCHS)
    with pytest.raises(UserError, match="has been through epoch 3"):
        method.set_epoch(2)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("label_smoothing", {"smoothing": 1.5}, "smoothing must lie in [0, 1]"),
        ("tfkd_reg", {"temperature": 0.0}, "temperature must be above 0"),
        ("focal", {"gamma": -1.0}, "gamma must not be negative"),
        ("weight_ema", {"decay": 1.1}, "decay must lie"),
        ("mixup", {"alpha": 0.0}, "alpha must be above 0"),
        ("temporal", {"momentum": 1.0}, "momentum must lie in [0, 1)"),
        ("bsd", {"weight": -1.0}, "weight must not be negative"),
        ("bsd", {"prior": 0.0}, "prior must be above 0"),
        ("bsd", {"discount": 1.1}, "discount must lie in [0, 1]"),
    ],
)
def test_settings_are_checked(name, more, message):
    with pytest.raises(UserError, match=re.escape(message)):
        MAKE[name](network(), network(), **more)


def test_pairs_of_two_classes_and_odd_batches_are_refused():
    method = fresh("cskd")
    with pytest.raises(UserError, match=r"sample 1 of class 1, row 1 .* sample 6 of class 2; build the loader"):
        method.loss(torch.zeros(4, C), torch.tensor([0, 1, 0, 2]), torch.tensor([0, 1, 4, 6]))
    with pytest.raises(UserError, match="of even size: got 3"):
        method.loss(torch.zeros(3, C), torch.tensor([0, 1, 0]), torch.tensor([0, 1, 4]))


def test_an_average_that_never_moves_is_noticed():
    method = fresh("mean_teacher", epoch=0)
    x, y = data()
    method.loss(torch.zeros(4, C), y[:4], torch.arange(4), inputs=x[:4])
    with pytest.raises(UserError, match="after_step"):
        method.set_epoch(1)


def test_a_teacher_of_other_classes_is_refused():
    method = peers.BornAgain(N, C, EPOCHS, teacher=nn.Sequential(nn.Flatten(), nn.Linear(16, C + 1)))
    method.set_epoch(0)
    x, y = data()
    with pytest.raises(UserError, match=r"teacher's logits are \[4, 5\], but the student's \[4, 4\]"):
        method.loss(torch.zeros(4, C), y[:4], torch.arange(4), inputs=x[:4])


def test_needs_and_bytes_are_declared():
    model = network()
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    found = {name: MAKE[name](model, network(9)) for name in MAKE}
    assert {name for name, method in found.items() if method.needs.sampler != "none"} == {"cskd", "dlb"}
    assert {name for name, method in found.items() if method.needs.network == "trained_teacher"} == {
        "tfkd_self",
        "born_again",
    }
    assert {name for name, method in found.items() if method.needs.after_step} == {"mean_teacher", "weight_ema"}
    assert {name for name, method in found.items() if method.needs.forwards > 1} == {
        "cskd",
        "dlb",
        "tfkd_self",
        "born_again",
        "mean_teacher",
    }
    for name in ("tfkd_self", "born_again", "mean_teacher", "weight_ema"):
        assert found[name].num_bytes == size
    assert found["ols"].num_bytes == 2 * C * C * 4
    assert found["focal"].num_bytes == 0
    for name in ("temporal", "self_adaptive", "bsd"):
        train(found[name], network())
        assert found[name].num_bytes == 2 * (N + 1) * (4 * C + 4)
    assert MAKE["bsd"](None, None, **OFF["bsd"]).num_bytes == 0
