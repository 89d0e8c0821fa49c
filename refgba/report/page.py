"""One HTML file that needs nothing else: no network, no other file; light, dark, narrow and printed.

    page("A title", "what it says", [Section("Loss", figure(fig, "loss against step")), Section("Runs", table(...))])

Text becomes markup in one place, `markup`, which escapes every `str` but `Html`.  The page's own policy forbids it to
load anything, and to run any script but the one it was made with.

Figures are inline SVG: those of `refgba.report.plot`, or matplotlib's (`figure`), which is then in the page's colours:
black becomes that of the text, white that of the background, and matplotlib's own cycle becomes the page's.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from refgba.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING = "these figures are drawn with matplotlib, which is not installed: pip install matplotlib"
SERIES = ("#1f5fbf", "#c2410c", "#0f7b4f", "#8b3fb5", "#8a6100", "#b3205f")  # --s1 to --s6 of the light scheme
DASHES = ("", "6 3", "2 2", "8 2 2 2")  # No line differs from another by its colour alone.
# So pages of every version begin.
BEGINNING = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; """
BESIDE = " 'self' file:"  # in the policy of a page that loads others
HEAD = 2**16  # bytes that hold the title of any page
NARROW = 4.2  # Inches of a figure whose text is as large as the page's at the width of a telephone.

_VOID = {"br", "hr", "img", "input", "link", "meta"}
_TAB10 = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#bcbd22", "#d62728")
_COLOURS = (
    {"#000000": "currentColor", "#ffffff": "var(--ground)", "#808080": "var(--muted)", "#b0b0b0": "var(--line)"}
    | {colour: f"var(--s{i})" for i, colour in enumerate(SERIES, 1)}
    | {colour: f"var(--s{i})" for i, colour in enumerate(_TAB10, 1)}
)
_CONTROL = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\ufffe\\uffff]")
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


# ---- markup ----------------------------------------------------------------------------------------------------------


class Html(str):
    """Markup, to be taken as it is.  Any other `str` is text."""


def markup(value: object) -> Html:
    """`value` as markup: Html as it is, everything else as text, escaped."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(_plain(str(value))))


def _plain(text: str) -> str:
    """Text without what neither HTML nor XML can hold: control characters and halves of characters."""
    return _CONTROL.sub("\ufffd", text.encode("utf-8", "replace").decode())


def join(*parts: object) -> Html:
    """The parts one after the other, each as `markup`."""
    return Html("".join(map(markup, parts)))


def element(tag: str, *children: object, **attributes: object) -> Html:
    """<tag attributes>children</tag>, all of it escaped as `markup`.

    class_ is class and aria_label aria-label; None or False leaves an attribute out, True gives it no value.
    """
    text = ""
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        text += f" {name}" if value is True else f' {name}="{markup(value)}"'
    return Html(f"<{tag}{text}>" if tag in _VOID else f"<{tag}{text}>{join(*children)}</{tag}>")


def data_script(name: str, text: str) -> Html:
    """A block of data for the page's script, by its id; `text` is ASCII without `<`, such as base64 or `json_text`.

    ValueError for any other text.
    """
    if not text.isascii() or "<" in text:
        raise ValueError("data for a script must be ASCII without <")
    return Html(f'<script type="application/octet-stream" id="{markup(name)}">{text}</script>')


def json_text(text: str) -> str:
    """JSON, as json.dumps writes it, that no HTML parser sees an end or a comment in."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# ---- blocks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """A part of a page under its own heading.  lead: a sentence or two on what is seen.  body: text, or Html."""

    title: str
    body: str
    lead: str = ""

    @property
    def anchor(self) -> str:
        """Its id in the page."""
        return "s-" + (re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") or "section")


def pager() -> Html:
    """Buttons that turn the pages of a long table, shown by the page's script."""
    pages = {"begin": "First", "back": "Previous", "on": "Next", "end": "Last"}
    buttons = [element("button", text, type="button", name=name) for name, text in pages.items()]
    return element("div", *buttons, class_="pager", hidden=True)


