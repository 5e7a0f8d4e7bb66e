"""Tell that a loss is no number without making the device wait, and keep the step for a replay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer

from dkel_lightning.checkpoints.file_format import AtomicCheckpointIO
from dkel_lightning.modules.batch import Batch, broken_images, describe_broken_images, sync_blocks, unpack
from dkel_lightning.modules.interface import Coordinator
from dkel_lightning.modules.peers import running_statistics

KEY = "failing_step"
FORMAT = 1


class Verdict:
    """Whether a loss is NaN or infinite, on any process; all of them must ask.

    On a GPU the answer travels to the host beside the computation. The host runs ahead of a GPU that replays a graph:
    read a step later it would wait for the replay to end, read two steps later the answer is there.
    """

    def __init__(self, loss: Tensor) -> None:
        bad = (~torch.isfinite(loss.detach()).all()).to(torch.uint8)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
        self._bad, self._arrived = bad, None
        if bad.device.type == "cuda":
            self._bad = torch.empty_like(bad, device="cpu", pin_memory=True)
            self._bad.copy_(bad, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> bool:
        """Wait for the answer where it is not there yet."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._bad)


class StepRecorder:
    """Keep what a replay of the step under way needs, until the next one begins.

    On the CPU the loss is judged before the step is made, so weights and optimizer still are what they were; only
    what the forward pass changes, running statistics and a method's own memory, is copied at the start. On a GPU the
    verdict is read two steps late, so all of the state is copied on the device at the start of each step; before a
    validation, whose verdict comes after the step too, it is copied everywhere.

    Attributes:
        whole: whether all of the state from before the step under way has been copied, so that it can be saved later.
    """

    def __init__(self) -> None:
        self.terms: dict[str, Tensor] = {}
        self.loss: Tensor | None = None
        self._batch: Any = None
        self._clock: dict[str, int] = {}
        self._random: dict[str, Tensor] = {}
        self._names: list[str] = []
        self._groups: list[tuple[list[Tensor], list[Tensor]]] = []
        self._kept: dict[int, Tensor] = {}
        self._scheduled: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._rates: list[dict[str, Any]] = []
        self._tracked: tuple[int, int, bool] = (-1, -1, False)
        self.whole = False

    @torch.no_grad()
    def begin(self, trainer: Trainer, module: Coordinator, batch: Any, batch_idx: int) -> None:
        """Remember batch, clock and generators, and copy the state that may be spoilt before the verdict is read."""
        self._batch = batch
        self._clock = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "batch_idx": batch_idx,
            "rank": trainer.global_rank,
        }
        self._random = {"torch": torch.random.get_rng_state()}
        if module.device.type == "cuda":
            self._random["cuda"] = torch.cuda.get_rng_state(module.device)
        self.whole = sync_blocks(module.device) or validates_after(trainer)
        # Optimizers make their state in the first step; otherwise the tensors stay the same ones.
        optimizer = trainer.optimizers[0]
        states = trainer.current_epoch, sum(map(len, optimizer.state.values())), self.whole
        if states != self._tracked:
            self._track(module, optimizer)
            self._tracked = states
        self._rates = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]
        for sources, copies in self._groups:
            torch._foreach_copy_(copies, sources)

    def note(self, terms: Mapping[str, Tensor], loss: Tensor) -> None:
        """Remember the terms and the loss of this step, and the weights that schedules have put in force for it."""
        if self._scheduled[0]:
            torch._foreach_copy_(self._scheduled[1], self._scheduled[0])
        # Stacked and so copied: those of a captured step are overwritten by the next.
        values = torch.stack([value.detach() for value in terms.values()]).unbind()
        self.terms, self.loss = dict(zip(terms, values, strict=True)), loss.detach()

    def broken_images(self, module: Coordinator) -> str | None:
        """Say which images of the step are NaN or infinite, or which the augmentation has made so; None if none."""
        (views, *_), clock = unpack(module.read(self._batch)), self._clock
        said = describe_broken_images(broken_images(views), len(views), f"batch {clock['batch_idx']}")
        if said is None:
            made = self._made(module).views
            said = describe_broken_images(
                broken_images(made), len(made), f"batch {clock['batch_idx']}, once augmented,"
            )
        return said

    @property
    def step(self) -> int:
        """The optimizer steps that were done before this one."""
        return self._clock["step"]

    def save(self, folder: Path, trainer: Trainer, module: Coordinator, what: str) -> Path:
        """Write the step to `<folder>/step_<n>.pt`, tensors and primitives only; `_rank<r>` with several processes.

        It says `what` it is kept for.

        Raises:
            CheckpointError: it cannot be written.
        """
        views, labels, indices = self._made(module)
        clock = self._clock
        in_force = module.execution_in_force
        record = {
            KEY: FORMAT,
            "what": what,
            "recipe": module.recipe,
            "state_dict": {name: self._before(value) for name, value in module.state_dict().items()},
            "optimizer": self._optimizer_before(trainer.optimizers[0]),
            "views": views,
            "labels": labels,
            "indices": indices,
            "random": self._random,
            "clock": clock,
            "terms": self.terms,
            "loss": self.loss,
            "precision": str(trainer.precision),
            "threads": torch.get_num_threads(),
            "channels_last": in_force is not None and in_force.channels_last,
        }
        suffix = f"_rank{clock['rank']}" if trainer.world_size > 1 else ""
        path = folder / f"step_{clock['step']}{suffix}.pt"
        AtomicCheckpointIO().save_checkpoint(on_host(record), path)
        return path

    def _made(self, module: Coordinator) -> Batch:
        """Make the batch of the step once more: its views and labels depend on the clock alone."""
        key = (self._clock["epoch"], self._clock["batch_idx"], self._clock["rank"])
        return module.make_batch(unpack(module.read(self._batch)), *key)

    def _track(self, module: Coordinator, optimizer: Optimizer) -> None:
        # Not two copies at a time.
        self._groups, self._kept, self._scheduled = [], {}, ([], [])
        tensors = [*running_statistics(module), *map(module.method.get_buffer, module.method.own_buffers)]
        if self.whole:
            state = chain.from_iterable(values.values() for values in optimizer.state.values())
            tensors = [*module.state_dict(keep_vars=True).values(), *(t for t in state if isinstance(t, Tensor))]
        # One copy a kind: mixed kinds are copied one by one.
        kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor.detach())
        self._groups = [(sources, [torch.empty_like(s) for s in sources]) for sources in kinds.values()]
        self._kept = {s.data_ptr(): copy for group in self._groups for s, copy in zip(*group, strict=True)}
        # Other callbacks set them, maybe after this one.
        in_force = [value for value in _in_force(module) if value.data_ptr() in self._kept]
        self._scheduled = (in_force, [self._kept[value.data_ptr()] for value in in_force])

    def _before(self, value: Any) -> Any:
        return self._kept.get(value.data_ptr(), value) if isinstance(value, Tensor) else value

    def _was_there(self, value: Any) -> bool:
        return not self.whole or not isinstance(value, Tensor) or value.data_ptr() in self._kept

    def _optimizer_before(self, optimizer: Optimizer) -> dict[str, Any]:
        state = optimizer.state_dict()
        # What a first step has made since is no part of it.
        before = {
            key: {name: self._before(value) for name, value in values.items() if self._was_there(value)}
            for key, values in state["state"].items()
        }
        groups = [{**group, **rates} for group, rates in zip(state["param_groups"], self._rates, strict=True)]
        return {**state, "state": {key: values for key, values in before.items() if values}, "param_groups": groups}


