"""Default optimizer and scheduler of the family, and how networks become parameter groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from dkel_lightning.errors import ConfigError

ParameterGroups = list[dict[str, Any]]
OptimizerFactory = Callable[[ParameterGroups], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]

# As in conf/optimizer/adamw.yaml and conf/scheduler/warmup_cosine.yaml, measured in docs/start.md.
DEFAULT_OPTIMIZER: OptimizerFactory = partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.05)
DEFAULT_WARMUP = 0.05

PLATEAU = {"min": "val/nll/student_mean", "max": "val/acc"}
"""The metric that ReduceLROnPlateau monitors, by mode; a part that is trained alone only logs `val/acc`."""


def parameter_groups(networks: Mapping[str, nn.Module]) -> ParameterGroups:
    """Make one named group per network, without frozen parameters and empty networks.

    An optimizer factory can split them, or give each network its own rate or decay.
    """
    groups = [
        {"params": [parameter for parameter in network.parameters() if parameter.requires_grad], "name": name}
        for name, network in networks.items()
    ]
    return [group for group in groups if group["params"]]


def configure(
    networks: Mapping[str, nn.Module],
    optimizer: OptimizerFactory | None,
    scheduler: SchedulerFactory | None,
    interval: str,
    lr: float | None = None,
    trainer: Trainer | None = None,
    scales: Mapping[str, float] | None = None,
) -> OptimizerLRScheduler:
    """Return one optimizer over all networks and its scheduler, stepped every `interval`, as Lightning takes them.

    `lr` replaces the rate of every group; `scales` multiplies that of a group by name. ReduceLROnPlateau is stepped as
    often as `trainer` validates.
    """
    if optimizer is None and scheduler is None:
        scheduler, interval = partial(WarmupCosine, warmup=DEFAULT_WARMUP), "step"
    built = (optimizer or DEFAULT_OPTIMIZER)(parameter_groups(networks))
    for group in built.param_groups:
        group["lr"] = (group["lr"] if lr is None else lr) * (scales or {}).get(group.get("name", ""), 1.0)
    if scheduler is None:
        return built
    schedule = scheduler(built)
    config: LRSchedulerConfigType = {"scheduler": schedule, "interval": interval}
    if isinstance(schedule, ReduceLROnPlateau):
        config["monitor"] = PLATEAU[schedule.mode]
        config["frequency"] = getattr(trainer, "check_val_every_n_epoch", None) or 1
    return {"optimizer": built, "lr_scheduler": config}


class WarmupCosine(LambdaLR):
    """Rise to the learning rate of each group over `warmup` epochs (or steps), then fall to `end` of it by a cosine.

    Args:
        optimizer: its rates are set.
        T_max: length of both together, in epochs or steps as `interval` says; None: the steps of the run, which the
            callback WeightSchedules sets, for an interval of `step`.
        warmup: length of the rise, below 1 as a share of T_max; it begins at 1 / (length + 1) of the rate.
        end: share of the rate that is left at T_max.

    Source: Goyal et al. 2017 (arXiv 1706.02677), Loshchilov & Hutter 2017 (arXiv 1608.03983).
    """

    def __init__(self, optimizer: Optimizer, T_max: float | None = None, warmup: float = 0, end: float = 0.0) -> None:
        self.of_run, self.T_max, self.warmup, self.end = T_max is None, T_max, warmup, end
        self._check_warmup()
        super().__init__(optimizer, self.factor)

    def set_run_length(self, steps: int) -> None:
        """Set T_max where it is that of the run, and the present rates with it."""
        if self.of_run:
            self.T_max = steps
            self._check_warmup()
            for group, rate in zip(self.optimizer.param_groups, self.base_lrs, strict=False):
                group["lr"] = rate * self.factor(self.last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rate of each group; groups that a callback has added to the optimizer keep theirs."""
        added = self.optimizer.param_groups[len(self.base_lrs) :]
        return [*super().get_lr(), *(group["lr"] for group in added)]

    def _check_warmup(self) -> None:
        if self.warmup < 0 or (self.T_max is not None and self.warmup >= max(self.T_max, 1)):
            raise ConfigError(f"scheduler.warmup={self.warmup} must be less than scheduler.T_max={self.T_max}.")

    def factor(self, time: int) -> float:
        if self.T_max is None:
            return 1.0
        rise = self.warmup * self.T_max if self.warmup < 1 else self.warmup
        if time < rise:
            return (time + 1) / (rise + 1)
        fallen = min((time - rise) / ((self.T_max - rise) or 1), 1.0)
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * fallen)) / 2
