"""Configurations composed outside of a run: what can be chosen, and what a list of overrides leads to."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dkel_lightning.app.cli import user_code
from dkel_lightning.app.cli.refusals import refusal
from dkel_lightning.app.config import choices, store
from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime import command_lines
from dkel_lightning.settings.keys import shortened


def prefer_own_presets(config_dir: Path | None = None) -> None:
    """Declare our own nodes, and let conf/hydra stand for what Hydra's plugins bring under the same names.

    Their defaults are not ours: Optuna's sweeper would minimise the accuracy, unseeded.
    """
    Plugins.instance()  # registers theirs
    store.register(config_dir)
    for group in ("hydra/launcher", "hydra/sweeper", "hydra/sweeper/sampler"):
        there: Any = ConfigStore.instance().repo
        for part in group.split("/"):
            there = there.get(part, {})
        for path in (choices.folder() / group).glob("*.yaml"):
            there.pop(path.name, None)


def options(group: str, config_dir: Path | None) -> list[str]:
    """List the choices of a group, also those of the user's own; none where there is no such group."""
    return sorted({*choices.options(group, config_dir), *user_code.chosen_from(group)})


def groups_explained(config_dir: Path | None) -> str:
    """List what can be chosen, also of the user's own, for --help."""
    lines = []
    for group, meaning in choices.GROUPS.items():
        found = [option for option in options(group, config_dir) if "/" not in option]
        if group.startswith("hydra/"):
            found = ["basic", *found]
        lines.append(f"{group:<20}{meaning}")
        lines += textwrap.wrap(" ".join(found), 78, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def compose(overrides: Sequence[str], config_dir: Path | None = None, *, with_hydra: bool = False) -> DictConfig:
    """Compose the configuration, also of choices in a folder of the user's own, on request with Hydra's settings.

    Raises:
        ConfigError: what Hydra finds wrong, without its hints.
    """
    prefer_own_presets(config_dir)
    # Hydra takes what follows file:// as it is: a URI, whose blanks and umlauts are written otherwise, names no folder.
    place = "" if config_dir is None else command_lines.quoted(f"file://{config_dir.as_posix()}")
    search = [] if config_dir is None else [f"hydra.searchpath=[{place}]"]
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(choices.folder()), version_base="1.3", job_name="dkel_lightning"):
            return hydra.compose("config", overrides=[*overrides, *search], return_hydra_config=with_hydra)
    except (CompactHydraException, OmegaConfBaseException, ValueError) as error:
        if "Could not override 'scale'" in str(error):
            raise ConfigError("scale= belongs to an ablation: choose one with experiment=ablation/NAME.") from error
        raise ConfigError(str(error).split("\nTo append")[0]) from error
    except OSError as error:
        raise refusal(error) from error
    except TypeError as error:  # Hydra joins a list of lists to a path
        given = shortened(" ".join(overrides))
        raise ConfigError(f"Cannot compose {given}: a group takes the name of one choice, group=CHOICE.") from error


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Turn a composed configuration into plain values.

    Raises:
        ConfigError: an interpolation that leads nowhere, or a value that is missing.
    """
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    assert isinstance(values, dict)
    plain = {str(key): value for key, value in values.items() if key != "hydra"}
    plain["data"] = user_code.data_settings(plain["data"])
    return plain
