"""One training step up to its gradients, captured once and replayed: forward, loss and backward without Python.

A captured step knows tensors and no values: what schedules change lies in device scalars, a batch is copied into
tensors that stay, and everything that Python decides (clipping, the optimizer's step, the teacher's average, the log)
remains outside. What a device offers for it is a `Recorder`; only CUDA has one.
"""

from __future__ import annotations

import contextlib
import gc
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from dkel_lightning.errors import DkelError
from dkel_lightning.modules.batch import Batch, unpack
from dkel_lightning.modules.interface import Coordinator
from dkel_lightning.modules.outputs import StepResult
from dkel_lightning.modules.peers import batch_norms
from dkel_lightning.runtime.seeding import random_state, restore_random_state
from dkel_lightning.runtime.texts import first_line

WARM_UP = 3
TOLERANCE = 0.02
"""Largest difference of captured and eager gradients, as a share of their norm, with which a capture is accepted.

Reduced precision and atomic sums differ by less; a value that was frozen into the graph by more.
"""


class CaptureError(Exception):
    """A step that cannot be captured; the message says why, and nothing has changed."""


class Recorder(Protocol):
    """Captures one function of tensors, and runs it again without Python."""

    def rehearse(self, step: Callable[[], object]) -> None:
        """Run `step` until everything that is made at first use is made; raise if it reads a value back."""

    def capture(self, step: Callable[[], StepResult]) -> StepResult:
        """Record what `step` does; the tensors that it returns are those that `replay` fills."""

    def replay(self) -> None:
        """Do it again with what the tensors now hold."""


class CudaRecorder:
    """A CUDA graph.

    Args:
        earlier: another one, whose memory this one shares: what is computed on the way is overwritten by each of them,
            and what a replay gives has been used, or copied, before the next one begins.
    """

    _sides: ClassVar[dict[int, Any]] = {}
    """A stream to rehearse and capture on, by device: libraries keep workspaces for each stream that they have seen.

    Without one torch captures every graph of the process on a stream of whichever device was captured on first.
    """

    def __init__(self, earlier: Any = None) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self.pool: Any = earlier.pool if earlier is not None else torch.cuda.graph_pool_handle()

    def rehearse(self, step: Callable[[], object]) -> None:
        """Run `step` on a side stream, as capture asks for, the last time with waiting forbidden."""
        side = self._side()
        current = torch.cuda.current_stream()
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    step()
                with waiting_forbidden():
                    step()
        finally:
            # Also where it failed: what is put back on the current stream must not be overtaken.
            current.wait_stream(side)

    def capture(self, step: Callable[[], StepResult]) -> StepResult:
        """Record `step`; nothing is computed."""
        current = torch.cuda.current_stream()
        said = ""
        try:
            # Threads of a DataLoader may pin memory meanwhile, which the default mode would take for an error.
            graph = torch.cuda.graph(
                self._graph, pool=self.pool, stream=self._side(), capture_error_mode="thread_local"
            )
            with _no_garbage_collected(), graph:
                try:
                    return step()
                except Exception as error:
                    said = _first_line(error)
                    raise
        except Exception as error:
            # Where a capture is broken its end fails as well, says less, and leaves stream and memory as in a capture.
            torch.cuda.set_stream(current)
            with contextlib.suppress(Exception):
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self.pool)
            _out_of_the_capture(torch.cuda.default_generators[torch.cuda.current_device()])
            if not said or said == _first_line(error):
                raise
            raise CaptureError(said) from error

    def replay(self) -> None:
        """Launch the graph on the current stream."""
        self._graph.replay()

    @classmethod
    def _side(cls) -> Any:
        device = torch.cuda.current_device()
        if device not in cls._sides:
            cls._sides[device] = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        return cls._sides[device]


def _out_of_the_capture(generator: torch.Generator) -> None:
    """Give a generator whose capture was broken a state of its own, which may be restored and drawn from.

    In torch 2.11 the state holds a flag that a capture sets and that only the end of one that succeeds takes back:
    `set_state` leaves it, and the next draw raises "Offset increment outside graph capture". A clone is made without
    it. In 2.14 the state keeps what captures draw by capture, and needs nothing. Read in `CUDAGeneratorImpl` and
    `CUDAGraph` of torch's sources; no device has run it.
    """
    generator.graphsafe_set_state(generator.clone_state())


