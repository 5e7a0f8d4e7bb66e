"""From settings to a DistillationModule."""

from dkel_lightning.assembly.build import ConstructedBy, build, load_from_checkpoint, rebuilt
from dkel_lightning.assembly.parts import (
    check_is_trained_itself,
    check_parts,
    executed,
    warn_of_an_untrained_teacher,
)

__all__ = [
    "ConstructedBy",
    "build",
    "check_is_trained_itself",
    "check_parts",
    "executed",
    "load_from_checkpoint",
    "rebuilt",
    "warn_of_an_untrained_teacher",
]
