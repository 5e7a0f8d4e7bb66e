"""How a run trains: optimizer, scheduler, trainer, precision, loggers and callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from dkel_lightning.app.config import kinds
from dkel_lightning.settings.declarations import Settings
from dkel_lightning.settings.keys import (
    LONGER,
    MACHINE,
    RESUMABLE,
    choice,
    either,
    entries,
    number,
    registered,
    several,
    switch,
    whole,
)


@dataclass(frozen=True)
class OptimizerSettings(Settings, node="optimizer", further="Argument of the optimizer."):
    """Arguments of torch's class."""

    lr: Annotated[float, number("Learning rate.", 0, 1e30)]
    momentum: Annotated[float, number("Momentum.", 0, 1)]
    nesterov: Annotated[bool, switch("Nesterov's form of it.")]
    betas: Annotated[
        tuple[float, ...],
        several("Rates of the running means of the gradient and its square.", number("", 0, 1), least=2),
    ]
    weight_decay: Annotated[float, number("Weight decay.", 0, 1000)]


@dataclass(frozen=True)
class SchedulerSettings(Settings, node="scheduler", further="Argument of the scheduler."):
    """Arguments of torch's class, and how often it steps."""

    interval: Annotated[str, choice("How often the scheduler steps.", "epoch", "step")]
    milestones: Annotated[
        tuple[float, ...],
        several(
            "Epochs, or (all below 1) shares of the run, at which the rate is multiplied.",
            number("", 0, 1e9),
            least=0,
        ),
    ]
    gamma: Annotated[float, number("Factor on the rate.", 0, 10)]
    T_max: Annotated[float, number("Length of the cosine's fall, in epochs or steps as interval says.", 1, 1e9)]
    eta_min: Annotated[float, number("Rate at its end.", 0, 1e30)]
    warmup: Annotated[
        float,
        number("Linear rise before it, in epochs or steps, or (below 1) as a share of T_max.", 0, 1e9),
    ]
    end: Annotated[float, number("Share of the rate that is left at its end.", 0, 1)]


@dataclass(frozen=True)
class TrainerSettings(Settings, node="trainer", resumable=True, further="Argument of Lightning's Trainer."):
    """Arguments of Lightning's Trainer."""

    max_epochs: Annotated[
        int, whole("Length of the run in epochs; -1: until max_steps or max_time.", -1, 1_000_000), LONGER
    ] = 20
    max_steps: Annotated[
        int, whole("Length of the run in optimizer steps; -1: no bound.", -1, 1_000_000_000), LONGER
    ] = -1
    max_time: Annotated[str | Mapping[str, float] | None, kinds.duration("Length of the run in time.")] = None
    accelerator: Annotated[
        str, registered("Kind of device: auto, cpu, gpu, mps, or another that Lightning knows."), RESUMABLE
    ] = "auto"
    devices: Annotated[int | str | list[int], kinds.devices("Devices of a machine."), RESUMABLE] = 1
    num_nodes: Annotated[int, whole("Machines.", 1, 10_000), RESUMABLE] = 1
    strategy: Annotated[str, registered("How devices work together: auto or ddp."), RESUMABLE] = "auto"
    sync_batchnorm: Annotated[bool, switch("BatchNorm over the batches of all processes.")] = False
    accumulate_grad_batches: Annotated[int, whole("Batches an optimizer step.", 1, 1_000_000)] = 1
    check_val_every_n_epoch: Annotated[int, whole("Epochs between validations.", 1, 1_000_000)] = 1
    gradient_clip_val: Annotated[
        float | None, number("Largest gradient norm (or value); 0 or null: no bound.", 0, 1e30)
    ] = None
    gradient_clip_algorithm: Annotated[str, choice("What is limited.", "norm", "value")] = "norm"
    limit_train_batches: Annotated[int | float | None, kinds.amount("Training batches an epoch.")] = 1.0
    limit_val_batches: Annotated[int | float | None, kinds.amount("Validation batches; 0: no validation.")] = 1.0
    limit_test_batches: Annotated[int | float | None, kinds.amount("Test batches.")] = 1.0
    overfit_batches: Annotated[
        int | float | None, kinds.amount("Train and validate on these batches only; 0: on all.")
    ] = 0
    num_sanity_val_steps: Annotated[int, whole("Validation batches before the training; -1: all.", -1, 1_000_000)] = 0
    log_every_n_steps: Annotated[
        int, whole("Steps between the rows of loggers that log steps.", 0, 1_000_000_000), RESUMABLE
    ] = 50
    deterministic: Annotated[
        bool | str, either(switch("Only deterministic operations; warn where there is none."), choice("", "warn"))
    ] = False
    detect_anomaly: Annotated[bool, switch("Look for NaN in the backward pass; slow."), RESUMABLE] = False
    profiler: Annotated[str | None, choice("Lightning's profiler.", "simple", "advanced", "pytorch"), RESUMABLE] = None
    fast_dev_run: Annotated[
        bool | int, either(switch("One batch of everything, nothing written."), whole("", 1, 1_000_000))
    ] = False
    process_timeout: Annotated[
        float,
        number("Minutes that a process waits for the others before the run ends.", 0, 100_000, above=True),
        RESUMABLE,
    ] = 10


@dataclass(frozen=True)
class PrecisionSettings(Settings, node="precision"):
    """Precision of the arithmetic."""

    name: Annotated[str, choice("Precision.", "fp32", "bf16", "fp16", "auto")]
    trainer: Annotated[str, choice("Lightning's name of it.", "32-true", "bf16-mixed", "16-mixed", "auto")]
    matmul: Annotated[str, choice("Precision of float32 matrix products.", "highest", "high", "medium")]


@dataclass(frozen=True)
class LoggerSettings(Settings, node="logger", resumable=True):
    """Where metrics go besides metrics.csv."""

    extra: Annotated[Mapping[str, Any], entries("A logger of your own, by _target_."), MACHINE] = field(
        default_factory=dict
    )


@dataclass(frozen=True)
class CallbackSettings(Settings, node="callbacks"):
    """Checkpoints, progress, and what watches the training."""

    monitor: Annotated[str, registered("Metric whose best is kept: the lowest nll, else the highest.")] = "val/acc"
    checkpoint_every_n_epochs: Annotated[int, whole("Epochs between checkpoints.", 1, 1_000_000)] = 1
    checkpoint_every_n_steps: Annotated[
        int | None, whole("Optimizer steps between checkpoints within an epoch.", 1, 1_000_000_000)
    ] = None
    early_stopping: Annotated[
        int | None, whole("Stop after this many validations without improvement.", 1, 1_000_000)
    ] = None
    diversity: Annotated[
        str,
        choice(
            "What is logged of how far apart the networks are: means over pairs of peers, each pair too, nothing.",
            "means",
            "pairs",
            "none",
        ),
    ] = "means"
    on_collapse: Annotated[
        str,
        choice("What follows a collapse; after a loss that is no number, warn ends the run too.", "warn", "stop"),
    ] = "warn"
    collapse_grace: Annotated[float, number("Share of the run in which a peer may be at chance.", 0, 1)] = 0.25
    collapse_validations: Annotated[
        int, whole("Validations in a row in which a peer must be at chance to have collapsed.", 1, 1000)
    ] = 3
    progress: Annotated[str, choice("Progress display.", "auto", "bar", "lines", "none"), MACHINE] = "auto"
    extra: Annotated[Mapping[str, Any], entries("A callback of your own, by _target_.")] = field(default_factory=dict)
