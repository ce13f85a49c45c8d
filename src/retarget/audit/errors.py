"""Errors for checkpoints that get no verdict; each has an exit code of ``retarget audit``."""

from retarget.errors import UserError

CLEAN, TROJANED, ERROR, UNDECIDED = 0, 1, 2, 3
"""Exit codes: nothing found in the printed scope; trojaned; error or wrong usage; undecided or not covered."""


class AuditError(UserError):
    """The checkpoint cannot be audited: not a pipeline, missing or broken files, or weights that are not finite."""

    code = ERROR


class NotCoveredError(AuditError):
    """A sound checkpoint of a kind that the audit does not cover; the message names the kind."""

    code = UNDECIDED
