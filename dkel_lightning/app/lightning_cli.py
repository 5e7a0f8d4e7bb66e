"""LightningCLI for projects that use it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import LightningCLI

from dkel_lightning import data  # noqa: F401  # makes our data modules available by class name
from dkel_lightning.distillation import DistillationModule


class DistillationCLI(LightningCLI):
    """LightningCLI with the arguments of `DistillationModule.build` as `--model.NAME`, and any data module as `--data`.

    Needs jsonargparse (extra `cli`).

    Args:
        model_class: `DistillationModule.build`, or that of a class derived from it.
        settings: of LightningCLI. Its `--optimizer` and `--lr_scheduler` are off: they would take the parameters
            without their groups. `--model.optimizer` and `--model.scheduler` take the same classes.
    """

    def __init__(self, model_class: Any = DistillationModule.build, **settings: Any) -> None:
        owner = getattr(model_class, "__self__", None)
        if isinstance(owner, type):  # a classmethod, whose annotation does not say that it returns a LightningModule
            import jsonargparse

            factory: Any = jsonargparse  # which does not export the name for type checkers
            model_class = factory.class_from_function(model_class, owner)
        super().__init__(model_class, **{"auto_configure_optimizers": False, **settings})

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would take the recipe of the networks in the checkpoint for arguments of `build`."""
