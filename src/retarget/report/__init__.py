"""Results to one self-contained HTML page and Markdown; knows no method.

A map: ``source`` reads and checks a study's directory; ``words``, ``claims``, ``measurements`` and ``gallery`` turn it
into final texts, cells and drawings, gathered by ``view``; ``page`` (with ``templates/``) and ``markdown`` show the
same view. ``figures`` is what an analysis returns; ``draw``, ``svg``, ``palette`` and ``describe`` draw it.
"""

from collections.abc import Sequence
from pathlib import Path

__all__ = ["build"]


def build(directories: Sequence[Path], out: Path | None = None) -> Path:
    """Write report.html, report.md and figures/ for one or more finished studies.

    The page is complete in itself: it opens from a file without a network. Equal input gives equal bytes. Each file is
    replaced as a whole.

    Args:
        directories: of finished studies; each holds study.json, summary.json and, with figures, analysis.json.
        out: a directory, or the page's own path ending in ``.html``; by default the directory of the one study.

    Returns:
        The path of the HTML page. The Markdown has the same name with ``.md``.

    Raises:
        UserError: a directory is no finished study's, one of its files is damaged, an image is missing or lies outside,
            several studies have no ``out``, or the report cannot be written.
    """
    from retarget.report import page

    return page.build(directories, out)
