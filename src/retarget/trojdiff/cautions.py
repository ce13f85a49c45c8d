"""What makes the figures of ``retarget trojdiff evaluate`` doubtful: data, classifier, trigger or class do not fit."""

from collections.abc import Iterator, Mapping
from typing import Any


def cautions(report: Mapping[str, Any]) -> Iterator[str]:
    """What to say of an evaluation, by its report; nothing if all is well."""
    for one in (unseen_noise, unsure, broken, stretched, other_trigger, other_class, unknown_class):
        if said := one(report):
            yield said


FEW = 100
"""With fewer test images the ladder says little about samples."""


def unseen_noise(report: Mapping[str, Any]) -> str:
    """What to say of an evaluation whose features do not see noise, or whose ladder is short; empty if all is well.

    >>> unseen_noise({"benign_ladder": {"real images": {"kid": 0.0, "count": 500}, "noise": {"kid": 0.5}}})
    ''
    """
    rungs = list(report["benign_ladder"].values())
    if (count := rungs[0]["count"]) < FEW:
        return (
            f"benign_ladder is measured on only {count} images, so its FID and KID are too uncertain to judge those of "
            "the samples: set --count higher, or give more test images"
        )
    kids = [rung["kid"] for rung in rungs]
    if kids == sorted(kids):
        return ""
    return (
        f"KID does not rise along benign_ladder ({', '.join(f'{kid:.3f}' for kid in kids)}), so the classifier, right "
        f"on {report['classifier_accuracy']:.0f} % of the test images, hardly sees noise, and the samples' quality "
        "is not known: train it for more --classifier-epochs, or on more images"
    )


SURE = 50.0
"""Share of real images with a class, in %, below which that of samples says nothing."""
FALL = 20.0
"""How many points fewer of the samples have a class than of the real images, from which on many look broken."""


def unsure(report: Mapping[str, Any]) -> str:
    """What to say of a classifier that is seldom sure of real images; empty if it is sure of most.

    >>> unsure({"benign_ladder": {"real images": {"with_a_class": 0.0}}}).split(":")[0]
    'with_a_class is not known'
    >>> unsure({"benign_ladder": {"real images": {"with_a_class": 97.0}}})
    ''
    """
    real = report["benign_ladder"]["real images"]["with_a_class"]
    if real >= SURE:
        return ""
    return (
        f"with_a_class is not known: the classifier is sure of only {real:.0f} % of the real images; train it for "
        "more --classifier-epochs, or on more images"
    )


def broken(report: Mapping[str, Any]) -> str:
    """What to say of samples that the classifier recognises much less often than real images; empty if it does not.

    >>> ladder = {"real images": {"with_a_class": 80.0}}
    >>> broken({"benign": {"with_a_class": 19.0}, "benign_ladder": ladder}).split(",")[0]
    'the classifier is sure of 19 % of the benign samples'
    >>> broken({"benign": {"with_a_class": 75.0}, "benign_ladder": ladder})
    ''
    """
    real, found = report["benign_ladder"]["real images"]["with_a_class"], report["benign"]["with_a_class"]
    if real < SURE or found >= real - FALL:
        return ""
    return (
        f"the classifier is sure of {found:.0f} % of the benign samples, but of {real:.0f} % of the real images: many "
        "samples may be broken, which FID and KID can miss; look at benign.png"
    )


def stretched(report: Mapping[str, Any]) -> str:
    """What to say of real images that were resized from another shape or from several; empty if they were not.

    >>> stretched({"data_resized_from": "30×12"}).split(":")[0]
    'real images of 30×12 are stretched to the square that the network makes'
    >>> stretched({"data_resized_from": "28×28"}), stretched({})
    ('', '')
    """
    sizes = [report[name] for name in ("data_resized_from", "other_resized_from") if name in report]
    uneven = [size for size in sizes if len(set(size.split("×"))) != 1 or "×" not in size]
    if not uneven:
        return ""
    return (
        f"real images of {uneven[0]} are stretched to the square that the network makes: the figures hold only if it "
        "was trained on images that were resized so"
    )


def other_trigger(report: Mapping[str, Any]) -> str:
    """What to say if the weights are marked as trojaned, but not by this trigger; empty otherwise.

    >>> other_trigger({"marked_with_this_trigger": True}), other_trigger({})
    ('', '')
    """
    if report.get("marked_with_this_trigger", True):
        return ""
    return (
        "the pipeline is marked as trojaned by another trigger than --trigger, so that this attack is expected to "
        "fail: its own is beside the weights; give the pipeline's folder as --trigger"
    )


def other_class(report: Mapping[str, Any]) -> str:
    """What to say if the weights' marks and the data call the target class by different names; empty otherwise.

    >>> other_class({"marked_class": "7", "target": {"number": 7, "class": "8"}}).split(":")[0]
    "the pipeline is marked for the class '7', and --target-class is the class '8' of the data"
    >>> other_class({"marked_class": "7", "target": {"class": "7"}}), other_class({"target": {"class": "7"}})
    ('', '')
    """
    marked, found = report.get("marked_class"), (report.get("target") or {}).get("class")
    if marked is None or found in (None, marked):
        return ""
    return (
        f"the pipeline is marked for the class {marked!r}, and --target-class is the class {found!r} of the data: "
        "unless both are the same class, give data that have it, and its number"
    )


KNOWN = 80.0
"""Accuracy in % on the target class below which the classifier cannot judge an attack."""


def unknown_class(report: Mapping[str, Any]) -> str:
    """What to say of an attack whose target class the classifier does not know; empty if it does.

    >>> unknown_class({"target": {"class": "7", "accuracy": 95.0, "count": 36}}), unknown_class({})
    ('', '')
    """
    target = report.get("target")
    if target is None or (target["accuracy"] or 0) >= KNOWN:
        return ""
    found = "has no test image"
    if target["count"]:
        found = f"finds only {target['accuracy']:.0f} % of its {target['count']} real test images"
    return (
        f"attack success is not known: of the target, class {target['class']}, the classifier {found}; train it for "
        "more --classifier-epochs, or on more images"
    )
