"""What the CUDA recorder asks of torch, and in which order; the device itself is not there."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from dkel_lightning.execution.captured import WARM_UP, CaptureError, CudaRecorder, waiting_forbidden


class Device:
    """Stands in for torch.cuda and writes down what it is told; ending a capture fails with `breaks`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self.breaks: Exception | None = None
        self.generator = Generator()
        self.current = 0
        monkeypatch.setattr(CudaRecorder, "_sides", {})
        for name, value in {
            "CUDAGraph": lambda: "graph",
            "graph_pool_handle": lambda: (0, 1),
            "Stream": lambda: Stream(self, "side" if self.current == 0 else f"side of {self.current}"),
            "current_device": lambda: self.current,
            "default_generators": [self.generator],
            "current_stream": lambda: Stream(self, "default"),
            "set_stream": lambda stream: self.told.append(f"on {stream.name}"),
            "stream": self.stream,
            "graph": self.graph,
            "get_sync_debug_mode": lambda: 0,
            "set_sync_debug_mode": self.set_mode,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.told.append(f"on {stream.name}")
        yield

    @contextmanager
    def graph(self, graph: Any, pool: Any, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        self.told.append(f"capture {pool} on {stream.name} {capture_error_mode}")
        assert not gc.isenabled()
        self.generator.state = {**self.generator.state, "capturing": True}
        try:
            yield
        finally:
            if self.breaks is not None:
                raise self.breaks
            self.generator.state["capturing"] = False

    def set_mode(self, mode: Any) -> None:
        warnings.warn("a prototype feature", stacklevel=2)
        self.told.append(f"mode {mode}")


class Generator:
    """As in torch 2.11: whether it is capturing is part of its state, which a clone has without."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"seed": 7, "capturing": False}

    def clone_state(self) -> Generator:
        clone = Generator()
        clone.state = {**self.state, "capturing": False}
        return clone

    def graphsafe_set_state(self, other: Generator) -> None:
        self.state = other.state


class Stream:
    def __init__(self, device: Device, name: str) -> None:
        self.device, self.name = device, name

    def wait_stream(self, other: Stream) -> None:
        self.device.told.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def fail() -> Any:
    raise RuntimeError("called a synchronizing CUDA operation")


def test_a_rehearsal_that_fails_is_over_before_anything_is_put_back(device: Device) -> None:
    made: list[int] = []
    CudaRecorder().rehearse(lambda: made.append(1))
    assert len(made) == WARM_UP + 1
    expected = ["side waits for default", "on side", "default waits for side"]
    assert [said for said in device.told if "mode" not in said] == expected
    device.told.clear()
    with pytest.raises(RuntimeError, match="synchronizing"):
        CudaRecorder().rehearse(fail)
    assert device.told == expected


@pytest.mark.filterwarnings("error")
def test_waiting_is_forbidden_without_a_word_and_allowed_again(device: Device) -> None:
    with pytest.raises(RuntimeError, match="synchronizing"), waiting_forbidden():
        fail()
    assert device.told == ["mode error", "mode 0"]


def test_a_capture_that_fails_says_what_broke_it_and_gives_the_stream_back(device: Device) -> None:
    passed: Any = object()
    assert CudaRecorder().capture(lambda: passed) is passed
    assert device.told == ["capture (0, 1) on side thread_local"]
    with pytest.raises(RuntimeError, match="synchronizing"):
        CudaRecorder().capture(fail)
    device.breaks = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    with pytest.raises(CaptureError, match="RuntimeError: called a synchronizing"):
        CudaRecorder().capture(fail)
    with pytest.raises(RuntimeError, match="previous error"):
        CudaRecorder().capture(lambda: passed)
    assert device.told.count("on default") == 3
    assert gc.isenabled()
    assert device.generator.state == {"seed": 7, "capturing": False}


def test_graphs_of_one_step_share_their_memory(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    first = CudaRecorder()
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 2))
    assert CudaRecorder(first).pool == first.pool == (0, 1)
    assert CudaRecorder().pool == (0, 2)


def test_each_device_captures_on_a_stream_of_its_own(device: Device) -> None:
    passed: Any = object()
    for device.current in (0, 1, 0):
        CudaRecorder().capture(lambda: passed)
    assert [said.split(" on ")[1] for said in device.told] == [
        f"{stream} thread_local" for stream in ("side", "side of 1", "side")
    ]
