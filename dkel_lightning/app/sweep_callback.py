"""What Hydra calls at the end of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class SweepTables(Callback):
    """Write the tables and figures of a sweep when its jobs have ended."""

    failed: ClassVar[list[str]] = []

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write the tables into the folder of the sweep, and print the main columns."""
        from dkel_lightning.app import sweep

        folder = Path(config.hydra.sweep.dir)
        self.failed[:] = sorted(path.parent.name for path in folder.rglob("failed.txt"))
        sweep.write_tables(folder, config.sweep.reference)
        sweep.print_tables(folder, config.sweep.reference)
