"""What a saved configuration decides: of a run that goes on, and of a checkpoint that is read.

The file may be a stranger's. It describes its run by numbers, names that are looked up, and the folder of its images,
which is read. What it names as a class, a logger, a callback, a module to import or a place to write is used only if
the command names it again (`without_untrusted`).
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dkel_lightning.app.config import Values, leaves
from dkel_lightning.app.run import load_config
from dkel_lightning.errors import ConfigError

OF_DEVICES = ("accelerator", "devices", "num_nodes", "strategy")
RESUMABLE = (
    *("resume", "modules", "logger", "execution", "teacher.weights"),
    *(f"data.{key}" for key in ("root", "download", "workers", "cache_dir")),
    *(f"trainer.{key}" for key in (*OF_DEVICES, "log_every_n_steps", "max_time", "detect_anomaly")),
    *(f"callbacks.{key}" for key in ("progress", "on_collapse", "extra")),
    *(f"callbacks.checkpoint_every_n_{unit}" for unit in ("epochs", "steps")),
)
"""Groups and keys that a resume may change: where and how a run is executed, not what it computes."""

COMPUTED = ("data.mean", "data.std", "task", "name", "checkpoint", "sweep", "hydra")
"""Keys that do not affect the training, or that the run fills in."""

CHECKPOINT_GROUPS = ("data", "backbone", "method", "teacher", "deploy")
"""What a checkpoint's run decides for the tasks that read it."""

TRUSTED = ("torch.optim.", "timm.optim.", "dkel_lightning.modules.optim.", "dkel_lightning.data.")


def untrusted(saved: Values) -> dict[str, Any]:
    """Return what a saved configuration names that is used only if the command names it again, by key."""
    classes = {
        key: value
        for key, value in leaves(saved).items()
        if key.endswith("_target_") and not str(value).startswith(TRUSTED) and key.split(".")[0] != "task"
    }
    named = {"modules": saved.get("modules"), "data.cache_dir": saved.get("data", {}).get("cache_dir")}
    return classes | {key: value for key, value in named.items() if value}


def without_untrusted(saved: Values, composed: Values, typed: set[str], folder: Path) -> dict[str, Any]:
    """Replace what a saved configuration must not name by what the command composes; refuse what the run needs."""
    values: dict[str, Any] = copy.deepcopy({**saved})
    values["logger"], values["modules"] = composed["logger"], composed["modules"]
    data, typed_data = values.get("data", {}), composed["data"]
    if "cache_dir" in data:
        data["cache_dir"] = typed_data.get("cache_dir")
    if "download" in data and data.get("root") != typed_data.get("root"):
        data["download"] = False  # images are read from where the file says; nothing new is written there
    for key, value in untrusted(saved).items():
        group = key.split(".")[0]
        if group in ("logger", "hydra") or key == "data.cache_dir" or {key, group} & typed:
            continue
        raise ConfigError(
            f"{folder / 'config.yaml'} names {value} ({key}), which is used only if you name it: give {key}= again."
        )
    return values


def _is_resumable(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in (*RESUMABLE, *COMPUTED))


def settings_hash(values: Values) -> str:
    """Hash all settings that a resumed run must not change; checkpoints keep it."""
    fixed = {key: value for key, value in leaves(values).items() if not _is_resumable(key)}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True, default=str).encode()).hexdigest()


def differences(saved: Values, values: Values) -> list[str]:
    """Name the settings, of those that a resumed run must not change, in which two configurations differ."""
    before, now = leaves(saved), leaves(values)
    keys = [key for key in {**before, **now} if not _is_resumable(key)]
    return [f"{key}: {before.get(key)}, now {now.get(key)}" for key in keys if before.get(key) != now.get(key)]


def resume_settings(folder: Path, composed: Values, typed: set[str]) -> dict[str, Any]:
    """Lay what the command names over the settings of the run in `folder`, as far as a resume may change it."""
    saved = load_config(folder)
    values = without_untrusted(saved, composed, typed, folder)
    for key in sorted(typed - {"resume", "logger", "modules"}):
        group = key.split(".")[0]
        if group in ("task", "hydra"):
            continue
        if key == "trainer":
            values["trainer"] |= {name: composed["trainer"][name] for name in OF_DEVICES}
        elif _is_resumable(key):
            _assign(values, key, _at(composed, key))
        elif _at(saved, key) != _at(composed, key):
            changeable = ", ".join(RESUMABLE)
            raise ConfigError(
                f"{key} would change a run that is being resumed: leave it out, or begin another run. "
                f"What may change: {changeable}."
            )
    for key in ("devices", "num_nodes"):
        if values["trainer"].get(key) != saved["trainer"].get(key):
            raise ConfigError(
                f"The run used trainer.{key}={saved['trainer'].get(key)}: another number of processes changes its "
                "batches, so resume with the same."
            )
    return {**values, "resume": None, "task": composed["task"]}


def checkpoint_settings(folder: Path, composed: Values, typed: set[str]) -> dict[str, Any]:
    """Take networks, method and data from the run of a checkpoint; what the command names of its data wins."""
    decided = sorted(key for key in typed if key.split(".")[0] in ("backbone", "method", "experiment"))
    if decided:
        raise ConfigError(f"{', '.join(decided)}: the checkpoint decides this; leave it out.")
    saved = without_untrusted(load_config(folder), composed, typed, folder)
    values = {**composed, "name": saved["name"], "modules": composed["modules"]}
    for group in CHECKPOINT_GROUPS:
        if group in typed:
            continue
        values[group] = dict(saved[group])
        if group == "teacher":  # its weights are in the checkpoint, or the command names them again
            values[group] |= {key: None for key in ("weights",) if key in values[group]}
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
