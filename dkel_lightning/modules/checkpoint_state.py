"""Save and restore the state of a training other than its weights.

Weights are equal on all processes. Random generators, BatchNorm's running statistics between two validations, and the
sums of the epoch's metrics differ. The first process writes the checkpoint, with the state of all; a resume with the
same number of processes restores them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torchmetrics import Metric

from dkel_lightning.checkpoints import file_format
from dkel_lightning.errors import CheckpointError, ConfigError
from dkel_lightning.modules.peers import running_statistics
from dkel_lightning.runtime.processes import average_over_processes, process_rank, world_size
from dkel_lightning.runtime.seeding import random_state, restore_random_state

if TYPE_CHECKING:
    from dkel_lightning.distillation import DistillationModule

ProcessState = dict[str, Any]
"""`random`: the generators; `tensors`: by name in the state dict, only where there are several processes."""
TEACHER = "teacher.network."
"""Prefix of the names of a teacher's weights."""


def save(module: DistillationModule, checkpoint: dict[str, Any]) -> None:
    """Add the recipe of the networks and the state of all processes: primitives and tensors only.

    BatchNorm's statistics are averaged over the processes in the file, not in the module. The weights of a frozen
    teacher from elsewhere are left out.
    """
    state_dict, processes = checkpoint["state_dict"], gather(module)
    average_statistics(module, state_dict)
    if module.teacher is not None and module.teacher.is_external:
        for name in [name for name in state_dict if name.startswith(TEACHER)]:
            del state_dict[name]
    checkpoint[file_format.KEY] = {
        "format": file_format.FORMAT,
        "recipe": module.recipe,
        "processes": processes,
        "trained_with": _training_classes(module),
    }


def load(module: DistillationModule, checkpoint: dict[str, Any]) -> None:
    """Load the weights of a checkpoint strictly."""
    fill_in_teacher(module, checkpoint)
    module.load_state_dict(checkpoint["state_dict"])


