"""Default optimizer and scheduler of the family, and how any module turns its parameters into groups."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from dkel_lightning.errors import ConfigError
from dkel_lightning.networks import PeerNetwork
from dkel_lightning.schedules import one_of
from dkel_lightning.settings.grouping import Grouping

ParameterGroups = list[dict[str, Any]]
OptimizerFactory = Callable[[ParameterGroups], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]

# Source: the protocol that ONE, OKDDip, PCL and DKEL share on CIFAR.
DEFAULT_OPTIMIZER: OptimizerFactory = partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)


OwnParts = Mapping[str, tuple[nn.Module, float]]
"""Parts of the networks with a learning rate of their own, by the name of their group, and its factor."""

SCALE = "peer_lr_scale"
"""Entry of a group: the factor on its learning rate, of a peer's part and of a layer."""

PLATEAU = {"min": "val/nll/student_mean", "max": "val/acc"}
"""What ReduceLROnPlateau watches, by its mode; of a part that is fitted alone `val/acc`."""


@dataclass(frozen=True)
class Grouped(Grouping):
    """An optimizer that treats layers, normalisation and biases otherwise: `Grouped(layer_decay=0.75, factory=...)`."""

    factory: OptimizerFactory = DEFAULT_OPTIMIZER

    def __call__(self, groups: ParameterGroups) -> Optimizer:
        """Make the optimizer from groups that are already made."""
        return self.factory(groups)


def parameter_groups(
    networks: Mapping[str, nn.Module], own: OwnParts | None = None, grouping: Grouping | None = None
) -> ParameterGroups:
    """Make one named group a network, leaving out frozen parameters and empty networks.

    The name is kept in the group, so that an optimizer factory can give each network its own rate or decay. What
    `own` names is taken out of its network into a group of its own. Layers of another rate and what has no weight decay
    are groups `<name>/layer_<count from the end>` and `<name>/no_decay`, as `grouping` says.
    """
    grouping, own = grouping or Grouping(), own or {}
    taken = {id(parameter) for part, _ in own.values() for parameter in part.parameters()}
    depths = {key: depth for network in networks.values() for key, depth in _depths(network).items()}
    groups: dict[str, dict[str, Any]] = {}
    for name, (network, scale) in {**{name: (part, 1.0) for name, part in networks.items()}, **own}.items():
        for parameter in network.parameters():
            if not parameter.requires_grad or (name not in own and id(parameter) in taken):
                continue
            depth = depths.get(id(parameter), 0) if grouping.layer_decay < 1 else 0
            undecayed = parameter.dim() <= 1 and not grouping.decay_all
            place = f"{name}{f'/layer_{depth}' if depth else ''}{'/no_decay' if undecayed else ''}"
            if place not in groups:
                groups[place] = {"params": [], "name": place, **({"weight_decay": 0.0} if undecayed else {})}
                if name in own or depth:
                    groups[place][SCALE] = scale * grouping.layer_decay**depth
            groups[place]["params"].append(parameter)
    return [*groups.values()]


def _depths(network: nn.Module) -> dict[int, int]:
    """Count the layers from each peer's parameter to the end of its network, by the parameter's id.

    A layer is a block, as far as names are numbered (`layer4.0`, `blocks.3`, `trunk.stage1.2`), or a module that holds
    weights itself, with the normalisation behind it. They count in the order in which they are defined.

    Source: layer-wise decay as in BEiT (arXiv 2106.08254) and timm.
    """
    found: dict[int, int] = {}
    if not isinstance(network, PeerNetwork):
        return found
    for index in range(network.num_peers):
        layers: list[tuple[str, list[int]]] = []
        for name, parameter in network.peer(index).named_parameters():
            numbered = re.match(r".*?\.\d+(?=\.)", name)
            layer = numbered[0] if numbered else name.rpartition(".")[0]
            if not layers or (layer != layers[-1][0] and parameter.dim() > 1):
                layers.append((layer, []))
            layers[-1][1].append(id(parameter))
        found |= {key: len(layers) - 1 - place for place, (_, keys) in enumerate(layers) for key in keys}
    return found


def check_factories(optimizer: Any, scheduler: Any, interval: str) -> None:
    """Refuse what is no factory.

    Raises:
        ConfigError: an optimizer or scheduler that is made already, or an unknown interval.
    """
    examples = {"optimizer": "torch.optim.SGD, lr=0.1", "scheduler": "torch.optim.lr_scheduler.StepLR, step_size=30"}
    for what, factory in (("optimizer", optimizer), ("scheduler", scheduler)):
        if factory is not None and not callable(factory):
            raise ConfigError(
                f"{what}= is made when the training begins: pass what makes it, such as "
                f"partial({examples[what]}), and not a {type(factory).__name__}."
            )
    one_of("interval", interval, ("epoch", "step"))


