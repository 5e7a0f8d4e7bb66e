"""Write down what the long tests counted, where `DKEL_RECORD` names a folder for it."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import lightning
import torch


def record(name: str, **figures: Any) -> None:
    """Write figures and what they were measured on; without a folder only print them."""
    content = {
        **figures,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    text = json.dumps(content, indent=2)
    print(f"{name}: {text}")
    folder = os.environ.get("DKEL_RECORD")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.json").write_text(text + "\n", encoding="utf-8")
