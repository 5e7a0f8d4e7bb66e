"""Random numbers that are functions of a seed and a purpose, never of what ran before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Label = str | int


def derive_seed(seed: int, *labels: Label) -> int:
    """Mix `seed` with the purpose named by `labels` into a seed of 63 bits.

    Equal arguments give equal seeds on every platform; different ones give unrelated seeds, so that
    `(0, "student")` and `(0, "teacher")`, or epochs 1 and 2, never share a stream.
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(label).__name__}:{label}" for label in labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *labels: Label, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a generator on `device` that is seeded for the purpose named by `labels`."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *labels))


@contextmanager
def seeded(seed: int, *labels: Label) -> Iterator[None]:
    """Run a block under torch's CPU generator seeded for this purpose, then restore its state.

    Meant for drawing weights: layers initialise themselves from the global generator.
    """
    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(derive_seed(seed, *labels))
    try:
        yield
    finally:
        torch.random.set_rng_state(state)
