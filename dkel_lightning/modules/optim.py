"""Default optimizer and scheduler of the family, and how any module turns its parameters into groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

ParameterGroups = list[dict[str, Any]]
OptimizerFactory = Callable[[ParameterGroups], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]

# Source: the protocol that ONE, OKDDip, PCL and DKEL share on CIFAR.
DEFAULT_OPTIMIZER: OptimizerFactory = partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)


def parameter_groups(networks: Mapping[str, nn.Module]) -> ParameterGroups:
    """Make one named group a network, leaving out frozen parameters and empty networks.

    The name is kept in the group, so that an optimizer factory can give each network its own rate or decay.
    """
    groups: ParameterGroups = []
    for name, network in networks.items():
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        if parameters:
            groups.append({"params": parameters, "name": name})
    return groups


def configure(
    networks: Mapping[str, nn.Module],
    optimizer: OptimizerFactory | None,
    scheduler: SchedulerFactory | None,
    interval: str,
) -> OptimizerLRScheduler:
    """Give Lightning one optimizer over all networks and, if any, its scheduler stepped every `interval`."""
    built = (optimizer or DEFAULT_OPTIMIZER)(parameter_groups(networks))
    if scheduler is None:
        return built
    return {"optimizer": built, "lr_scheduler": {"scheduler": scheduler(built), "interval": interval}}
