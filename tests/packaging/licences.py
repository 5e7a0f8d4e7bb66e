"""What is installed with this package, and under which licence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = (
    *("timm", "hf", "datasets", "export", "hub", "cli", "tensorboard", "wandb", "mlflow"),
    *("joblib", "submitit", "optuna", "rl"),
)
# Stated only in their files, which were read.
READ = {"antlr4-python3-runtime": "BSD-3-Clause"}


def needed(name: str, extras: tuple[str, ...] = (), by: str = "") -> Iterator[tuple[str, str]]:
    """Walk the requirements of an installed package: name and what first asked for it."""
    seen: set[str] = set()
    waiting = [(name, extras, by)]
    while waiting:
        current, wanted, asked = waiting.pop(0)
        found = _installed(current)
        if found is None or (canonicalize_name(current) in seen and not wanted):
            continue
        if canonicalize_name(current) not in seen and asked:
            yield canonicalize_name(current), asked
        seen.add(canonicalize_name(current))
        for line in found.requires or []:
            requirement = Requirement(line)
            environments = [{"extra": extra} for extra in ("", *wanted)]
            if requirement.marker is None or any(requirement.marker.evaluate(e) for e in environments):
                waiting.append((requirement.name, tuple(requirement.extras), current))


def licence(name: str) -> str:
    """Return the licence that an installed package states."""
    if name in READ:
        return READ[name]
    found = _installed(name)
    stated = found.metadata["License-Expression"] if "License-Expression" in found.metadata else None  # noqa: SIM401  (it has no get before Python 3.12)
    if stated:
        return str(stated)
    classified = [
        line.split("::")[-1].strip()
        for line in found.metadata.get_all("Classifier") or []
        if line.startswith("License ::") and line.count("::") > 1
    ]
    if classified:
        return ", ".join(classified)
    own = found.metadata["License"] if "License" in found.metadata else ""  # noqa: SIM401
    lines = str(own).strip().splitlines()
    return re.sub(r"\s+", " ", lines[0]) if lines else "not stated"


def is_cuda(name: str) -> bool:
    """Tell whether it is one of the CUDA libraries that torch pins."""
    return name.startswith(("nvidia-", "cuda-"))


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None
