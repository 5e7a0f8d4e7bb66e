"""A frozen teacher that is replaced by its checkpoint of the same step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer

from dkel_lightning.checkpoints import file_format
from dkel_lightning.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from dkel_lightning.distillation import DistillationModule

STEP = re.compile(r"step[=_-]?(\d+)$")
STUDENT = "student.network."


class TeacherCheckpoints(Callback):
    """Load the teacher's newest checkpoint up to the current step, or its first one before that.

    The folder `method.checkpoints` has them, named by their optimizer step (`step=500.ckpt`,
    `epoch=3-step=500.ckpt`), as Lightning's ModelCheckpoint does with `every_n_train_steps`: checkpoints of a run of
    this library whose student, a single peer, is the teacher.
    """

    def __init__(self) -> None:
        self._paths: dict[int, Path] = {}
        self._loaded: Path | None = None

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        module: DistillationModule = pl_module
        folder = Path(module.method.settings.checkpoints).expanduser()
        if module.teacher is None or module.teacher.learns:
            raise ConfigError(f"method.checkpoints={folder} replaces a teacher that learns: add teacher=frozen.")
        steps = {path: STEP.search(path.stem) for path in folder.glob("*.ckpt")}
        self._paths = {int(step[1]): path for path, step in steps.items() if step is not None}
        self._loaded = None
        if not self._paths:
            raise ConfigError(
                f"No checkpoint named by its step, such as step=500.ckpt, lies in method.checkpoints={folder}: train "
                "the teacher with a ModelCheckpoint(save_top_k=-1, every_n_train_steps=500)."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._load(pl_module, trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._load(pl_module, trainer.global_step)

    def _load(self, module: DistillationModule, step: int) -> None:
        path = self._paths[max((saved for saved in self._paths if saved <= step), default=min(self._paths))]
        if path == self._loaded:
            return
        assert module.teacher is not None
        state = file_format.load(path, module.device)["state_dict"]
        weights = {key.removeprefix(STUDENT): value for key, value in state.items() if key.startswith(STUDENT)}
        try:
            module.teacher.network.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(
                f"The student in {path} is not this teacher: train one by method=baseline method.peers=1 teacher=none, "
                "and set teacher.backbone to its backbone."
            ) from error
        module.teacher.take_weights()
        self._loaded = path
