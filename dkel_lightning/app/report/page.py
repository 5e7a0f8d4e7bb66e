"""A page as titled sections of notes, figures and tables, and its HTML: escaped by default, nothing fetched or run."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from dkel_lightning.app import drawing
from dkel_lightning.app.runs.kinds import PAGE
from dkel_lightning.app.runs.records import RunRecord
from dkel_lightning.runtime.atomic_files import write_bytes, write_text

LISTED = 200
ON_TEST_SET = "chosen on the test set (data.selection=paper)"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Link:
    """A cell that leads to a file."""

    label: str
    href: str

    @staticmethod
    def to(target: Path, where: Path, label: object) -> Link:
        """Link to a file, relative to the folder of the page."""
        relative = os.path.relpath(os.path.abspath(target), os.path.abspath(where))  # noqa: PTH100  (links unresolved)
        # The leading ./ keeps a name such as `javascript:x` from being read as a scheme.
        return Link(str(label), f"./{quote(os.fsencode(relative.replace(os.sep, '/')))}")


@dataclass(frozen=True)
class Table:
    """Rows under a heading, the first `text` columns words and the others figures; one row may be marked."""

    heading: Sequence[object]
    rows: Sequence[Sequence[object]]
    text: int = 1
    marked: int | None = None
    title: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page; `folded` is a summary and the text below it."""

    title: str
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Mapping[str, Figure] | None = None
    folded: tuple[str, str] | None = None


def write(where: Path, title: str, subtitle: str, warnings: Iterable[str], sections: Iterable[Section]) -> Path:
    """Write the page into a folder, and its figures beside it as SVG and PDF."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_printable
    )
    text = environment.from_string((HERE / "page.html").read_text(encoding="utf-8")).render(
        policy=f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'",
        style=style,
        title=title,
        subtitle=subtitle,
        warnings=[*warnings],
        sections=[{**vars(section), "images": [*_images(section, where)]} for section in sections],
    )
    write_text(where / PAGE, text)
    return where / PAGE


def _printable(value: Any) -> Any:
    """Replace what no HTML file may hold; what the template calls safe is left alone."""
    return value if hasattr(value, "__html__") else drawing.UNPRINTABLE.sub("\ufffd", str(value))


def _images(section: Section, where: Path) -> Iterator[tuple[str, str]]:
    for name, figure in (section.figures or {}).items():
        drawn = drawing.encoded(figure, "svg")
        write_bytes(where / "figures" / f"{name}.svg", drawn)
        write_bytes(where / "figures" / f"{name}.pdf", drawing.encoded(figure, "pdf"))
        yield name, f"data:image/svg+xml;base64,{base64.b64encode(drawn).decode()}"


# ---------------------------------------------------------------------- words


def percent(value: float | None) -> str:
    """Write a share in percent."""
    return "n/a" if value is None else f"{100 * value:.2f} %"


def show(value: Any) -> str:
    """Write a setting as YAML would."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def on_test_set(run: RunRecord) -> bool:
    """Whether the test set chose epoch and peer."""
    return "paper" in (run.setting("data.selection"), run.summary.get("selection"))


# ---------------------------------------------------------------------- files


def files(folder: Path, where: Path, depth: int = 2) -> Section:
    """List the files of a folder as links relative to the page: no hidden ones, and figures at any depth."""
    found = [*_walk(folder, depth)]
    rows = [[Link.to(p, where, p.relative_to(folder)), f"{p.stat().st_size / 1024:,.1f} KiB"] for p in found[:LISTED]]
    more = [f"Only the first {LISTED} files are listed."] if len(found) > LISTED else []
    return Section("Files", more, [Table(["file", "size"], rows)])


def _walk(where: Path, left: int) -> Iterator[Path]:
    try:
        entries = sorted(where.iterdir(), key=lambda path: (path.is_dir(), path.name))
    except OSError:
        return
    for path in entries:
        if path.name.startswith(".") or path.name == PAGE:
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and (left > 1 or path.name == "figures") and not path.is_symlink():
            yield from _walk(path, left - 1)
