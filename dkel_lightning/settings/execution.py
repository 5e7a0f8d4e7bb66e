"""How training steps are executed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from dkel_lightning.settings.declarations import Settings, from_mapping
from dkel_lightning.settings.keys import AUTO, RESUMABLE, choice, either, switch, whole


@dataclass(frozen=True)
class Execution(Settings, node="execution", resumable=True):
    """How training steps are executed.

    `eager`; `compile`, the networks by torch.compile; `cuda_graph`, the step up to its gradients as a graph that is
    replayed; `auto`, a graph where device and settings allow it, else eager. What `auto` means of the memory layout and
    the optimizer: see `execution.runner`. `threads` is for the command line, which sets it for the whole process.
    """

    name: Annotated[
        str, choice("How a step is executed.", "auto", "eager", "compile", "cuda_graph"), RESUMABLE, AUTO
    ] = "eager"
    compile: Annotated[bool, switch("Capture compiled networks (cuda_graph and auto)."), RESUMABLE] = False
    channels_last: Annotated[
        bool | str,
        either(
            switch("Channels-last memory layout; auto: on the CPU, and on CUDA in bf16 or fp16."), choice("", "auto")
        ),
        RESUMABLE,
        AUTO,
    ] = False
    fused_optimizer: Annotated[
        bool | str,
        either(
            switch("One kernel for the optimizer's step; auto: on CUDA, where the optimizer has one."),
            choice("", "auto"),
        ),
        RESUMABLE,
    ] = "auto"
    checkpoint_trunk: Annotated[
        bool,
        switch("Keep nothing of the shared trunk for the backward pass, and compute it again there: memory for time."),
        RESUMABLE,
    ] = False
    threads: Annotated[int | None, whole("CPU threads; null: as torch chooses.", 1, 1024), RESUMABLE] = None

    def contradictions(self) -> Iterator[str]:
        """Say it of a trunk that is computed again."""
        if self.checkpoint_trunk and (self.compile or self.name in ("compile", "cuda_graph")):
            yield (
                "execution.checkpoint_trunk computes the trunk again in an eager step: choose execution=eager or auto, "
                "without execution.compile."
            )

    @classmethod
    def of(cls, given: str | Mapping[str, Any] | Execution) -> Execution:
        """Read a name, or a mapping of settings.

        Raises:
            ConfigError: an unknown name or key.
        """
        if isinstance(given, Execution):
            return given
        settings = {"name": given} if isinstance(given, str) else dict(given)
        return from_mapping(cls, settings, "execution")