def read(module: DistillationModule, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of this library, which a fit restores; refuse a checkpoint of another configuration."""
    file_format.check(checkpoint, module.recipe, fits=_is_fitting(module))
    fill_in_teacher(module, checkpoint)
    return dict(checkpoint[file_format.KEY]) if _is_fitting(module) else {}


def fill_in_teacher(module: DistillationModule, checkpoint: dict[str, Any]) -> None:
    """Fill the state dict with the weights of a frozen teacher that the checkpoint leaves out, from the module.

    They are those of the file or library that it was built with. Without any, a fit is refused.
    """
    teacher = module.teacher
    if teacher is None or not module.method.needs.foreign_teacher or teacher.settings.update != "frozen":
        return
    if holds_teacher(checkpoint["state_dict"]):
        teacher.is_external = False
        return
    if not bool(teacher.initialised) and _is_fitting(module):
        raise CheckpointError(
            "The checkpoint leaves out its teacher: give its weights again (teacher.weights=FILE or "
            'teacher.pretrained=true; in Python teacher={"weights": FILE} or {"pretrained": True}).'
        )
    weights = {f"{TEACHER}{name}": value for name, value in teacher.network.state_dict().items()}
    weights["teacher.initialised"] = teacher.initialised
    checkpoint["state_dict"] = {**checkpoint["state_dict"], **weights}


def holds_teacher(state_dict: Mapping[str, Any]) -> bool:
    """Return whether a state dict holds the weights of a teacher."""
    return any(name.startswith(TEACHER) for name in state_dict)


def restore_process(module: DistillationModule, restored: dict[str, Any]) -> None:
    """Restore the tensors and generators of this process, once."""
    processes = restored.pop("processes", ())
    if not processes:
        return
    if len(processes) != world_size():
        raise CheckpointError(
            f"{len(processes)} processes wrote the checkpoint, and there are {world_size()}: resume with as many."
        )
    state = processes[process_rank()]
    targets = tensors_of_process(module)
    with torch.no_grad():
        for name, value in state["tensors"].items():
            if name in targets:
                targets[name].copy_(value)
    restore_random_state(state["random"], module.device)


def unfreeze_optimized(module: DistillationModule) -> None:
    """Unfreeze all parameters of the optimizer, which Lightning's finetuning callbacks freeze again on a resume."""
    tuning = [
        type(callback).__name__
        for callback in getattr(module.trainer, "callbacks", ())
        if isinstance(callback, BaseFinetuning)
    ]
    if tuning and world_size() > 1:
        raise ConfigError(
            f"{tuning[0]} unfreezes weights later, and DDP averages only the gradients of weights that learn from the "
            "start, so the processes would diverge: train on one device, or leave the callback out."
        )
    for optimizer in module.trainer.optimizers if tuning else ():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.requires_grad_(True)


def check_training_classes(module: DistillationModule, restored: dict[str, Any]) -> None:
    """Compare optimizer, scheduler and augmentation with those that the checkpoint names, once."""
    saved = restored.pop("trained_with", {})
    present = _training_classes(module)
    changed = [what for what in present if saved.get(what, present[what]) != present[what]]
    if not changed:
        return
    differences = "; ".join(f"{what}: {saved[what]} in the checkpoint, {present[what]} here" for what in changed)
    hint = f"pass {', '.join(f'{what}=' for what in changed)} to build or load_from_checkpoint as the training had it"
    if "optimizer" in changed:
        raise ConfigError(f"This training cannot resume from its checkpoint ({differences}): {hint}.")
    rank_zero_warn(f"This training resumes with other parts ({differences}): to keep them, {hint}.")


def _is_fitting(module: DistillationModule) -> bool:
    return module._trainer is not None and module.trainer.state.fn == "fit"


def _training_classes(module: DistillationModule) -> dict[str, str]:
    """Name the classes of optimizer, scheduler and augmentation, which no recipe holds; empty without a Trainer."""
    if module._trainer is None:
        return {}
    trainer = module.trainer
    parts: dict[str, list[Any]] = {"optimizer": trainer.optimizers, "augmentation": [module.augmentation]}
    parts["scheduler"] = [config.scheduler for config in trainer.lr_scheduler_configs]
    names = {what: [_name(part) for part in used if part is not None] for what, used in parts.items()}
    return {what: ", ".join(classes) or "none" for what, classes in names.items()}


def _name(part: Any) -> str:
    """Name a function, or the class of anything else."""
    part = getattr(part, "func", part)
    return str(getattr(part, "__qualname__", type(part).__qualname__))


def gather(module: DistillationModule) -> list[ProcessState]:
    """Collect the state of every process; all of them must call this."""
    state: ProcessState = {"random": random_state(module.device), "tensors": {}}
    if world_size() == 1:
        return [state]  # the state dict has the rest
    state["tensors"] = {name: value.detach().cpu() for name, value in tensors_of_process(module).items()}
    gathered: list[ProcessState] = [{} for _ in range(world_size())]
    torch.distributed.all_gather_object(gathered, state)
    return gathered


def tensors_of_process(module: DistillationModule) -> dict[str, Tensor]:
    """Return what differs between processes, by the names in the state dict.

    BatchNorm's running statistics, the persistent sums of metrics, and the method's `process_buffers`.
    """
    tensors = {f"method.{name}": module.method.get_buffer(name) for name in module.method.process_buffers}
    for prefix, part in module.named_modules():
        if isinstance(part, _NormBase):
            tensors |= {f"{prefix}.{name}": value for name, value in part.named_buffers(recurse=False)}
        elif isinstance(part, Metric):
            sums = {name: getattr(part, name) for name, persistent in part._persistent.items() if persistent}
            tensors |= {f"{prefix}.{name}": value for name, value in sums.items() if isinstance(value, Tensor)}
    return tensors


def average_statistics(module: DistillationModule, state_dict: dict[str, Any]) -> None:
    """Average BatchNorm's statistics over the processes in `state_dict`, but not in the module."""
    if world_size() == 1:
        return
    for key in tensors_of_process(module):
        if key.endswith(("running_mean", "running_var")) and key in state_dict:
            state_dict[key] = state_dict[key].detach().clone()
            average_over_processes([state_dict[key]])


def synchronise_statistics(module: nn.Module) -> None:
    """Average BatchNorm's running statistics over the processes; parameters are equal anyway."""
    average_over_processes(running_statistics(module))
