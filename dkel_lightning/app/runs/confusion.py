"""The mistakes of the deployed network in the test: confusion.csv and its figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dkel_lightning.app import drawing, figures
from dkel_lightning.app.runs.records import CONFUSION
from dkel_lightning.app.runs.scores import Scores
from dkel_lightning.app.runs.tables import write_csv

FIGURE = Path("figures") / "confusion.png"


def write(scores: Scores, names: Sequence[str], folder: Path, also: Sequence[str] = ()) -> Path | None:
    """Write both into a folder and return the PNG; None where nothing was counted."""
    if scores.confusion is None:
        return None
    lines = [["true class", *names]]
    lines += [[name, *map(str, row)] for name, row in zip(names, scores.confusion, strict=True)]
    write_csv(folder / CONFUSION, lines)
    drawing.save(figures.confusion(scores.confusion, names), folder / FIGURE, also)
    return folder / FIGURE
