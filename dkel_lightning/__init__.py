"""Online knowledge distillation as Lightning modules, built around DKEL (arXiv 2312.11218).

The public names are imported when they are first used, so that `import dkel_lightning` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "DistillationModule": "dkel_lightning.distillation",
    "Deploy": "dkel_lightning.settings.deploy",
    "EnsembleModule": "dkel_lightning.modules.ensemble",
    "StudentModule": "dkel_lightning.modules.student",
    "TeacherModule": "dkel_lightning.modules.teacher",
    "TeacherSettings": "dkel_lightning.settings.teacher",
    "Method": "dkel_lightning.methods.base",
    "MethodInputs": "dkel_lightning.modules.outputs",
    "PeerOutputs": "dkel_lightning.networks.peers",
    "DistillationCLI": "dkel_lightning.app.lightning_cli",
    "train": "dkel_lightning.app.train_call",
}

if TYPE_CHECKING:
    from dkel_lightning.app.lightning_cli import DistillationCLI
    from dkel_lightning.app.train_call import train
    from dkel_lightning.distillation import DistillationModule
    from dkel_lightning.methods.base import Method
    from dkel_lightning.modules.ensemble import EnsembleModule
    from dkel_lightning.modules.outputs import MethodInputs
    from dkel_lightning.modules.student import StudentModule
    from dkel_lightning.modules.teacher import TeacherModule
    from dkel_lightning.networks.peers import PeerOutputs
    from dkel_lightning.settings.deploy import Deploy
    from dkel_lightning.settings.teacher import TeacherSettings

__all__ = [
    "Deploy",
    "DistillationCLI",
    "DistillationModule",
    "EnsembleModule",
    "Method",
    "MethodInputs",
    "PeerOutputs",
    "StudentModule",
    "TeacherModule",
    "TeacherSettings",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
