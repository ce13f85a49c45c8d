"""Turn study results into one self-contained HTML page and Markdown; knows no method.

A map: ``source`` reads and checks a study's directory; ``words``, ``claims``, ``measurements`` and ``gallery`` turn it
into final texts, cells and drawings, which ``view`` collects; ``page`` (with ``templates/``) and ``markdown`` write the
same view. ``draw``, ``svg``, ``palette`` and ``describe`` make the drawings. Import ``build`` from here.
"""

from typing import TYPE_CHECKING

from retarget.lazy import lazy

if TYPE_CHECKING:
    from retarget.report.page import build

__all__ = ["build"]
__getattr__, __dir__ = lazy(__name__, {"build": "page"})
