"""Random numbers as functions of a seed and a purpose."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

Label = str | int


def derive_seed(seed: int, *labels: Label) -> int:
    """Mix `seed` with the purpose named by `labels` into a seed of 63 bits.

    The result is the same on every platform. Different arguments give unrelated seeds.
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(label).__name__}:{label}" for label in labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *labels: Label, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on `device`, seeded for the purpose named by `labels`."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *labels))


@contextmanager
def seeded(seed: int, *labels: Label) -> Iterator[None]:
    """Run a block with torch's CPU generator seeded for this purpose, then restore its state.

    For drawing weights: layers are initialised from the global generator.
    """
    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(derive_seed(seed, *labels))
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


def seed_process(seed: int, *labels: Label) -> None:
    """Seed the global generators of torch, numpy and Python, which dropout and a user's transforms use."""
    derived = derive_seed(seed, *labels)
    torch.manual_seed(derived)
    random.seed(derived)
    np.random.seed(derived % 2**32)


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of the global generators of torch, numpy and Python, as tensors and primitives."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": torch.random.get_rng_state(),
        "python": [version, list(words), gauss],
        "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore what `random_state` has returned."""
    torch.random.set_rng_state(state["torch"].cpu())
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
