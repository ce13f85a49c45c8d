"""A plain training loop around PSKD, with a tiny network and its data."""

import torch
import torch.nn.functional as F
from torch import nn

N, C, EPOCHS = 12, 4, 5


def data(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(N, 6, generator=g), torch.randint(C, (N,), generator=g)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, C))


def order(epoch):
    return torch.randperm(N, generator=torch.Generator().manual_seed(100 + epoch)).split(4)


def train(method, epochs=range(EPOCHS), model=None, optimizer=None, after=None):
    """A plain loop; ``method`` None is cross-entropy."""
    x, y = data()
    model = model or network()
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    losses = []
    for epoch in epochs:
        if method:
            method.set_epoch(epoch)
        for index in order(epoch):
            logits = model(x[index])
            if method:
                loss = method.loss(logits, y[index], index, inputs=x[index])
            else:
                loss = F.cross_entropy(logits, y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if after:
            after(epoch, model, optimizer)
    return model, losses


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
