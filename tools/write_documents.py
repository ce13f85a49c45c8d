"""Write the generated parts of the documents: tables of results, their pages and pictures, and the map of the tree.

    python tools/write_documents.py            # write
    python tools/write_documents.py --check    # exits with 1 if a document is not up to date

A generated block stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->``. NAME is ``rooms`` (the tree in a dozen
lines), ``map`` (the tree, file by file), ``found`` (README's table), ``abstracts`` (the seventeen claims), ``gains``
(the numbers of results/map.svg), ``results`` (an index of all records), ``unfinished`` (settings without a complete
record), ``results: NAME`` (the claims of one), or ``called: NAME NAME`` (how many the audit called trojaned;
``NAME+NAME``: of the clean ones of both; ``NAME|NAME``: at least once, of the same checkpoints).
docs/results/ has one page per folder of results/; results/pages.toml gives its title and the metrics that it shows.
Pictures are drawn again when documents are written; a check draws results/map.svg again, and only looks whether the
others exist.
"""

import ast
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from abstracts import found, seventeen
from gain_map import draw, points, table
from record_pages import called, excerpt, page
from records import PAGES, RESULTS, ROOT, SIGNS, VOID, names, record, settings

from retarget.report import build

MAP = RESULTS / "map.svg"


def main() -> int:
    """Write or check every document; returns the exit code."""
    check = "--check" in sys.argv[1:]
    if not check:
        MAP.write_text(draw(points()), encoding="utf-8")
        _figures()
    stale = [path for path, new in _documents() if not path.exists() or path.read_text(encoding="utf-8") != new]
    if check and (not MAP.exists() or MAP.read_text(encoding="utf-8") != draw(points())):
        stale.append(MAP)
    for path, new in _documents() if not check else ():
        path.parent.mkdir(exist_ok=True)
        path.write_text(new, encoding="utf-8")
    gone = [path for path in PAGES.glob("*.md") if path.stem not in {*names(), "README"}]
    for path in gone if not check else ():
        path.unlink()
    for path in [*stale, *gone] if check else ():
        print(f"{os.path.relpath(path, ROOT)} is not up to date: run `make documents`", file=sys.stderr)
    return bool(check and (stale or gone))


def _documents() -> Iterator[tuple[Path, str]]:
    """Each document, with the text that it should have."""
    for name in names():
        yield PAGES / f"{name}.md", page(name)
    docs = ROOT / "docs"
    in_docs = [path for path in docs.rglob("*.md") if path.relative_to(docs).parts[0][0] != "_"]  # "_": built pages
    documents = [*ROOT.glob("*.md"), *in_docs, RESULTS / "README.md"]
    for path in sorted({*documents, *(ROOT / "src").rglob("README.md")}):
        old = path.read_text(encoding="utf-8")
        if "<!-- end of " in old:
            yield path, _filled(old, path)


def _filled(text: str, path: Path) -> str:
    blocks: dict[str, Callable[[], str]] = {
        "rooms": rooms,
        "map": tree,
        "found": lambda: found(path),
        "abstracts": lambda: seventeen(path),
        "gains": lambda: table(points()),
        "results": index,
        "unfinished": unfinished,
    }
    for name, write in blocks.items():
        text = _between(text, name, name, lambda _, write=write: write())
    text = _between(text, r"results: (?P<name>[\w-]+)", "results", lambda found: excerpt(found["name"], path))
    text = _between(text, r"called: (?P<names>[\w+| -]+)", "called", lambda found: called(found["names"].split(), path))
    odd = re.findall(r"<!-- (?:results: (?![\w-]+ -->)|called: (?![\w+| -]+ -->)).*", text)
    if odd:
        raise SystemExit(f"{path}: no record is named by {odd[0]}")
    return text


