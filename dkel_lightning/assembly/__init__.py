"""From settings to a DistillationModule."""

from dkel_lightning.assembly.build import ConstructedBy, build, load_from_checkpoint, rebuilt
from dkel_lightning.assembly.parts import (
    attach,
    check_is_trained_itself,
    check_parts,
    executed,
    warn_of_an_untrained_teacher,
)

__all__ = [
    "ConstructedBy",
    "attach",
    "build",
    "check_is_trained_itself",
    "check_parts",
    "executed",
    "load_from_checkpoint",
    "rebuilt",
    "warn_of_an_untrained_teacher",
]
