"""Where conf/ lies, and how a configuration is composed and resolved. Imports neither torch nor Lightning."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

Values = Mapping[str, Any]
"""A resolved configuration: nested mappings, lists, strings, numbers."""

PACKAGE = Path(__file__).parent.parent
OPEN_GROUPS = ("trainer", "optimizer", "scheduler")
"""Groups whose keys are arguments of a class of another library."""
EXTERNAL = re.compile(r"(?:timm|torchvision|hf):[^,\s'\"\]]+")


def conf_dir() -> Path:
    """Return conf/: inside the package in a wheel, beside it in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def register(arguments: Iterable[str] = ()) -> None:
    """Add to Hydra what no file holds: a user's choices, networks of other libraries, our presets of its plugins."""
    from dkel_lightning.app.run import run_dir

    OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
    Plugins.instance()
    repo: Any = ConfigStore.instance().repo
    for path in conf_dir().glob("hydra/**/*.yaml"):  # Optuna's own preset minimises, unseeded
        group = repo
        for part in path.relative_to(conf_dir()).parent.parts:
            group = group.get(part, {})
        group.pop(path.name, None)
    for argument in arguments:
        if argument.startswith("modules="):
            from dkel_lightning.app.user_code import store_choices

            names: Any = OverridesParser.create().parse_overrides([argument])[0].value()
            store_choices(names, conf_dir())
        if argument.startswith("backbone="):
            for name in EXTERNAL.findall(argument):
                *folders, last = f"backbone/{name}".split("/")
                node = OmegaConf.merge(OmegaConf.load(conf_dir() / "backbone" / "_base.yaml"), {"name": name})
                ConfigStore.instance().store(last, node, group="/".join(folders), package="backbone")


def compose(overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """Compose a configuration outside of `@hydra.main`."""
    register(overrides)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="dkel_lightning"):
        return hydra.compose("config", overrides=[*overrides], return_hydra_config=with_hydra)


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Turn a composed configuration into plain values."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    values = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def typed_keys(overrides: Sequence[str]) -> set[str]:
    """Return the groups and keys that overrides name."""
    return {item.key_or_group for item in OverridesParser.create().parse_overrides([*overrides])}


def leaves(values: Values, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def explain(message: str, arguments: Sequence[str]) -> str:
    """Name the keys that are nearest to a misspelt one, in place of Hydra's advice to add it with a plus."""
    misspelt = re.search(r"Could not override '([^']+)'", message)
    if misspelt is None:
        return message.partition("\nConfig search path")[0]
    choices = [item for item in arguments if re.match(r"[\w/]+=[\w./:-]+$", item)]
    choices = [item for item in choices if (conf_dir() / item.split("=")[0]).is_dir()]
    return unknown_key(misspelt[1], resolve_lazily(compose(choices)))


def unknown_key(key: str, values: Values) -> str:
    """Name the groups and keys that are nearest to a misspelt one: `epochs` is near to `trainer.max_epochs`."""
    known = leaves(values)
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()} | values.keys()

    def likeness(name: str) -> float:
        return max(difflib.SequenceMatcher(None, key, part).ratio() for part in (name, name.rpartition(".")[2]))

    names = sorted({*groups, *known}, key=lambda name: (-likeness(name), name))[:3]
    near = [name for name in names if likeness(name) >= 0.6]
    group = key.rpartition(".")[0]
    siblings = [name for name in known if group and name.startswith(f"{group}.")]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    listed = f" Keys: {', '.join(siblings)}." if siblings else ""
    others = f" Another argument of the class: +{key}=VALUE." if group in OPEN_GROUPS else ""
    return f"Unknown key {key}.{hint}{listed}{others}"


def resolve_lazily(cfg: DictConfig) -> dict[str, Any]:
    """Turn a configuration into plain values whose interpolations stay text."""
    values = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}
