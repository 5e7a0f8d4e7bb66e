"""How training steps are executed: eagerly, with compiled networks, or as a captured graph, and what stands against it.

Lightning's automatic optimisation stays whole in each: a captured step has made its gradients when `training_step`
returns, so that `backward` and `optimizer_zero_grad` have nothing left to do; all else goes its way.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.nn.modules import module as nn_module
from torch.nn.parallel import DistributedDataParallel

from dkel_lightning.execution import captured
from dkel_lightning.execution.captured import CapturedStep, CaptureError
from dkel_lightning.execution.eager import compute_eagerly
from dkel_lightning.execution.exchange import Exchange, of_plain_kind
from dkel_lightning.modules.batch import Batch
from dkel_lightning.modules.interface import Coordinator
from dkel_lightning.modules.outputs import InForce, StepResult
from dkel_lightning.runtime.processes import print_once
from dkel_lightning.settings.execution import Execution

MOST_GRAPHS = 2
"""Shapes of batches that are captured, the usual one and the last, smaller one; others run eagerly."""


def planned(module: Coordinator, trainer: Trainer) -> InForce:
    """Say how the steps of a fit are going to be executed, as far as can be known before it has begun."""
    asked, device = module.execution, trainer.strategy.root_device
    layout = wants_channels_last(asked, device, trainer)
    wanted = asked.name
    why = ""
    if wanted in ("auto", "cuda_graph"):
        why = why_not_captured(module, trainer) or ""
        # Where no graph can be, nobody who left the choice open has to be told so.
        silent = wanted == "auto" and device.type not in captured.RECORDERS
        wanted = "cuda_graph" if not why else ("compile" if asked.compile and not silent else "eager")
        why = "" if silent else why
    compiled = wanted == "compile" or (wanted == "cuda_graph" and asked.compile)
    return InForce(asked.name, wanted, compiled, why, layout)


def wants_channels_last(asked: Execution, device: torch.device, trainer: Trainer | None) -> bool:
    """Decide on the memory layout: `auto` takes channels last where it was measured to be faster.

    That is on the CPU, and on CUDA in a half precision.
    """
    if asked.channels_last != "auto":
        return bool(asked.channels_last)
    half = trainer is not None and str(trainer.precision) not in ("32-true", "64-true")
    return device.type == "cpu" or (device.type == "cuda" and half)


def why_not_captured(module: Coordinator, trainer: Trainer) -> str | None:
    """Say what forbids to capture the training steps of this fit, None if nothing is known to."""
    device = trainer.strategy.root_device
    if device.type not in captured.RECORDERS:
        return f"the device is {device.type}, not cuda"
    forbids = _of_strategy(module, trainer) or _of_trainer(trainer) or _of_module(module)
    return forbids or _of_callbacks(trainer) or _of_hooks(module)


def _of_strategy(module: Coordinator, trainer: Trainer) -> str | None:
    strategy = trainer.strategy
    if type(strategy) is DDPStrategy:
        return of_plain_kind(module, strategy._ddp_kwargs | {"ddp_comm_hook": strategy._ddp_comm_hook})
    if not isinstance(strategy, SingleDeviceStrategy) or trainer.world_size > 1:
        return f"{type(strategy).__name__} exchanges gradients during the backward pass"
    return None


def _of_trainer(trainer: Trainer) -> str | None:
    plugin = trainer.precision_plugin
    if getattr(plugin, "scaler", None) is not None:
        return "the loss scaling of precision fp16 decides on the host"
    if type(plugin) not in (Precision, MixedPrecision, HalfPrecision, DoublePrecision):
        return f"the precision plugin {type(plugin).__name__} is not known"
    if torch.is_anomaly_enabled() or getattr(trainer, "_detect_anomaly", False):
        return "trainer.detect_anomaly looks at every gradient"
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
        return "LBFGS makes its own steps within a step"
    return None


OWN = ("training_step", "backward", "optimizer_zero_grad", "on_before_backward", "on_before_zero_grad")
"""Hooks of the module that a captured step passes by, or calls when the gradients are there already."""

EARLY = ("on_before_backward", "on_before_zero_grad")
"""Hooks of callbacks that would see this step's gradients where they expect none, or those of the step before."""


def _of_module(module: Coordinator) -> str | None:
    if not module.automatic_optimization:
        return "the optimisation is manual"
    if module.execution.checkpoint_trunk:
        return "execution.checkpoint_trunk computes the trunk again in the backward pass"
    own = [name for name in OWN if _is_users(module, name)]
    return f"{type(module).__name__} has a {own[0]} of its own" if own else None


def _is_users(module: LightningModule, name: str) -> bool:
    """Tell whether a hook is neither Lightning's nor this library's."""
    defined_in = str(getattr(type(module), name).__module__).split(".")[0]
    return name in module.__dict__ or defined_in not in ("dkel_lightning", "lightning", "pytorch_lightning")


def _of_callbacks(trainer: Trainer) -> str | None:
    callbacks: list[Callback] = getattr(trainer, "callbacks", [])
    for callback in callbacks:
        name = type(callback).__name__
        early = [hook for hook in EARLY if getattr(type(callback), hook) is not getattr(Callback, hook)]
        # LambdaCallback sets its hooks on the instance.
        early += [hook for hook in EARLY if hook in vars(callback)]
        if early:
            return f"the callback {name} has a hook {early[0]}, which would come after the gradients"
        if isinstance(callback, StochasticWeightAveraging):
            return f"the callback {name} makes steps without a backward pass"
    return None


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")


