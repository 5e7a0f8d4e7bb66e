"""The documentation builds as a site without a warning, without torch and without a network, and its links hold."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from tests.figures import draw

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
TOO_OLD = sys.version_info < (3, 11)


def settings() -> dict[str, Any]:
    # Without the function that makes anchors, which is of no interest here and which a safe loader refuses.
    text = re.sub(r"!!python/\S+", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    return yaml.safe_load(text)


def in_nav(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    for inner in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
        yield from in_nav(inner)


def test_every_page_is_in_the_navigation_once_and_every_entry_is_a_page() -> None:
    entries = list(in_nav(settings()["nav"]))
    assert sorted(entries) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


# ---------------------------------------------------------------------- the built site


class Page(HTMLParser):
    """What a page asks the browser to load, where it leads, and the anchors it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" or (tag == "link" and given.get("rel") in ("prev", "next")):
            self.links.append(given.get("href", ""))
        else:
            self.loaded += [given[name] for name in ("src", "srcset", "href", "data", "poster") if name in given]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built from a copy of its sources, with importing torch and reaching a network made impossible."""
    if TOO_OLD:
        pytest.skip("Zensical needs Python 3.11")
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(DOCS, folder / "docs")
    shutil.copytree(ROOT / "dkel_lightning", folder / "dkel_lightning", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("torch", "lightning"):
        (folder / "absent" / name).mkdir(parents=True)
        (folder / "absent" / name / "__init__.py").write_text(f"raise ImportError('the site imports {name}')\n")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean"],
        cwd=folder, capture_output=True, text=True, timeout=240, check=False,
        env=os.environ | nowhere | {"PYTHONPATH": str(folder / "absent"), "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


@pytest.mark.slow
def test_every_page_is_built_and_the_reference_has_its_classes(site: Path, pages: dict[Path, Page]) -> None:
    sources = [path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")]
    expected = {site / (path.parent / "index.html" if path.stem == "README" else path) for path in sources}
    assert expected <= pages.keys()
    modules = pages[site / "reference" / "modules.html"]
    names = {f"dkel_lightning.modules.{name}" for name in ("distillation.DistillationModule", "student.StudentModule")}
    assert names <= modules.anchors
    # A docstring's text, not its name alone.
    assert "One training step: all views pass the student and the teacher" in " ".join(modules.text.split())
    # A setting's meaning and type are those of its declaration.
    assert "dkel_lightning.settings.teacher.TeacherSettings.start" in modules.anchors
    assert "Rule of the first EMA updates." in modules.text
    assert "Annotated" not in modules.text


@pytest.mark.slow
def test_every_link_of_the_site_leads_to_a_file_and_an_anchor_of_it(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        # Of a page for wrong addresses, which is opened anywhere.
        if path.name == "404.html":
            continue
        for url in [*page.links, *page.loaded]:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() and parts.path.endswith("/") else target
            known = pages[target].anchors if target in pages else set()
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in {*known, "__skip"}):
                broken.append(f"{path.relative_to(site)}: {url}")
    assert not broken


# ---------------------------------------------------------------------- figures


def test_the_figures_are_what_their_script_draws() -> None:
    for name, drawn in draw.DRAWN.items():
        assert (DOCS / "figures" / name).read_text(encoding="utf-8") == drawn(), "run: python docs/figures/draw.py"
