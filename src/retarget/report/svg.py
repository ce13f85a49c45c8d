"""Make matplotlib's SVG fit for a page: small, without clashing ids, in colours that follow the reader's scheme."""

import re
from xml.etree import ElementTree

from retarget.report.palette import DARK, INK, LIGHT, MUTED, PAPER, TEXT, VERDICTS

_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+\.\d+")
_HUES = {hex_: name for name, hex_ in LIGHT.items()}
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def tidy(source: str, prefix: str) -> str:
    """One ``<svg>`` element to embed in a page.

    Numbers are rounded to two decimals, redundant groups and unused ids are removed, and used ids get ``prefix``. Ink
    becomes ``currentColor``; a hue keeps its colour as a default and gets a class (``f-blue`` for fills, ``s-blue`` for
    strokes) by which a style sheet can lighten it (:func:`scheme`).

    Args:
        source: output of matplotlib's ``savefig(format="svg")`` with ``svg.fonttype: none``.
        prefix: unique among the drawings of one page; letters, digits and hyphens.
    """
    root = ElementTree.fromstring(source)
    for parent in list(root.iter()):
        for child in list(parent):
            invisible = child.tag == f"{{{_SVG}}}path" and child.get("style") == "fill: none"
            if invisible or child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    used = set(re.findall(r"url\(#([^)]+)\)", source)) | set(re.findall(r'xlink:href="#([^"]+)"', source))
    _clean(root, prefix, used)
    _flatten(root)
    root.attrib.pop("version", None)
    root.attrib.pop("width", None)
    root.attrib.pop("height", None)
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode")


def standalone(inline: str, width: int, height: int, alt: str) -> str:
    """The same drawing as a file, with its size, a style sheet for light and dark, and a description."""
    root = ElementTree.fromstring(inline)
    root.set("width", str(width))
    root.set("height", str(height))
    root.set("role", "img")
    description = ElementTree.Element(f"{{{_SVG}}}desc")
    description.text = alt
    sheet = ElementTree.Element(f"{{{_SVG}}}style")
    sheet.text = (
        f"svg{{background:{PAPER['light']};color:{TEXT['light']};font-family:{FONTS};stroke-linejoin:round}}"
        f"text{{fill:currentColor}}{_inks('light')}"
        f"@media(prefers-color-scheme:dark){{svg{{background:{PAPER['dark']};color:{TEXT['dark']}}}{scheme()}"
        f"{_inks('dark')}}}"
    )
    root.insert(0, description)
    root.insert(1, sheet)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def scheme() -> str:
    """CSS rules that lighten the hues for a dark background."""
    return "".join(
        f".f-{name}{{fill:{value}!important}}.s-{name}{{stroke:{value}!important}}" for name, value in DARK.items()
    )


def _inks(which: str) -> str:
    """The colours of quiet text and of the verdicts' marks, as in the page's style sheet."""
    marks = "".join(f".{mark}{{color:{ink}}}" for mark, ink in VERDICTS[which].items())
    return f".muted{{fill:{MUTED[which]}}}{marks}"


def _clean(root: ElementTree.Element, prefix: str, used: set[str]) -> None:
    for element in root.iter():
        element.tail = None
        if element.text is not None and not element.text.strip():
            element.text = None
        name = element.attrib.pop("id", None)
        if name in used:
            element.set("id", f"{prefix}-{name}")
        link = element.attrib.pop(_HREF, None)
        if link is not None:
            element.set("href", f"#{prefix}-{link[1:]}")
        if element.get("transform", "").startswith("rotate(-0") or element.get("transform", "").startswith("rotate(0"):
            del element.attrib["transform"]
        for key in ("d", "x", "y", "transform", "width", "height"):
            if key in element.attrib:
                element.set(key, _short(element.attrib[key]))
        if "clip-path" in element.attrib:
            element.set("clip-path", element.attrib["clip-path"].replace("url(#", f"url(#{prefix}-"))
        _colour(element, prefix)


def _colour(element: ElementTree.Element, prefix: str) -> None:
    """Rewrite style declarations: ink to currentColor, hues to classes, no font (it is inherited)."""
    declarations = dict(part.split(":", 1) for part in element.attrib.pop("style", "").split(";") if ":" in part)
    declarations = {key.strip(): value.strip() for key, value in declarations.items()}
    for key in ("fill", "stroke"):  # a hatch's background is a presentation attribute
        if key in element.attrib:
            declarations[key] = element.attrib.pop(key)
    classes = []
    for key, letter in (("fill", "f"), ("stroke", "s")):
        value = declarations.get(key, "")
        if value == INK:
            declarations[key] = "currentColor"
        elif value in _HUES:
            classes.append(f"{letter}-{_HUES[value]}")
        elif value.startswith("url(#"):
            declarations[key] = value.replace("url(#", f"url(#{prefix}-")
    declarations.pop("font-family", None)
    if classes:
        element.set("class", " ".join(classes))
    if declarations:
        text = ";".join(f"{key}:{value}" for key, value in declarations.items())
        element.set("style", text if "font" in text else _short(text))


def _flatten(parent: ElementTree.Element) -> None:
    """Replace groups without attributes by their children, in place and in order."""
    children: list[ElementTree.Element] = []
    for child in parent:
        _flatten(child)
        bare = not child.attrib and child.tag in (f"{{{_SVG}}}g", f"{{{_SVG}}}defs")
        if not bare or (child.tag == f"{{{_SVG}}}defs" and len(child)):
            children.append(child)
        else:
            children.extend(child)
    parent[:] = children


def _short(text: str) -> str:
    text = _NUMBER.sub(lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), text)
    return " ".join(text.split()).replace("-0 ", "0 ")
