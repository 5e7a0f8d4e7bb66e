"""Schedules in a running fit: the values in force at every batch, and the clock they read."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader

from dkel_lightning import distillation
from dkel_lightning.callbacks.schedules import clock
from dkel_lightning.modules.optim import WarmupCosine
from dkel_lightning.schedules import Clock
from tests.modules.toy import Stream, build, images_and_labels, jitter, train_loader, trainer


class Watch(Callback):
    """Note the clock and the weights at the end of every batch."""

    def __init__(self) -> None:
        self.clocks: list[Clock] = []
        self.weights: list[tuple[float, float]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.clocks.append(clock(trainer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.weights.append((pl_module.method.rampup_weight.item(), pl_module.method.ensemble_weight.item()))


def test_weights_given_in_epochs_change_between_epochs_only() -> None:
    watch = Watch()
    module = build({"name": "dkel", "rampup": {"scale": 0.5, "epochs": 2}, "ensemble": {"decay": 1.0}})
    trainer(watch, max_epochs=3, limit_train_batches=2).fit(module, train_loader())
    expected = []
    for epoch in range(3):
        r = 0.5 * math.exp(-5 * (1 - min(epoch, 2) / 2) ** 2)
        expected += [(r, math.exp(-epoch))] * 2
    assert [pair for pairs in watch.weights for pair in pairs] == pytest.approx(
        [pair for pairs in expected for pair in pairs], rel=1e-6
    )


def test_a_loop_of_ones_own_is_given_the_weights_that_a_trainer_sets() -> None:
    watch, settings = Watch(), {"name": "dkel", "rampup": {"scale": 0.5, "epochs": 2}, "ensemble": {"decay": 1.0}}
    trained: Any = build(settings, teacher={"decay": {0: 0.5, 1: 0.9}})
    module: Any = build(settings, teacher={"decay": {0: 0.5, 1: 0.9}})
    trainer(watch, max_epochs=3, limit_train_batches=2).fit(trained, train_loader())
    for now, weights in zip(watch.clocks, watch.weights, strict=True):
        module.set_time(now)
        assert (module.method.rampup_weight.item(), module.method.ensemble_weight.item()) == weights
    assert module.teacher.rate == trained.teacher.rate


def test_in_a_custom_loop_views_differ_between_epochs_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = build("baseline", teacher="none", augmentation=jitter)
    losses = []
    for epoch, rank in ((0, 0), (1, 0), (0, 1), (0, 0)):
        monkeypatch.setattr(distillation, "process_rank", lambda rank=rank: rank)
        module.set_time(Clock(epoch))
        losses.append(module.training_step(images_and_labels(6), 0).item())
    assert losses[0] == losses[3]
    assert len(set(losses)) == 3


def test_weights_given_as_a_share_change_with_every_step() -> None:
    watch = Watch()
    settings = {
        "name": "dkel",
        "rampup": {"scale": 0.5, "epochs": None, "share": 0.5},
        "ensemble": {"decay": None, "decay_share": 0.75},
    }
    trainer(watch, max_epochs=2, limit_train_batches=2).fit(build(settings), train_loader())
    # 4 steps in the run: the ramp-up takes 2 steps, the time constant 3 steps.
    expected = [(0.5 * math.exp(-5 * (1 - min(step, 2) / 2) ** 2), math.exp(-step / 3)) for step in range(4)]
    assert [pair for pairs in watch.weights for pair in pairs] == pytest.approx(
        [pair for pairs in expected for pair in pairs], rel=1e-6
    )


def test_epochs_of_different_lengths_are_counted_exactly() -> None:
    module = build(scheduler=WarmupCosine)
    run = trainer(GradientAccumulationScheduler({0: 3, 6: 1}), max_epochs=7)  # six times 2 steps, then 5
    run.fit(module, train_loader(40))
    schedule: Any = run.lr_scheduler_configs[0].scheduler
    assert (clock(run).steps, schedule.T_max) == (17, 7)


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_warm_up_and_cosine_fit_the_run_in_epochs_and_in_steps(interval: str) -> None:
    rates: list[float] = []

    class Rate(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = build(scheduler=partial(WarmupCosine, warmup=0.25), interval=interval)
    trainer(Rate(), max_epochs=4).fit(module, train_loader())
    length = 4 if interval == "epoch" else 12
    rise = length / 4
    fallen = [(time - rise) / (length - rise) for time in range(length)]
    factors = [0.5 * (1 + math.cos(math.pi * x)) if x >= 0 else (i + 1) / (rise + 1) for i, x in enumerate(fallen)]
    assert rates == pytest.approx([0.05 * factor for factor in factors for _ in range(12 // length)])


def test_a_share_of_a_short_run_is_at_least_three_steps() -> None:
    settings = {"name": "dkel", "ensemble": {"decay": None, "decay_share": 0.02}}
    module, watch = build(settings, teacher={"decay": None, "decay_share": 0.01, "draw": "student"}), Watch()
    trainer(watch, max_epochs=2).fit(module, train_loader())  # 6 steps: shares of 0.12 and 0.06 steps
    assert [v for _, v in watch.weights] == pytest.approx([math.exp(-step / 3) for step in range(6)])
    assert module.teacher.rate.item() == pytest.approx(2 / 3)
    distance = module.teacher_distance()
    assert distance is not None
    assert distance > 0


def test_the_clock_counts_optimizer_steps_under_accumulation() -> None:
    watch = Watch()
    trainer(watch, max_epochs=2, accumulate_grad_batches=2).fit(build(), train_loader())  # 3 batches: 2 steps
    assert [c.step for c in watch.clocks] == [0, 0, 1, 2, 2, 3]
    assert {(c.steps_per_epoch, c.steps) for c in watch.clocks} == {(2, 4)}
    assert [c.epoch for c in watch.clocks] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("limits", "steps"), [({}, 1 + 1 + 3 + 3), ({"max_steps": 6}, 6)])
def test_the_clock_knows_the_end_under_an_accumulation_that_changes(limits: dict[str, int], steps: int) -> None:
    watch = Watch()
    settings = {
        "name": "dkel",
        "rampup": {"epochs": None, "share": 0.5},
        "ensemble": {"decay": None, "decay_share": 0.25},
    }
    changes = GradientAccumulationScheduler({0: 3, 2: 1})
    trainer(watch, changes, max_epochs=4, **limits).fit(build(settings), train_loader())
    assert {(c.steps, c.steps_per_epoch) for c in watch.clocks} == {(steps, 2)}  # the mean of four epochs
    ramps, decays = zip(*watch.weights, strict=True)
    assert list(ramps) == sorted(ramps)
    assert list(decays) == sorted(decays, reverse=True)
    assert ramps[-1] == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"max_steps": 4, "max_epochs": -1}, (4, 4)), ({"max_epochs": 1}, (1, None)), ({"max_epochs": -1}, (1, None))],
)
def test_a_stream_of_unknown_length_trains(settings: dict[str, Any], expected: tuple[int, int | None]) -> None:
    class StopAfter(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 4

    watch, module = Watch(), build(teacher={"init_steps": 1})
    trainer(watch, StopAfter(), **settings).fit(module, DataLoader(Stream(), batch_size=8))
    assert {(c.steps_per_epoch, c.steps) for c in watch.clocks} == {expected}
    assert module.teacher.updates.item() >= 3


def test_the_rate_in_force_is_logged_and_kept_in_the_checkpoint() -> None:
    module, fit = build(teacher={"decay": None, "decay_share": 0.5}), trainer(max_epochs=2)
    fit.fit(module, train_loader())
    assert float(fit.callback_metrics["weights/ema_rate"]) == pytest.approx(1 - 1 / 3, rel=1e-6)  # tau = 3 of 6 steps
    assert module.state_dict()["teacher.rate"].item() == pytest.approx(2 / 3, rel=1e-6)


def test_changing_weights_neither_replaces_nor_moves_their_buffers() -> None:
    module: Any = build()
    buffers = [module.method.rampup_weight, module.method.ensemble_weight, module.teacher.rate, module.teacher.updates]
    before = [buffer.data_ptr() for buffer in buffers]
    trainer(max_epochs=2, limit_train_batches=1).fit(module, train_loader())
    after = [module.method.rampup_weight, module.method.ensemble_weight, module.teacher.rate, module.teacher.updates]
    assert [buffer.data_ptr() for buffer in after] == before
