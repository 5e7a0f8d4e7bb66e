"""Write the files of conf/ that follow from the declarations of settings: every method, teacher, deployment and so on.

    python scripts/write_conf.py

tests/settings/test_conf.py fails where a file is not what this writes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dkel_lightning.methods import METHODS, Preset
from dkel_lightning.policies.settings import DualPolicySettings
from dkel_lightning.settings.backbone import BackboneSettings
from dkel_lightning.settings.data import DataSettings
from dkel_lightning.settings.declarations import Setting, walk
from dkel_lightning.settings.deploy import Deploy
from dkel_lightning.settings.execution import Execution
from dkel_lightning.settings.targets import Targets
from dkel_lightning.settings.teacher import TEACHERS, TeacherSettings
from dkel_lightning.studies.settings import ConvergenceSettings, GeometrySettings

ROOT = Path(__file__).resolve().parents[1]

DEPLOYMENTS = {
    "auto": "Teacher or student, the better one in validation.",
    "student": "The best peer of the student.",
    "teacher": "The best peer of the teacher.",
    "ensemble": "All peers of the student, as one classifier.",
}
STUDIES = {
    "geometry": ("Student and teacher as two points, in a bowl and between two mirror optima.", GeometrySettings()),
    "convergence": (
        "When teachers help in a quadratic model, and when training collapses.",
        ConvergenceSettings(),
    ),
    "dual_policy": ("Two reinforcement learners that imitate each other; needs the extra rl.", DualPolicySettings()),
}
EXECUTIONS = {
    "eager": "Ordinary eager PyTorch.",
    "compile": "Networks compiled by torch.compile: a minute or more at the start.",
    "reduce_overhead": 'torch.compile(mode="reduce-overhead"), which replays CUDA graphs.',
}


def files() -> dict[str, str]:
    """Return the text of every file by its path below conf/."""
    written = {
        "data/_base.yaml": text("The settings of every data set.", DataSettings(name="???")),
        "backbone/_base.yaml": text("The settings of every backbone.", BackboneSettings(name="???")),
        "teacher/_base.yaml": text("The settings of every teacher.", TeacherSettings()),
        "targets/default.yaml": text("Labels as they are.", Targets()),
    }
    for name, preset in METHODS.items():
        if preset.method.__module__.startswith("dkel_lightning."):
            written[f"method/{name}.yaml"] = method(preset)
    for name, teacher in TEACHERS.items():
        written[f"teacher/{name}.yaml"] = differences(teacher.meaning, teacher.settings)
    for name, (meaning, settings) in STUDIES.items():
        written[f"task/{name}.yaml"] = task(name, meaning, settings)
    for name, meaning in DEPLOYMENTS.items():
        written[f"deploy/{name}.yaml"] = text(meaning, Deploy(name))
    for name, meaning in EXECUTIONS.items():
        written[f"execution/{name}.yaml"] = text(meaning, Execution(name, channels_last=True))
    return written


def text(meaning: str, settings: Any) -> str:
    """Write settings with the meaning and the allowed values of each key."""
    return "\n".join([*header(meaning, type(settings)), *lines(settings), ""])


def method(preset: Preset) -> str:
    """Write a method with its peers and settings, and its choice of a teacher."""
    found = header(preset.meaning, preset.method)
    node = preset.node()
    if "defaults" in node:
        (override,) = node["defaults"]
        found += ["defaults:", *(f"  - {key}: {value}" for key, value in override.items())]
    if "backbone" in node:
        found += [f"backbone: {value(node['backbone'])}"]
    settings = [*lines(preset.arrangement), *lines(preset.default_settings())]
    return "\n".join(["# @package _global_", *found, "method:", *(f"  {line}" for line in settings), ""])


def differences(meaning: str, settings: Mapping[str, Any]) -> str:
    """Write a teacher as what differs from teacher/_base.yaml."""
    found = header(meaning, TeacherSettings)
    if settings.get("update") != "none":
        found.append("defaults: [_base]")
    return "\n".join([*found, *(f"{key}: {value(item)}" for key, item in settings.items()), ""])


def task(name: str, meaning: str, settings: Any) -> str:
    """Write the task of a study with its settings."""
    target = f"_target_: dkel_lightning.app.tasks.studies.{name}"
    node = ["task:", f"  name: {name}", f"  {target}", "  folder: null", f"{settings.node}:"]
    head = ["# @package _global_", *header(meaning, type(settings)), "name: " + name, *node]
    return "\n".join([*head, *(f"  {line}" for line in lines(settings)), ""])


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
    """Write the meaning and the allowed values."""
    if setting is None:
        return ""
    kind = setting.kind[:1].upper() + setting.kind[1:]
    return f"  # {setting.meaning} {kind}{', or null' if setting.optional else ''}."


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
