"""How training steps are executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dkel_lightning.errors import ConfigError
from dkel_lightning.schedules import one_of

NAMES = ("auto", "eager", "compile", "cuda_graph")


@dataclass(frozen=True)
class Execution:
    """How training steps are executed.

    Attributes:
        name: `eager`; `compile`, the networks by torch.compile; `cuda_graph`, the step up to its gradients as a graph
            that is replayed; `auto`, a graph where device and settings allow it, else eager.
        compile: capture compiled networks (of `cuda_graph` and `auto`; where nothing can be captured they run alone).
        channels_last: memory layout of images and convolutions; `auto`: see `wants_channels_last`.
        fused_optimizer: one kernel for the optimizer's step; `auto`: on CUDA, where the optimizer has it and the
            precision lets its gradients be clipped.
        threads: of the processor; for the command line, which sets it for the whole process.
        keep_memory: whether freed memory stays with the process; for the command line too. In Python:
            `dkel_lightning.runtime.memory.keep_freed()`.
    """

    name: str = "eager"
    compile: bool = False
    channels_last: bool | str = False
    fused_optimizer: bool | str = "auto"
    threads: int | None = None
    keep_memory: bool | str = "auto"

    def __post_init__(self) -> None:
        one_of("execution.name", self.name, NAMES)
        for key in ("channels_last", "fused_optimizer", "keep_memory"):
            if getattr(self, key) not in (True, False, "auto"):
                raise ConfigError(f"execution.{key} is {getattr(self, key)!r}: choose one of auto, true, false.")

    @classmethod
    def of(cls, given: str | Mapping[str, Any] | Execution) -> Execution:
        """Read a name, or a mapping of settings.

        Raises:
            ConfigError: an unknown name or key.
        """
        if isinstance(given, Execution):
            return given
        settings = {"name": given} if isinstance(given, str) else dict(given)
        known = [field.name for field in fields(cls)]
        unknown = [key for key in settings if key not in known]
        if unknown:
            raise ConfigError(f"Unknown key execution.{unknown[0]}. Choices: {', '.join(known)}.")
        return cls(**settings)
