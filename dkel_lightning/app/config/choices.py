"""The folder of YAML files, and what can be chosen: a file of it, of the user's own, or a preset that code declares."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dkel_lightning.app.tasks.registry import TASKS
from dkel_lightning.errors import ConfigError
from dkel_lightning.settings.methods import PRESETS
from dkel_lightning.settings.teacher import TEACHERS

# What each group chooses, in the order in which --help explains them.
GROUPS = {
    "task": "what to do",
    "experiment": "data, network and length that belong together",
    "experiment/ablation": "sweeps by themselves: one switch, its values, three seeds",
    "scale": "data, network and length of an ablation",
    "data": "the images",
    "backbone": "the network of each peer",
    "method": "how peers and teacher learn from each other",
    "teacher": "how the teacher begins and follows; a method chooses its own",
    "optimizer": "its keys are arguments of torch's class",
    "scheduler": "of the learning rate",
    "recipe": "optimisation, augmentation and labels that belong together",
    "trainer": "devices and processes",
    "precision": "of the arithmetic",
    "execution": "how a step is executed",
    "logger": "where metrics go besides metrics.csv; several: logger=[tensorboard,wandb]",
    "callbacks": "checkpoints, progress, collapse guard, early stopping",
    "debug": "quick or strict runs",
    "hydra/launcher": "what runs the jobs of a sweep (-m)",
    "hydra/sweeper": "what chooses the jobs of a sweep (-m)",
}


def folder() -> Path:
    """Return the absolute folder of the YAML files: packed into the wheel, or beside the package in a checkout."""
    here = Path(__file__).resolve().parents[2]
    for candidate in (here / "conf", here.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(f"The configuration folder conf/ is missing beside {here}: install dkel_lightning again.")


def options(group: str, own: Path | None = None) -> list[str]:
    """List what can be chosen in a group, with what `own`, a folder of the user's, adds; of no group nothing."""
    found = set(_PRESETS.get(group, ()))
    for root in (folder(), own):
        if root is not None and (root / group).is_dir():
            files = [path for path in (root / group).rglob("*.yaml") if not path.stem.startswith("_")]
            found |= {path.relative_to(root / group).with_suffix("").as_posix() for path in files}
    return sorted(found)


_PRESETS: Mapping[str, Mapping[str, Any]] = {"method": PRESETS, "teacher": TEACHERS, "task": TASKS}
"""What code declares, also what the user's registers later."""
DECLARED = {group: tuple(presets) for group, presets in _PRESETS.items()}
"""What ships without a file; methods of the user's own are registered later."""


def hidden_by(own: Path) -> list[Path]:
    """List files of the user's own under the names of what is declared in code, which they would replace."""
    paths = [own / group / f"{name}.yaml" for group, names in DECLARED.items() for name in names]
    return [path for path in paths if path.is_file()]


def meaning(group: str, option: str) -> str:
    """Say what an option is: the sentence that its declaration or the first line of its file has."""
    if option in _PRESETS.get(group, ()):
        return str(_PRESETS[group][option].meaning)
    lines = (folder() / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
    comments = [line[1:].strip() for line in lines if line.startswith("# ")]
    return next((line for line in comments if line.partition(" ")[0] not in ("@package", "dkel")), "")
