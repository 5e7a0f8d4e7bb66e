"""`precision=auto`: bf16 where the device computes in it by itself, else fp32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dkel_lightning.app import build
from dkel_lightning.app.config.checks import PRECISIONS
from dkel_lightning.app.config.schema import Values
from dkel_lightning.runtime import ranks

OF_PROCESSORS = ("amx_bf16", "avx512_bf16", "bf16")
"""What torch calls a processor's instructions on bfloat16: those of x86, and ARM's."""


def chosen(values: Values) -> dict[str, str]:
    """Return settings of the precision of this device in place of `auto`, and say which it is."""
    device = build.device(values)
    native = is_native(device)
    name = "bf16" if native else "fp32"
    if ranks.is_first():
        print(
            f"precision: {name} (the {device.type} has {'' if native else 'no '}instructions on bfloat16)", flush=True
        )
    return {**values["precision"], "name": name, "trainer": PRECISIONS[name]}


def is_native(device: torch.device) -> bool:
    """Tell whether the device has instructions on bfloat16: a type that is emulated is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(known.get(name, False) for name in OF_PROCESSORS)
    return False
