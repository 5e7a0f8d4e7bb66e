"""List what is installed with this package and under which licence: `python -m tests.packaging.licences`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEADER = """\
# Licences of what is installed

What `pip install dkel-lightning[{extras}]` brings, on Linux with Python 3.11, and the licence that each package states.
Made by `python -m tests.packaging.licences > docs/licences.md`; a test compares it with what is installed.
NVIDIA's CUDA libraries come with torch under NVIDIA's own terms.

| package | licence | needed by |
| --- | --- | --- |"""

EXTRAS = (
    *("timm", "hf", "datasets", "export", "cli", "tensorboard", "wandb", "mlflow"),
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


def page() -> str:
    """Return the whole document."""
    rows = sorted((name, by) for name, by in needed("dkel-lightning", EXTRAS) if not is_cuda(name))
    lines = [f"| {name} | {licence(name)} | {by} |" for name, by in rows]
    return "\n".join([HEADER.format(extras=",".join(EXTRAS)), *lines, ""])


def is_cuda(name: str) -> bool:
    """Tell whether it is one of the CUDA libraries that torch pins."""
    return name.startswith(("nvidia-", "cuda-"))


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(page(), end="")