def _of_hooks(module: nn.Module) -> str | None:
    """Find what Python has hung into forward and backward passes, and would not be called again."""
    for name, part in module.named_modules():
        if any(getattr(part, hooks) for hooks in HOOKS):
            return f"{name or 'the module'} has a forward or backward hook"
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            return f"the parameter {name} has a hook on its gradient"
    if any(getattr(nn_module, hooks) for hooks in GLOBAL_HOOKS):
        return "a hook is registered for all modules"
    return None


class Runner:
    """Executes the training steps of one fit, and falls back to eager ones where it must.

    Attributes:
        in_force: how they are executed.
    """

    def __init__(self, module: Coordinator, trainer: Trainer) -> None:
        self.module = module
        self.trainer = trainer
        self.in_force = planned(module, trainer)
        self._exchange: Exchange | None = None
        self._looks_again = False
        self._captured: CapturedStep | None = None

    def __call__(self, batch: Batch, batch_idx: int) -> StepResult:
        """Compute the loss of a batch, by a replay together with its gradients, or eagerly."""
        if self._exchange is not None:
            self._exchange.before_forward()
        replayed = self._replayed(batch, batch_idx)
        return replayed if replayed is not None else compute_eagerly(self.module, batch, batch_idx)

    def _replayed(self, batch: Batch, batch_idx: int) -> StepResult | None:
        """Compute loss and gradients by a replay; None where the step has to be made eagerly."""
        if self.in_force.compiled:
            self._compile(batch)
        # Who prunes, finetunes or hooks into parts of the networks does so between epochs.
        self._looks_again = self._looks_again or batch_idx == 0
        if self.in_force.name == "cuda_graph" and isinstance(self.trainer.strategy.model, DistributedDataParallel):
            self.fall_back(f"{type(self.module).__name__}.on_train_start does not call that of its parent")
        if self.in_force.name != "cuda_graph" or self.module.observers:
            return None
        micro_batches = self.trainer.accumulate_grad_batches
        if not self._is_captured(batch, micro_batches):
            return None
        assert self._captured is not None
        # As Lightning decides whether gradients begin anew.
        result = self._captured.replay(batch, first=batch_idx % micro_batches == 0, micro_batches=micro_batches)
        # Whoever keeps the loss of a step keeps this one, and not what the next replay writes.
        return replace(result, loss=result.loss.clone(), gradients_ready=True)

    def fall_back(self, why: str) -> None:
        """Go on without a graph, or without compiled networks, and say why in one line."""
        before = self.in_force
        name = "compile" if before.name == "cuda_graph" and before.compiled else "eager"
        self.in_force = replace(before, name=name, compiled=name == "compile", why=why)
        self._captured = None
        print_once(str(self.in_force))

    def release(self) -> None:
        """Let go of graphs and their memory, and of the processes."""
        self._captured, self._exchange = None, None

    def begin(self) -> None:
        """Look once more, now that the optimizer is there and all callbacks are; who captures averages by himself."""
        fused = any(group.get("fused") for optimizer in self.trainer.optimizers for group in optimizer.param_groups)
        self.in_force = replace(planned(self.module, self.trainer), fused_optimizer=fused)
        if self.in_force.why:
            print_once(str(self.in_force))
        if self.in_force.name == "cuda_graph" and self.trainer.strategy.model is not self.module:
            self._exchange = Exchange(self.module, self.trainer)

    def after_backward(self) -> None:
        """Let processes exchange their gradients, where nobody else does."""
        if self._exchange is not None:
            self._exchange.after_backward()

    def _is_captured(self, batch: Batch, micro_batches: int) -> bool:
        thoroughly, self._looks_again = self._looks_again, False
        if thoroughly and (why := _of_hooks(self.module)) is not None:
            self.fall_back(why)
            return False
        if self._captured is not None and not self._captured.is_current(thoroughly=thoroughly):
            self._captured = None  # the graphs are of other tensors, modes or trainable parts: captured anew
        if self._captured is None:
            self._captured = CapturedStep(self.module)
        if self._captured.has(batch, micro_batches):
            return True
        if len(self._captured) >= MOST_GRAPHS:
            return False
        try:
            self._captured.capture(batch, micro_batches)
        except CaptureError as error:
            self.fall_back(str(error))
            return False
        return True

    def _compile(self, batch: Batch) -> None:
        """Compile the networks for this batch, if it is larger than those before: smaller ones run eagerly."""
        if self.module.compiled is not None and len(batch.labels) <= self.module.compiled.rows:
            return
        self._captured = None
        self.module.compile_networks(len(batch.labels))
        try:
            CapturedStep(self.module).try_out(batch)
        except CaptureError as error:
            self.module.compiled = None
            # A graph of networks that are not compiled may still be possible.
            self.in_force = replace(self.in_force, compiled=False)
            if self.in_force.name == "compile":
                self.fall_back(str(error))
            else:
                self.in_force = replace(self.in_force, why=f"the networks cannot be compiled ({error})")
                print_once(str(self.in_force))
