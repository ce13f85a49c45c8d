"""Check the links of all Markdown documents, without a network: does each file exist, and each heading in it?

    python tools/check_links.py        # exits with 1 if a link leads nowhere

Addresses on the web must be https; they are not requested.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
PARSER = MarkdownIt("commonmark").enable("table")


def main() -> int:
    """Print the broken links; returns the exit code."""
    broken = [line for path in documents() for line in faults(path)]
    for line in broken:
        print(line, file=sys.stderr)
    return bool(broken)


def documents() -> list[Path]:
    """Markdown files of the tree that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [ROOT / name for name in sorted(set(listed)) if (ROOT / name).exists() and not name.startswith("tests/")]


def faults(path: Path) -> Iterator[str]:
    """One line for each link that leads nowhere."""
    for target in links(path.read_text(encoding="utf-8")):
        where = f"{path.relative_to(ROOT)}: {target}"
        if re.match(r"[a-z]+:", target):
            if not target.startswith(("https:", "mailto:")):
                yield f"{where} is not https"
            continue
        name, _, heading = unquote(target).partition("#")
        found = (path.parent / name).resolve() if name else path
        if not found.exists():
            yield f"{where} leads to no file"
        elif not found.is_relative_to(ROOT):
            yield f"{where} leads out of the tree"
        elif heading and found.suffix == ".md" and heading not in anchors(found):
            yield f"{where} leads to no heading"


def links(text: str) -> Iterator[str]:
    """The targets of links and images, in order."""
    for token in _all(PARSER.parse(text)):
        for name in ("href", "src"):
            if name in token.attrs:
                yield str(token.attrs[name])


@cache
def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a document.

    >>> anchors(ROOT / "CONTRIBUTING.md") >= {"contributing"}
    True
    """
    tokens = PARSER.parse(path.read_text(encoding="utf-8"))
    titles = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _all(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _all(token.children or [])


if __name__ == "__main__":
    sys.exit(main())
