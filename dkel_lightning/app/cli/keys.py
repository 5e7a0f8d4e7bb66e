"""Whether the groups and keys of overrides exist, and what is said of those that do not."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dkel_lightning.app.cli import composition
from dkel_lightning.app.cli.composition import options, resolved
from dkel_lightning.app.cli.overrides import parse
from dkel_lightning.app.config import choices, schema
from dkel_lightning.app.tasks import registry
from dkel_lightning.errors import ConfigError
from dkel_lightning.settings.keys import unknown_choice, unknown_key

# What Lightning's Trainer takes and this library decides.
DECIDED = ["logger", "callbacks", "plugins", "precision", "use_distributed_sampler", "default_root_dir"]
DECIDED += ["enable_progress_bar", "enable_model_summary", "enable_checkpointing", "inference_mode", "barebones"]
# Groups of which several choices can be made at once: logger=[tensorboard,wandb].
SEVERAL = ("logger",)

_MISSING: Any = object()


def composed(items: Sequence[str], config_dir: Path | None = None) -> DictConfig:
    """Compose overrides whose groups and keys exist.

    Raises:
        ConfigError: naming the ones that do not, and their nearest.
    """
    parsed = [parse(item) for item in items]
    groups = [item for item in parsed if options(item.key_or_group, config_dir)]
    check_groups(groups, config_dir)
    base = copy.deepcopy(_chosen(tuple(item.input_line or "" for item in groups), config_dir))
    keys = [item for item in parsed if item not in groups]
    check_keys(keys, base)
    if all(item.type is OverrideType.CHANGE and item.package is None for item in keys):
        # What Hydra does once it has composed the choices, which takes it a hundred times as long.
        with contextlib.suppress(OmegaConfBaseException):  # which Hydra explains
            for item in keys:
                OmegaConf.update(base, item.key_or_group, item.value(), merge=True)
            return base
    return composition.compose([item.input_line or "" for item in parsed], config_dir)


@functools.lru_cache(maxsize=16)
def _chosen(groups: tuple[str, ...], config_dir: Path | None) -> DictConfig:
    """Compose a choice in groups, which a sweep and a comparison ask for again and again."""
    return composition.compose(groups, config_dir)


def check_groups(groups: Sequence[Override], config_dir: Path | None) -> None:
    """Check the choices of groups.

    Raises:
        ConfigError: naming the group and its choices.
    """
    for item in groups:
        there = options(item.key_or_group, config_dir)
        if item.is_delete():
            raise ConfigError(f"{item.input_line}: a group cannot be removed; choose one of {', '.join(there)}.")
        if item.is_add() or item.is_force_add():
            raise ConfigError(f"{item.input_line}: a group is chosen without a plus: {item.key_or_group}=CHOICE.")
        value = item.value()
        several = isinstance(value, list) and item.key_or_group in SEVERAL
        if several and not value:
            raise ConfigError(f"{item.input_line} names none: choose from {', '.join(there)}.")
        for chosen in map(str, value if several else [value]):  # type: ignore[arg-type]
            if chosen not in there:
                raise ConfigError(unknown_choice(item.key_or_group, chosen, there))


def check_keys(overrides: Sequence[Override], base: DictConfig) -> None:
    """Check that keys exist in what was composed, or can be added to it.

    Raises:
        ConfigError: naming all that do not, and their nearest.
    """
    mistakes = []
    for item in overrides:
        key = item.key_or_group
        exists = OmegaConf.select(base, key, throw_on_missing=False, default=_MISSING) is not _MISSING
        opened = any(key.startswith(f"{node}.") and OmegaConf.select(base, node) is not None for node in schema.OPEN)
        adds = item.is_add() or item.is_force_add()
        group, _, name = key.partition(".")
        if name == "name" and choices.options(group):
            mistakes.append(f"{item.input_line}: choose it as a group, {group}={item.value()}.")
        elif group == "trainer" and name in DECIDED:
            mistakes.append(f"{key} is decided by this library; see logger.extra, callbacks.* and precision=.")
        elif not key:
            mistakes.append(f"Cannot read {item.input_line!r}: write key=value.")
        elif item.is_delete():
            mistakes.append(f"{item.input_line}: keys cannot be removed; set {key} to another value.")
        elif not exists and (logger := _logger_not_chosen(key, overrides, base)) is not None:
            mistakes.append(f"{key} belongs to logger={logger}: choose that.")
        elif not exists and not (opened and adds):
            mistakes.append(_absent(key, opened, base))
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def _logger_not_chosen(key: str, overrides: Sequence[Override], base: DictConfig) -> str | None:
    """Name the logger that a key belongs to, if it is one that can be chosen and neither was nor is made here."""
    node, _, rest = key.removeprefix("logger.extra.").partition(".")
    made = {item.key_or_group for item in overrides}
    ours = key.startswith("logger.extra.") and rest and node in choices.options("logger")
    there = OmegaConf.select(base, f"logger.extra.{node}") is not None or f"logger.extra.{node}._target_" in made
    return node if ours and not there else None


def _absent(key: str, opened: bool, base: DictConfig) -> str:
    known = [name for name, _ in schema.leaves(resolved(base))]
    if key in schema.KEYS and key.split(".")[0] in registry.TASKS:
        return f"{key} belongs to task={key.split('.')[0]}: choose that."
    if opened:
        return f"{unknown_key(key, known)} Any other argument goes with a plus: +{key}=VALUE."
    if key in schema.KEYS and "." in key:
        group = key.split(".", 1)[0]
        choice = OmegaConf.select(base, f"{group}.name") or ("none" if group == "teacher" else "this choice")
        return f"{key} means nothing with {group}={choice}: remove it, or choose another {group}."
    return unknown_key(key, known)
