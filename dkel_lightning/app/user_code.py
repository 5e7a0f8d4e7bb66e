"""Code of the user's own: what `modules=[...]` registers becomes a choice of its group."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore


def import_modules(names: Sequence[str]) -> None:
    """Import modules found beside the working folder or installed: methods, backbones and data sets register."""
    if names and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for name in names:
        importlib.import_module(name)


def store_choices(names: Sequence[str], conf_dir: Path) -> None:
    """Import modules and give Hydra what they have registered; a file of conf/ stands for its name."""
    import_modules(names)
    from dkel_lightning import data, networks
    from dkel_lightning.methods import METHODS

    nodes: dict[tuple[str, str], dict[str, Any]] = {
        **{("method", name): preset.node() for name, preset in METHODS.items()},
        **{("backbone", name): {"defaults": ["_base"], "name": name} for name in networks.BACKBONES},
        **{("data", name): _data_node(name, kind) for name, kind in data.DATASETS.items()},
    }
    for (group, name), node in nodes.items():
        if not (conf_dir / group / f"{name}.yaml").is_file():
            package = "_global_" if group == "method" else None
            ConfigStore.instance().store(name, node, group=group, package=package)


def _data_node(name: str, kind: Any) -> dict[str, Any]:
    from dkel_lightning.data import ImageDataModule, own
    from dkel_lightning.settings.data import FACTS

    settings, shared = own.defaults(kind), own.defaults(ImageDataModule)
    if issubclass(kind, ImageDataModule):
        changed = {key: value for key, value in settings.items() if key not in shared or value != shared[key]}
        return {"defaults": ["_base"], "name": name, **changed}
    return {"name": name, "selection": "validation", **dict.fromkeys(("root", *FACTS)), **settings}
