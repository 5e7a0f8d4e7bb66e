"""Two processes (four in the long tests) train and score as one does on the same data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from dkel_lightning import DistillationModule
from dkel_lightning.data import DigitsDataModule
from dkel_lightning.modules.peers import batch_norms
from tests.distributed.processes import fork
from tests.modules.toy import parameters_of, trainer

pytestmark = pytest.mark.slow
WORLDS = (2, pytest.param(4, marks=pytest.mark.long))


def run_trainer(world: int, *callbacks: Callback, **settings: Any) -> Trainer:
    if world > 1:
        settings |= {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": world}
    return trainer(*callbacks, use_distributed_sampler=False, **settings)


def in_each(world: int, folder: Path, work: Callable[[], Any]) -> list[Any]:
    """Return what `work` returns in each process."""

    def child(rank: int) -> None:
        torch.save(work(), folder / f"{world}_{rank}.pt")

    assert fork(world, child) == [0] * world
    return [torch.load(folder / f"{world}_{rank}.pt", weights_only=True) for rank in range(world)]


class Parameters(Callback):
    """Note the gradients and parameters of the steps."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.parameters: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.parameters.append(parameters_of(pl_module))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        named = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}
        self.gradients.append(named)


def _stay(layer: torch.nn.Module, mode: bool = True) -> torch.nn.Module:
    return layer


def train_on(world: int, method: str) -> dict[str, Any]:
    """Train two epochs of three global batches of 32, 32 and 24 images, without augmentation."""
    images = DigitsDataModule(
        limit=88, batch_size=32 // world, eval_batch_size=50, padding=0, flip=False, residency="device"
    )
    images.setup()
    module = DistillationModule.build(
        "resnet8", 10, method, 2, in_channels=1, seed=1,
        teacher={"init_steps": 2, "init_lr_scale": 1.0},
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    )  # fmt: skip
    for layer in batch_norms(module):
        torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
        # Statistics of a batch depend on who shares it, so the running ones are used throughout.
        layer.eval()
        object.__setattr__(layer, "train", partial(_stay, layer))
    seen = Parameters()
    run = run_trainer(world, seen, max_epochs=2)
    run.fit(module, images)
    tested = run.test(module, images, verbose=False)[0]
    return {
        "initialised": seen.parameters[0],
        "parameters": parameters_of(module),
        "gradients": seen.gradients[-1],
        "steps": run.global_step,
        "metrics": {**{name: float(value) for name, value in run.callback_metrics.items()}, **tested},
        "logged": {name: float(value) for name, value in run.logged_metrics.items()},
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.manual_seed(0)
    return train_on(1, "dkel")


@pytest.mark.parametrize("world", WORLDS)
def test_processes_train_and_score_as_one_does(world: int, alone: dict[str, Any], tmp_path: Path) -> None:
    def work() -> dict[str, Any]:
        torch.manual_seed(0)
        return train_on(world, "dkel")

    ranks = in_each(world, tmp_path, work)
    for what in ("initialised", "parameters", "gradients"):
        for rank in ranks[1:]:
            assert all(torch.equal(ranks[0][what][name], value) for name, value in rank[what].items()), what
    assert any(name.startswith("teacher.") for name in ranks[0]["initialised"])
    assert [rank["steps"] for rank in ranks] == [alone["steps"]] * world == [6] * world
    for what in ("initialised", "gradients", "parameters"):
        for name, value in alone[what].items():
            torch.testing.assert_close(ranks[0][what][name], value, rtol=1e-3, atol=1e-5, msg=f"{what} {name}")
    for rank in ranks:
        assert rank["metrics"].keys() == alone["metrics"].keys()
        assert rank["metrics"] == pytest.approx(alone["metrics"], rel=1e-3, abs=1e-4)
    wanted = ("test/acc/teacher_0", "test/nll/ensemble", "test/ece/student_1", "test/disagreement")
    assert set(wanted) <= alone["metrics"].keys()


@pytest.mark.parametrize("world", WORLDS)
def test_scores_of_the_same_weights_do_not_depend_on_the_number_of_processes(world: int, tmp_path: Path) -> None:
    def score(world: int) -> dict[str, float]:
        images = DigitsDataModule(batch_size=32, eval_batch_size=50, limit=100, residency="device", validation=0.1009)
        images.setup()
        module = DistillationModule.build("resnet8", 10, "dkel", 2, in_channels=1, seed=1)
        run = run_trainer(world)
        return {**run.validate(module, images, verbose=False)[0], **run.test(module, images, verbose=False)[0]}

    expected = score(1)
    kinds = {name.split("/")[0] + "/" + name.split("/")[1] for name in expected}
    assert {"val/acc", "val/nll", "test/ece", "test/disagreement", "diversity/cka", "diversity/agreement"} <= kinds
    for found in in_each(world, tmp_path, lambda: score(world)):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True)
