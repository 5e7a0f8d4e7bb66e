"""Import a user's modules and the methods that they register."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore


def import_modules(names: Sequence[str]) -> None:
    """Import modules from the working folder or the environment."""
    if names and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for name in names:
        importlib.import_module(name)


def store_methods(names: Sequence[str], conf_dir: Path) -> None:
    """Import modules and make the methods that they register choices of `method=`."""
    import_modules(names)
    from dkel_lightning.methods import METHODS

    for name, preset in METHODS.items():
        if not (conf_dir / "method" / f"{name}.yaml").is_file():
            ConfigStore.instance().store(name, preset.node(), group="method", package="_global_")
