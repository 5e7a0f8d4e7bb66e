"""Lightning's own command line, for those whose project has one."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import LightningCLI

from dkel_lightning import data  # noqa: F401  # by which the data modules here are known by name
from dkel_lightning.distillation import DistillationModule


class DistillationCLI(LightningCLI):
    """LightningCLI with all that `DistillationModule.build` takes as `--model.<name>`, and any data module as `--data`.

    Args:
        model_class: `DistillationModule.build`, or that of a class derived from it.
        settings: of LightningCLI. Its `--optimizer` and `--lr_scheduler` are off: they would take the parameters
            without their groups. `--model.optimizer` and `--model.scheduler` take the same classes.

    Raises:
        ModuleNotFoundError: jsonargparse is missing, which the extra `cli` installs.
    """

    def __init__(self, model_class: Any = DistillationModule.build, **settings: Any) -> None:
        super().__init__(model_class, **{"auto_configure_optimizers": False, **settings})

    def _parse_ckpt_path(self) -> None:
        """Take the model's arguments from the command line alone.

        Lightning would add what the checkpoint calls hyper-parameters, which here is the recipe of its networks; the
        module holds it against its own and refuses the file of another model.
        """