def table(
    columns: Sequence[object], rows: Sequence[Sequence[object]], caption: str = "", heads: bool = True,
    sortable: bool = False,
) -> Html:  # fmt: skip
    """A table; numbers (int and float, and text that begins like one) are set right.

    heads: the first cell of each row is its heading.  sortable: the page's script sorts it by the column clicked.
    """

    def cell(i: int, value: object) -> Html:
        head = heads and i == 0
        return element("th" if head else "td", value, scope="row" if head else None, class_="n" if numeric[i] else None)

    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    top = [element("th", c, scope="col", class_="n" if numeric[i] else None) for i, c in enumerate(columns)]
    body = [element("tr", *(cell(i, value) for i, value in enumerate(row))) for row in rows]
    head = element("caption", caption) if caption else ""
    return scroller(
        element(
            "table", head, element("thead", element("tr", *top)), element("tbody", *body),
            class_="sortable" if sortable else None,
        ),
        caption or "table",
    )  # fmt: skip


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or bool(re.match(r"^([-−+]?\d|–$)", str(value)))


def scroller(content: Html, name: str) -> Html:
    """What may be wider than the page, with a scroll bar of its own that the keyboard reaches."""
    return element("div", content, class_="scroll", role="region", tabindex="0", aria_label=name)


def grid(*items: object) -> Html:
    """Items side by side, as many as the page is wide."""
    return element("div", *items, class_="grid")


