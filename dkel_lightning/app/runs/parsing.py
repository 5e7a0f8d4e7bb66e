"""Files of a run, read however they are: what is damaged is left out or said, and nothing in them is resolved."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from dkel_lightning.runtime.texts import first_line, plain_cell

LARGEST = 64 * 2**20
"""Bytes above which a file is not read: none of ours comes near."""


@dataclass(frozen=True)
class Curve:
    """One column of metrics.csv: values over epochs that count from 1."""

    epochs: Sequence[float]
    values: Sequence[float]

    @property
    def first_non_finite(self) -> float | None:
        """Epoch of the first value that is NaN or infinite."""
        return next((e for e, v in zip(self.epochs, self.values, strict=True) if not math.isfinite(v)), None)


@dataclass(frozen=True)
class Confusion:
    """How often images of each class (rows of `counts`) were given each class (columns)."""

    names: Sequence[str]
    counts: Sequence[Sequence[int]]


def read_text(path: Path, said: list[str] | None = None, missing: str | None = None) -> str | None:
    """Read a text file, None where it cannot be; adds why to `said`, and of a missing one only `missing`."""
    said = [] if said is None else said
    if not path.is_file():  # also a pipe, which would never end
        if missing is not None:
            said.append(f"No {path.name}: {missing}.")
        return None
    try:
        if path.stat().st_size > LARGEST:
            said.append(f"{path.name} is larger than {LARGEST // 2**20} MiB and was not read.")
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        said.append(f"{path.name} cannot be read ({error.strerror}).")
        return None


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV table into rows; empty where it cannot be read."""
    try:
        rows = csv.DictReader((read_text(path) or "").splitlines())
        return [
            {str(name): plain_cell(str(cell or "")) for name, cell in row.items() if name is not None} for row in rows
        ]
    except csv.Error:
        return []


def parse_settings(text: str) -> dict[str, Any]:
    """Parse the text of a config.yaml, which may be a stranger's; nothing in it is resolved.

    Raises:
        ValueError: saying in one line what is wrong with it.
    """
    try:
        aliased = "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
        found = None if aliased else OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except Exception as error:  # YAML and OmegaConf fail in many ways; all mean the same here
        problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
        raise ValueError(f"line {mark.line + 1}: {problem}" if problem and mark else first_line(error)) from error
    if aliased:  # a few lines of them can stand for gigabytes
        raise ValueError("it uses YAML aliases, which no run writes")
    if not isinstance(found, dict) or all(value is None for value in found.values()):
        raise ValueError("it holds no settings")
    return {str(key): value for key, value in found.items()}


def number(value: Any) -> float | None:
    """Read a number, also NaN and infinity; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        read = float(value)
    except (ValueError, OverflowError):
        return None
    return value if isinstance(value, int) else read


def parse_metrics(lines: Iterable[str]) -> Iterator[tuple[dict[str, float], list[str]]]:
    """Read each row of a metrics.csv: its numbers by column, and what is wrong with it."""
    reader = csv.DictReader(lines)
    for row in reader:
        there = {name: cell for name, cell in row.items() if cell not in (None, "")}
        numbers = {name: value for name, cell in there.items() if (value := number(cell)) is not None}
        wrong = {name: cell for name, cell in there.items() if name not in numbers}
        faults = [" has more cells than the heading" if n is None else f": {n} is {c!r}" for n, c in wrong.items()]
        yield numbers, [f"line {reader.line_num}{fault}" for fault in faults]


def parse_curves(text: str) -> tuple[dict[str, Curve], list[str]]:
    """Read the columns of a metrics.csv, and what is wrong with it."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    faults: list[str] = []
    bad = 0
    try:
        for row, wrong in parse_metrics(text.splitlines()):
            epoch = row.pop("epoch", math.nan)
            bad += len(wrong) or not math.isfinite(epoch)
            for name, value in row.items() if math.isfinite(epoch) else ():
                if name not in ("", "step"):
                    epochs, values = found.setdefault(name, ([], []))
                    epochs.append(epoch + 1)
                    values.append(value)
    except csv.Error as error:
        faults.append(f"metrics.csv is damaged ({error}); what stands before is drawn.")
    if bad:
        faults.append(f"metrics.csv is damaged: {bad} rows or cells hold no number and are left out.")
    elif not found:
        faults.append("metrics.csv is empty: no epoch has ended.")
    return {name: Curve(epochs, values) for name, (epochs, values) in found.items()}, faults


def parse_confusion(text: str) -> Confusion | None:
    """Read a confusion.csv; None where it is no table of counts."""
    try:
        heading, *rows = csv.reader(text.splitlines())
        counts = [[int(cell) for cell in row[1:]] for row in rows]
    except (csv.Error, ValueError):
        return None
    square = all(len(row) == len(heading) - 1 == len(counts) for row in counts)
    countable = all(0 <= count < 2**63 for row in counts for count in row)
    return Confusion([*map(plain_cell, heading[1:])], counts) if counts and square and countable else None
