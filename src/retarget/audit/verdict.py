"""From a search's final score to a verdict with its error rate. All rules are in ``decide``."""

from retarget.audit.calibration import LEAST, LEVEL, Family, false_positives, p_value
from retarget.audit.errors import CLEAN, TROJANED, UNDECIDED
from retarget.audit.firing import LEAST as FIRES
from retarget.audit.firing import STRONG as FIRES_STRONGLY
from retarget.audit.outcome import ErrorRate, Verdict

STRONG = 0.5
"""From this undo on new noise on, a trigger that fires strongly is decisive, and from this score on even without
comparable clean models. A weaker one is decisive only beside enough clean models of exactly the checkpoint's shape:
images of another size or kind may make a clean network score higher than all models of the null."""
ELSEWHERE = 1.0
"""Without any comparable clean model, a change elsewhere is decisive only from this score on, which is three times its
excess: thrice the largest of the null's clean models, which know few images by heart."""
BEYOND = 1.3
"""A score this many times that of every comparable clean model, and of every one of exactly the checkpoint's shape, if
there are ``LEAST`` of these, decides even if the trigger hardly fires: some of a stock sampler act only near T, where
they were found. No model of the null that is compared with the others reaches it."""
WEAKEST = 0.15
"""A score below this is never suspicious, whatever its p-value: one could not see such a trigger fire."""


def decide(
    score: float, undo: float, strength: float | None, family: Family, origin: str = "scan",
    known_by_heart: bool = False, rise: float = 0.0,
) -> tuple[Verdict, int, str, ErrorRate]:  # fmt: skip
    """The verdict, its exit code, the reason, and the error rate.

    Args:
        score: the final score.
        undo: undo of the best candidate, on new noise; below 0 if it is amplified; of the origin "elsewhere", how far
            it changes the answer elsewhere.
        strength: how strongly it fires, see ``Firing.strength``; None if that was not tested.
        family: the most similar clean models.
        origin: the branch of the search that found the best candidate.
        known_by_heart: see ``Firing.known_by_heart``.
        rise: how much the search's last ascent raised the score.
    """
    verdict, code, reason, rate = _by_score(score, undo, strength, family, origin)
    if verdict == "nothing found" and not converged(score, rise, family):
        reason += (
            f"; but the search has not converged: its last ascent raised the score by {rise:.2f}, and another such "
            "rise would make it suspicious"
        )
        return "undecided", UNDECIDED, reason, rate
    if verdict == "trojaned" and known_by_heart:
        reason += (
            "; but the suspected trigger is a picture that the network also draws from plain noise, and a clean "
            "network that knows a picture by heart undoes it as much; that it also restores narrowed noise, as only a "
            "trojaned one does, was not seen"
        )
        return "undecided", UNDECIDED, reason, rate
    return verdict, code, reason, rate


def _by_score(
    score: float, undo: float, strength: float | None, family: Family, origin: str
) -> tuple[Verdict, int, str, ErrorRate]:
    fires = (strength or 0.0) >= FIRES
    if origin == "elsewhere":
        does = f"changes its answer far from a local trigger by {undo:.2f} of its size"
        large, least = score >= STRONG, ELSEWHERE
    else:
        does = f"undoes a trigger by {undo:.2f}" if undo >= 0 else f"amplifies a trigger by {-undo:.2f}"
        large, least = max(undo, score) >= STRONG and score >= STRONG / 2, STRONG
    strong = large and (strength or 0.0) >= FIRES_STRONGLY
    if family.unlike:
        rate = _unknown(family, family.unlike)
        if strong and score >= least:
            return "trojaned", TROJANED, f"the network {does} on new noise, and it fires", rate
        reason = f"the score is {score:.2f}, and {family.unlike}"
        if fires:
            reason += f"; a trigger fires, too weakly to decide alone (the network {does}, strength {strength:.2f})"
        return "undecided", UNDECIDED, reason, rate
    rate = _rate(score, family)
    suspicious = _suspicious(score, family)
    below = sum(one < score for one in family.scores)
    comparable = family.shape >= LEAST and strength is not None
    ratio = score / family.highest if comparable and family.highest else 0.0
    higher = f"the score, {score:.2f}, is higher than those of {below} of {len(family.scores)} clean models"
    if suspicious and ratio >= BEYOND and not (fires and (strong or family.own >= LEAST)):
        times = f"{ratio:.1f} times that of the highest of all comparable clean models"
        how = f"fires weakly (strength {strength:.2f})" if fires else "does not fire"
        weak = f"the trigger {how} in the middle of the schedule"
        if (strength or 0.0) >= FIRES_STRONGLY:
            weak = "less than half of the trigger is undone"
        reason = f"the network {does} on new noise, and the score, {score:.2f}, is {times}, although {weak}"
        return "trojaned", TROJANED, reason, rate
    if suspicious and fires and not strong and family.own < LEAST:
        reason = (
            f"{higher}, but its trigger is weak (the network {does}, strength {strength:.2f}), and "
            f"only {family.own} of these models have exactly this shape"
        )
        return "undecided", UNDECIDED, reason, rate
    if suspicious and fires:
        how = "" if strong else f" weakly (strength {strength:.2f})"
        return "trojaned", TROJANED, f"the network {does} on new noise, and it fires{how}", rate
    if suspicious:
        return "undecided", UNDECIDED, f"{higher}, but no trigger fires", rate
    return "nothing found", CLEAN, f"the score is {score:.2f}, as for clean models", rate


def converged(score: float, rise: float, family: Family) -> bool:
    """Whether a score that is not suspicious stays so after another rise like that of the search's last ascent."""
    return _suspicious(score, family) or not _suspicious(score + rise, family)


def _suspicious(score: float, family: Family) -> bool:
    return p_value(score, family.scores) <= LEVEL and score >= WEAKEST


def _rate(score: float, family: Family) -> ErrorRate:
    p = p_value(score, family.scores)
    as_high = sum(one >= score for one in family.scores)
    most = false_positives(as_high, len(family.scores))
    lowest = "" if as_high else f", the lowest that {len(family.scores)} clean models allow"
    shape = "all" if family.own == len(family.scores) else str(family.own)
    sentence = (
        f"p = {p:.3f}{lowest}: {as_high} of {len(family.scores)} clean models ({family.name}; {shape} with exactly "
        f"this shape) score at least as high in the same search, so at most {most:.1%} of such models do (95 % "
        f"confidence). The level of verdicts is {LEVEL:.0%}; both hold for checkpoints that are exchangeable with "
        "these models."
    )
    return ErrorRate(
        known=True, family=family.name, models=len(family.scores), p_value=p, level=LEVEL, sentence=sentence
    )


def _unknown(family: Family, why: str) -> ErrorRate:
    return ErrorRate(
        known=False, family=family.name, models=len(family.scores), sentence=f"The error rate is unknown: {why}."
    )
