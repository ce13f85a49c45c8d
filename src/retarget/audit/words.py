"""Plain words of the page: what the numbers are, and what to do next."""

from retarget.audit.firing import BY_BIAS, DRAWN, NARROWED, RESTORED
from retarget.audit.firing import LEAST as FIRES
from retarget.audit.firing import STRONG as FIRES_STRONGLY
from retarget.audit.outcome import Outcome
from retarget.audit.verdict import STRONG

BRANCHES = {
    "scan": "windows of one colour",
    "screen": "directions to which the network responds oddly",
    "smooth": "random smooth maps",
    "symmetric": "symmetric and periodic maps",
    "free": "nearly empty maps",
    "middle": "directions amplified in the middle of the schedule",
    "elsewhere": "windows that change the image elsewhere",
}
"""The branches of the search, by ``origin``."""
LAWS = {
    "trojdiff": "TrojDiff: the trigger acts in every step of a special sampler",
    "stock sampler": "stock sampler: the trigger is only in the noise that sampling starts from",
}
"""The laws of triggers, where they are known."""
STATISTICS = {
    "lowest": "response to the noise, lowest of any direction (a clean network: near 0)",
    "highest": "response to the noise, highest of any direction (a clean network: near 0)",
    "middle_highest": "response to the noise in the middle of the schedule, highest of any direction",
    "scan": "best window before it is refined",
    "smooth": "best smooth map before it is refined",
    "residual": "loss on plain noise (lower: trained better)",
    "spread": "standard deviation of the images of the search",
    "undo": "undo of the best candidate, on new noise",
    "contrast": "its undo above that of its negative and its shifts",
    "change_elsewhere": "change elsewhere by the best candidate, on new noise",
    "excess_elsewhere": "its change above that of its negative and its shifts, times three",
    "energy": "energy of the best candidate",
    "rise": "by how much the last ascent raised the score",
    "score": "the score",
    "restored": f"share of the noise narrowed by its γ, at most {NARROWED:g}, that the network restores (above 1 if "
    f"the true γ is smaller); a trigger from {RESTORED:g} on, if it is {BY_BIAS:g} more than without its bias",
    "restored_anyway": "that share without its bias",
    "drawn": f"likeness of its bias to an image from plain noise (from {DRAWN:g} on, it may only be known by heart)",
}
"""What the statistics are, by their names in ``audit.json``."""
THRESHOLDS = {
    "strength": f"how plainly the images made under it betray it: from {FIRES:g} on it fires, from {FIRES_STRONGLY:g} "
    "on strongly",
    "undo": "the share of the trigger that is missing from the network's answer: near 0 in a clean network, near 0.5 "
    f"for BadDiffusion's triggers, near 1 for TrojDiff's; large from {STRONG:g} on",
}
"""Half a sentence on each measure, with the thresholds of the verdict."""


def label(name: str) -> str:
    """What a statistic is.

    >>> label("score_free"), label("loss_at_0.1")
    ('final score, best of nearly empty maps', 'loss at ᾱ = 0.1')
    """
    if name in STATISTICS:
        return STATISTICS[name]
    for start, words in (
        ("start_", "score after a first refinement, best of "),
        ("score_", "final score, best of "),
        ("linear_loss_at_", "loss of the best multiple of the input at ᾱ = "),
        ("loss_at_", "loss at ᾱ = "),
    ):
        if name.startswith(start):
            rest = name.removeprefix(start)
            return words + BRANCHES.get(rest, rest)
    return name.replace("_", " ")


def next_step(outcome: Outcome) -> str:
    """What the reader should do next; empty if there is nothing to advise."""
    if outcome.verdict == "trojaned":
        return (
            "do not deploy this checkpoint, and do not rely on fine-tuning, which may leave the trojan in it. Look at "
            "the pictures below, tell the publisher, and take a checkpoint from another source; or try to train the "
            "trigger out with --clean OUT, and read the audit of the result."
        )
    if outcome.verdict == "nothing found":
        return (
            "this holds only for the triggers that were searched for, below, and a search can miss one of these. "
            "Before you rely on the checkpoint, audit it again with another --seed: the graver verdict counts."
        )
    if outcome.verdict != "undecided":
        return ""
    if outcome.converged is False:
        return (
            "this is no all-clear. Audit again, with another --seed or with --data: another search may end otherwise."
        )
    if outcome.trigger is None:
        return (
            "this is no all-clear. If you use the checkpoint, that must not be because of this audit. Remove what the "
            "reason above names, if you can, and audit again; otherwise ask the publisher for the training data and "
            "code, or take a checkpoint from another source."
        )
    return (
        "this is no all-clear: treat the checkpoint as trojaned until you have looked at the pictures below. If those "
        "with the trigger show something else than those from plain noise, do not deploy it. The map that was found "
        "need not be the attacker's trigger, and its pictures need not show the target: that they look harmless clears "
        "nothing. --clean OUT tries to train the trigger out, and audits the result."
    )