def unscaled_rate(group: Mapping[str, Any]) -> float:
    """Return the learning rate with which a group began, without its factor."""
    return float(group.get("initial_lr", group["lr"])) / float(group.get(SCALE, 1.0))


def configure(
    networks: Mapping[str, nn.Module],
    optimizer: OptimizerFactory | None,
    scheduler: SchedulerFactory | None,
    interval: str,
    own: OwnParts | None = None,
    lr: float | None = None,
    *,
    plateau: Mapping[str, str] | None = None,
    trainer: Trainer | None = None,
) -> OptimizerLRScheduler:
    """Give Lightning one optimizer over all networks and, if any, its scheduler stepped every `interval`.

    `lr` stands for the rate of every group, before its factor.

    ReduceLROnPlateau follows the validation, as often as `trainer` validates: what `plateau` says of its mode.

    Raises:
        ConfigError: the scheduler sets rates of its own and would undo the factors of groups, or ReduceLROnPlateau is
            to be stepped every step, or finds nothing to watch.
    """
    grouping = optimizer if isinstance(optimizer, Grouped) else None
    built = (optimizer or DEFAULT_OPTIMIZER)(parameter_groups(networks, own, grouping))
    if lr is not None:
        for group in built.param_groups:
            group["lr"] = lr
    begun = [_scaled(group) for group in built.param_groups]
    if scheduler is None:
        return built
    schedule = scheduler(built)
    scales = any(SCALE in group for group in built.param_groups)
    if scales and [float(group.get("initial_lr", group["lr"])) for group in built.param_groups] != begun:
        raise ConfigError(
            f"{type(schedule).__name__} sets learning rates of its own, so method.peer_lr_scale or "
            "optimizer.layer_decay would have no effect: choose another scheduler."
        )
    if not isinstance(schedule, ReduceLROnPlateau):
        return {"optimizer": built, "lr_scheduler": {"scheduler": schedule, "interval": interval}}
    if interval != "epoch":
        raise ConfigError(
            "ReduceLROnPlateau looks at the validation of an epoch: set interval (scheduler.interval) to epoch."
        )
    monitor = (plateau or {"max": PLATEAU["max"]}).get(schedule.mode)
    if monitor is None:
        raise ConfigError("A part that is fitted alone logs val/acc: let ReduceLROnPlateau have mode='max'.")
    every = getattr(trainer, "check_val_every_n_epoch", None) or 1
    return {
        "optimizer": built,
        "lr_scheduler": {"scheduler": schedule, "interval": interval, "monitor": monitor, "frequency": every},
    }


def _scaled(group: dict[str, Any]) -> float:
    """Multiply the rate of a group that has a factor; schedulers start from it as `initial_lr`."""
    if isinstance(group["lr"], int):  # of which torch takes none above 2**63
        group["lr"] = float(group["lr"])
    if SCALE in group:
        group["lr"] = group["lr"] * group[SCALE]
    return float(group["lr"])


class WarmupCosine(LambdaLR):
    """Rise to the learning rate of each group over `warmup` epochs (or steps), then fall to `end` of it by a cosine.

    Args:
        optimizer: whose rates follow.
        T_max: length of both together, in epochs or steps as `interval` says.
        warmup: length of the rise, below 1 as a share of T_max; it begins at 1 / (length + 1) of the rate.
        end: share of the rate that is left at T_max.

    Source: Goyal et al. 2017 (arXiv 1706.02677), Loshchilov & Hutter 2017 (arXiv 1608.03983).

    Raises:
        ConfigError: the rise takes the whole length.
    """

    def __init__(self, optimizer: Optimizer, T_max: float, warmup: float = 0, end: float = 0.0) -> None:
        if not 0 <= warmup < max(T_max, 1):
            raise ConfigError(f"scheduler.warmup={warmup} must be less than scheduler.T_max={T_max}.")
        self.T_max, self.warmup, self.end = T_max, warmup * T_max if warmup < 1 else warmup, end
        super().__init__(optimizer, self.factor)

    def factor(self, time: int) -> float:
        """Give the share of the rate at a time."""
        if time < self.warmup:
            return (time + 1) / (self.warmup + 1)
        fallen = min((time - self.warmup) / (self.T_max - self.warmup), 1.0)
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * fallen)) / 2
