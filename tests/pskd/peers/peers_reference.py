"""The peers' equations as slow float64 loops; nothing of the package is used."""

import numpy as np


def softmax(z, temperature=1.0):
    out = np.zeros(np.shape(z))
    for i, row in enumerate(z):
        top = max(row)
        total = sum(np.exp((v - top) / temperature) for v in row)
        for c, v in enumerate(row):
            out[i, c] = np.exp((v - top) / temperature) / total
    return out


def cross_entropies(z, targets):
    """Per sample: -sum_c t_c log softmax(z)_c."""
    probs = softmax(z)
    return [
        -sum(t * np.log(p) for t, p in zip(target, row, strict=True))
        for target, row in zip(targets, probs, strict=True)
    ]


def one_hot(labels, num_classes):
    return [[1.0 if c == y else 0.0 for c in range(num_classes)] for y in labels]


def kl(target_rows, rows):
    """Per sample: sum_c t_c (log t_c - log p_c), 0 log 0 being 0."""
    return [
        sum(t * (np.log(t) - np.log(p)) for t, p in zip(target, row, strict=True) if t > 0)
        for target, row in zip(target_rows, rows, strict=True)
    ]


def distill(z, teacher, temperature):
    return [temperature**2 * value for value in kl(softmax(teacher, temperature), softmax(z, temperature))]


def smoothed(labels, num_classes, smoothing):
    return [
        [(1 - smoothing) * (1.0 if c == y else 0.0) + smoothing / num_classes for c in range(num_classes)]
        for y in labels
    ]


def designed(labels, num_classes, correct_prob, temperature):
    rows = [
        [correct_prob if c == y else (1 - correct_prob) / (num_classes - 1) for c in range(num_classes)] for y in labels
    ]
    return softmax(rows, temperature)


def focal(z, labels, gamma):
    probs = softmax(z)
    return [-((1 - probs[i][y]) ** gamma) * np.log(probs[i][y]) for i, y in enumerate(labels)]


def dual_focal(z, labels, gamma):
    out = []
    for row, y in zip(softmax(z), labels, strict=True):
        below = max((p for p in row if p < row[y]), default=0.0)
        out.append(-((1 - row[y] + below) ** gamma) * np.log(row[y]))
    return out


def maximum_above_mean(z):
    return [max(row) - sum(row) / len(row) for row in z]


def margin_penalty(z, margin):
    return [sum(max(0.0, max(row) - v - margin) for v in row) / len(row) for row in z]


def squared(rows, others):
    return [sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / len(a) for a, b in zip(rows, others, strict=True)]


class ClassRows:
    """OLS: the mean prediction of each class's correctly classified samples, an epoch late; at first nothing."""

    def __init__(self, num_classes):
        self.rows = [[0.0] * num_classes for _ in range(num_classes)]
        self.seen = [[] for _ in range(num_classes)]

    def see(self, z, labels):
        for row, y in zip(softmax(z), labels, strict=True):
            if max(range(len(row)), key=lambda c: row[c]) == y:
                self.seen[y].append(row)

    def next_epoch(self):
        for y, seen in enumerate(self.seen):
            self.rows[y] = [1 / len(self.rows)] * len(self.rows)
            if seen:
                self.rows[y] = [sum(row[c] for row in seen) / len(seen) for c in range(len(seen[0]))]
        self.seen = [[] for _ in self.seen]


class Evidence:
    """BSD's concentrations, each time summed up anew from the label and all predictions so far, oldest first."""

    def __init__(self, starts, prior, discount, weight):
        self.starts, self.prior, self.discount, self.weight = starts, prior, discount, weight
        self.seen = [[] for _ in starts]

    def concentration(self, sample):
        seen, out = self.seen[sample], []
        for c, start in enumerate(self.starts[sample]):
            total = self.discount ** len(seen) * self.prior * start
            for age, row in enumerate(reversed(seen)):
                total += self.discount**age * self.weight * row[c]
            out.append(total)
        return out

    def target(self, sample):
        row = self.concentration(sample)
        return [value / sum(row) for value in row]

    def observe(self, sample, row):
        self.seen[sample].append(list(row))


class Ensemble:
    """Temporal ensembling's Z with a count of updates, so that the bias is divided out as the paper writes it."""

    def __init__(self, num_samples, num_classes, momentum):
        self.z, self.momentum = np.zeros((num_samples, num_classes)), momentum
        self.updates = [0] * num_samples

    def target(self, sample):
        if not self.updates[sample]:
            return None
        return self.z[sample] / (1 - self.momentum ** self.updates[sample])

    def update(self, sample, row):
        self.z[sample] = self.momentum * self.z[sample] + (1 - self.momentum) * np.asarray(row)
        self.updates[sample] += 1
