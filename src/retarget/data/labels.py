"""Check class labels, in one place for all readers."""

from typing import Any

import numpy as np

from retarget.errors import UserError


def class_labels(values: Any, where: str, classes: int | None = None) -> np.ndarray:
    """Convert labels to int64 [N], from 0, without gaps.

    Args:
        values: whole numbers or booleans of any type, [N] or [N, 1] (as Keras has them).
        where: what messages call their source.
        classes: number of classes in the training part; None if these are its labels.

    Raises:
        UserError: one-hot rows, another shape, text, fractions, a gap in the numbers, or a label that the training
            part does not have; the message shows the values. Memory does not depend on the size of a label.

    >>> class_labels([[1], [0], [1]], "y_train").tolist()
    [1, 0, 1]
    """
    labels = np.asarray(values)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        raise UserError(
            f"{where}: labels of shape {list(labels.shape)} are a row of {labels.shape[1]} values per image, perhaps "
            "one-hot; give one class number per image, for example labels.argmax(1)"
        )
    if labels.ndim == 1 and labels.dtype.kind == "U":
        raise UserError(
            f"{where}: labels are text ({_listed(np.unique(labels))}); number the classes from 0, the same in all "
            "parts, for example with numpy.unique(labels, return_inverse=True)[1], or, in a data set of the package "
            "datasets, with class_encode_column('label')"
        )
    if labels.ndim == 1 and labels.dtype.kind == "O" and None in (held := labels.tolist()):
        raise UserError(f"{where}: the image in row {held.index(None)} has no label: leave such images out")
    if labels.ndim != 1 or labels.dtype.kind not in "biuf":
        raise UserError(
            f"{where}: labels are one whole number per image, from 0; these are {labels.dtype} of shape "
            f"{list(labels.shape)}"
        )
    if not len(labels):
        raise UserError(f"{where}: there are no images")
    found = np.unique(labels)
    whole = np.isfinite(found) & (found == np.floor(found))
    if not whole.all():
        raise UserError(f"{where}: labels are whole numbers; these are not: {_listed(found[~whole])}")
    if classes is None and (found[0] != 0 or found[-1] != len(found) - 1):
        raise UserError(
            f"{where}: labels are {_listed(found)}; number the {len(found)} classes from 0 to {len(found) - 1}, "
            "without gaps"
        )
    if classes is not None and (found[0] < 0 or found[-1] >= classes):
        other = found[(found < 0) | (found >= classes)]
        raise UserError(
            f"{where}: there is the label {_listed(other)}, but the training set has only the labels 0 to {classes - 1}"
        )
    return labels.astype(np.int64)


def _listed(values: np.ndarray) -> str:
    shown = ", ".join(str(value) for value in values[:8].tolist())
    return shown + f", … ({len(values)} values)" * (len(values) > 8)
