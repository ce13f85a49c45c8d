"""Slow float64 loops written from the paper's equations; nothing of the package is used."""

import numpy as np


def softmax(z):
    return np.array([[np.exp(v - max(row)) / sum(np.exp(w - max(row)) for w in row) for v in row] for row in z])


def soft_target(labels, past, alpha, num_classes):
    """Equation 2: (1 - a) onehot(y) + a P."""
    rows = np.zeros((len(labels), num_classes))
    for i, y in enumerate(labels):
        for c in range(num_classes):
            rows[i, c] = (1 - alpha) * (1.0 if c == y else 0.0) + alpha * past[i][c]
    return rows


def loss(z, targets):
    """Equation 3: mean over the batch of -sum_c t_c log softmax(z)_c."""
    total = 0.0
    for row, target in zip(z, targets, strict=True):
        norm = max(row) + np.log(sum(np.exp(v - max(row)) for v in row))
        total -= sum(t * (v - norm) for t, v in zip(target, row, strict=True))
    return total / len(z)


class PastRows:
    """Which past row an epoch reads, kept the slow way: everything ever written, as (epoch, sample, row)."""

    def __init__(self):
        self.written = []

    def write(self, epoch, sample, row):
        if not any(e == epoch and s == sample for e, s, _ in self.written):  # the first write of an epoch counts
            self.written.append((epoch, sample, row))

    def read(self, epoch, sample):
        before = [(e, row) for e, s, row in self.written if s == sample and e < epoch]
        return max(before, key=lambda pair: pair[0])[1] if before else None
