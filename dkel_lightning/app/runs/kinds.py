"""What a folder holds: a run, a sweep or a comparison. Imports neither torch nor Lightning."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Kind = Literal["run", "sweep", "comparison"]

NOTE = "job.json"
"""What a job of a sweep was set to, and how it ended."""
FAILED = "failed.txt"
"""Why a run of a comparison has failed."""
RUN_FILES = ("config.yaml", "summary.json", "metrics.csv", "provenance.json", FAILED, NOTE)
COMPARISON_FILES = ("compare.md", "compare.csv", "members.csv")
SWEEP_FILES = ("multirun.yaml", "sweep.csv")


def kind(folder: Path) -> Kind | None:
    """Tell what a folder holds, None if it is neither run, sweep nor comparison."""
    if not folder.is_dir():
        return None
    if _has(folder, COMPARISON_FILES) or any(members(folder)):
        return "comparison"
    if _has(folder, SWEEP_FILES):
        return "sweep"
    if _has(folder, RUN_FILES):
        return "run"
    return "sweep" if any(path.name.isdigit() and is_run(path) for path in _folders(folder)) else None


def is_run(folder: Path) -> bool:
    """Whether a folder holds at least one file of a run."""
    return _has(folder, RUN_FILES)


def jobs(sweep: Path) -> list[Path]:
    """List the folders of a sweep's jobs, by number where they are numbered: those with a note, else every run."""
    found = [path.parent for path in sweep.rglob(NOTE)] or [path for path in _folders(sweep) if is_run(path)]

    def place(path: Path) -> tuple[bool, int, str]:
        number = path.relative_to(sweep).as_posix().partition("_")[0]
        return not number.isdecimal(), int(number) if number.isdecimal() else 0, str(path)

    return sorted(found, key=place)


def members(comparison: Path) -> Iterator[tuple[str, int, Path]]:
    """Give label, seed and folder of each member of a comparison that has begun."""
    for label in sorted(_folders(comparison)):
        seeds = {path: re.fullmatch(r"seed_(\d+)", path.name) for path in _folders(label) if is_run(path)}
        found = [(int(seed[1]), path) for path, seed in seeds.items() if seed is not None]
        yield from ((label.name, seed, path) for seed, path in sorted(found))


def _has(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / name).is_file() for name in names)


def _folders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return []
