"""Results to one self-contained HTML page and Markdown; knows no method.

A map: ``source`` reads and checks a study's directory; ``words``, ``claims``, ``measurements`` and ``gallery`` turn it
into final texts, cells and drawings, gathered by ``view``; ``page`` (with ``templates/``) and ``markdown`` show the
same view. ``figures`` is what an analysis returns; ``draw``, ``svg``, ``palette`` and ``describe`` draw it.
"""

from typing import TYPE_CHECKING

from retarget.lazy import lazy

if TYPE_CHECKING:
    from retarget.report.page import build

__all__ = ["build"]
__getattr__, __dir__ = lazy(__name__, {"build": "page"})
