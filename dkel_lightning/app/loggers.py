"""metrics.csv, and Lightning's own loggers beside it."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from dkel_lightning.app.build import instantiate_extras
from dkel_lightning.app.run import Run
from dkel_lightning.runtime.atomic_files import write_text
from dkel_lightning.runtime.ranks import is_first

Row = dict[str, float]


class MetricsFile(Logger):
    """Write `metrics.csv`: one row a step at which something was logged, epochs and steps first.

    Unlike Lightning's CSVLogger it goes on with an existing file: rows before `keep_before_step` stay, later ones
    (of epochs that a resumed run repeats) go. Every change is written to a temporary file that replaces the old one.
    Rows of earlier steps are kept as text, so that a run of many thousand epochs slows down by little.

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
            for step, row in _read_rows(path.read_text(encoding="utf-8")).items():
                if step < keep_before_step:
                    self._update(step, row)

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return self.path.parent.name

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml beside the file has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the row of this step; tests are left to summary.json, which names their checkpoint."""
        row = {name: float(value) for name, value in metrics.items() if not name.startswith("test/")}
        if row.keys() - {"epoch"}:
            self._update(int(step or 0), row)

    @rank_zero_only
    def save(self) -> None:
        if self._lines:
            write_text(self.path, "\n".join([*self._text(), ""]))

    def _text(self) -> list[str]:
        return [_line(["epoch", "step", *self._columns]), *(self._lines[step] for step in sorted(self._lines))]

    def _update(self, step: int, metrics: Row) -> None:
        if step != self._step:
            row = _read_rows("\n".join(self._text()))[step] if step in self._lines else {}
            self._step, self._row = step, row
        self._row.update(metrics)
        new = [name for name in metrics if name != "epoch" and name not in self._columns]
        if new:
            self._columns += new
            # A cell of each new column, empty in all rows so far.
            self._lines = {earlier: line + "," * len(new) for earlier, line in self._lines.items()}
        epoch = str(int(self._row["epoch"])) if "epoch" in self._row else ""
        cells = (repr(self._row[name]) if name in self._row else "" for name in self._columns)
        self._lines[step] = _line([epoch, str(step), *cells])


def _line(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def _read_rows(text: str) -> dict[int, Row]:
    rows = csv.DictReader(io.StringIO(text))
    return {
        int(row["step"]): {name: float(cell) for name, cell in row.items() if cell and name != "step"} for row in rows
    }


# ---------------------------------------------------------------------- TensorBoard, Weights & Biases, MLflow


def build_loggers(run: Run, step: int | None) -> list[Logger]:
    """Build the loggers of `logger.extra` in the first process, with the settings of the run.

    In their settings `{folder}` stands for the run's folder and `{run}` for its name.

    Args:
        run: the run.
        step: the step at which it goes on; None for one that begins.
    """
    if not is_first():
        return []
    nodes = _fill(run.values["logger"]["extra"], run.folder.resolve())
    for node in nodes.values():
        if step is not None and str(node.get("_target_")).endswith("TensorBoardLogger"):
            node["purge_step"] = step
    loggers: list[Logger] = instantiate_extras(nodes, "logger.extra")
    for logger in loggers:
        if step is None:
            logger.log_hyperparams(dict(run.values))
    return loggers


def _fill(settings: Any, folder: Path) -> Any:
    if isinstance(settings, Mapping):
        return {key: _fill(value, folder) for key, value in settings.items()}
    if isinstance(settings, str):
        return settings.replace("{folder}", folder.as_posix()).replace("{run}", folder.name)
    return settings


def log_pictures(loggers: list[Logger], folder: Path, step: int) -> None:
    """Send the figures of a run to the loggers that take pictures."""
    for path in sorted(folder.glob("*.png")):
        for logger in loggers:
            if isinstance(logger, TensorBoardLogger):
                with Image.open(path) as image:
                    logger.experiment.add_image(path.stem, np.asarray(image.convert("RGB")), step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.log_image(path.stem, [str(path)], step)
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.log_artifact(str(logger.run_id), str(path), "figures")
