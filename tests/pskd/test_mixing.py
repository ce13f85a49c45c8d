"""Mixup and CutMix in a plain loop: rows are read, and none is stored for a mixed input."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import nn
from torchvision.transforms import v2

from retarget.errors import UserError
from retarget.pskd import PSKD, Dense, MultiLabelPSKD, PreviousModel, SequencePSKD, TopK

N, C, EPOCHS = 8, 4, 3


def images(n=N):
    return torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def labels(n=N):
    return torch.arange(n) % C


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, C))


def shares(share=0.7):
    return share * torch.eye(N) + (1 - share) * torch.eye(N).roll(1, 0)


def begun(store="dense", alpha_T=0.8, model=None):
    """After a first epoch that remembered every sample."""
    method, model = PSKD(N, C, EPOCHS, alpha_T, store=store), model or network()
    method.set_epoch(0)
    method.loss(model(images()), labels(), torch.arange(N), inputs=images())
    method.set_epoch(1)
    return method, model


@pytest.mark.parametrize("store", ["dense", TopK(2)], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_target_is_the_mixture_of_the_softened_targets(store, smoothing):
    """By linearity: of each part's own loss, its share."""
    method, model = begun(store)
    z = model(0.7 * images() + 0.3 * images().roll(1, 0))
    loss = method.loss(z, labels(), torch.arange(N), mixed=shares(), smoothing=smoothing)
    index, other = torch.arange(N), torch.arange(N).roll(1)
    more = dict(smoothing=smoothing, remember=False)
    expected = 0.7 * method.loss(z, labels(), index, **more) + 0.3 * method.loss(z, labels()[other], other, **more)
    torch.testing.assert_close(loss, expected)


def test_in_the_first_epoch_it_is_the_cross_entropy_of_mixed_labels():
    method, z = PSKD(N, C, EPOCHS), network()(images())
    method.set_epoch(0)
    loss = method.loss(z, labels(), torch.arange(N), mixed=shares())
    torch.testing.assert_close(loss, F.cross_entropy(z, shares() @ F.one_hot(labels(), C).float()))


def test_autocast_does_not_round_the_mixed_targets():
    """It would multiply them in 16 bits, as it does the weights of a network."""
    method, model = begun()
    z = model(images())
    expected = method.loss(z, labels(), torch.arange(N), mixed=shares(), remember=False)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(z, labels(), torch.arange(N), mixed=shares(), remember=False)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_only_inputs_that_are_their_own_sample_are_remembered_and_none_whose_label_is_ignored():
    method, z, y = PSKD(N, C, EPOCHS), network()(images()), labels().clone()
    y[1] = -100
    method.set_epoch(0)
    half = torch.where(torch.arange(N)[:, None] < 3, torch.eye(N), shares())
    method.loss(z, y, torch.arange(N), mixed=half)
    method.set_epoch(1)
    assert method.past_probs(torch.arange(N))[1].tolist() == [True, False, True] + [False] * 5


def test_the_previous_model_says_it_of_the_mixed_input():
    model = network()
    method, _ = begun(PreviousModel(model), model=model)
    x = 0.7 * images() + 0.3 * images().roll(1, 0)
    loss = method.loss(model(x), labels(), mixed=shares(), inputs=x)
    hard = shares() @ F.one_hot(labels(), C).float()
    soft = (1 - method.alpha) * hard + method.alpha * torch.softmax(model(x), 1).detach()
    torch.testing.assert_close(loss, F.cross_entropy(model(x), soft))
    y = labels().clone()
    y[0] = -100  # it had a share of 0.7 in the first input and of 0.3 in the second
    left = torch.tensor([0.3, 0.7] + [1.0] * (N - 2))
    hard = shares()[:, 1:] @ F.one_hot(labels()[1:], C).float()
    soft = (1 - method.alpha) * hard + method.alpha * left[:, None] * torch.softmax(model(x), 1).detach()
    expected = -(soft * F.log_softmax(model(x), 1)).sum() / (N - 1)
    torch.testing.assert_close(method.loss(model(x), y, mixed=shares(), inputs=x), expected)


