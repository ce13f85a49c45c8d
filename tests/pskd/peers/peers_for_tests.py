"""Every peer, made and switched off by name, with the data and the loop that they are tried with."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from retarget.pskd import peers

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
    "bsd": lambda model, teacher, **more: peers.BSD(N, C, EPOCHS, **more),
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
    "bsd": {"weight": 0.0},
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


def logits_and_labels(seed, batch=5, scale=3.0):
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, C, generator=g), torch.randint(C, (batch,), generator=g)


def mean(values):
    return float(np.mean(values))


def fresh(name, epoch=1):
    method = MAKE[name](network(), network(9))
    method.set_epoch(epoch)
    return method
