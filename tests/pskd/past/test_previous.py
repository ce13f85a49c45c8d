"""PreviousModel: last epoch's weights in place of a table, for samples, sequences and pixels."""

import pickle
from copy import deepcopy
from functools import partial
from types import MethodType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn

from retarget.errors import UserError
from retarget.pskd import PSKD, PixelPSKD, PreviousModel, SequencePSKD, TopK

C, EPOCHS = 5, 4


def network(kind="tensor"):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, C)).double()
    return body if kind == "tensor" else Wrapped(body, kind)


class Wrapped(nn.Module):
    def __init__(self, body, kind):
        super().__init__()
        self.body, self.kind = body, kind

    def forward(self, x):
        logits = self.body(x)
        return {"logits": logits} if self.kind == "mapping" else (logits, x)


def logits_of(outputs):
    return outputs if torch.is_tensor(outputs) else outputs["logits"] if isinstance(outputs, dict) else outputs[0]


def softmax(row):
    e = np.exp(row - row.max())
    return e / e.sum()


def slow_loss(logits, past, labels, alpha):
    """Mean over targets that count, one at a time; [.., C] arrays."""
    losses = []
    for place in np.ndindex(labels.shape):
        if labels[place] == -100:
            continue
        target = (1 - alpha) * np.eye(C)[labels[place]] + alpha * softmax(past[place])
        losses.append(-(target * np.log(softmax(logits[place]))).sum())
    return float(np.mean(losses))


@pytest.mark.parametrize("outputs", ["tensor", "mapping", "tuple"])
@pytest.mark.parametrize("give_index", [True, False])
def test_sequences_equal_a_slow_loop_from_the_equations(outputs, give_index):
    model = network(outputs)
    method = SequencePSKD(None, C, EPOCHS, store=PreviousModel(model))
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    g = torch.Generator().manual_seed(1)
    index = torch.tensor([4, 4]) if give_index else None  # it has no meaning here
    for epoch in range(EPOCHS):
        method.set_epoch(epoch)
        before = deepcopy(model)
        alpha = 0.8 * (epoch + 1) / EPOCHS if epoch else 0.0
        for _ in range(2):
            x = torch.randn(2, 6, 3, generator=g, dtype=torch.float64)
            labels = torch.randint(C, (2, 6), generator=g)
            labels[1, 3:] = -100
            logits = logits_of(model(x))
            loss = method.loss(logits, labels, index, inputs=x)
            with torch.no_grad():
                past = logits_of(before(x)).numpy()
            expected = slow_loss(logits.detach().numpy(), past, labels.numpy(), alpha)
            assert loss.item() == pytest.approx(expected, rel=1e-9)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert method.fallbacks == 0


def test_softened_sequences_are_zero_where_ignored():
    model = network()
    method = SequencePSKD(None, C, EPOCHS, store=PreviousModel(model))
    x, labels = torch.randn(2, 4, 3, dtype=torch.float64), torch.tensor([[0, 1, 2, -100], [3, -100, -100, -100]])
    for epoch in range(2):
        method.set_epoch(epoch)
        soft = method.soften(labels, inputs=x)
        torch.testing.assert_close(soft.sum(2), (labels != -100).to(soft.dtype))
    expected = (1 - method.alpha) * F.one_hot(labels[0, 0], C) + method.alpha * torch.softmax(model(x), -1)[0, 0]
    torch.testing.assert_close(soft[0, 0], expected)


def test_the_middle_of_an_epoch_is_saved_and_read_back(tmp_path):
    model = network()
    method = SequencePSKD(None, C, EPOCHS, store=PreviousModel(model))
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    for epoch in range(3):
        method.set_epoch(epoch)
        with torch.no_grad():
            model[0].weight.add_(0.1)  # the training of the epoch
    method.save(tmp_path / "state.safetensors")
    past = method.teacher.logits(x)
    assert not torch.allclose(past, model(x))

    again = SequencePSKD(None, C, EPOCHS, store=PreviousModel(model))
    again.load(tmp_path / "state.safetensors")
    again.set_epoch(2)
    assert torch.equal(again.teacher.logits(x), past)
    again.set_epoch(3)  # the next epoch's past is the model as it is now
    assert torch.equal(again.teacher.logits(x), model(x))
    with pytest.raises(UserError, match="are needed"):
        SequencePSKD(None, C, EPOCHS, store=PreviousModel(nn.Linear(3, C))).load(tmp_path / "state.safetensors")