def test_an_ignored_label_gives_its_share_to_nobody():
    method, model = begun()
    z, y = model(images()), labels().clone()
    y[0] = -100
    loss = method.loss(z, y, torch.arange(N), mixed=shares())
    whole = method.loss(z, labels(), torch.arange(N), mixed=shares())
    one = method.loss(z, labels(), torch.arange(N), mixed=shares(), denominator=1.0)
    z0, soft = F.log_softmax(z, 1), method.soften(labels(), torch.arange(N))[0]
    part = sum(float(shares()[i, 0] * -(soft * z0[i].detach()).sum()) for i in range(N))
    assert float(loss) == pytest.approx((float(one) - part) / (N - 1), rel=1e-5)
    assert float(loss) != pytest.approx(float(whole))


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_any_librarys_mixing_gives_the_shares(library):
    """Given the samples' positions as labels, and more classes than the batch has samples."""
    torch.manual_seed(1)
    if library == "timm":
        mix = Mixup(mixup_alpha=1.0, cutmix_alpha=0.0, label_smoothing=0.0, num_classes=N)
        x, mixed = mix(images().clone(), torch.arange(N))
    else:
        x, mixed = v2.MixUp(alpha=1.0, num_classes=2 * N)(images(), torch.arange(N))
    torch.testing.assert_close(x.flatten(1), mixed[:, :N] @ images().flatten(1))
    method, model = begun()
    assert method.loss(model(x), labels(), torch.arange(N), mixed=mixed).isfinite()


@pytest.mark.parametrize(
    ("mixed", "message"),
    [
        (torch.eye(N)[:, :3], r"as floats \[8, 8\]: got torch.float32 \[8, 3\]"),
        (torch.eye(N) * 0.5, r"row 0 sums to 0\.5"),
    ],
)
def test_shares_that_are_none_are_refused(mixed, message):
    method, model = begun()
    with pytest.raises(UserError, match=message):
        method.loss(model(images()), labels(), torch.arange(N), mixed=mixed)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_a_mixer_that_smooths_labels_is_refused(mode):
    """timm's default is 0.1, spread here over the samples of the batch: each input would learn all labels."""
    method, model = begun()
    more = dict(mixup_alpha=0.2, cutmix_alpha=1.0, mode=mode, num_classes=N)
    _, plain = Mixup(**more, label_smoothing=0.0)(images(), torch.arange(N))
    assert method.loss(model(images()), labels(), torch.arange(N), mixed=plain).isfinite()
    _, smoothed = Mixup(**more)(images(), torch.arange(N))
    with pytest.raises(UserError, match=r"row 0 of mixed gives 0.0125 .* label_smoothing=0"):
        method.loss(model(images()), labels(), torch.arange(N), mixed=smoothed)


def test_a_mixer_that_smooths_is_refused_in_a_batch_of_four():
    method = PSKD(4, C, 3)
    method.set_epoch(0)
    mixed = torch.eye(4) * 0.9 + 0.025
    mixed[0] = torch.tensor([0.6, 0.35, 0.025, 0.025])
    with pytest.raises(UserError, match=r"row 0 of mixed gives 0.025 .* label_smoothing=0"):
        method.loss(torch.zeros(4, C), torch.arange(4) % C, torch.arange(4), mixed=mixed)
    method.loss(torch.zeros(4, C), torch.arange(4) % C, torch.arange(4), mixed=torch.rand(4, 4).softmax(1))


def test_mixing_a_whole_batch_is_not_taken_for_smoothing():
    method, model = begun()
    for mixed in (torch.full((N, N), 1 / N), torch.rand(N, N).softmax(1), torch.eye(N)):
        assert method.loss(model(images()), labels(), torch.arange(N), mixed=mixed).isfinite()
    one, model = PSKD(N, C, EPOCHS), network()
    one.set_epoch(0)
    assert one.loss(model(images(1)), labels(1), torch.arange(1), mixed=torch.ones(1, 1)).isfinite()


def test_remember_false_stores_nothing_whatever_the_form():
    z, index = network()(images()), torch.arange(N)
    plain, tags = PSKD(N, C, EPOCHS, store=Dense("float16")), MultiLabelPSKD(N, C, EPOCHS)
    words = SequencePSKD([1] * N, C, EPOCHS)
    for method, targets, logits in (
        (plain, labels(), z), (tags, F.one_hot(labels(), C).float(), z), (words, labels()[:, None], z[:, None]),
    ):  # fmt: skip
        method.set_epoch(0)
        method.loss(logits, targets, index, remember=False)
        method.loss(logits[:3], targets[:3], index[:3])
        method.set_epoch(1)
        assert method.past_probs(index)[1].tolist() == [True] * 3 + [False] * 5


