"""Captured steps on two processes average around the graph and end where DistributedDataParallel's eager ones do."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from dkel_lightning import DistillationModule
from dkel_lightning.execution.captured import CapturedStep, CaptureError
from dkel_lightning.execution.runner import planned
from tests.distributed.processes import fork
from tests.execution.tape import Tape, tape
from tests.modules.toy import build, parameters_of, train_loader, trainer

__all__ = ["tape"]

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it is": ({}, {}),
    "accumulated, clipped": ({"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}, {}),
    "buffers of their own": ({}, {"broadcast_buffers": False, "bucket_cap_mb": 1}),
}


class Noted(Callback):
    """Note the running statistics of this process after its last step, and whether DDP is there when it begins."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0:
            self.wrapped = any(type(each) is DistributedDataParallel for each in gc.get_objects())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.seen = {name: each.clone() for name, each in pl_module.named_buffers() if "running" in name}


def fitted(
    mode: str, settings: dict[str, Any], of_ddp: dict[str, Any], why: str = "", wrapped: bool = False
) -> dict[str, Any]:
    module, noted = build(execution=mode), Noted()
    strategy = DDPStrategy(process_group_backend="gloo", **of_ddp)
    fit = trainer(noted, devices=2, max_epochs=2, strategy=strategy, **settings)
    torch.manual_seed(7)
    fit.fit(module, train_loader(56))
    assert module.execution_in_force.name == ("eager" if why else mode)
    assert why in module.execution_in_force.why
    assert noted.wrapped == (wrapped or mode == "eager")
    return {"parameters": parameters_of(module), "statistics": noted.seen}


def together(rank: int, folder: Path) -> None:
    outcomes: dict[str, Any] = {}
    for name, (settings, of_ddp) in CASES.items():
        outcomes |= {f"{name}, {mode}": fitted(mode, settings, of_ddp) for mode in ("eager", "cuda_graph")}
    outcomes["replays"] = Tape.replays
    with patch.object(DistillationModule, "on_train_start", lambda self: None):
        outcomes["unwrapped by nobody"] = fitted("cuda_graph", {}, {}, "on_train_start does not call", wrapped=True)
    # One alone cannot capture, and goes on with the other.
    refusing = (
        patch.object(CapturedStep, "capture", side_effect=CaptureError("not here")) if rank == 1 else nullcontext()
    )
    with refusing:
        outcomes["refused"] = fitted("cuda_graph", {}, {}, "not here" if rank == 1 else "")
    torch.save(outcomes, folder / f"rank{rank}.pt")


@pytest.mark.slow
def test_two_processes_capture_what_they_do_eagerly(tmp_path: Path, tape: type[Tape]) -> None:
    assert fork(2, partial(together, folder=tmp_path)) == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for rank in (first, second):
        for name in CASES:
            torch.testing.assert_close(rank[f"{name}, cuda_graph"], rank[f"{name}, eager"], rtol=1e-5, atol=1e-6)
        for name in ("refused", "unwrapped by nobody"):
            torch.testing.assert_close(rank[name], rank["as it is, eager"], rtol=1e-5, atol=1e-6)
        assert rank["replays"] > 3 * 6
    for name in (*(f"{name}, cuda_graph" for name in CASES), "refused"):
        torch.testing.assert_close(first[name]["parameters"], second[name]["parameters"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"find_unused_parameters": True}, "find_unused_parameters is DistributedDataParallel's own"),
        ({"ddp_comm_hook": print}, "ddp_comm_hook is DistributedDataParallel's own"),
        ({"find_unused_parameters": False, "static_graph": True}, ""),
    ],
)
def test_what_only_ddp_does_is_left_to_it(given: dict[str, Any], reason: str, tape: type[Tape]) -> None:
    module = build(execution="cuda_graph")
    assert planned(module, trainer(strategy=DDPStrategy(**given), devices=2)).why == reason
    module.student.network.trunk.append(torch.nn.SyncBatchNorm(8))  # type: ignore[operator]
    why = planned(module, trainer(strategy=DDPStrategy(), devices=2)).why
    assert why == "SyncBatchNorm exchanges statistics during the forward pass"
