"""Made-up runs, and what any page must be."""

from __future__ import annotations

import base64
import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from omegaconf import DictConfig, OmegaConf

from tests.compose import compose

MEMBERS = ("student_0", "student_1", "student_mean", "student_best", "ensemble", "teacher_0", "teacher_1")


def a_test(epoch: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    """Make one test of summary.json; each member has figures of its own."""
    return {
        "epoch": epoch,
        "images": 360,
        "validated": True,
        "deployed": "teacher_1",
        "deployed_accuracy": accuracy,
        "accuracy": {m: 0.9 + 0.0011 * i for i, m in enumerate(MEMBERS)} | {"teacher_1": accuracy},
        "nll": {m: 0.1 + 0.0123 * i for i, m in enumerate(MEMBERS)},
        "calibration": {m: 0.01 + 0.0017 * i for i, m in enumerate(MEMBERS)},
        "disagreement": 0.0123,
        "distance": 0.456,
        **changes,
    }


def settings(*overrides: str) -> DictConfig:
    """Give a configuration; composing takes long, so only the choice of groups is composed, and that once."""
    keys = [item for item in overrides if "." in item.split("=")[0] or item.startswith("seed=")]
    values = OmegaConf.create(compose(*(item for item in overrides if item not in keys)))
    values.merge_with_dotlist(keys)
    return values


def write_run(
    folder: Path,
    *overrides: str,
    accuracy: float = 0.9611,
    curves: Mapping[str, list[float]] | None = None,
    summary: bool = True,
) -> Path:
    """Write the files that a finished run leaves."""
    folder.mkdir(parents=True)
    values = settings(*overrides)
    OmegaConf.save(values, folder / "config.yaml")
    content = {
        "data": "digits",
        "method": values["method"]["name"],
        "seed": values["seed"],
        "selection": values["data"]["selection"],
        "test": {"last": a_test(6, accuracy - 0.01), "best": a_test(4, accuracy)},
        "images_per_second": 1234.4,
        "seconds": 56.78,
        "peak_memory": {"bytes": 3 * 2**20, "of": "process"},
        "deployed_parameters": 77754,
    }
    if summary:
        (folder / "summary.json").write_text(json.dumps(content))
    provenance = {"command": "dkel seed=3", "python": "3.11.7", "packages": {"torch": "2.99.1"}, "git": None}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    write_metrics(folder, curves or {"val/acc": [0.5, 0.9], "train/loss": [2.0, 1.0]})
    return folder


def write_metrics(folder: Path, curves: Mapping[str, list[float]]) -> None:
    """Write metrics.csv with a row an epoch."""
    length = max(map(len, curves.values()))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "step", *curves])
        for epoch in range(length):
            cells = [repr(values[epoch]) if epoch < len(values) else "" for values in curves.values()]
            writer.writerow([epoch, 10 * (epoch + 1), *cells])


class Reader(HTMLParser):
    """Gather a page's elements, and what is not balanced in it."""

    VOID = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.faults: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.said: list[str] = []
        self.feed(text)
        self.close()
        self.faults += [f"<{name}> is never closed" for name in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        names = [name for name, _ in attrs]
        self.faults += [f"<{tag}> has {name} twice" for name in names if names.count(name) > 1]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.said.append(data)

    @property
    def text(self) -> str:
        """What the page says."""
        return " ".join(" ".join(self.said).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        """Give the attributes of every such element."""
        return [attributes for name, attributes in self.elements if name == tag]


def read(page: str) -> Reader:
    """Read a page, and demand what holds for each: balanced, nothing fetched, no script."""
    reader = Reader(page)
    assert reader.faults == []
    assert [*fetched(page, reader)] == []
    assert reader.all("script") == []
    assert [name for name, attributes in reader.elements for key in attributes if key.startswith("on")] == []
    assert [name for name, attributes in reader.elements if "style" in attributes] == []  # the policy would drop it
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    return reader


def fetched(page: str, reader: Reader) -> Iterator[str]:
    """Give whatever in a page would ask something outside of it to be opened."""
    yield from (name for name, _ in reader.elements if name in ("link", "iframe", "object", "embed", "base", "svg"))
    yield from re.findall(r"url\([^)]*\)|@import[^;]*", page)
    for name, attributes in reader.elements:
        for key, value in attributes.items():
            inside = name == "img" and value.startswith("data:image/svg+xml;base64,")
            outside = value.startswith(("http:", "https:", "//", "data:", "javascript:", "/"))
            if key in ("src", "href", "srcset", "action", "xlink:href") and outside and not inside:
                yield f"{name} {key}={value}"


Drawn = Callable[[Reader], dict[str, str]]


def drawn(reader: Reader) -> dict[str, str]:
    """Give what the figures of a page say, by name: well-formed SVG that opens nothing."""
    found = {}
    for one in reader.all("img"):
        root = ElementTree.fromstring(base64.b64decode(one["src"].partition(",")[2]))
        for element in root.iter():
            assert not element.tag.endswith("script")
            for key, value in element.attrib.items():
                assert not key.startswith("on")
                assert not key.endswith("href") or value.startswith(("#", "data:image/png;base64,"))
        found[one["alt"]] = " ".join(" ".join(root.itertext()).split())
    return found
