"""Audit: is this diffusion checkpoint trojaned, what is the trigger, and how sure is that?"""

from typing import TYPE_CHECKING

from retarget.lazy import lazy

if TYPE_CHECKING:
    from retarget.audit.errors import AuditError, NotCoveredError
    from retarget.audit.subject import Recovered, Subject

__all__ = ["AuditError", "NotCoveredError", "Recovered", "Subject"]
__getattr__, __dir__ = lazy(
    __name__,
    {"AuditError": "errors", "NotCoveredError": "errors", "Recovered": "subject", "Subject": "subject"},
)