def dash(i: int) -> str:
    """The dashes of line i, for SVG: empty for none."""
    return DASHES[(i + i // len(SERIES)) % len(DASHES)]


def legend(names: Sequence[str]) -> Html:
    """The names of the lines, for figures that draw line i in colour i and with `dash(i)`."""
    items = []
    for i, name in enumerate(names):
        colour, dashes = i % len(SERIES) + 1, dash(i)
        line = (
            f'<svg class="key" viewBox="0 0 34 8" aria-hidden="true"><path d="M1 4H33" '
            f'style="stroke: var(--s{colour}); stroke-width: 2.5; stroke-dasharray: {dashes or "none"}"/></svg>'
        )
        items.append(element("li", Html(line), " ", element("bdi", name)))
    return element("ul", *items, class_="legend", aria_label="Lines")


def bars(values: Sequence[float], alt: str, top: float | None = None) -> Html:
    """A row of small bars, as high as `values` are against `top` or the largest."""
    most = top or max(values, default=0) or 1
    width = 100 / max(1, len(values))
    parts = (
        f"M{i * width + width * 0.08:.2f} 24v{-24 * min(1, max(0, v) / most):.2f}h{width * 0.84:.2f}V24z"
        for i, v in enumerate(values)
    )
    return Html(
        f'<svg class="bars" viewBox="0 0 100 24" preserveAspectRatio="none" role="img" aria-label="{markup(alt)}">'
        f'<path d="{"".join(parts)}"/><path class="base" d="M0 24H100"/></svg>'
    )


def page(
    title: str, lead: str, sections: Sequence[Section], script: str = "", style: str = "", beside: bool = False
) -> str:
    """The whole file.  lead: text, or Html, of the first screen.  script: JavaScript to run at the end of the page.

    style: CSS after that of all pages.  beside: whether the script may load others that lie beside the page.

    ValueError for a script that would end its own element.
    """
    if re.search(r"</script|<!--", script, re.IGNORECASE):
        raise ValueError("the script of a page must not hold </script or <!--")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    policy += BESIDE if beside else ""
    anchors = _anchors(sections)
    links = [element("li", element("a", s.title, href=f"#{a}")) for s, a in zip(sections, anchors, strict=True)]
    return join(
        Html(f'{BEGINNING}{policy}">\n'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">\n'),
        Html('<meta name="color-scheme" content="light dark">\n'),
        element("title", title),
        Html(f"\n<style>\n{resource('page.css')}{style}</style>\n</head>\n<body>\n"),
        element("header", element("h1", title), lead if isinstance(lead, Html) else element("p", lead)),
        Html("\n"),
        element("nav", element("ul", *links), aria_label="Sections") if len(sections) > 1 else "",
        Html("\n<main>\n"),
        *(_section(s, a) for s, a in zip(sections, anchors, strict=True)),
        Html("</main>\n"),
        Html(f"<script>{script}</script>\n" if script else ""),
        Html("</body>\n</html>\n"),
    )


def title_of(path: Path) -> str | None:
    """The title, as markup, of a page that stands alone, of any version of this program; None for every other file."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    title = re.search(rb"<title>(.*?)</title>", head, re.DOTALL)
    if not head.startswith(BEGINNING.encode()) or title is None or BESIDE.encode() in head[: title.start()]:
        return None
    return title[1].decode(errors="replace")


def _section(section: Section, anchor: str) -> Html:
    lead = element("p", section.lead, class_="lead") if section.lead else ""
    body = section.body if isinstance(section.body, Html) else element("p", section.body)
    return join(element("section", element("h2", section.title), lead, body, id=anchor), Html("\n"))


def _anchors(sections: Sequence[Section]) -> list[str]:
    anchors: list[str] = []
    for section in sections:
        same = sum(section.anchor == other.anchor for other in sections[: len(anchors)])
        anchors.append(section.anchor + (f"-{same + 1}" if same else ""))
    return anchors


def resource(name: str) -> str:
    """The text of a file that lies beside this one."""
    return resources.files("refgba.report").joinpath(name).read_text(encoding="utf-8")


# ---- figures ---------------------------------------------------------------------------------------------------------


def figure(fig: Figure, alt: str, title: str = "", note: str = "") -> Html:
    """A matplotlib figure as inline SVG in the page's colours.

    alt says in words what it shows; title stands above it, note below.  One wider than NARROW grows with the page, and
    is never so small that its text cannot be read: a telephone scrolls it.  InputError where matplotlib is missing.
    """
    try:
        from matplotlib import rc_context
    except ImportError:
        raise InputError(MISSING) from None
    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "refgba"}):
        fig.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = _inline(out.getvalue(), alt)
    head, foot = element("figcaption", title) if title else "", element("p", note, class_="note") if note else ""
    inches = fig.get_figwidth()
    if inches <= NARROW:
        return element("figure", head, drawn, foot, class_="chart")
    return element(
        "figure", head, scroller(drawn, title or alt), foot, class_="chart wide", style=f"--inches: {inches:g}"
    )


def _inline(svg: str, alt: str) -> Html:
    """matplotlib's SVG without what only a file of its own needs; ids that no other figure has; the page's colours."""
    prefix = "f" + hashlib.sha256((alt + svg).encode("utf-8", "replace")).hexdigest()[:8] + "-"
    root = ElementTree.fromstring(_plain(svg))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for node in root.iter():
        node.tag = node.tag.removeprefix(_SVG)
        _restyle(node, prefix)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": _plain(alt)}
    return Html(ElementTree.tostring(root, encoding="unicode"))


def _restyle(node: ElementTree.Element, prefix: str) -> None:
    style = node.get("style", "")
    for name in ("fill", "stroke"):  # var() is known to styles only
        if name in node.attrib:
            style = f"{name}: {node.attrib.pop(name)}; {style}"
    if style:
        node.set("style", re.sub(r"#[0-9a-f]{6}\b", lambda found: _COLOURS.get(found[0], found[0]), style))
    if f"{_XLINK}href" in node.attrib:
        node.set("href", node.attrib.pop(f"{_XLINK}href"))
    for name, value in list(node.attrib.items()):
        if name == "id":
            node.set(name, prefix + value)
        elif name == "href" and value.startswith("#"):
            node.set(name, "#" + prefix + value[1:])
        else:
            node.set(name, value.replace("url(#", f"url(#{prefix}"))
