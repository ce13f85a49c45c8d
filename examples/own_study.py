"""A study of your own: label smoothing against cross-entropy on scikit-learn's digits. retarget study own_study.py"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from retarget.study import Arm, Claim, Metric, Run, StudyPlan

plan = StudyPlan(
    study="smoothing",
    title="Label smoothing on digits",
    question="Does label smoothing help on 300 digits?",
    settings={"smoothing": 0.0, "epochs": 30},
    arms=(Arm(name="hard", label="cross-entropy"), Arm(name="smooth", label="smoothed", settings={"smoothing": 0.1})),
    metrics=(Metric(name="top1", label="accuracy", unit="%", better="higher"), Metric(name="nll", label="NLL")),
    claims=(Claim(id="nll", sentence="Label smoothing gives better confidence estimates.", metric="nll",
                  direction="lower", arms=("smooth", "hard"), smallest_effect=0.02),),
)  # fmt: skip


def run(run: Run) -> dict[str, float]:
    x, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    x = x.float() / 16
    torch.manual_seed(run.seed)  # the same weights and the same order of samples in both arms
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    loss = nn.CrossEntropyLoss(label_smoothing=run.settings["smoothing"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for epoch in range(run.settings["epochs"]):
        for batch in torch.randperm(300).split(50):
            optimizer.zero_grad()
            value = loss(model(x[batch]), y[batch])
            value.backward()
            optimizer.step()
        run.log(epoch, loss=value.item())
    logits, labels = model(x[300:]).detach(), y[300:]
    top1 = 100 * (logits.argmax(1) == labels).float().mean()
    return {"top1": top1, "nll": nn.functional.cross_entropy(logits, labels)}
