# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # PS-KD and over-confidence
#
# A network that has memorised its training set is more confident than it is accurate. Here we train two on a few
# digits, one with plain labels and one with PS-KD's, and measure how sure they are. It takes seconds on a laptop.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from retarget.metrics import accuracy, expected_calibration_error, fit_temperature, reliability_diagram
from retarget.pskd import PSKD, with_index

digits = load_digits()
order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
images = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
labels = torch.tensor(digits.target)[order]
images = images + 0.35 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))  # not too easy
train = with_index(TensorDataset(images[:300], labels[:300]))
validation, test = slice(300, 800), slice(800, None)

# %% [markdown]
# One function trains both. `alpha_T=0` is plain cross-entropy, bit for bit: the control.


# %%
def trained(alpha_T: float, epochs: int = 60) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    method = PSKD(num_samples=len(train), num_classes=10, total_epochs=epochs, alpha_T=alpha_T)
    for epoch in range(epochs):
        method.set_epoch(epoch)
        for x, y, index in DataLoader(train, batch_size=50, shuffle=True):
            loss = method.loss(model(x), y, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


models = {"cross-entropy": trained(alpha_T=0.0), "PS-KD": trained(alpha_T=0.8)}

# %% [markdown]
# The fitted temperature tells how over-confident a network is: 1 is calibrated, above 1 is over-confident. The expected
# calibration error (ECE) is the mean distance between its confidence and its accuracy.

# %%
found = {}
for name, model in models.items():
    with torch.no_grad():
        temperature = fit_temperature(model(images[validation]), labels[validation])
        probs = model(images[test]).softmax(1)
    found[name] = dict(
        temperature=float(temperature),
        accuracy=accuracy(probs, labels[test]),
        ece=expected_calibration_error(probs, labels[test]),
    )
    print(name, {key: round(value, 3) for key, value in found[name].items()})

# %% [markdown]
# A reliability diagram shows it: where a bar ends below the diagonal, the network is over-confident.

# %%
figure, panels = plt.subplots(1, 2, figsize=(7, 3.2), sharey=True)
for (name, model), axes in zip(models.items(), panels, strict=True):
    with torch.no_grad():
        bins = reliability_diagram(model(images[test]).softmax(1), labels[test])
    axes.bar(bins.confidence, bins.accuracy, width=0.08)
    axes.plot([0, 1], [0, 1], linestyle=":", color="black")
    axes.set(title=name, xlabel="confidence")
panels[0].set_ylabel("share that is right")
figure.tight_layout()

# %% [markdown]
# One seed decides nothing. `retarget study pskd --preset demo` asks the same question over seeds, with intervals and
# verdicts; [the guide](../guides/classifier.md) continues from here.