def _figures() -> None:
    """Draw the figures of every record's page into docs/results/figures/, with verdicts by the present rules."""
    folder = PAGES / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.svg"):
        path.unlink()
    with tempfile.TemporaryDirectory() as temporary:
        for name in names():
            if record(name).finished:
                copy = Path(temporary) / "records" / name
                shutil.copytree(RESULTS / name, copy)
                today = [{key: claim[key] for key in claim if key != "recorded"} for claim in record(name).claims]
                (copy / "summary.json").write_text(json.dumps(record(name).summary | {"claims": today}))
                made = build([copy], Path(temporary) / name)
                paths = sorted((made.parent / f"{made.stem}_files").glob("*.svg"))
                panels = Counter(_figure_of(path) for path in paths)
                for path in paths:
                    if panels[_figure_of(path)] > record(name).panels:
                        continue
                    part = re.sub(r"^.*?-(?=\d\d-)|^.*-(?=forest$)", "", path.stem)
                    shutil.copy(path, folder / f"{name}-{part.replace('forest', '00-forest')}.svg")


def _figure_of(path: Path) -> str:
    """The figure to which a panel's file belongs."""
    return re.sub(r"-\d+$", "", path.stem)


def index() -> str:
    """Every record, with its setting and a link to its page."""
    rows = ["| record | setting | verdicts | |", "|---|---|---|---|"]
    for name in names():
        one = record(name)
        counts = [VOID if one.is_void(claim) else claim["verdict"] for claim in one.claims] if one.finished else []
        said = [f"{counts.count(word)} {word}" for word in (*SIGNS, VOID) if word in counts]
        begun = "begun" * ((one.folder / "study.json").exists() and not one.finished)
        marks = "; ".join(filter(None, (one.standing, begun)))
        rows.append(f"| [{name}]({name}.md) | {one.words} | {', '.join(said) or '–'} | {marks} |")
    return "\n".join(rows)


def unfinished() -> str:
    """The registered settings without a complete record, each with its state and its reason."""
    rows = ["| setting | state | what it was for |", "|---|---|---|"]
    for one in settings():
        if not one["status"].startswith("complete"):
            name = one["name"]
            link = f"[{name}](../docs/results/{name}.md)" if (RESULTS / name).is_dir() else f"`{name}`"
            rows.append(f"| {link} | {one['status']} | {one['reason']} |")
    return "\n".join(rows)


def rooms() -> str:
    """The tree in a dozen lines: the first sentence of each room."""
    lines = ["```text", "src/retarget/"]
    for path in sorted((ROOT / "src" / "retarget").glob("*/__init__.py")):
        lines.append(f"  {path.parent.name}/".ljust(14) + re.sub(r" \(.*|: ``.*", "", _says(path)))
    lines += [path.ljust(14) + says for path, says in _beside()]
    return "\n".join([*lines, "```"])


def tree() -> str:
    """The package, one line for each file: the first sentence of each module's docstring."""
    lines = ["```text", "src/retarget/"]
    package = ROOT / "src" / "retarget"
    for path in _walk(package):
        depth = len(path.relative_to(package).parts)
        name = path.name + "/" * path.is_dir()
        lines.append(f"{'  ' * depth}{name}".ljust(30) + _says(path / "__init__.py" if path.is_dir() else path))
    return "\n".join(line.rstrip() for line in [*lines, "```"])


def _between(text: str, opening: str, closing: str, write: Callable[[re.Match[str]], str]) -> str:
    """Replace the text between two markers."""
    pattern = re.compile(rf"(?P<open><!-- {opening} -->\n)(?P<old>.*?)(?P<close><!-- end of {closing} -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match['open']}{write(match)}\n{match['close']}", text)


def _walk(folder: Path) -> Iterator[Path]:
    files = [path for path in folder.iterdir() if path.suffix == ".py" and not path.name.startswith("__init__")]
    for path in sorted(files):
        if path.name != "__main__.py":
            yield path
    for path in sorted(folder.iterdir()):
        if (path / "__init__.py").exists():
            yield path
            yield from _walk(path)


def _says(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.partition("\n\n")[0].split())
    return re.sub(r" \([^)]*$", "", first.partition(". ")[0].rstrip("."))


def _beside() -> Iterator[tuple[str, str]]:
    yield "benchmarks/", "every speed figure as a ratio to its peer (make bench)"
    yield "docs/", "the site (make docs): guides, architecture, results"
    yield "examples/", "one runnable file for each integration"
    yield "faults/", "damaged input of every kind, tallied (make faults)"
    yield "results/", "recorded studies, from which every table is made"
    yield "tests/", "mirrors src/ (make test)"
    yield "tools/", "writes the tables (make documents), judges records again"


if __name__ == "__main__":
    sys.exit(main())