def test_an_epoch_on_hard_labels_says_so():
    method, model = PSKD(N, C, EPOCHS), network()
    index = torch.arange(N)
    for epoch in (0, 1):
        method.set_epoch(epoch)
        method.loss(model(images()), labels(), index, mixed=shares())
    with pytest.warns(UserWarning, match=r"8 of the 8 samples of epoch 1 had no past row.*unmixed"):
        method.set_epoch(2)
    method.loss(model(images()), labels(), index)
    with pytest.warns(UserWarning, match="of epoch 2"):
        method.end_epoch()
    method.end_epoch()  # once is enough


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_of_mixed_images_that_are_remembered_are_noticed(smoothing):
    """Two classes in most targets; neither smoothed labels nor rows of many classes look like that."""
    index, hard = torch.arange(N), F.one_hot(labels(), C) * (1 - smoothing) + smoothing / C
    method, model = PSKD(N, C, EPOCHS), network()
    for epoch, (targets, told) in enumerate([(hard, {}), (shares() @ hard, {"remember": False})]):
        method.set_epoch(epoch)
        method.loss(model(images()), targets, index, **told)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.set_epoch(2)
    method.loss(model(images()), shares() @ hard, index)
    with pytest.warns(UserWarning, match=r"of the 8 targets of epoch 2 are shared between two classes.*mixed=shares"):
        method.end_epoch()


def test_alpha_may_be_changed_while_it_trains():
    method, model = begun()
    method.alpha_T = 0.3
    assert method.alpha == pytest.approx(0.3 * 2 / 3)
    assert method.state_dict()["alpha_T"] == 0.3
    z, soft = model(images()), method.soften(labels(), torch.arange(N))
    expected = 0.8 * F.one_hot(labels(), C) + 0.2 * method.past_probs(torch.arange(N))[0]
    torch.testing.assert_close(soft, expected)
    assert method.loss(z, labels(), torch.arange(N)).isfinite()
    with pytest.raises(UserError, match="alpha_T must lie in"):
        method.alpha_T = 3.0
    with pytest.raises(AttributeError, match="total_epochs"):
        method.total_epochs = 5
    words = SequencePSKD([1] * N, C, EPOCHS)
    words.alpha_T = 0.5
    assert words.core.alpha_T == 0.5


def test_the_model_as_it_came_is_the_first_past():
    model = network()
    method = PSKD(None, C, 2, store=PreviousModel(model, first_past="pretrained"))
    method.set_epoch(0)
    assert method.alpha == 0.4
    came = torch.softmax(model(images()), 1).detach()
    with torch.no_grad():
        model[1].weight.mul_(2)
    soft = method.soften(labels(), inputs=images())
    torch.testing.assert_close(soft, 0.6 * F.one_hot(labels(), C) + 0.4 * came)
    method.set_epoch(0)  # begun again: still as it came
    torch.testing.assert_close(method.soften(labels(), inputs=images()), soft)


def test_a_saved_first_epoch_keeps_the_model_as_it_came(tmp_path):
    def make(model, **more):
        return PSKD(None, C, 2, store=PreviousModel(model, **more))

    model = network()
    method = make(model, first_past="pretrained")
    method.set_epoch(0)
    soft = method.soften(labels(), inputs=images())
    with torch.no_grad():
        model[1].weight.mul_(2)
    method.save(tmp_path / "state.safetensors")
    again = make(model, first_past="pretrained")
    again.load(tmp_path / "state.safetensors")
    again.set_epoch(0)
    torch.testing.assert_close(again.soften(labels(), inputs=images()), soft)
    with pytest.raises(UserError, match="PreviousModel, pretrained"):
        make(model).load(tmp_path / "state.safetensors")


def test_one_epoch_warns_in_a_plain_loop():
    with pytest.warns(UserWarning, match="total_epochs = 1 is plain training"):
        PSKD(N, C, 1).set_epoch(0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_targets_of_two_classes_are_noticed_and_smoothed_ones_are_not(smoothing):
    index, hard = torch.arange(N), F.one_hot(labels() % 2, 2) * (1 - smoothing) + smoothing / 2
    method = PSKD(N, 2, EPOCHS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in range(2):
            method.set_epoch(epoch)
            method.loss(torch.zeros(N, 2), hard, index)
        method.set_epoch(2)
    for half, share in zip(index.chunk(2), (0.7, 0.6), strict=True):
        method.loss(torch.zeros(len(half), 2), (shares(share) @ hard)[half], half)
    with pytest.warns(UserWarning, match=r"targets of epoch 2 are shared between two classes.*mixed=shares"):
        method.end_epoch()
