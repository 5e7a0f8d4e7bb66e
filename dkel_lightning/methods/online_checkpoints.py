"""Online distillation from the teacher of the same moment (Harutyunyan et al., ICLR 2023, arXiv 2301.12245)."""

from __future__ import annotations

from typing import Any

from dkel_lightning.methods.base import shipped
from dkel_lightning.methods.kd import KD
from dkel_lightning.settings.methods import OnlineCheckpointsSettings


@shipped("online_checkpoints")
class OnlineCheckpoints(KD):
    """`L = sum_i [ g CE(z_i) + a KD(z_i, sg t_k; T) ]`, t_k the teacher as it is, or was, at this step k.

    The teacher learns from the labels alone: beside its student, or earlier, when it left the checkpoints that
    `callbacks.TeacherCheckpoints` puts in force one after the other. Detached: t_k. Deployed: the student.
    """

    settings: OnlineCheckpointsSettings

    def settings_as_dict(self) -> dict[str, Any]:
        """Return the settings but for the folder: no checkpoint makes anybody read one."""
        return {key: value for key, value in super().settings_as_dict().items() if key != "checkpoints"}
