"""HTML that is escaped by construction: only `tag` and `raw` make Markup, and every other string becomes text."""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

VOID = ("meta", "wbr")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Escape a value, and replace what no HTML file may hold."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(_UNPRINTABLE.sub("\ufffd", str(value)), quote=True))


def raw(trusted: str) -> Markup:
    """Take over text of our own as it stands; never anything that was read from a run."""
    return Markup(trusted)


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Write one element; `class_` and `data_x` become class and data-x, an attribute that is None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{''.join(map(text, children))}</{name}>")


def join(parts: Iterable[object], between: str = "") -> Markup:
    """Put parts one after the other."""
    return Markup(text(between).join(map(text, parts)))


def dotted(key: str) -> Markup:
    """Write a dotted key that may break after its dots."""
    return join(key.split("."), raw(".<wbr>"))


def link(target: Path, base: Path, label: object) -> Markup:
    """Link to a file, relative to the folder of the page."""
    relative = os.path.relpath(os.path.abspath(target), os.path.abspath(base))  # noqa: PTH100  (links stay unresolved)
    # The leading ./ keeps a name such as `javascript:x` from being read as a scheme.
    return tag("a", label, href=f"./{quote(os.fsencode(relative.replace(os.sep, '/')))}")


def table(
    heading: Sequence[object], rows: Iterable[Sequence[object]], *, marked: Sequence[int] = (), text_columns: int = 1
) -> Markup:
    """Write a table that scrolls by itself where it is too wide; the first columns are text, the others figures."""

    def kind(position: int) -> str | None:
        return None if position < text_columns else "n"

    head = tag("tr", *(tag("th", cell, scope="col", class_=kind(i)) for i, cell in enumerate(heading)))
    body = [
        tag(
            "tr",
            *(
                tag("th", cell, scope="row") if i == 0 else tag("td", cell, class_=kind(i))
                for i, cell in enumerate(row)
            ),
            class_="best" if position in marked else None,
        )
        for position, row in enumerate(rows)
    ]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll")


def facts(pairs: Iterable[tuple[object, object]]) -> Markup:
    """Write names and values one below the other."""
    rows = [tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in pairs]
    return tag("div", tag("table", tag("tbody", *rows), class_="facts"), class_="scroll")


def items(parts: Sequence[object], kind: str | None = None) -> Markup:
    """Write a list; nothing for an empty one."""
    return tag("ul", *(tag("li", part) for part in parts), class_=kind) if parts else Markup("")


def section(title: str, *parts: object) -> tuple[str, Markup]:
    """Name a part of the page."""
    return title, join(parts)


def page(title: str, subtitle: str, opening: Sequence[object], sections: Sequence[tuple[str, Markup]]) -> str:
    """Write the whole page: nothing in it asks the network, and only our own script may run."""
    style, script = (_asset(name) for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", **{"http-equiv": "Content-Security-Policy", "content": policy}),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", raw(style)),
    )
    anchors = [tag("a", name, href=f"#{_anchor(name)}") for name, _ in sections]
    body = [tag("section", tag("h2", name), content, id=_anchor(name)) for name, content in sections]
    main = tag(
        "body",
        tag("header", tag("h1", title), tag("p", subtitle, class_="sub")),
        tag("nav", join(anchors, " ")),
        tag("main", *opening, *body),
        tag("script", raw(script)),
    )
    return f"<!doctype html>\n{tag('html', head, main, lang='en')}\n"


def _anchor(name: str) -> str:
    return re.sub(r"[^a-z]+", "-", name.lower()).strip("-")


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
