"""Reads an HTML page for the tests: is it well formed, what does it say, what does it refer to?"""

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "br", "hr", "input", "wbr"}
INLINE = {"a", "small", "code"}


class Page(HTMLParser):
    """A parsed page; any tag that is not closed in order is an error.

    Attributes:
        tags: ``(name, attributes)`` in order.
        ids: every id, in order.
        references: what ``href``, ``src`` and the like point to.
        text: all text outside style sheets and scripts.
        rows: text of each table row's cells.
    """

    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.tags, self.ids, self.references, self.rows = [], [], [], []
        self.open, self.words = [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.words.append("" if tag in INLINE else " ")
        self.tags.append((tag, attributes))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.references += [attributes[key] for key in ("href", "src", "data", "action") if attributes.get(key)]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}> at {self.getpos()}"
        self.open.pop()
        self.words.append("" if tag in INLINE else " ")

    def handle_data(self, data):
        if "style" in self.open or "script" in self.open:
            return
        self.words.append(data)
        if self.rows and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)
