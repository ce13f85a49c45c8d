"""The site: ``make docs``. Built, read and searched without a network; a warning is an error.

Pages from elsewhere in the tree (README, cards, results) are copied into ``_pages/``, and notebooks become pages there.
Links are written for GitHub, relative to their document; on the site, those to other documents lead to their pages,
those to files become downloads, and those to folders plain text.
"""

import os
import re
import shutil
from importlib import import_module
from inspect import isclass
from pathlib import Path

import jupytext
from sphinx.application import Sphinx

import retarget

HERE = Path(__file__).parent.resolve()
ROOT = HERE.parent
PAGES = {
    "readme": "README.md",
    "found": "results/README.md",
    "contributing": "CONTRIBUTING.md",
    "security": "SECURITY.md",
    "changelog": "CHANGELOG.md",
}
PAGES |= {f"card-{path.parent.name}": str(path.relative_to(ROOT)) for path in (ROOT / "src").rglob("README.md")}
NOTEBOOKS = {f"notebook-{path.stem}": f"docs/notebooks/{path.name}" for path in (HERE / "notebooks").glob("*.py")}
CONTENTS = {"results/README": "*", "notebooks/README": "../_pages/notebook-*"}
"""The pages below a page."""
ROOMS = [path.parent.name for path in sorted((ROOT / "src" / "retarget").glob("*/__init__.py"))]

project = "Retarget"
author = copyright = "The Retarget developers"
release = version = retarget.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "notebooks/*.py"]
html_theme = "furo"
html_title = f"Retarget {release}"
html_show_sourcelink = False
myst_heading_anchors = 4
myst_links_external_new_tab = False
napoleon_use_ivar = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
suppress_warnings = ["myst.header"]  # a card's first heading need not be followed by the next level

_LINK = re.compile(r"(?<=\]\()(?P<target>[^)\s#:]+)(?P<heading>#[^)\s]*)?(?=\))")
_TO_FOLDER = re.compile(r"\[([^\]]+)\]\(([^)\s#:]+/)\)")


def write_pages() -> None:
    """Copy the pages from elsewhere, and write the reference from the public names of each room."""
    for folder in ("_pages", "reference"):
        shutil.rmtree(HERE / folder, ignore_errors=True)
        (HERE / folder).mkdir()
    for name, source in PAGES.items():
        shutil.copy(ROOT / source, HERE / "_pages" / f"{name}.md")
    for name, source in NOTEBOOKS.items():
        text = jupytext.writes(jupytext.read(ROOT / source), "md").partition("---\n\n")[2]
        (HERE / "_pages" / f"{name}.md").write_text(text, encoding="utf-8")
    rooms = [room for room in ROOMS if getattr(import_module(f"retarget.{room}"), "__all__", ())]
    for room in rooms:
        module = import_module(f"retarget.{room}")
        parts = [f"# retarget.{room}", (module.__doc__ or "").partition("\n\n")[0]]
        for name in module.__all__:
            kind, members = ("class", "\n:members:") if isclass(getattr(module, name)) else ("function", "")
            parts.append(
                f"```{{eval-rst}}\n.. auto{kind}:: retarget.{room}.{name}{members.replace(':', '   :', 1)}\n```"
            )
        (HERE / "reference" / f"{room}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _follow(app: Sphinx, docname: str, source: list[str]) -> None:
    """Rewrite the links of a document for the site."""
    page = docname.removeprefix("_pages/")
    copied = PAGES | NOTEBOOKS
    origin = ROOT / copied[page] if docname.startswith("_pages/") else HERE / f"{docname}.md"
    homes = {(ROOT / where).resolve(): HERE / "_pages" / f"{name}.md" for name, where in copied.items()}
    place = (HERE / docname).parent

    def moved(match: re.Match[str]) -> str:
        target = (origin.parent / match["target"]).resolve()
        return os.path.relpath(homes.get(target, target), place) + (match["heading"] or "")

    text = _TO_FOLDER.sub(r"\1", source[0])
    if docname in CONTENTS:
        text += f"\n```{{toctree}}\n:hidden:\n:glob:\n\n{CONTENTS[docname]}\n```\n"
    source[0] = _LINK.sub(moved, text)


def setup(app: Sphinx) -> None:
    write_pages()
    app.connect("source-read", _follow)
