"""The metrics of a run as one CSV file, always whole on disk."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from dkel_lightning.app.runs.parsing import parse_metrics
from dkel_lightning.errors import DataError
from dkel_lightning.runtime.atomic_files import text_of, write_text

Row = dict[str, float]


class MetricsFile(Logger):
    """Write `metrics.csv`: one row a step at which something was logged, epochs and steps first.

    Unlike Lightning's CSVLogger it goes on with an existing file: rows before `keep_before_step` stay, later ones
    (of epochs that a resumed run repeats) go. Every change is written to a temporary file that replaces the old one.
    Rows of earlier steps are kept as text alone, so that a run of many thousand epochs slows down by little.

    Args:
        path: the CSV file.
        keep_before_step: the step of the checkpoint that is resumed; None starts anew.
    """

    def __init__(self, path: Path, keep_before_step: int | None = None) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] = []
        self._lines: dict[int, str] = {}
        self._step, self._row = -1, Row()
        if keep_before_step is not None and path.is_file():
            for step, row in read_rows(path).items():
                if step < keep_before_step:
                    self._update(step, row)

    @property
    def name(self) -> str:
        """Name this logger."""
        return "csv"

    @property
    def version(self) -> str:
        """Return the folder of the run; a run has one version."""
        return self.path.parent.name

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml beside the file has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add metrics to the row of this step; tests are left to summary.json, which names their checkpoint."""
        kept = {name: float(value) for name, value in metrics.items() if not name.startswith("test/")}
        if kept.keys() - {"epoch"}:
            self._update(int(step or 0), kept)

    @rank_zero_only
    def save(self) -> None:
        """Write all rows, columns in order of first appearance."""
        if self._lines:
            rows = [self._lines[step] for step in sorted(self._lines)]
            write_text(self.path, "\n".join([_line(["epoch", "step", *self._columns]), *rows, ""]))

    def rows(self) -> dict[int, Row]:
        """Return all rows by step."""
        return _by_step([_line(["epoch", "step", *self._columns]), *self._lines.values()])

    def _update(self, step: int, metrics: Row) -> None:
        if step != self._step:
            there = self.rows()[step] if step in self._lines else {}
            self._step, self._row = step, there
        self._row.update(metrics)
        new = [name for name in metrics if name != "epoch" and name not in self._columns]
        self._columns += new
        if new:
            # A cell of each new column, empty in all rows so far.
            self._lines = {earlier: line + "," * len(new) for earlier, line in self._lines.items()}
        self._lines[step] = self._format(step, self._row)

    def _format(self, step: int, row: Row) -> str:
        epoch = str(int(row["epoch"])) if "epoch" in row else ""
        return _line([epoch, str(step), *(repr(row[name]) if name in row else "" for name in self._columns)])


def _line(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def read_rows(path: Path) -> dict[int, Row]:
    """Read a metrics.csv into rows by step.

    Raises:
        DataError: it is damaged.
    """
    try:
        return _by_step(text_of(path).splitlines())
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path} is damaged ({error}): move it away to go on without its rows.") from error


def _by_step(lines: list[str]) -> dict[int, Row]:
    found: dict[int, Row] = {}
    for line, (row, faults) in enumerate(parse_metrics(lines), 2):
        if faults or "step" not in row:
            raise ValueError(faults[0] if faults else f"line {line} has no step")
        if not float(step := row.pop("step")).is_integer():
            raise ValueError(f"line {line}: step is '{step}'")
        found[int(step)] = row
    return found
