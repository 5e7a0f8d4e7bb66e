"""`precision=auto`: what each device is given, and what the run then says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dkel_lightning
from dkel_lightning.app import precision
from dkel_lightning.app.runs.folder import values_in


@pytest.mark.parametrize(
    ("processor", "native"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, True),
        ({"amx_bf16": False, "avx512_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"avx2": True, "amx_bf16": False, "avx512_bf16": False}, False),
    ],
)
def test_a_processor_is_given_bf16_where_it_has_instructions_on_it(
    monkeypatch: pytest.MonkeyPatch, processor: dict[str, bool], native: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    assert precision.is_native(torch.device("cpu")) is native


def test_a_gpu_that_emulates_it_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **asking: asked.append(asking))
    assert not precision.is_native(torch.device("cuda"))
    assert asked == [{"including_emulation": False}]
    assert not precision.is_native(torch.device("mps"))


@pytest.mark.parametrize(("native", "name", "of_lightning"), [(True, "bf16", "bf16-mixed"), (False, "fp32", "32-true")])
def test_a_run_says_which_it_is_and_keeps_that(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    native: bool,
    name: str,
    of_lightning: str,
) -> None:
    monkeypatch.setattr(precision, "is_native", lambda device: native)
    monkeypatch.chdir(tmp_path)
    settings = {"precision": "auto", "trainer": "cpu", "method": "baseline", "method.peers": 1}
    settings |= {"trainer.limit_train_batches": 2, "trainer.limit_val_batches": 1, "trainer.limit_test_batches": 1}
    dkel_lightning.train("resnet8", epochs=1, out="run", settings=settings)
    assert values_in(Path("run"))["precision"] == {"name": name, "trainer": of_lightning, "matmul": "high"}
    assert (
        f"precision: {name} (the cpu has {'' if native else 'no '}instructions on bfloat16)" in capsys.readouterr().out
    )
