"""Configurations composed outside of a run: what can be chosen, and what a list of overrides leads to."""

from __future__ import annotations

import textwrap
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
from dkel_lightning.app.cli.saved_settings import OF_EVERY_METHOD
from dkel_lightning.app.config import schema
from dkel_lightning.errors import ConfigError


def prefer_own_presets() -> None:
    """Let conf/hydra stand for what Hydra's plugins bring under the same names, which would be laid under it.

    Their defaults are not ours: Optuna's sweeper would minimise the accuracy, unseeded.
    """
    Plugins.instance()  # registers theirs
    for group in ("hydra/launcher", "hydra/sweeper", "hydra/sweeper/sampler"):
        there: Any = ConfigStore.instance().repo
        for part in group.split("/"):
            there = there.get(part, {})
        for path in (schema.folder() / group).glob("*.yaml"):
            there.pop(path.name, None)


def options(group: str, config_dir: Path | None) -> list[str]:
    """List the choices of a group, also those of a folder of the user's; none where there is no such group."""
    found = user_code.choices(group)
    for root in (schema.folder(), config_dir):
        if root is not None and (root / group).is_dir():
            files = [path for path in (root / group).rglob("*.yaml") if not path.stem.startswith("_")]
            found |= {path.relative_to(root / group).with_suffix("").as_posix() for path in files}
    return sorted(found)


def groups_explained() -> str:
    """List what can be chosen, for --help."""
    lines = []
    for group, meaning in schema.GROUPS.items():
        choices = [option for option in options(group, None) if "/" not in option]
        if group.startswith("hydra/"):
            choices = ["basic", *choices]
        lines.append(f"{group:<20}{meaning}")
        lines += textwrap.wrap(" ".join(choices), 78, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


OmegaConf.register_new_resolver("dkel_groups", groups_explained, replace=True)


def compose(overrides: list[str], *, with_hydra: bool = False) -> DictConfig:
    """Compose the configuration, on request with Hydra's own.

    Raises:
        ConfigError: what Hydra finds wrong, without its hints.
    """
    prefer_own_presets()
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(schema.folder()), version_base="1.3", job_name="dkel_lightning"):
            return hydra.compose("config", overrides=overrides, return_hydra_config=with_hydra)
    except (CompactHydraException, OmegaConfBaseException, ValueError) as error:
        if "Could not override 'scale'" in str(error):
            raise ConfigError("scale= belongs to an ablation: choose one with experiment=ablation/NAME.") from error
        raise ConfigError(str(error).split("\nTo append")[0]) from error
    except OSError as error:
        raise refusal(error) from error
    except TypeError as error:  # Hydra joins a list of lists to a path
        given = schema.shortened(" ".join(overrides))
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
    # A method of the user's own may leave out what all methods have.
    plain["method"] = {**OF_EVERY_METHOD, **plain["method"]}
    plain["data"] = user_code.data_settings(plain["data"])
    return plain