def test_tied_weights_are_saved(tmp_path):
    model = nn.Sequential(nn.Linear(C, C), nn.Linear(C, C))
    model[1].weight = model[0].weight
    for epoch in range(2):
        method = PSKD(None, C, EPOCHS, store=PreviousModel(model))
        method.set_epoch(epoch)
    method.save(tmp_path / "state.safetensors")
    with torch.no_grad():
        model[0].weight.zero_()
    again = PSKD(None, C, EPOCHS, store=PreviousModel(model))
    again.load(tmp_path / "state.safetensors")
    x = torch.randn(2, C)
    assert torch.equal(again.teacher.logits(x), method.teacher.logits(x))
    assert method.num_bytes == 4 * (2 * C * C + 2 * C)


class Grows(nn.Module):
    """Deeper from stage to stage, and with a mask that no checkpoint has."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.stage = nn.Linear(3, 3), nn.Linear(3, C), 0
        self.register_buffer("mask", torch.ones(3), persistent=False)

    def forward(self, x):
        x = self.first(x * self.mask)
        return self.second(x.tanh() if self.stage > 1 else x)


@pytest.mark.parametrize("how", ["eager", "compiled", "compiled in place"])
def test_the_past_has_what_the_weights_do_not_hold(how):
    torch.manual_seed(0)
    net, x = Grows(), torch.randn(6, 3)
    if how == "compiled in place":
        net.compile(backend="eager")
    model = torch.compile(net, backend="eager") if how == "compiled" else net
    method = PSKD(None, C, EPOCHS, store=PreviousModel(model))
    for epoch in range(EPOCHS):
        method.set_epoch(epoch)
        expected = model(x).detach()
        net.stage += 1
        net.mask[epoch % 3] = 0
        if epoch:
            assert torch.equal(method.teacher.logits(x), expected)
        if epoch == 2:
            nn.utils.prune.l1_unstructured(net.first, "weight", amount=0.5)  # renames a parameter


def test_the_copies_of_a_compiled_model_are_compiled_once():
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = torch.compile(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, C)), backend=backend)
    method = PSKD(None, C, 12, store=PreviousModel(model))
    x, y = torch.randn(6, 3), torch.arange(6) % C
    for epoch in range(12):  # more than torch.compile's limit of versions of one function
        method.set_epoch(epoch)
        method.loss(model(x), y, inputs=x).backward()
    assert len(graphs) == 2  # for training, and for the past without dropout and gradients


def test_a_method_with_the_previous_model_reaches_another_process():
    method = pickle.loads(pickle.dumps(PSKD(None, C, EPOCHS, store=PreviousModel(network()))))  # noqa: S301
    method.set_epoch(0)
    assert method.past.to_probs(torch.zeros(1, C)).sum() == pytest.approx(1)


def test_batch_norm_of_the_past_stays_as_the_epoch_began():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, C))
    method = PSKD(None, C, EPOCHS, store=PreviousModel(model))
    x, y = torch.randn(6, 3), torch.arange(6) % C
    method.set_epoch(0)
    method.loss(model(x), y)
    method.set_epoch(1)
    before = method.teacher.logits(x)
    for _ in range(3):
        method.loss(model(x), y, inputs=x)
    assert torch.equal(method.teacher.logits(x), before)


def test_what_is_missing_is_said():
    model = network()
    x, labels = torch.randn(2, 4, 3, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(UserError, match="a table needs lengths"):
        SequencePSKD(None, C, EPOCHS, store=TopK(2))
    with pytest.raises(UserError, match=r"pass num_samples \(optional only with PreviousModel"):
        PSKD(None, C, EPOCHS)
    with pytest.raises(UserError, match="PreviousModel needs neither"):
        PixelPSKD(None, None, C, EPOCHS, store="dense")
    table = SequencePSKD([4, 4], C, EPOCHS, store=TopK(2))
    table.set_epoch(0)
    with pytest.raises(UserError, match="the index is missing"):
        table.loss(model(x), labels)
    method = SequencePSKD(None, C, EPOCHS, store=PreviousModel(model))
    method.set_epoch(0)
    method.set_epoch(1)
    with pytest.raises(UserError, match="PreviousModel forwards the input"):
        method.loss(model(x), labels)
    with pytest.raises(UserError, match=r"returns rows \[4, 5\] .* targets are \[8, 5\]"):
        method.loss(model(x), labels, inputs=x[:1])
    with pytest.raises(UserError, match="label 7 of item 2 of the batch lies outside"):
        method.loss(model(x), torch.tensor([[0, 1, 7, 2], [0, 0, 0, 0]]), inputs=x)


class Gives(nn.Module):
    """Returns its logits as ``form`` says."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.form = nn.Linear(3, C), form

    def forward(self, x):
        return self.form(self.body(x))


