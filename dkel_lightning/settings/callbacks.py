"""Settings of the callbacks of a run of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from dkel_lightning.settings.declarations import Settings, anything, choice, text, whole


@dataclass(frozen=True)
class CallbackSettings(Settings, node="callbacks"):
    """Checkpoints, progress and monitoring."""

    monitor: Annotated[
        str, text("Selects the epoch: the latest within one standard error of the highest accuracy, or the lowest nll.")
    ] = "val/acc"
    checkpoint_every_n_epochs: Annotated[int, whole("Epochs between two checkpoints.", 1, 1_000_000)] = 1
    checkpoint_every_n_steps: Annotated[
        int | None, whole("Optimizer steps between two checkpoints, also within an epoch.", 1, 1_000_000_000)
    ] = None
    early_stopping: Annotated[
        int | None, whole("Stop after this many validations without improvement.", 1, 1_000_000)
    ] = None
    diversity: Annotated[
        str, choice("Diversity of the peers: the mean over pairs, or also each pair.", "none", "means", "pairs")
    ] = "means"
    on_collapse: Annotated[str, choice("What a collapse does.", "warn", "stop")] = "warn"
    progress: Annotated[str, choice("auto: a bar on a terminal, otherwise lines.", "auto", "bar", "lines", "none")] = (
        "auto"
    )
    extra: Annotated[Mapping[str, Any], anything("Your own callbacks: name: {_target_: CLASS, ...}.")] = field(
        default_factory=dict
    )
