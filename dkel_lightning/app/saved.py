"""Which settings of a saved config.yaml are used to resume a run or to read a checkpoint.

The file may come from a stranger. Numbers, registered names and the folder of the images are used. Classes, loggers,
callbacks, modules to import and folders to write are used only if the command names them again (`without_untrusted`).
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dkel_lightning.app.config import Values
from dkel_lightning.app.run import load_config
from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime.mappings import leaves
from dkel_lightning.runtime.ranks import is_first

OF_DEVICES = ("accelerator", "devices", "num_nodes", "strategy")
RESUMABLE = (
    *("resume", "modules", "logger", "execution", "teacher.weights"),
    *(f"data.{key}" for key in ("root", "download", "workers", "cache_dir")),
    *(f"trainer.{key}" for key in (*OF_DEVICES, "log_every_n_steps", "max_time", "detect_anomaly")),
    *(f"callbacks.{key}" for key in ("progress", "on_collapse", "extra")),
    *(f"callbacks.checkpoint_every_n_{unit}" for unit in ("epochs", "steps")),
)
"""Groups and keys that a resume may change: where and how a run is executed, not what it computes."""

FILLED_IN = ("data.mean", "data.std")
"""Keys that are null in a command and that the run fills in."""

OF_COMMANDS = ("task", "name", "checkpoint", "sweep", "hydra")
"""Groups that do not affect the training."""

CHECKPOINT_GROUPS = ("data", "backbone", "method", "teacher", "deploy", "execution")
"""Groups that tasks take from the run of their checkpoint."""

COMBINATIONS = ("experiment", "recipe", "variant", "ablation")
"""Choices that set keys of several groups, and are not saved themselves."""

TRUSTED = ("torch.optim.", "timm.optim.", "dkel_lightning.modules.optim.", "dkel_lightning.data.")


def untrusted(saved: Values) -> dict[str, Any]:
    """Return the values of a saved configuration that are used only if the command names them again, by key."""
    classes = {
        key: value
        for key, value in leaves(saved).items()
        if key.endswith("_target_") and not str(value).startswith(TRUSTED) and key.split(".")[0] != "task"
    }
    named = {"modules": saved.get("modules"), "data.cache_dir": saved.get("data", {}).get("cache_dir")}
    return classes | {key: value for key, value in named.items() if value}


def without_untrusted(saved: Values, composed: Values, typed: set[str], folder: Path) -> dict[str, Any]:
    """Take untrusted values from the command instead; refuse those that the run needs and the command does not name."""
    values: dict[str, Any] = copy.deepcopy({**saved})
    values["logger"], values["modules"] = composed["logger"], composed["modules"]
    data, typed_data = values.get("data", {}), composed["data"]
    if "cache_dir" in data:
        data["cache_dir"] = typed_data.get("cache_dir")
    if "download" in data and data.get("root") != typed_data.get("root"):
        data["download"] = False  # images are read from the saved root, but nothing is written there
    for key, value in untrusted(saved).items():
        group = key.split(".")[0]
        named = any(f"{key}.".startswith(f"{name}.") for name in typed)
        if named or group in ("logger", "hydra") or key == "data.cache_dir":
            continue
        raise ConfigError(
            f"{folder / 'config.yaml'} names {value} ({key}), which is not trusted: "
            f"pass {'+' if '.extra.' in key else ''}{key}= again to use it."
        )
    return values


def _is_resumable(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in (*RESUMABLE, *OF_COMMANDS))


def settings_hash(values: Values) -> str:
    """Hash the settings that a resume must not change; it is stored in checkpoints."""
    fixed = {key: value for key, value in leaves(values).items() if not _is_resumable(key) and key not in FILLED_IN}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True, default=str).encode()).hexdigest()


def differences(saved: Values, values: Values, within: str = "") -> list[str]:
    """Describe the differences between two configurations in settings that a resume must not change.

    Only those of the group or key `within`, if given.
    """
    before, now = leaves(saved), leaves(values)
    keys = [
        key for key in {**before, **now} if not _is_resumable(key) and f"{key}.".startswith(within and f"{within}.")
    ]
    return [
        f"{key}: {before.get(key)}, now {now.get(key)}"
        for key in keys
        if before.get(key) != now.get(key) and not (key in FILLED_IN and now.get(key) is None)
    ]


def resume_settings(folder: Path, composed: Values, typed: set[str]) -> dict[str, Any]:
    """Return the settings of the run in `folder`, updated by the command where a resume allows it."""
    saved = load_config(folder)
    values = without_untrusted(saved, composed, typed, folder)
    if is_first() and (left_out := saved["logger"]["extra"].keys() - composed["logger"]["extra"].keys()):
        print(f"Without {', '.join(sorted(left_out))}: pass logger= again to log there.")
    for key in sorted(typed - {"resume", "logger", "modules"}):
        if key.split(".")[0] in ("task", "hydra"):
            continue
        if key == "trainer":
            values["trainer"] |= {name: composed["trainer"][name] for name in OF_DEVICES}
        elif _is_resumable(key):
            _assign(values, key, _at(composed, key))
        elif different := differences(saved, composed, "" if key in (*COMBINATIONS, "debug") else key):
            changeable = ", ".join(RESUMABLE)
            raise ConfigError(
                f"{key} cannot change when a run is resumed ({different[0]}): leave it out, or start a new run. "
                f"A resume can change {changeable}."
            )
    for key in ("devices", "num_nodes"):
        if values["trainer"].get(key) != saved["trainer"].get(key):
            raise ConfigError(
                f"The run used trainer.{key}={saved['trainer'].get(key)}: resume with the same. Another number of "
                "processes would change its batches."
            )
    return {**values, "resume": None, "task": composed["task"]}


def checkpoint_settings(folder: Path, composed: Values, typed: set[str]) -> dict[str, Any]:
    """Return the settings of the checkpoint's run for networks, method and data, updated by the command."""
    decided = sorted(key for key in typed if key.split(".")[0] in ("backbone", "method", *COMBINATIONS))
    if decided:
        raise ConfigError(f"{', '.join(decided)}: fixed by the checkpoint; leave it out.")
    config = load_config(folder)
    used = {key: config[key] for key in (*CHECKPOINT_GROUPS, "modules")}
    saved = without_untrusted(used, composed, typed, folder)
    values = {**composed, "name": config["name"], "modules": composed["modules"]}
    for group in CHECKPOINT_GROUPS:
        if group in typed:
            if group == "data":  # the networks were trained on images normalised by these
                values[group] |= {
                    key: saved[group].get(key) for key in ("mean", "std") if values[group].get(key) is None
                }
            continue
        values[group] = dict(saved[group])
        if group == "teacher":  # its weights are in the checkpoint, or the command names them again
            left_out = {"weights": None, "pretrained": False}
            values[group] |= {key: value for key, value in left_out.items() if key in values[group]}
        for key in typed:
            if key.startswith(f"{group}."):
                _assign(values, key, _at(composed, key))
    return values


def _at(values: Values, key: str) -> Any:
    node: Any = values
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    node = values
    for part in path:
        node = node.setdefault(part, {})
    node[last] = value
