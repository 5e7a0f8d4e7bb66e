"""Online distillation from the teacher of the same moment (Harutyunyan et al., ICLR 2023, arXiv 2301.12245)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from dkel_lightning.methods.base import register
from dkel_lightning.methods.distilling import LabelsWeight, Weight
from dkel_lightning.methods.kd import KD, KDSettings
from dkel_lightning.settings.declarations import text


@dataclass(frozen=True)
class OnlineCheckpointsSettings(KDSettings):
    """Settings of online_checkpoints: those of KD, by default without labels."""

    ce_weight: LabelsWeight = 0.0
    weight: Weight = 1.0
    checkpoints: Annotated[
        str | None,
        text("Folder of a frozen teacher's checkpoints, *step=N.ckpt; null: it learns with its student."),
    ] = None


@register("online_checkpoints", teacher="gradient", peers=1)
class OnlineCheckpoints(KD):
    """The student follows the teacher of the same step, which learns from labels only.

    `L = sum_i [ g CE(z_i) + a KD(z_i, sg t_k; T) ]`, t_k the teacher at the same step k of its training.

    The teacher learns together with its student, or it was trained before and `callbacks.TeacherCheckpoints` loads its
    checkpoints one after the other. Detached: t_k. Deployed: the student.
    """

    Settings = OnlineCheckpointsSettings
    settings: OnlineCheckpointsSettings

    def settings_as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().settings_as_dict().items() if key != "checkpoints"}
