"""Locate conf/, compose and resolve configurations. Imports neither torch nor Lightning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from dkel_lightning.runtime.mappings import leaves
from dkel_lightning.settings.declarations import unknown_key

Values = Mapping[str, Any]
"""A resolved configuration: nested mappings, lists, strings, numbers."""

PACKAGE = Path(__file__).parent.parent
OPEN_GROUPS = ("trainer", "optimizer", "scheduler")
"""Groups whose keys are arguments of a class of another library."""


def conf_dir() -> Path:
    """Return conf/: inside the package in a wheel, next to it in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def register(arguments: Iterable[str] = ()) -> None:
    """Register with Hydra the resolver of run folders and the methods of `modules=[...]`."""
    from dkel_lightning.app.run import run_dir

    OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
    for argument in arguments:
        if argument.startswith("modules="):
            from dkel_lightning.app.user_code import store_methods

            names: Any = OverridesParser.create().parse_overrides([argument])[0].value()
            store_methods(names, conf_dir())


def compose(overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """Compose a configuration outside of `@hydra.main`."""
    register(overrides)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="dkel_lightning"):
        return hydra.compose("config", overrides=[*overrides], return_hydra_config=with_hydra)


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Turn a composed configuration into plain values."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    OmegaConf.copy_cache(cfg, own)  # of ${now:}
    values: Any = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    return dict(values)


def typed_keys(overrides: Sequence[str]) -> set[str]:
    """Return the groups and keys that overrides name."""
    return {item.key_or_group for item in OverridesParser.create().parse_overrides([*overrides])}


def explain(message: str, arguments: Sequence[str]) -> str:
    """Suggest keys for a misspelt one, in place of Hydra's advice to add it with a plus."""
    misspelt = re.search(r"Could not override '([^']+)'", message)
    if misspelt is None:
        return message.partition("\nConfig search path")[0]
    choices = [item for item in arguments if re.match(r"[\w/]+=[\w./:-]+$", item)]
    choices = [item for item in choices if (conf_dir() / item.split("=")[0]).is_dir()]
    return explain_key(misspelt[1], compose(choices))


def explain_key(key: str, cfg: DictConfig) -> str:
    """Suggest groups and keys for a misspelt one, such as `trainer.max_epochs` for `epochs`."""
    values: Any = OmegaConf.to_container(cfg, resolve=False)
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    more = f" Another argument of the class: +{key}=VALUE." if key.rpartition(".")[0] in OPEN_GROUPS else ""
    return unknown_key(key, {*groups, *values, *leaves(values)}, most=3) + more
