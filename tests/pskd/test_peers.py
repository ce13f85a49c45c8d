"""PS-KD's peers: their equations against slow loops, off as cross-entropy, exact resume, refusals, samplers, ranks."""

import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import BatchSampler, DistributedSampler

from retarget.errors import UserError
from retarget.pskd import peers
from retarget.pskd.peers import losses

sys.path.insert(0, str(Path(__file__).parent))
import peers_reference as reference

N, C, EPOCHS = 12, 4, 6
MAKE = {
    "label_smoothing": lambda model, teacher, **more: peers.LabelSmoothing(N, C, EPOCHS, **more),
    "ols": lambda model, teacher, **more: peers.OnlineLabelSmoothing(N, C, EPOCHS, **more),
    "cskd": lambda model, teacher, **more: peers.CSKD(N, C, EPOCHS, **more),
    "tfkd_self": lambda model, teacher, **more: peers.TFKDSelf(N, C, EPOCHS, teacher=teacher, **more),
    "tfkd_reg": lambda model, teacher, **more: peers.TFKDReg(N, C, EPOCHS, **more),
    "dlb": lambda model, teacher, **more: peers.DLB(N, C, EPOCHS, **more),
    "temporal": lambda model, teacher, **more: peers.TemporalEnsembling(N, C, EPOCHS, **more),
    "self_adaptive": lambda model, teacher, **more: peers.SelfAdaptiveTraining(N, C, EPOCHS, **more),
    "mean_teacher": lambda model, teacher, **more: peers.MeanTeacher(N, C, EPOCHS, model=model, **more),
    "weight_ema": lambda model, teacher, **more: peers.WeightEMA(N, C, EPOCHS, model=model, **more),
    "born_again": lambda model, teacher, **more: peers.BornAgain(N, C, EPOCHS, teacher=teacher, **more),
    "focal": lambda model, teacher, **more: peers.FocalLoss(N, C, EPOCHS, **more),
    "dual_focal": lambda model, teacher, **more: peers.DualFocalLoss(N, C, EPOCHS, **more),
    "max_sup": lambda model, teacher, **more: peers.MaxSup(N, C, EPOCHS, **more),
    "mbls": lambda model, teacher, **more: peers.MarginLabelSmoothing(N, C, EPOCHS, **{"margin": 0.5, **more}),
    "mixup": lambda model, teacher, **more: peers.Mixup(N, C, EPOCHS, **more),
    "cutmix": lambda model, teacher, **more: peers.CutMix(N, C, EPOCHS, **more),
}
OFF = {
    "label_smoothing": {"smoothing": 0.0},
    "ols": {"soft_weight": 0.0},
    "cskd": {"weight": 0.0},
    "tfkd_self": {"weight": 0.0},
    "tfkd_reg": {"weight": 0.0},
    "dlb": {"weight": 0.0},
    "temporal": {"weight": 0.0},
    "self_adaptive": {"momentum": 1.0},
    "mean_teacher": {"weight": 0.0},
    "weight_ema": {"decay": 0.0},
    "born_again": {"weight": 0.0},
    "focal": {"gamma": 0.0},
    "dual_focal": {"gamma": 0.0},
    "max_sup": {"weight": 0.0},
    "mbls": {"weight": 0.0},
    "mixup": {"prob": 0.0},
    "cutmix": {"prob": 0.0},
}


def data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, 1, 4, 4, generator=g)
    return x, torch.arange(N) % C


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, C))


