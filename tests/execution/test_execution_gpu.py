"""Captured steps on a CUDA device: as eager ones to rounding, and never a wait. Skipped where there is no such device.

Tolerances: without TF32 and with deterministic kernels a graph launches the kernels that eager steps launch, so weights
agree to 1e-4 of their size after six steps; compiled networks sum in another order, 1e-2.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from dkel_lightning import DistillationModule, methods
from dkel_lightning.callbacks import DiversityMonitor
from dkel_lightning.execution.captured import CapturedStep
from dkel_lightning.methods.baseline import Baseline
from tests.execution.test_execution import Reading, dropping
from tests.modules.toy import build, images_and_labels, train_loader, trainer, val_loader

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Choose kernels that repeat, and no TF32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    yield
    torch.set_float32_matmul_precision(precision)


def fitted(module: DistillationModule, *callbacks: Callback, **settings: Any) -> dict[str, Tensor]:
    torch.manual_seed(7)
    given = {"accelerator": "gpu", "max_epochs": 2} | settings
    trainer(*callbacks, **given).fit(module, train_loader(28), val_loader())
    return {name: value.cpu() for name, value in module.state_dict().items()}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    for name, value in ours.items():
        if name.startswith(("validation_accuracy", "term_means", "train_scores")):
            continue
        scale = float(value.abs().max()) if value.numel() else 0.0
        torch.testing.assert_close(theirs[name], value, rtol=tolerance, atol=tolerance * (scale + 1e-6), msg=name)


def mode_of(module: DistillationModule) -> tuple[str, str]:
    return module.execution_in_force.name, module.execution_in_force.why


def peers(method: str) -> int:
    return {"okddip": 3, "kd": 1, "heads": 1, "iakd": 1, "consistent": 1, "sftn": 1, "soteacher": 1}.get(method, 2)


@pytest.mark.parametrize("method", sorted(methods.METHODS))
def test_graphs_follow_eager_training(method: str) -> None:
    eager, captured = (build(method, peers(method), execution=mode) for mode in ("eager", "cuda_graph"))
    assert_close(fitted(eager), fitted(captured), 1e-4)
    assert mode_of(captured) == ("cuda_graph", "")


@pytest.mark.parametrize(
    "settings",
    [{"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}, {"precision": "bf16-mixed"}, {"val_check_interval": 2}],
)
def test_graphs_follow_eager_training_whatever_the_trainer_does_around(settings: dict[str, Any]) -> None:
    eager, captured = build(execution="eager"), build(execution="cuda_graph")
    tolerance = 1e-2 if "precision" in settings else 1e-4
    assert_close(fitted(eager, **settings), fitted(captured, **settings), tolerance)
    assert mode_of(captured) == ("cuda_graph", "")


def test_dropout_on_the_device_draws_what_eager_steps_draw() -> None:
    eager, captured = dropping("eager"), dropping("cuda_graph")
    assert_close(fitted(eager), fitted(captured), 1e-4)
    assert mode_of(captured) == ("cuda_graph", "")


def test_graphs_of_compiled_networks_follow_eager_training() -> None:
    eager, captured = build(), build(execution={"name": "cuda_graph", "compile": True})
    assert_close(fitted(eager), fitted(captured), 1e-2)
    assert str(captured.execution_in_force) == "execution: cuda_graph over compiled networks"


def test_a_choice_left_open_is_a_graph_with_a_fused_optimizer() -> None:
    module = build(execution="auto")
    fitted(module)
    assert mode_of(module) == ("cuda_graph", "")
    assert module.execution_in_force.fused_optimizer


def test_fp16_falls_back() -> None:
    module = build(execution="cuda_graph")
    fitted(module, precision="16-mixed", max_epochs=1)
    assert mode_of(module) == ("eager", "the loss scaling of precision fp16 decides on the host")


def test_a_capture_that_fails_leaves_weights_and_random_numbers_and_training_goes_on() -> None:
    eager, refused = build(Reading(2)), build(Reading(2), execution="cuda_graph")
    assert_close(fitted(eager), fitted(refused), 1e-4)
    assert mode_of(refused)[0] == "eager"
    assert torch.rand(3, device="cuda").isfinite().all()


class Waiting(Baseline):
    """Does in a capture alone what a capture does not bear."""

    def loss_terms(self, step: Any) -> dict[str, Tensor]:
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        return super().loss_terms(step)


def test_a_capture_that_breaks_leaves_the_stream_and_the_memory_as_they_were() -> None:
    eager, broken = build(Waiting(2)), build(Waiting(2), execution="cuda_graph")
    assert_close(fitted(eager), fitted(broken), 1e-4)
    name, why = mode_of(broken)
    assert name == "eager"
    assert "captur" in why
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.cuda.empty_cache()  # asserts that no capture is under way
    assert torch.rand(3, device="cuda").isfinite().all()  # nor the generator's


def test_graphs_follow_the_eager_steps_of_ddp() -> None:
    eager, captured = build(execution="eager"), build(execution="cuda_graph")
    under_ddp = {"strategy": "ddp", "devices": 1}
    assert_close(fitted(eager, **under_ddp), fitted(captured, **under_ddp), 1e-4)
    assert mode_of(captured) == ("cuda_graph", "")


class NoWaiting(Callback):
    """Forbid that the host waits for the device in a step; the first one of an epoch checks the labels."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx > 0 and trainer.current_epoch > 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it is a prototype
                torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("method", sorted(methods.METHODS))
@pytest.mark.parametrize("mode", ["eager", "cuda_graph"])
def test_no_step_waits_for_the_device(method: str, mode: str) -> None:
    module = build(method, peers(method), execution=mode)
    fitted(module, NoWaiting(), gradient_clip_val=1.0)
    assert mode_of(module) == (mode, "")


def test_the_bare_step_gives_what_the_trainer_gives() -> None:
    images, labels = images_and_labels(24)
    batches = [(images[i : i + 8].cuda(), labels[i : i + 8].cuda()) for i in (0, 8, 16)]
    module = build(execution="cuda_graph", teacher={"init_steps": 0}).cuda().train()
    other = copy.deepcopy(module)
    step = CapturedStep(module, module.configure_optimizers())  # type: ignore[arg-type]
    step.capture(batches[0])
    optimizer: Any = other.configure_optimizers()
    for batch in batches:
        step.step(batch)
        loss = other.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        other.follow()
    ours, theirs = ({name: value.cpu() for name, value in each.state_dict().items()} for each in (other, module))
    assert_close(ours, theirs, 1e-4)


def test_without_observers_nothing_is_made_eagerly_but_the_capture() -> None:
    module = build(execution="cuda_graph")
    made: list[int] = []
    original = module.compute_step
    module.compute_step = lambda batch: (made.append(len(batch.labels)), original(batch))[1]
    fitted(module, DiversityMonitor("none"), max_epochs=3)
    # For each of the two shapes: warm-up, the step that must not wait, the capture, and the one it is compared with.
    assert made == [8] * 6 + [4] * 6
