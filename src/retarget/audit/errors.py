"""Why a checkpoint gets no verdict; each error carries the exit code of ``retarget audit``."""

from retarget.errors import UserError

CLEAN, TROJANED, ERROR, UNDECIDED = 0, 1, 2, 3
"""Nothing found in the printed scope; trojaned; error or wrong usage; undecided or not covered."""


class AuditError(UserError):
    """The checkpoint cannot be read: not a pipeline, broken or missing files, weights that are not finite."""

    code = ERROR


class NotCoveredError(AuditError):
    """A sound checkpoint of a kind about which the audit can say nothing; the message names the kind."""

    code = UNDECIDED