def batches(method, epoch):
    """Index batches of one epoch as the method needs them."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(100 + epoch)).split(4)
    plain = [batch.tolist() for batch in order]
    if method and method.needs.sampler == "same_class_pairs":
        sampler = peers.SameClassPairs(plain, data()[1], seed=7)
        sampler.set_epoch(epoch)
        return list(sampler)
    return list(peers.LastBatch(plain)) if method and method.needs.sampler == "last_batch" else plain


def step(method, model, x, y, index):
    """One forward pass and loss, as ``needs`` says."""
    if method is None:
        return F.cross_entropy(model(x), y)
    if method.needs.mix:
        x, y = method.mix(x, y)
    more = {"inputs": x} if method.needs.inputs else {}
    return method.loss(model(x), y, index, **more)


def train(method, model, optimizer=None, epochs=range(EPOCHS), after=None):
    x, y = data()
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    for epoch in epochs:
        torch.manual_seed(epoch)
        if method:
            method.set_epoch(epoch)
        for batch in batches(method, epoch):
            index = torch.tensor(batch)
            loss = step(method, model, x[index], y[index], index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if method and method.needs.after_step:
                method.after_step()
        if after:
            after(epoch, optimizer)
    return model


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# -- the equations


def logits_and_labels(seed, batch=5, scale=3.0):
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, C, generator=g), torch.randint(C, (batch,), generator=g)


TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-5}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_functions_equal_slow_loops(dtype, seed):
    z, y = logits_and_labels(seed)
    teacher = logits_and_labels(seed + 10)[0]
    z, teacher = z.to(dtype), teacher.to(dtype)
    wide, wide_teacher, labels = z.double().numpy(), teacher.double().numpy(), y.tolist()
    designed = losses.design_teacher(y, C, 0.9, 20.0)
    np.testing.assert_allclose(designed, reference.designed(labels, C, 0.9, 20.0), rtol=1e-6)
    np.testing.assert_allclose(losses.smooth_labels(y, C, 0.1), reference.smoothed(labels, C, 0.1), rtol=1e-6)
    pairs = [
        (losses.distill(z, teacher, 4.0, reduction="none"), reference.distill(wide, wide_teacher, 4.0)),
        (
            losses.match_probs(z, designed, reduction="none"),
            reference.kl(designed.double().numpy(), reference.softmax(wide)),
        ),
        (losses.focal_loss(z, y, 3.0, reduction="none"), reference.focal(wide, labels, 3.0)),
        (losses.dual_focal_loss(z, y, 5.0, reduction="none"), reference.dual_focal(wide, labels, 5.0)),
        (losses.suppress_maximum(z, reduction="none"), reference.maximum_above_mean(wide)),
        (losses.penalise_margin(z, 1.0, reduction="none"), reference.margin_penalty(wide, 1.0)),
    ]
    for found, expected in pairs:
        np.testing.assert_allclose(found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert losses.distill(z, teacher, 4.0).item() == pytest.approx(np.mean(pairs[0][1]), rel=1e-5)
    assert losses.distill(z, teacher, 4.0, reduction="sum").item() == pytest.approx(np.sum(pairs[0][1]), rel=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda z, y, t: losses.distill(z, t, 4.0),
        lambda z, y, t: losses.match_probs(z, F.softmax(t, 1)),
        lambda z, y, t: losses.focal_loss(z, y, 3.0),
        lambda z, y, t: losses.focal_loss(z, y, 0.5),
        lambda z, y, t: losses.dual_focal_loss(z, y, 5.0),
        lambda z, y, t: losses.suppress_maximum(z),
        lambda z, y, t: losses.penalise_margin(z, 0.7),
        lambda z, y, t: losses.squared_difference(F.softmax(z, 1), F.softmax(t, 1)),
    ],
)
def test_gradients_equal_finite_differences(function):
    z, y = logits_and_labels(3)
    t = logits_and_labels(4)[0].double()
    assert torch.autograd.gradcheck(lambda z: function(z, y, t), z.double().requires_grad_())


def test_focal_loss_of_a_certain_sample_has_a_finite_gradient():
    z = torch.tensor([[200.0, 0.0]], requires_grad=True)
    losses.focal_loss(z, torch.tensor([0]), gamma=0.5).backward()
    assert z.grad.isfinite().all()


def test_no_gradient_reaches_a_teacher():
    z, _ = logits_and_labels(0)
    teacher = z.clone().requires_grad_()
    assert not losses.distill(z, teacher, 4.0).requires_grad
    assert not losses.squared_difference(F.softmax(z, 1), F.softmax(teacher, 1)).requires_grad


@given(st.integers(0, 10_000), st.floats(0.0, 0.95))
@settings(max_examples=25, deadline=None)
def test_the_sum_of_a_blended_history_is_the_bias(seed, momentum):
    g = torch.Generator().manual_seed(seed)
    history, exact = torch.zeros(2, C, dtype=torch.float64), reference.Ensemble(2, C, momentum)
    for _ in range(4):
        probs = F.softmax(torch.randn(2, C, generator=g, dtype=torch.float64), 1)
        history = losses.blend_history(history, probs, momentum)
        for i in range(2):
            exact.update(i, probs[i].numpy())
    np.testing.assert_allclose(losses.unbias_history(history), [exact.target(0), exact.target(1)], rtol=1e-9)


def mean(values):
    return float(np.mean(values))


def follow(name, expect, *, epochs=EPOCHS, **more):
    """Train in float64 and compare each step's loss with ``expect(method, epoch, z, labels, index, model, x)``."""
    x, y = data()
    x, model, teacher = x.double(), network().double(), network(9).double().eval()
    method = MAKE[name](model, teacher, **more)
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    steps = 0
    for epoch in range(epochs):
        method.set_epoch(epoch)
        for batch in batches(method, epoch):
            index = torch.tensor(batch)
            logits = model(x[index])
            loss = method.loss(logits, y[index], index, inputs=x[index])
            wide = logits.detach().numpy()
            expected = expect(method, epoch, wide, y[index].tolist(), batch, teacher, x[index])
            assert loss.item() == pytest.approx(expected, rel=1e-5), (epoch, steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.after_step()
            steps += 1
    return method


def hard(z, labels):
    return mean(reference.cross_entropies(z, reference.one_hot(labels, C)))


def test_stateless_peers_follow_their_equations():
    follow("label_smoothing", lambda m, e, z, y, *_: mean(reference.cross_entropies(z, reference.smoothed(y, C, 0.1))))
    follow("focal", lambda m, e, z, y, *_: mean(reference.focal(z, y, 3.0)))
    follow("dual_focal", lambda m, e, z, y, *_: mean(reference.dual_focal(z, y, 5.0)))
    follow(
        "max_sup", lambda m, e, z, y, *_: hard(z, y) + (0.1 + 0.1 * e / EPOCHS) * mean(reference.maximum_above_mean(z))
    )
    follow("mbls", lambda m, e, z, y, *_: hard(z, y) + 0.1 * mean(reference.margin_penalty(z, 0.5)))
    follow(
        "tfkd_reg",
        lambda m, e, z, y, *_: (
            0.9 * hard(z, y) + 0.1 * mean(reference.kl(reference.designed(y, C, 0.99, 20.0), reference.softmax(z)))
        ),
    )
    follow("weight_ema", lambda m, e, z, y, *_: hard(z, y))


def test_peers_with_a_teacher_follow_their_equations():
    def taught(teacher, x):
        with torch.no_grad():
            return teacher(x).numpy()

    follow(
        "tfkd_self",
        lambda m, e, z, y, i, t, x: (
            0.05 * hard(z, y) + 0.95 * 0.5 * mean(reference.distill(z, taught(t, x), temperature=6.0))
        ),
    )
    follow(
        "born_again",
        lambda m, e, z, y, i, t, x: (
            0.3 * hard(z, y) + 0.7 * mean(reference.cross_entropies(z, reference.softmax(taught(t, x))))
        ),
        weight=0.7,
    )


def test_class_pairs_follow_the_equation():
    def expect(method, epoch, z, labels, *_):
        half = len(labels) // 2
        return hard(z[:half], labels[:half]) + mean(reference.distill(z[:half], z[half:], 4.0))

    follow("cskd", expect)


def test_the_last_mini_batch_follows_the_equation():
    last = {}

    def expect(method, epoch, z, labels, index, *_):
        now = dict(zip(index, z, strict=True))
        before = last.get("of") if last.get("epoch") == epoch else None
        last.update(epoch=epoch, of=now)
        if before is None:
            assert len(index) == 4
            return hard(z, labels)
        again = [sample for sample in index if sample in before]
        assert len(again) == 4
        apart = reference.distill([now[s] for s in again], [before[s] for s in again], 3.0)
        return hard(z, labels) + mean(apart)

    follow("dlb", expect)


def test_online_label_smoothing_follows_its_table():
    table = {"epoch": 0, "rows": reference.ClassRows(C)}

    def expect(method, epoch, z, labels, *_):
        if epoch != table["epoch"]:
            table["rows"].next_epoch()
            table["epoch"] = epoch
        rows = [table["rows"].rows[y] for y in labels]
        table["rows"].see(z, labels)
        return 0.5 * hard(z, labels) + 0.5 * mean(reference.cross_entropies(z, rows))

    method = follow("ols", expect)
    np.testing.assert_allclose(method.rows.sum(1), np.ones(C), rtol=1e-6)


def test_temporal_ensembling_follows_its_table():
    ensemble = reference.Ensemble(N, C, 0.6)

    def expect(method, epoch, z, labels, index, *_):
        weight = 0.0 if epoch == 0 else 100 * np.exp(-5 * (1 - min(1, epoch / (EPOCHS * 80 / 300))) ** 2)
        probs = reference.softmax(z)
        targets = [ensemble.target(i) for i in index]
        targets = [row if target is None else target for row, target in zip(probs, targets, strict=True)]
        for i, row in zip(index, probs, strict=True):
            ensemble.update(i, row)
        return hard(z, labels) + weight * mean(reference.squared(probs, targets))

    follow("temporal", expect)


def test_self_adaptive_training_follows_its_table():
    targets = {i: np.eye(C)[y] for i, y in enumerate(data()[1].tolist())}

    def expect(method, epoch, z, labels, index, *_):
        if epoch < 2:  # 0.3 of 6 epochs
            return hard(z, labels)
        for i, row in zip(index, reference.softmax(z), strict=True):
            targets[i] = 0.9 * targets[i] + 0.1 * row
        rows = [targets[i] for i in index]
        weights = [max(row) for row in rows]
        each = reference.cross_entropies(z, rows)
        return sum(w * v for w, v in zip(weights, each, strict=True)) / sum(weights)

    follow("self_adaptive", expect)


def test_mean_teacher_follows_its_average():
    x, y = data()
    x, model = x.double(), network().double()
    method = MAKE["mean_teacher"](model, None)
    average = {name: value.detach().clone() for name, value in model.named_parameters()}
    shadow = deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    count = 0
    for epoch in range(EPOCHS):
        method.set_epoch(epoch)
        done = epoch / (EPOCHS * 40_000 / 150_000)
        for batch in batches(method, epoch):
            index = torch.tensor(batch)
            with torch.no_grad():
                for name, value in shadow.named_parameters():
                    value.copy_(average[name])
                taught = reference.softmax(shadow.train()(x[index]).numpy())
            logits = model(x[index])
            loss = method.loss(logits, y[index], index, inputs=x[index])
            z = logits.detach().numpy()
            weight = 100 * np.exp(-5 * (1 - min(1.0, done)) ** 2)
            expected = hard(z, y[index].tolist()) + weight * mean(reference.squared(reference.softmax(z), taught))
            assert loss.item() == pytest.approx(expected, rel=1e-6)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.after_step()
            decay = min(0.99 if done < 1 else 0.999, 1 - 1 / (count + 1))
            for name, value in model.named_parameters():
                average[name] = decay * average[name] + (1 - decay) * value.detach()
            count += 1
    for name, value in method.evaluated.named_parameters():
        torch.testing.assert_close(value.detach(), average[name], rtol=1e-9, atol=1e-12)


def test_weight_ema_averages_weights_and_statistics():
    model = network()
    method = MAKE["weight_ema"](model, None, decay=0.75)
    states = []
    method.set_epoch(0)
    for seed in range(6):
        with torch.no_grad():
            for value in (*model.parameters(), *model.buffers()):
                value.copy_(torch.full_like(value, seed + 1))
        method.after_step()
        states.append(seed + 1.0)
    expected = np.mean(states[:4])  # the true mean while 1 - 1 / (s + 1) is below the decay
    for value in states[4:]:
        expected = 0.75 * expected + 0.25 * value
    state = method.evaluated.state_dict()
    assert state["1.weight"][0, 0].item() == pytest.approx(expected, rel=1e-6)
    assert state["2.running_var"][0].item() == pytest.approx(expected, rel=1e-6)
    assert state["2.num_batches_tracked"].item() == 6


@pytest.mark.parametrize("name", ["weight_ema", "mean_teacher"])
def test_the_evaluated_network_is_in_evaluation_mode(name):
    """No module holds it, so ``model.eval()`` does not reach it."""
    model = network()
    method = MAKE[name](model, None)
    x, y = data()
    method.set_epoch(0)
    method.loss(model(x[:4]), y[:4], torch.arange(4), inputs=x[:4])
    method.after_step()
    before = {key: value.clone() for key, value in method.evaluated.state_dict().items()}
    method.evaluated(x)
    assert all(torch.equal(before[key], value) for key, value in method.evaluated.state_dict().items())


@pytest.mark.parametrize("name", ["label_smoothing", "temporal", "born_again"])
def test_probabilities_have_no_label_to_ignore(name):
    method = MAKE[name](None, network(9), ignore_index=2)
    x, y = data()
    method.set_epoch(0)
    logits = network()(x[:4])
    loss = method.loss(logits, F.one_hot(y[:4], C).float(), torch.arange(4), inputs=x[:4])
    other = MAKE[name](None, network(9))
    other.set_epoch(0)
    assert loss.item() == other.loss(logits, F.one_hot(y[:4], C).float(), torch.arange(4), inputs=x[:4]).item()


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixed_batches_follow_the_equation(name):
    torch.manual_seed(5)
    method = MAKE[name](None, None, prob=1.0)
    method.set_epoch(0)
    x, y = data()
    for _ in range(5):
        mixed, target = method.mix(x, y)
        own, other = F.one_hot(y, C).double(), F.one_hot(y.roll(1), C).double()
        apart = own != other
        share = float((target.double() - other)[apart].div((own - other)[apart])[0])
        assert 0 <= share <= 1
        torch.testing.assert_close(target.double(), share * own + (1 - share) * other, atol=1e-6, rtol=0)
        if name == "mixup":
            torch.testing.assert_close(mixed, share * x + (1 - share) * x.roll(1, 0), atol=1e-5, rtol=0)
        else:
            pasted = (mixed == x.roll(1, 0)) & (mixed != x)
            assert ((mixed == x) | (mixed == x.roll(1, 0))).all()
            assert pasted.float().mean().item() == pytest.approx(1 - share, abs=1e-6)
        z = logits_and_labels(0, batch=N)[0]
        expected = mean(reference.cross_entropies(z.double().numpy(), target.tolist()))
        assert method.loss(z, target, torch.arange(N)).item() == pytest.approx(expected, rel=1e-5)


# -- off, resume, refusals


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


@pytest.mark.parametrize("name", ["ols", "temporal", "self_adaptive", "dlb"])
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


def fresh(name, epoch=1):
    method = MAKE[name](network(), network(9))
    method.set_epoch(epoch)
    return method


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
    train(found["temporal"], network())
    assert found["temporal"].num_bytes == 2 * (N + 1) * (4 * C + 4)


# -- samplers


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(0, 5), st.integers(1, 7))
@settings(max_examples=50, deadline=None)
def test_partners_are_other_samples_of_the_class(labels, epoch, size):
    plain = [list(range(at, min(at + size, len(labels)))) for at in range(0, len(labels), size)]
    sampler = peers.SameClassPairs(plain, labels, seed=1)
    sampler.set_epoch(epoch)
    pairs = list(sampler)
    assert len(pairs) == len(sampler) == len(plain)
    for batch, own in zip(pairs, plain, strict=True):
        assert batch[: len(own)] == own
        for sample, partner in zip(own, batch[len(own) :], strict=True):
            assert labels[sample] == labels[partner]
            assert sample != partner or labels.count(labels[sample]) == 1
    assert pairs == list(sampler), "a function of seed and epoch alone"


