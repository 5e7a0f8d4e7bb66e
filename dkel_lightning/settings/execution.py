"""How the networks are executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from dkel_lightning.settings.declarations import Settings, choice, from_mapping, switch, whole


@dataclass(frozen=True)
class Execution(Settings, node="execution"):
    """How the networks are executed.

    `compile` is `torch.compile`; `reduce_overhead` is its mode that replays CUDA graphs. `threads` is for the command
    line, which sets them for the whole process.
    """

    name: Annotated[str, choice("How the networks are executed.", "eager", "compile", "reduce_overhead")] = "eager"
    channels_last: Annotated[bool, switch("Channels-last memory layout of weights, and so of all activations.")] = False
    threads: Annotated[int | None, whole("CPU threads; null: as torch chooses.", 1, 1024)] = None

    @classmethod
    def of(cls, settings: str | Mapping[str, Any] | Execution) -> Execution:
        """Read a name, or a mapping of settings."""
        return from_mapping(cls, {"name": settings} if isinstance(settings, str) else settings, "execution")