@pytest.mark.parametrize(
    "form",
    [lambda z: {"aux": 2 * z, "out": z}, lambda z: {"out": 2 * z, "logits": z}, lambda z: SimpleNamespace(logits=z)],
    ids=["segmentation", "mapping", "object"],
)
def test_logits_are_found_in_the_forms_of_other_libraries(form):
    x, model = torch.randn(4, 3), Gives(form)
    teacher = PreviousModel(model)
    teacher.begin(1)
    assert torch.equal(teacher.logits(x), model.body(x))


@pytest.mark.parametrize(
    ("form", "what"),
    [
        (lambda z: {"scores": z, "aux": z}, "a mapping of scores, aux"),
        (lambda z: SimpleNamespace(scores=z), "a SimpleNamespace"),
        (lambda z: ({"scores": z}, z), "a tuple"),
        (lambda z: (), "a tuple"),
    ],
)
def test_an_output_without_logits_is_named(form, what):
    teacher = PreviousModel(Gives(form), first_past="pretrained")
    teacher.begin(0)
    with pytest.raises(UserError, match=f"no logits in what Gives returns, {what}: return a tensor"):
        teacher.logits(torch.randn(4, 3))


def test_a_network_with_a_part_called_module_is_copied_whole():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(3, 2)

        def forward(self, x):
            return 10 * self.module(x)

    net, x = Scaled(), torch.randn(4, 3)
    teacher = PreviousModel(net)
    teacher.begin(1)
    torch.testing.assert_close(teacher.logits(x), net(x))


class Keeps(nn.Module):
    """Keeps an activation, as feature extractors do, and computes one of its weights."""

    def __init__(self, inside):
        super().__init__()
        self.first, self.last, self.inside = nn.Linear(3, 8), nn.utils.spectral_norm(nn.Linear(8, C)), inside

    def forward(self, x):
        features = self.first(x)
        self.features = [features] if self.inside == "a list" else features
        return self.last(features)


@pytest.mark.parametrize("inside", ["itself", "a list"])
def test_a_network_that_keeps_activations_is_copied_or_refused_by_name(inside):
    torch.manual_seed(0)
    model, x, y = Keeps(inside), torch.randn(6, 3), torch.arange(6) % C
    method = PSKD(None, C, EPOCHS, store=PreviousModel(model))
    method.set_epoch(0)
    method.loss(model(x), y, inputs=x).backward()
    if inside == "a list":
        with pytest.raises(UserError, match="Keeps cannot be copied"):
            method.set_epoch(1)
        return
    method.set_epoch(1)
    loss = method.loss(model(x), y, inputs=x)
    assert loss.isfinite()
    assert not method.past.teacher.past[1].features.requires_grad


@pytest.mark.parametrize("how", ["closure", "default", "compiled", "wrapped twice"])
def test_a_replaced_forward_that_would_call_the_present_weights_is_refused(how):
    """Its copy forwards the model itself: the past would be the present prediction, without a word."""
    model = network()
    own = model.forward
    replaced = {
        "closure": lambda x: own(x),
        "default": lambda x, call=own: call(x),
        "compiled": torch.compile(own, backend="eager"),
        "wrapped twice": torch.no_grad()(lambda x: own(x)),
    }
    model.forward = replaced[how]
    method = PSKD(None, C, EPOCHS, store=PreviousModel(model))
    method.set_epoch(0)
    with pytest.raises(UserError, match=r"Sequential\.forward was replaced .* present weights"):
        method.set_epoch(1)


@pytest.mark.parametrize("how", ["module", "in place", "method", "partial", "stateless"])
def test_other_ways_to_change_a_forward_are_copied(how):
    model, x = network(), torch.randn(4, 3, dtype=torch.float64)
    if how == "module":
        model = torch.compile(model, backend="eager")
    elif how == "in place":
        model.compile(backend="eager")
    elif how == "method":
        model.forward = MethodType(lambda self, x: 2 * nn.Sequential.forward(self, x), model)
    elif how == "partial":
        model.forward = partial(nn.Sequential.forward, model)
    else:
        model[1].forward = lambda x: x
    method = PSKD(None, C, EPOCHS, store=PreviousModel(model))
    method.set_epoch(0)
    method.set_epoch(1)
    expected = model(x).softmax(1)
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
    torch.testing.assert_close(method.past_probs(torch.arange(4), inputs=x)[0], expected)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_past_has_the_mode_that_was_asked_for_whatever_the_model_is_in(mode):
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, C))
    model(torch.randn(50, 3) * 4 + 2)  # running statistics of their own
    expected = deepcopy(model).train(mode == "train")
    for training in (True, False):
        method = PSKD(None, C, EPOCHS, store=PreviousModel(model.train(training), mode=mode))
        method.set_epoch(1)
        x = torch.randn(6, 3)
        probs, _ = method.past_probs(torch.arange(6), inputs=x)
        torch.testing.assert_close(probs, torch.softmax(expected(x), 1))
