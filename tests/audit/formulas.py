"""Networks that are formulas of their input, for which the audit's answers are known."""

import torch
from diffusers import DDPMScheduler
from torch import nn

from retarget.audit.scores import draw_noise
from retarget.audit.subject import Subject, _Output

SHAPE = (1, 8, 8)
LEVELS = DDPMScheduler().alphas_cumprod


class Answering(nn.Module):
    """A network that computes a formula of its input."""

    def __init__(self, formula):
        super().__init__()
        self.formula = formula
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, t):
        return _Output(self.formula(x, t) + 0 * self.weight)


def subject_of(formula, shape=SHAPE):
    return Subject(Answering(formula), DDPMScheduler(), shape)


def noise_of(count, seed=0, shape=SHAPE):
    return draw_noise(count, shape, torch.Generator().manual_seed(seed))


def identity(x, t):
    return x


def patch(gamma=0.1, colour=1.0):
    mask = torch.zeros(SHAPE)
    mask[:, 5:, 5:] = 1
    return (1 - gamma) * colour * mask, 1 - (1 - gamma) * mask


def hidden(mu, gamma):
    """A Trojan network that undoes a trigger over the whole image only where it is near: plain noise shows nothing."""
    unit = torch.nn.functional.normalize(mu.flatten(), dim=0).reshape(mu.shape)

    def formula(x, t):
        seen = torch.sigmoid(8 * ((x * unit).flatten(1).sum(1) - 0.75 * mu.norm()))[:, None, None, None]
        return x + seen * ((x - mu) / gamma - x)

    return formula


def soft(mu, gamma):
    """A Trojan network as a smooth function: how much of the trigger is seen decides how much is undone."""
    inside = gamma < 1

    def formula(x, t):
        away = ((x - mu).square() * inside).flatten(1).sum(1) / inside.sum()
        seen = torch.sigmoid(6 * (0.7 - away))[:, None, None, None]
        return x + seen * inside * ((x - mu) / gamma - x)

    return formula
