"""Each peer, step by step through a training, against its equation."""

from copy import deepcopy

import numpy as np
import peers_reference as reference
import pytest
import torch
import torch.nn.functional as F
from peers_for_tests import EPOCHS, MAKE, C, N, batches, data, logits_and_labels, mean, network


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


@pytest.mark.parametrize("more", [{}, {"weight": 2.0, "prior": 3.0, "discount": 0.5}, {"discount": 1.0}])
def test_bsd_follows_its_evidence(more):
    own = {"weight": 1.0, "prior": 10.0, "discount": 0.9} | more
    evidence = reference.Evidence(
        reference.one_hot(data()[1].tolist(), C), own["prior"], own["discount"], own["weight"]
    )

    def expect(method, epoch, z, labels, index, *_):
        rows = [evidence.target(i) for i in index]
        for i, row in zip(index, reference.softmax(z), strict=True):
            evidence.observe(i, row)
        return mean(reference.cross_entropies(z, rows))

    method = follow("bsd", expect, **more)
    assert method.settings == own


def test_bsd_starts_at_probabilities_and_reads_no_target_after_that():
    """As every method that remembers samples, it takes a mixed image for the sample whose index it has."""
    x, y = data()
    start = 0.7 * F.one_hot(y, C).float() + 0.3 * F.one_hot(y.roll(1), C).float()
    evidence = reference.Evidence(start.double().tolist(), 10.0, 0.9, 1.0)
    method, model = MAKE["bsd"](None, None), network()
    for epoch, targets in enumerate([start, start, F.one_hot(y, C).float(), y]):
        method.set_epoch(epoch)
        logits = (1 + epoch) * model(x)
        loss = method.loss(logits, targets, torch.arange(N))
        z = logits.detach().double().numpy()
        expected = mean(reference.cross_entropies(z, [evidence.target(i) for i in range(N)]))
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        for i, row in enumerate(reference.softmax(z)):
            evidence.observe(i, row)


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
    """No module contains it, so ``model.eval()`` does not reach it."""
    model = network()
    method = MAKE[name](model, None)
    x, y = data()
    method.set_epoch(0)
    method.loss(model(x[:4]), y[:4], torch.arange(4), inputs=x[:4])
    method.after_step()
    before = {key: value.clone() for key, value in method.evaluated.state_dict().items()}
    method.evaluated(x)
    assert all(torch.equal(before[key], value) for key, value in method.evaluated.state_dict().items())


@pytest.mark.parametrize("name", ["label_smoothing", "temporal", "bsd", "born_again"])
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
