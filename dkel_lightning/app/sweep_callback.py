"""Hydra's callback around a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from dkel_lightning.errors import ConfigError

LABELS = ("method", "variant", "seed")
"""Keys that stay in a run's name even if they are constant: two sweeps may share a folder."""


class SweepTables(Callback):
    """Name the folders of the jobs, and write tables and figures at the end."""

    failed: ClassVar[list[str]] = []
    error: ClassVar[ConfigError | None] = None  # Hydra would turn it into a warning

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Name each job's folder by the overrides that vary, such as `method=dkel,seed=0`."""
        overrides = OverridesParser.create().parse_overrides([*config.hydra.overrides.task])
        constant = [item.key_or_group for item in overrides if not item.is_sweep_override()]
        excluded = [key for key in constant if key not in LABELS]
        with open_dict(config):
            # Without a key that varies, here or in an ablation, the folder of the sweep would be that of the run.
            if len(excluded) == len(overrides) and not config.hydra.sweeper.get("params"):
                config.hydra.overrides.hydra.append("hydra.sweep.subdir=run")
            config.hydra.overrides.hydra.append(
                f"hydra.job.config.override_dirname.exclude_keys=[{','.join(excluded)}]"
            )

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write the tables of trainings into the sweep's folder and print the main columns."""
        from dkel_lightning.app import sweep

        folder = Path(config.hydra.sweep.dir)
        self.failed[:] = sorted(str(path.parent.relative_to(folder)) for path in folder.rglob("failed.txt"))
        if config.task.name == "train":
            try:
                sweep.write_tables(folder, config.sweep.reference)
            except ConfigError as error:
                SweepTables.error = error
