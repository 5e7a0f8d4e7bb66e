"""`precision=auto`: what each device is given, and what the run then says of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dkel_lightning.app import build
from dkel_lightning.app.cli.main import main
from dkel_lightning.app.runs.folder import values_in
from dkel_lightning.runtime.atomic_files import text_of
from tests.compose import TINY


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
    assert build.has_bfloat16(torch.device("cpu")) is native


def test_a_gpu_that_emulates_it_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **asking: asked.append(asking))
    assert not build.has_bfloat16(torch.device("cuda"))
    assert asked == [{"including_emulation": False}]
    assert not build.has_bfloat16(torch.device("mps"))


@pytest.mark.parametrize(("native", "name", "of_lightning"), [(True, "bf16", "bf16-mixed"), (False, "fp32", "32-true")])
def test_a_run_says_which_it_is_and_goes_on_by_the_same_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    native: bool,
    name: str,
    of_lightning: str,
) -> None:
    monkeypatch.setattr(build, "has_bfloat16", lambda device: native)
    monkeypatch.chdir(tmp_path)
    arguments = (*TINY, "precision=auto", "method=baseline", "method.peers=1", "backbone=resnet8")
    for where in ("hydra.run.dir=run", "resume=run"):
        monkeypatch.setattr(sys, "argv", ["dkel", *arguments, where])
        main()
        assert f"\nprecision: {name}\n" in capsys.readouterr().out
    assert values_in(Path("run"))["precision"]["name"] == "auto"
    assert json.loads(text_of(Path("run/provenance.json")))["execution"]["precision"] == of_lightning


def test_the_members_of_a_comparison_are_given_one_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "has_bfloat16", lambda device: True)
    monkeypatch.chdir(tmp_path)
    labels = 'compare.methods=[{a:["method=baseline"]},{b:["method=baseline","precision=fp32"]}]'
    given = [*TINY, "precision=auto", "task=compare", "compare.seeds=[0]", labels, "compare.folder=c"]
    monkeypatch.setattr(sys, "argv", ["dkel", *given])
    main()
    told = [json.loads(text_of(Path(f"c/{label}/seed_0/provenance.json"))) for label in "ab"]
    assert [each["execution"]["precision"] for each in told] == ["bf16-mixed", "32-true"]
