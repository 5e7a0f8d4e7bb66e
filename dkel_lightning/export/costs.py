"""What a network costs: parameters, bytes, operations, time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

BATCHES = (1, 64)
_LONGEST = 15.0
"""Seconds after which no further repeat of a measurement begins."""
_LEAST = 3


@dataclass(frozen=True)
class Latency:
    """The median time of a batch.

    Attributes:
        batch: images.
        seconds: median over `repeats`, after one pass that is not counted.
        repeats: how many were measured.
    """

    batch: int
    seconds: float
    repeats: int

    @property
    def milliseconds(self) -> str:
        """Write the time with three digits, without an exponent."""
        value = self.seconds * 1000
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class Cost:
    """What one network costs.

    Attributes:
        name: of the network.
        parameters: numbers that were learnt; None where a file does not tell.
        bytes: of parameters and buffers in memory, or of the file.
        flops: of one image, a multiplication and an addition counted as two; matrix products and convolutions only,
            as torch.utils.flop_counter counts. None where not counted.
        latencies: one for each of BATCHES.
    """

    name: str
    parameters: int | None
    bytes: int
    flops: int | None
    latencies: tuple[Latency, ...]


@dataclass(frozen=True)
class Candidate:
    """A network whose cost is measured.

    Attributes:
        name: of it.
        classify: images [B, C, H, W] -> anything.
        bytes: of its file; where not given, of its weights and statistics.
        networks: what holds these, None for a file; weights that are shared count once.
    """

    name: str
    classify: Callable[[Tensor], Any]
    bytes: int = 0
    networks: nn.Module | None = None


def measure(*candidates: Candidate, images: Tensor, repeats: int) -> tuple[Cost, ...]:
    """Measure candidates beside each other on the CPU.

    Args:
        candidates: what is measured; each in turn in every repeat, so that what else the machine does meets all alike.
        images: at least one, normalised; repeated to the batch that is measured.
        repeats: of each batch.
    """
    times = [
        _times([candidate.classify for candidate in candidates], _batch(images, size), repeats) for size in BATCHES
    ]
    return tuple(
        _cost(candidate, images, tuple(of_batch[place] for of_batch in times))
        for place, candidate in enumerate(candidates)
    )


def _cost(candidate: Candidate, images: Tensor, latencies: tuple[Latency, ...]) -> Cost:
    networks = candidate.networks
    if networks is None:
        return Cost(candidate.name, None, candidate.bytes, None, latencies)
    parameters = sum(parameter.numel() for parameter in networks.parameters())
    size = sum(tensor.numel() * tensor.element_size() for tensor in [*networks.parameters(), *networks.buffers()])
    return Cost(candidate.name, parameters, candidate.bytes or size, flops(candidate.classify, images[:1]), latencies)


def flops(classify: Callable[[Tensor], Any], images: Tensor) -> int:
    """Count the operations of a pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        classify(images)
    return int(counter.get_total_flops())


def _batch(images: Tensor, size: int) -> Tensor:
    return images.repeat(-(-size // len(images)), 1, 1, 1)[:size].contiguous()


def _times(classifiers: Sequence[Callable[[Tensor], Any]], images: Tensor, repeats: int) -> list[Latency]:
    times: list[list[float]] = [[] for _ in classifiers]
    with torch.inference_mode():
        for classify in classifiers:
            classify(images)
        began = time.perf_counter()
        for repeat in range(repeats):
            if repeat >= _LEAST and time.perf_counter() - began > _LONGEST:
                break
            for own, classify in zip(times, classifiers, strict=True):
                start = time.perf_counter()
                classify(images)
                own.append(time.perf_counter() - start)
    return [Latency(len(images), statistics.median(own), len(own)) for own in times]
