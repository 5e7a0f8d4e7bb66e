"""Write the files of conf/ that follow from declarations: methods, teachers, data sets, targets and so on.

    python scripts/write_conf.py

tests/settings/test_conf.py fails where a file is not what this writes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dkel_lightning.data import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    DigitsDataModule,
    HuggingFaceDataModule,
    ImageDataModule,
    ImageFolderDataModule,
    ImageNetDataModule,
    NpzDataModule,
    TinyImageNetDataModule,
    own,
)
from dkel_lightning.methods import METHODS, Preset
from dkel_lightning.policies.settings import DualPolicySettings
from dkel_lightning.settings.backbone import BackboneSettings
from dkel_lightning.settings.callbacks import CallbackSettings
from dkel_lightning.settings.data import DataSettings
from dkel_lightning.settings.declarations import Setting, walk
from dkel_lightning.settings.deploy import Deploy
from dkel_lightning.settings.execution import Execution
from dkel_lightning.settings.targets import Targets
from dkel_lightning.settings.teacher import TEACHERS, TeacherSettings
from dkel_lightning.studies.settings import ConvergenceSettings, GeometrySettings

ROOT = Path(__file__).resolve().parents[1]

DATA: dict[str, type[Any]] = {
    "cifar10": CIFAR10DataModule,
    "cifar100": CIFAR100DataModule,
    "digits": DigitsDataModule,
    "hf": HuggingFaceDataModule,
    "image_folder": ImageFolderDataModule,
    "imagenet": ImageNetDataModule,
    "npz": NpzDataModule,
    "tinyimagenet": TinyImageNetDataModule,
}
STUDIES = {
    "geometry": ("Student and teacher as two points, in a bowl and between two mirror optima.", GeometrySettings()),
    "convergence": (
        "When teachers help in a quadratic model, and when training collapses.",
        ConvergenceSettings(),
    ),
    "dual_policy": ("Two reinforcement learners that imitate each other; needs the extra rl.", DualPolicySettings()),
}


def files() -> dict[str, str]:
    """Return the text of every file by its path below conf/."""
    written = {
        "data/_base.yaml": text("The settings of every data set.", DataSettings(name="???")),
        "backbone/_base.yaml": text("The settings of every backbone.", BackboneSettings(name="???")),
        "teacher/_base.yaml": text("The settings of every teacher.", TeacherSettings()),
        "targets/default.yaml": text("Labels as they are.", Targets()),
        "deploy/default.yaml": text("The network that is deployed.", Deploy()),
        "callbacks/default.yaml": text("Checkpoints, progress and monitoring.", CallbackSettings()),
        "execution/default.yaml": text("How the networks are executed.", Execution(channels_last=True)),
    }
    for name, preset in METHODS.items():
        if preset.method.__module__.startswith("dkel_lightning."):
            written[f"method/{name}.yaml"] = method(preset)
    for name, teacher in TEACHERS.items():
        written[f"teacher/{name}.yaml"] = differences(teacher.meaning, teacher.settings)
    for name, (meaning, settings) in STUDIES.items():
        written[f"task/{name}.yaml"] = task(name, meaning, settings)
    for name, kind in DATA.items():
        written[f"data/{name}.yaml"] = data_set(name, kind)
    return written


def text(meaning: str, settings: Any) -> str:
    """Write settings with the meaning of each key."""
    return "\n".join([*header(meaning, type(settings)), *lines(settings), ""])


def method(preset: Preset) -> str:
    """Write a method with its peers and settings, and its choice of a teacher."""
    written = header(preset.meaning, preset.method)
    node = preset.node()
    if "defaults" in node:
        (override,) = node["defaults"]
        written += ["defaults:", *(f"  - {key}: {value}" for key, value in override.items())]
    if "backbone" in node:
        written += [f"backbone: {value(node['backbone'])}"]
    settings = [*lines(preset.arrangement), *lines(preset.default_settings())]
    return "\n".join(["# @package _global_", *written, "method:", *(f"  {line}" for line in settings), ""])


def differences(meaning: str, settings: Mapping[str, Any]) -> str:
    """Write a teacher as what differs from teacher/_base.yaml."""
    written = header(meaning, TeacherSettings)
    if settings.get("update") != "none":
        written.append("defaults: [_base]")
    return "\n".join([*written, *(f"{key}: {value(item)}" for key, item in settings.items()), ""])


def task(name: str, meaning: str, settings: Any) -> str:
    """Write the task of a study with its settings."""
    target = f"_target_: dkel_lightning.app.tasks.studies.{name}"
    node = ["task:", f"  name: {name}", f"  {target}", "  folder: null", f"{settings.node}:"]
    head = ["# @package _global_", *header(meaning, type(settings)), "name: " + name, *node]
    return "\n".join([*head, *(f"  {line}" for line in lines(settings)), ""])


def data_set(name: str, kind: type[Any]) -> str:
    """Write a data set: its class, its own arguments as its docstring explains them, and other defaults."""
    classes, usual = kind.__mro__[: kind.__mro__.index(ImageDataModule)], own.parameters(ImageDataModule)
    arguments = "\n".join(inspect.getdoc(parent) or "" for parent in classes)
    meanings = dict(re.findall(r"^ +(\w+): (.*?\.)$", arguments, re.MULTILINE | re.DOTALL))
    written = [*header((kind.__doc__ or "").splitlines()[0], kind), "defaults: [_base]", f"name: {name}"]
    written.append(f"_target_: dkel_lightning.data.{kind.__name__}")
    for key, item in own.parameters(kind).items():
        if key not in usual:
            written.append(
                f"{key}: {value(item.default)}  # {' '.join(meanings[key].split()).replace('None:', 'null:')}"
            )
    return "\n".join([*written, ""])


def header(meaning: str, source: type[Any]) -> list[str]:
    """Say what the file is, and where it comes from."""
    path = Path(inspect.getfile(source)).resolve().relative_to(ROOT).as_posix()
    return [f"# {meaning}", f"# Written by scripts/write_conf.py from {path}."]


def lines(settings: Any) -> Iterator[str]:
    """Write each key on a line, nested dataclasses below the name of theirs."""
    parents: list[str] = []
    for key, setting, item in walk(settings):
        *path, name = key.split(".")
        for depth in range(len(path)):
            if parents[: depth + 1] != path[: depth + 1]:
                yield f"{'  ' * depth}{path[depth]}:"
        parents = path
        yield f"{'  ' * len(path)}{name}: {value(item)}{comment(setting)}"


def comment(setting: Setting | None) -> str:
    """Write the meaning, and the words of a choice."""
    if setting is None:
        return ""
    words = f" {setting.kind[0].upper()}{setting.kind[1:]}." if setting.options else ""
    return f"  # {setting.meaning}{words}"


def value(item: Any) -> str:
    """Write a value on one line."""
    if isinstance(item, str) and item.startswith("${"):
        return item
    return yaml.safe_dump(item, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def main(folder: Path = ROOT / "conf") -> None:
    """Write all files."""
    for name, content in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