def test_partners_are_drawn_evenly():
    labels = [0] * 5
    counts = np.zeros((5, 5))
    sampler = peers.SameClassPairs([[0]], labels, seed=0)
    for epoch in range(2000):
        sampler.set_epoch(epoch)
        counts[np.arange(5), sampler.partners()] += 1
    off = counts[~np.eye(5, dtype=bool)]
    assert counts.trace() == 0
    assert np.abs(off - 500).max() < 5 * np.sqrt(500 * 0.75)


def test_the_epoch_reaches_the_sampler_inside():
    inside = DistributedSampler(range(10), num_replicas=1, rank=0, seed=2)
    for sampler in (
        peers.LastBatch(BatchSampler(inside, 5, drop_last=True)),
        peers.SameClassPairs(BatchSampler(inside, 5, drop_last=True), [0] * 10, seed=0),
    ):
        sampler.sampler.set_epoch(4)
        assert inside.epoch == sampler.epoch == 4
        assert next(iter(sampler))[:5] == list(inside)[:5]


# -- ranks


def run_ranks(world, folder):
    script = str(Path(__file__).parent / "peers_ranks.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(world), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    for rank in ranks:
        output, _ = rank.communicate(timeout=900)
        assert rank.returncode == 0, output
    return [torch.load(folder / f"{world}-{rank}", weights_only=True) for rank in range(world)]


def test_two_processes_equal_one(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    (one,) = run_ranks(1, tmp_path / "one")
    for rank in run_ranks(2, tmp_path / "two"):
        for mine, expected in zip(rank, one, strict=True):  # OLS, temporal ensembling
            for a, b in zip(mine, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