@contextlib.contextmanager
def _no_garbage_collected() -> Iterator[None]:
    """Let nothing be destroyed in passing, such as another graph or an event, which a capture may not bear."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def waiting_forbidden() -> Iterator[None]:
    """Raise where the host would wait for the CUDA device, as in `.item()`."""
    before = torch.cuda.get_sync_debug_mode()
    _set_sync_debug_mode("error")
    try:
        yield
    finally:
        _set_sync_debug_mode(before)


def _set_sync_debug_mode(mode: int | str) -> None:
    with warnings.catch_warnings():
        # That it is a prototype; an error to whoever has made warnings errors.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)


RECORDERS: dict[str, Callable[[Any], Recorder]] = {"cuda": CudaRecorder}
"""What captures, by type of device; made with an earlier one of the same step, or None."""


@dataclass
class _Graph:
    """A captured step for batches of one shape: its input and output tensors, and a gradient for each parameter."""

    recorder: Recorder
    batch: Batch
    passed: StepResult
    gradients: list[Tensor | None]


class CapturedStep:
    """Forward, loss and backward of a DistillationModule as graphs, one for each shape of batch.

    Usable in the Trainer (`execution=cuda_graph`) and in a loop of one's own:

        module.train().to("cuda")
        step = CapturedStep(module, module.configure_optimizers())
        step.capture(batch)
        for batch in batches:
            loss = step.step(batch)

    Call `module.compile_networks(len(labels))` before for a graph of compiled networks. Gradients are handed over in
    `parameter.grad` in tensors that stay; set them to None or change them at will.

    Args:
        module: in the mode, on the device and in the autocast context in which it is going to be trained.
        optimizer: steps in `step`; not captured, and `replay` does without.
    """

    def __init__(self, module: Coordinator, optimizer: Optimizer | None = None) -> None:
        self.module = module
        self.optimizer = optimizer
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._sums: list[Tensor | None] = [None] * len(self._parameters)
        self._watched = _Watched(module)

    def __len__(self) -> int:
        """Return the number of graphs."""
        return len(self._graphs)

    def has(self, batch: Any, micro_batches: int = 1) -> bool:
        """Tell whether batches of this shape are captured."""
        return _shape(unpack(batch), micro_batches) in self._graphs

    def is_current(self, *, thoroughly: bool = False) -> bool:
        """Tell whether modes, trainable parameters and the places of all tensors are those of the capture.

        Args:
            thoroughly: look for modules, parameters and buffers that others have replaced, too, which takes longer.
        """
        return (not thoroughly or self._watched.consists_of(self.module)) and self._watched.unchanged()

    def capture(self, batch: Any, micro_batches: int = 1) -> None:
        """Capture the step for batches of the shape of `batch`.

        Weights, statistics, gradients and random numbers are afterwards what they were. The graph is accepted once it
        has given the loss and the gradients of an eager step on other labels and other weights.

        Args:
            batch: a training batch, with its views made.
            micro_batches: batches whose gradients make one optimizer step; the loss is divided by it.

        Raises:
            CaptureError: it cannot be captured, and nothing has changed. Where the recording itself broke, batches of
                other shapes are no longer captured either.
        """
        given = unpack(batch)
        device = given.labels.device
        if device.type not in RECORDERS:
            raise CaptureError(f"nothing captures on a {device.type} device")
        earlier = next((graph.recorder for graph in self._graphs.values()), None)
        inputs = Batch(*(None if each is None else torch.empty_like(each) for each in given))  # type: ignore[arg-type]
        _fill(inputs, given)
        with self._undone(device) as kept, _current(device):
            graph = self._captured(RECORDERS[device.type](earlier), inputs, micro_batches, kept)
            self._prove(graph, micro_batches, kept)
        self._graphs[_shape(given, micro_batches)] = graph

    def try_out(self, batch: Any) -> None:
        """Make the step once and undo it, so that what may fail at its first use fails here.

        Raises:
            CaptureError: it fails, and nothing has changed.
        """
        given = unpack(batch)
        with self._undone(given.labels.device):
            self._once(given, 1)

    def replay(self, batch: Any, *, first: bool = True, micro_batches: int = 1) -> StepResult:
        """Compute loss and gradients of a batch whose shape is captured.

        Args:
            batch: the batch; it is copied.
            first: begin with its gradients, or else add them to those that are there.
            micro_batches: as in `capture`.
        """
        given = unpack(batch)
        graph = self._graphs[_shape(given, micro_batches)]
        _fill(graph.batch, given)
        graph.recorder.replay()
        self._hand_over(graph.gradients, first, micro_batches)
        return graph.passed

    def step(self, batch: Any) -> Tensor:
        """Make a whole training step without Lightning: replay, optimizer, teacher. Return the loss.

        Batches of a shape that was not captured are made eagerly.
        """
        assert self.optimizer is not None
        if self.has(batch):
            loss = self.replay(batch).loss.clone()
        else:
            self.optimizer.zero_grad()
            loss = self._once(unpack(batch), 1).detached().loss
        self.optimizer.step()
        self.module.follow()
        return loss

    # ------------------------------------------------------------------ inside

    @contextlib.contextmanager
    def _undone(self, device: torch.device) -> Iterator[_Kept]:
        """Put back what is changed within; whatever fails there, but for an error of ours, is a CaptureError."""
        kept = _Kept(self.module, self._parameters, device)
        try:
            yield kept
        except (DkelError, CaptureError):
            raise
        except Exception as error:  # compilers, and steps of the user's own, fail in any way they like
            raise CaptureError(_first_line(error)) from error
        finally:
            kept.restore()
            kept.give_gradients_back()

    def _once(self, batch: Batch, micro_batches: int) -> StepResult:
        """Make the step with gradients that it allocates itself, as eager execution does."""
        for parameter in self._parameters:
            parameter.grad = None
        # Weights that autocast has cast outside of a graph would stay what they are, and those inside belong to it.
        torch.clear_autocast_cache()
        with torch.enable_grad():
            passed = self.module.compute_step(batch)
            loss = passed.loss if micro_batches == 1 else passed.loss / micro_batches
        # Lightning's backward pass lies outside of autocast.
        with torch.autocast(batch.labels.device.type, enabled=False):
            loss.backward()  # type: ignore[no-untyped-call]
        torch.clear_autocast_cache()
        return passed

    def _captured(self, recorder: Recorder, inputs: Batch, micro_batches: int, kept: _Kept) -> _Graph:
        def step() -> StepResult:
            # No autograd graph stays alive, whose nodes would bind the next step to this one's stream.
            return self._once(inputs, micro_batches).detached()

        on_host = _host_draws(inputs.labels.device)
        recorder.rehearse(step)
        if _host_draws(inputs.labels.device) != on_host:
            raise CaptureError("the step draws random numbers on the host, which a graph would repeat")
        kept.restore()
        try:
            passed = recorder.capture(step)
        except Exception:
            self._graphs.clear()  # they draw from the state that the generator had
            raise
        kept.restore()
        return _Graph(recorder, inputs, passed, [parameter.grad for parameter in self._parameters])

    def _prove(self, graph: _Graph, micro_batches: int, kept: _Kept) -> None:
        """Compare a replay with an eager step on other labels and other weights.

        Raises:
            CaptureError: they differ.
        """
        graph.batch.labels.copy_(graph.batch.labels.roll(1, 0))
        results = []
        for captured in (False, True):
            kept.restore()
            with torch.no_grad():
                torch._foreach_mul_([*self.module.parameters()], 0.9)
            if captured:
                graph.recorder.replay()
                loss, gradients = graph.passed.loss, graph.gradients
            else:
                loss = self._once(graph.batch, micro_batches).detached().loss
                gradients = [parameter.grad for parameter in self._parameters]
            results.append((float(loss), [None if each is None else each.clone() for each in gradients]))
        (loss_a, eager), (loss_b, replayed) = results
        if [g is None for g in eager] != [g is None for g in replayed]:
            raise CaptureError("the captured step reaches other parameters than the eager one")
        differences = [(a - b).float() for a, b in zip(eager, replayed, strict=True) if a is not None and b is not None]
        norms = [_norm(each) for each in (differences, [g.float() for g in eager if g is not None])]
        if not (abs(loss_a - loss_b) <= TOLERANCE * abs(loss_a) and norms[0] <= TOLERANCE * norms[1]):
            raise CaptureError(
                f"the captured step does not give what the eager one gives (loss {loss_b:g} against {loss_a:g}, "
                f"gradients apart by {norms[0] / max(norms[1], 1e-30):.2g} of their norm)"
            )

    def _hand_over(self, gradients: list[Tensor | None], first: bool, micro_batches: int) -> None:
        if micro_batches == 1:
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                if parameter.grad is not gradient:
                    parameter.grad = gradient
            return
        # The next replay overwrites the graph's own: several of them are summed beside it, in the order of eager sums.
        begun: list[tuple[Tensor, Tensor]] = []
        continued: list[tuple[Tensor, Tensor]] = []
        for index, (parameter, gradient) in enumerate(zip(self._parameters, gradients, strict=True)):
            if gradient is None:
                parameter.grad = None if first else parameter.grad
                continue
            total = self._sums[index]
            if total is None:
                total = self._sums[index] = torch.empty_like(gradient)
            if first or parameter.grad is None:
                begun.append((total, gradient))
            else:
                if parameter.grad is not total:
                    total.copy_(parameter.grad)  # of a step that was made eagerly
                continued.append((total, gradient))
            parameter.grad = total
        with torch.no_grad():
            if begun:
                torch._foreach_copy_([total for total, _ in begun], [gradient for _, gradient in begun])
            if continued:
                torch._foreach_add_([total for total, _ in continued], [gradient for _, gradient in continued])


class _Kept:
    """What a rehearsal changes, to be put back: weights, buffers, random numbers; gradients are set aside."""

    def __init__(self, module: Coordinator, parameters: list[torch.nn.Parameter], device: torch.device) -> None:
        self._device = device
        self._tensors = [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]
        self._copies = [tensor.clone() for tensor in self._tensors]
        self._random = random_state(device)
        self._gradients = [(parameter, parameter.grad) for parameter in parameters]

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, copy in zip(self._tensors, self._copies, strict=True):
            tensor.copy_(copy)
        restore_random_state(self._random, self._device)

    def give_gradients_back(self) -> None:
        for parameter, gradient in self._gradients:
            parameter.grad = gradient


class _Watched:
    """What a graph takes for granted, and Python may change at any time."""

    def __init__(self, module: Coordinator) -> None:
        self._parts = _parts(module)
        self._modules = [*module.modules()]
        self._norms = batch_norms(module)
        self._parameters = [*module.parameters()]
        self._tensors = [*self._parameters, *module.buffers()]
        self._seen = self._look()

    def consists_of(self, module: Coordinator) -> bool:
        parts = _parts(module)
        return len(parts) == len(self._parts) and all(a is b for a, b in zip(parts, self._parts, strict=True))

    def unchanged(self) -> bool:
        return self._look() == self._seen

    def _look(self) -> tuple[list[Any], ...]:
        return (
            [module.training for module in self._modules],
            [layer.momentum for layer in self._norms],
            [parameter.requires_grad for parameter in self._parameters],
            [tensor.data_ptr() for tensor in self._tensors],
        )


def _parts(module: torch.nn.Module) -> list[Any]:
    return [*module.modules(), *module.parameters(), *module.buffers()]


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make a CUDA device the current one, whose streams are meant where none is named."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _shape(batch: Batch, micro_batches: int) -> tuple[Any, ...]:
    given = [None if each is None else (tuple(each.shape), each.dtype, each.device) for each in batch]
    return (*given, micro_batches)


def _fill(inputs: Batch, given: Batch) -> None:
    for target, source in zip(inputs, given, strict=True):
        if target is not None and source is not None:
            target.copy_(source, non_blocking=True)


def _host_draws(device: torch.device) -> tuple[Any, ...]:
    """Return the states of the generators that a graph on `device` cannot draw from."""
    states: list[Any] = [random.getstate()]
    _, keys, *rest = np.random.get_state(legacy=True)
    states += [np.asarray(keys).tobytes(), rest]
    if device.type != "cpu":
        states.append(torch.random.get_rng_state().numpy().tobytes())
    return tuple(states)


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))) if tensors else 0.0


def _first_line(error: Exception) -> str:
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"
