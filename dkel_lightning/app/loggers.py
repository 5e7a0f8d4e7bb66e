"""metrics.csv and Lightning's loggers."""

from __future__ import annotations

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from dkel_lightning.app.build import instantiate_extras
from dkel_lightning.app.run import Run
from dkel_lightning.runtime.ranks import is_first
from dkel_lightning.runtime.tables import write_csv

Row = dict[str, float]


class MetricsFile(Logger):
    """Write `metrics.csv`: a row for each step at which something was logged, epoch and step first.

    Unlike Lightning's CSVLogger it continues an existing file, and replaces it as a whole.

    Args:
        path: the CSV file.
        keep_before_step: the step of the resumed checkpoint: later rows, of epochs that are trained again, are dropped.
            None for a new file.
    """

    def __init__(self, path: Path, keep_before_step: int | None = None) -> None:
        super().__init__()
        self.path = path
        self._rows: dict[int, Row] = {}
        if keep_before_step is not None and path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                for cells in csv.DictReader(file):
                    row = {name: float(cell) for name, cell in cells.items() if cell}
                    if row["step"] < keep_before_step:
                        self._rows[int(row.pop("step"))] = row

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return self.path.parent.name

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the row of this step; summary.json has those of tests."""
        row = {name: float(value) for name, value in metrics.items() if not name.startswith("test/")}
        if row.keys() - {"epoch"}:
            self._rows.setdefault(int(step or 0), {}).update(row)

    @rank_zero_only
    def save(self) -> None:
        if not self._rows:
            return
        columns = dict.fromkeys(name for row in self._rows.values() for name in row if name != "epoch")
        rows: list[list[object]] = [["epoch", "step", *columns]]
        for step, row in sorted(self._rows.items()):
            epoch = int(row["epoch"]) if "epoch" in row else None
            rows.append([epoch, step, *(row.get(name) for name in columns)])
        write_csv(self.path, rows)


# ---------------------------------------------------------------------- TensorBoard, Weights & Biases, MLflow


def build_loggers(run: Run, step: int | None) -> list[Logger]:
    """Build the loggers of `logger.extra` in the first process, and log the run's settings.

    In their arguments, `{folder}` is replaced by the run's folder and `{run}` by its name.

    Args:
        run: the run.
        step: the step at which it is resumed; None for a new run.
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
