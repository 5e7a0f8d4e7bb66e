"""Default optimizer and scheduler of the family, and how any module turns its parameters into groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from dkel_lightning.errors import ConfigError
from dkel_lightning.schedules import one_of

ParameterGroups = list[dict[str, Any]]
OptimizerFactory = Callable[[ParameterGroups], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]

# Source: the protocol that ONE, OKDDip, PCL and DKEL share on CIFAR.
DEFAULT_OPTIMIZER: OptimizerFactory = partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)


OwnParts = Mapping[str, tuple[nn.Module, float]]
"""Parts of the networks with a learning rate of their own, by the name of their group, and its factor."""

SCALE = "peer_lr_scale"

PLATEAU = {"min": "val/nll/student_mean", "max": "val/acc"}
"""What ReduceLROnPlateau watches, by its mode."""


def parameter_groups(networks: Mapping[str, nn.Module], own: OwnParts | None = None) -> ParameterGroups:
    """Make one named group a network, leaving out frozen parameters and empty networks.

    The name is kept in the group, so that an optimizer factory can give each network its own rate or decay. What
    `own` names is taken out of its network into a group of its own.
    """
    parts = {name: part for name, (part, _) in (own or {}).items()}
    taken = {id(parameter) for part in parts.values() for parameter in part.parameters()}
    groups: ParameterGroups = []
    for name, network in {**networks, **parts}.items():
        learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
        kept = [parameter for parameter in learning if name in parts or id(parameter) not in taken]
        if kept:
            groups.append({"params": kept, "name": name})
    return groups


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


def fused_if_wanted(
    optimizer: OptimizerFactory | None, wanted: bool | str, module: LightningModule
) -> OptimizerFactory | None:
    """Make the optimizer's step one kernel, as `execution.fused_optimizer` wants.

    Raises:
        ConfigError: it is asked for, and the optimizer has no such form.
    """
    if wanted == "auto":
        trainer = module._trainer
        # Lightning takes a fused optimizer for one that undoes loss scaling itself, and then refuses to clip.
        clips = trainer is not None and bool(trainer.gradient_clip_val)
        refused = trainer is not None and clips and isinstance(trainer.precision_plugin, MixedPrecision)
        wanted = "auto" if module.device.type == "cuda" and not refused else False
    if wanted is False:
        return optimizer
    one_kernel = fused(optimizer)
    if one_kernel is None and wanted is True:
        raise ConfigError(
            "execution.fused_optimizer=true, but the optimizer has no fused form, or was told which to take: "
            "set it to auto."
        )
    return one_kernel or optimizer


def fused(optimizer: OptimizerFactory | None) -> OptimizerFactory | None:
    """Return a factory whose optimizer makes its step in one kernel; None where it has none, or was told which."""
    factory = optimizer or DEFAULT_OPTIMIZER
    kind, given = (factory.func, factory.keywords) if isinstance(factory, partial) else (factory, {})
    if not (inspect.isclass(kind) and issubclass(kind, Optimizer)):
        return None
    told = {"fused", "foreach", "differentiable", "capturable"} & given.keys()
    if told or "fused" not in inspect.signature(kind).parameters:
        return None
    return partial(factory, fused=True)  # type: ignore[call-arg]


def _keep_kernels(optimizer: Optimizer) -> None:
    """Let a loaded state not choose the kernels: it may come from another kind of device, in its memory layout.

    A fused kernel walks through parameter and state side by side, so both must lie alike, and it counts steps on the
    device; others count them on the host.
    """
    if "fused" not in optimizer.defaults:
        return
    chosen = optimizer.defaults["fused"]

    def put_back(loaded: Optimizer) -> None:
        for group in loaded.param_groups:
            group["fused"] = chosen
            on_device = bool(chosen or group.get("capturable"))
            for parameter in group["params"]:
                state = loaded.state.get(parameter, {})
                state.update({name: _suited(name, value, parameter, on_device) for name, value in state.items()})

    optimizer.register_load_state_dict_post_hook(put_back)


def _suited(name: str, value: Any, parameter: Tensor, on_device: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    if name == "step":
        return value.to(parameter.device, torch.float32) if on_device else value.cpu()
    if value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def unscaled_rate(group: Mapping[str, Any]) -> float:
    """Return the learning rate with which a group began, without its factor."""
    return float(group.get("initial_lr", group["lr"])) / float(group.get(SCALE, 1.0))


def configure(
    networks: Mapping[str, nn.Module],
    optimizer: OptimizerFactory | None,
    scheduler: SchedulerFactory | None,
    interval: str,
    own: OwnParts | None = None,
) -> OptimizerLRScheduler:
    """Give Lightning one optimizer over all networks and, if any, its scheduler stepped every `interval`.

    ReduceLROnPlateau follows the validation: `PLATEAU` of its mode.

    Raises:
        ConfigError: the scheduler sets rates of its own and would undo the factors of `own`, or ReduceLROnPlateau is
            to be stepped every step.
    """
    built = (optimizer or DEFAULT_OPTIMIZER)(parameter_groups(networks, own))
    _keep_kernels(built)
    scales = {name: scale for name, (_, scale) in (own or {}).items()}
    begun = [_scaled(group, scales) for group in built.param_groups]
    if scheduler is None:
        return built
    schedule = scheduler(built)
    if scales and [float(group.get("initial_lr", group["lr"])) for group in built.param_groups] != begun:
        raise ConfigError(
            f"{type(schedule).__name__} sets learning rates of its own, so method.peer_lr_scale would have no effect: "
            "choose another scheduler."
        )
    if not isinstance(schedule, ReduceLROnPlateau):
        return {"optimizer": built, "lr_scheduler": {"scheduler": schedule, "interval": interval}}
    if interval != "epoch":
        raise ConfigError(
            "ReduceLROnPlateau looks at the validation of an epoch: set interval (scheduler.interval) to epoch."
        )
    monitor = PLATEAU[schedule.mode]
    return {"optimizer": built, "lr_scheduler": {"scheduler": schedule, "interval": interval, "monitor": monitor}}


def _scaled(group: dict[str, Any], scales: Mapping[str, float]) -> float:
    """Multiply the rate of a group that has a factor; schedulers start from it as `initial_lr`."""
    if isinstance(group["lr"], int):  # of which torch takes none above 2**63
        group["lr"] = float(group["lr"])
    if group.get("name") in scales:
        group[SCALE] = scales[group["name"]]
        group["lr"] = group["lr"] * group[SCALE]
    return float(group["lr"])
