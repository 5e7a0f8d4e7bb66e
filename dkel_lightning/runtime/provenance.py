"""Versions, device and commit of a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("dkel-lightning", "torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "omegaconf", "numpy")


def collect(device: torch.device) -> dict[str, Any]:
    """Return what is needed to reproduce a run on `device`."""
    return {
        "command": command(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": describe(device),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "git": _git(),
    }


def command() -> str:
    """Return the command line of this process, quoted for a shell."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py" and program.parent.name == "dkel_lightning":
        return shlex.join(["dkel", *sys.argv[1:]])
    return shlex.join([program.name, *sys.argv[1:]])


def describe(device: torch.device) -> dict[str, Any]:
    """Describe the accelerators of this kind, or the processor."""
    if device.type == "cuda":
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return {"kind": "cuda", "names": names, "cuda": torch.version.cuda}
    return {"kind": device.type, "names": [_processor()]}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Return the commit of this package's checkout; None for an installed package."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        commit = _run(here, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_run(here, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "--no-optional-locks", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return done.stdout.strip()
