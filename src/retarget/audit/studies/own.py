"""The audit's own search, as the study calls it."""

from retarget.audit.subject import Recovered, Subject


def own(subject: Subject, seed: int) -> Recovered:
    """The frozen search on a network in memory."""
    raise NotImplementedError