def non_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Name the tensors that hold a NaN or an infinity, reading one verdict for all where there are none."""
    pairs = [(name, tensor.detach()) for name, tensor in named]
    if not pairs or all_finite([tensor for _, tensor in pairs]):
        return []
    return [name for name, tensor in pairs if not bool(tensor.isfinite().all())]


def all_finite(tensors: list[Tensor]) -> bool:
    """Tell whether the norms of all tensors are finite; a norm may overflow where no value does."""
    return bool(torch.stack([norm.float() for norm in torch._foreach_norm(tensors)]).isfinite().all())


def validates_after(trainer: Trainer) -> bool:
    """Tell whether a validation is due after this batch, as Lightning itself asks; by the clock, as it is now."""
    batches = trainer.fit_loop._data_fetcher
    return batches is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(batches)


def _in_force(module: Coordinator) -> list[Tensor]:
    """Give what is set before a step's forward pass, which leaves it as it is."""
    weights = [module.method.rampup_weight]
    if module.method.needs.time:
        told = module.method.named_buffers(recurse=False)
        weights = [value for name, value in told if name not in module.method.own_buffers]
    weights += [module.ensemble.weight] if module.ensemble is not None else []
    return weights + ([module.teacher.rate] if module.teacher is not None else [])


def on_host(value: Any) -> Any:
    """Copy all tensors in nested mappings and lists to the host."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: on_host(each) for key, each in value.items()}
    return [on_host(each) for each in value] if isinstance(value, list | tuple) else value
