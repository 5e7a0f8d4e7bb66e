"""A stand-in for CUDA graphs on the CPU: a tape of operations, which like a graph knows tensors and no Python.

Operations are recorded below autograd, so the tape of a step holds its backward pass too. A replay runs each again on
the very tensors of the recording and writes its results into those: a number that Python computed anew, a tensor that
was replaced, or a hook that was to be called is not seen by it, as it would not be by a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dkel_lightning.execution import captured
from dkel_lightning.modules.outputs import StepResult

Operation = tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]


class HostReadError(RuntimeError):
    """A value went from a tensor to Python."""


READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__", "nonzero"}
READING_OPERATIONS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "_unique2", "bincount")


class NoReadsInPython(TorchFunctionMode):
    """Refuse what asks for a value in Python."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in READS:
            raise HostReadError(f"{func.__name__} reads a value back to the host")
        return func(*args, **(kwargs or {}))


class NoReadsBelow(TorchDispatchMode):
    """Refuse the operations that read a value on their way, also a mask that chooses."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[-1]
        chosen = name in ("index", "index_put_", "_index_put_impl_", "index_put")
        if name in READING_OPERATIONS or (chosen and _has_mask(args[1])):
            raise HostReadError(f"{name} reads a value back to the host")
        return func(*args, **(kwargs or {}))


def _has_mask(indices: Any) -> bool:
    return any(isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in indices)


@contextmanager
def no_host_reads() -> Iterator[None]:
    with NoReadsInPython(), NoReadsBelow():
        yield


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {each.untyped_storage().data_ptr() for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        result = func(*args, **kwargs)
        made = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        fresh = [each for each in made if each.untyped_storage().data_ptr() not in given]
        # What gives only views of its arguments and changes none of them need not be repeated.
        if fresh or not made or func._schema.is_mutable:
            self.operations.append((func, args, kwargs, made))
        return result


class Tape:
    """Records a step and repeats it; other than a CUDA graph it computes while it records.

    Attributes:
        replays: of all tapes, also the one that proves a capture.
    """

    replays = 0

    def __init__(self, earlier: Any = None) -> None:
        self._operations: list[Operation] = []

    def rehearse(self, step: Callable[[], object]) -> None:
        step()
        with no_host_reads():
            step()

    def capture(self, step: Callable[[], StepResult]) -> StepResult:
        with _Recording() as recording:
            passed = step()
        self._operations = recording.operations
        return passed

    @torch.no_grad()
    def replay(self) -> None:
        Tape.replays += 1
        for func, args, kwargs, made in self._operations:
            result = func(*args, **kwargs)
            for old, new in zip(made, [x for x in tree_leaves(result) if isinstance(x, Tensor)], strict=True):
                if old is not new and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> type[Tape]:
    """Let the CPU capture, on tapes."""
    monkeypatch.setitem(captured.RECORDERS, "cpu", Tape)
    monkeypatch.setattr(Tape, "replays", 0)
    return Tape
