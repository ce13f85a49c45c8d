"""Audit: is this diffusion checkpoint trojaned, what is the trigger, and how certain is the verdict?"""

from typing import TYPE_CHECKING

from retarget.lazy import lazy

if TYPE_CHECKING:
    from retarget.audit.errors import AuditError, NotCoveredError
    from retarget.audit.outcome import Outcome
    from retarget.audit.run import audit
    from retarget.audit.subject import Recovered, Subject

__all__ = ["AuditError", "NotCoveredError", "Outcome", "Recovered", "Subject", "audit"]
__getattr__, __dir__ = lazy(
    __name__,
    {
        "audit": "run",
        "AuditError": "errors",
        "NotCoveredError": "errors",
        "Outcome": "outcome",
        "Recovered": "subject",
        "Subject": "subject",
    },
    {"run": ("diffusers", "diffusion")},
)
