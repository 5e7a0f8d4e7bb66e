"""Collapse by its outcome: noticed, reported, ended or undone; closeness of the networks is no part of it."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR

from dkel_lightning import DistillationModule
from dkel_lightning.app.runs.records import RunRecord
from dkel_lightning.callbacks import CollapseGuard
from dkel_lightning.callbacks.collapse import scale_rates
from dkel_lightning.callbacks.collapse_criteria import Collapse, can_tell, clearly_better, fault_of
from dkel_lightning.errors import CollapseError, ConfigError, NonFiniteError
from dkel_lightning.studies.seed_statistics import chance_bound
from tests.callbacks.test_step_recorder import Before, poisoned_loader
from tests.modules.toy import SGD, Recorder, build, parameters_of, same, train_loader, trainer, val_loader


class Spoil(Callback):
    """Takes the student's knowledge away in the validation of some epochs: every logit is then the same."""

    def __init__(self, *epochs: int) -> None:
        self.epochs = epochs

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.current_epoch in self.epochs:
            for parameter in pl_module.student.network.parameters():
                parameter.data.zero_()


class Blink(Spoil):
    """Gives back, after the validation, what it has taken away."""

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.kept = parameters_of(pl_module.student.network)
        super().on_validation_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.current_epoch:
            pl_module.student.network.load_state_dict(self.kept, strict=False)


class Deaden(Callback):
    """Takes the student's first layer away before each batch from the second epoch on: all images look alike then."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.current_epoch > 0:
            next(pl_module.student.network.parameters()).data.zero_()


class Score(Callback):
    """Notes, after each validation, what the guard has left."""

    def __init__(self) -> None:
        self.zero: list[bool] = []
        self.rates: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.zero.append(not any(bool(p.any()) for p in pl_module.student.network.parameters()))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def well_trained(**settings: Any) -> DistillationModule:
    """Learns three bright channels within an epoch: above the bound of 15 of 30 images in three classes."""
    return build("baseline", 2, **{"optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9), **settings})


def fit(module: DistillationModule, folder: Path, *callbacks: Callback, epochs: int = 4, **settings: Any) -> Trainer:
    run = trainer(*callbacks, max_epochs=epochs, default_root_dir=folder, **settings)
    run.fit(module, train_loader(48), val_loader(60, 20))
    return run


def events(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "collapse.json").read_text())["events"]


def test_the_bound_of_chance_is_the_binomial_quantile() -> None:
    # Of ten fair coins P(X <= 8) = 1013/1024 < 0.999 <= P(X <= 9) = 1023/1024.
    assert chance_bound(0.5, 10) == 0.9
    # P(X <= 1) of three draws at 1/100 is 0.999702, P(X <= 0) is 0.970299.
    assert chance_bound(0.01, 3) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("accuracy", "share", "chance", "fault"),
    [
        (0.12, 0.2, 0.1, "chance"),
        (0.2, 0.2, 0.1, None),
        (0.2, 0.96, 0.1, "one_class"),
        (0.98, 0.96, 0.96, None),  # the labels themselves are so
        (1.0, 1.0, 1.0, None),  # one class tells nothing
    ],
)
def test_what_is_wrong_with_a_peer(accuracy: float, share: float, chance: float, fault: str | None) -> None:
    assert fault_of(accuracy, share, chance, chance_bound(chance, 1000), 0.95) == fault


def test_what_is_clearly_better_than_chance() -> None:
    assert clearly_better(0.18) == pytest.approx(0.54)  # 144 images of ten classes
    assert clearly_better(0.5) == 0.75
    assert clearly_better(0.0146) == pytest.approx(0.0438)  # 5,000 images of a hundred classes


def test_an_early_validation_that_goes_up_and_down_is_no_collapse(tmp_path: Path) -> None:
    class Dip(Callback):
        """Courses of two healthy trainings on few digits, lifted to a bound of 15 of 30 images."""

        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            pl_module.validation_accuracy[0] = (0.55, 0.74, 0.45, 0.9, 0.95)[trainer.current_epoch]

    guard = CollapseGuard(grace=1.0)
    fit(well_trained(), tmp_path, Dip(), guard, epochs=5)
    assert guard.events == []


def test_a_healthy_run_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guard = CollapseGuard()
    fit(well_trained(), tmp_path, guard)
    assert guard.events == []
    assert guard._well == {"student_0", "student_1"}  # or the test below would mean nothing
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "collapse.json").exists()


def test_falling_back_to_chance_is_reported_once_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(well_trained(), tmp_path, Spoil(2, 3), CollapseGuard(validations=1))
    assert run.current_epoch == 4
    line = "Collapse in epoch 3: student_0, student_1 are at chance in validation (33.3 %, 33.3 %; the best constant"
    assert capsys.readouterr().out.startswith(line)
    (event,) = events(tmp_path)
    assert (event["kind"], event["epoch"], event["action"]) == ("chance", 2, "warned")
    assert event["members"] == ["student_0", "student_1"]
    assert event["top_share"] == [1.0, 1.0]
    assert event["chance"] == pytest.approx(1 / 3)
    assert event["homogenised"] is False


def test_the_step_before_the_validation_that_finds_a_collapse_is_kept_as_it_began(tmp_path: Path) -> None:
    module, before = well_trained(), Before()
    with pytest.raises(CollapseError, match=r"Replay the step: .* task=replay checkpoint=.*step_11\.pt$"):
        fit(module, tmp_path, Deaden(), before, CollapseGuard("stop", validations=1), epochs=2)
    (event,) = events(tmp_path)
    assert event["record"] == str(tmp_path / "collapse" / "step_11.pt")
    record = torch.load(event["record"], weights_only=True)
    assert record["what"] == event["what"]
    assert record["clock"] == {"epoch": 1, "step": 11, "batch_idx": 5, "rank": 0}
    assert all(torch.equal(record["state_dict"][name], value) for name, value in before.weights.items())
    # The step itself has moved the weights since.
    assert not same(parameters_of(module), before.weights)


def test_of_a_validation_within_an_epoch_the_step_is_kept_too(tmp_path: Path) -> None:
    with pytest.raises(CollapseError, match=r"checkpoint=.*step_8\.pt"):
        fit(well_trained(), tmp_path, Spoil(1), CollapseGuard("stop", validations=1), epochs=2, val_check_interval=3)
    assert events(tmp_path)[0]["record"] == str(tmp_path / "collapse" / "step_8.pt")


def test_a_peer_that_comes_and_goes_is_kept_once(tmp_path: Path) -> None:
    fit(well_trained(), tmp_path, Blink(1, 3), CollapseGuard(validations=1), epochs=4)
    assert [bool(event["record"]) for event in events(tmp_path)] == [True, False]
    assert [path.name for path in (tmp_path / "collapse").iterdir()] == ["step_11.pt"]


@pytest.mark.slow
def test_a_peer_that_is_sent_back_to_the_start_has_time_to_learn_before_it_is_judged_again(tmp_path: Path) -> None:
    guard = CollapseGuard("restore", grace=0.0, validations=1)
    fit(well_trained(), tmp_path, guard, Spoil(*range(12)), epochs=12)
    assert [event.epoch for event in guard.events] == [4, 9]


def test_a_peer_is_judged_by_what_it_knew_in_the_state_that_was_restored(tmp_path: Path) -> None:
    guard = CollapseGuard("restore", validations=1)

    class Luck(Callback):
        def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                guard._well.add("student_0")  # it had been above chance once

    fit(well_trained(), tmp_path, guard, Spoil(*range(6)), Luck(), epochs=6)
    # The start, to which it is sent back, is from before that.
    assert [(event.epoch, event.members) for event in guard.events] == [(1, ("student_0",))]
    assert guard._well == set()


@pytest.mark.slow
def test_a_peer_that_never_left_chance_collapses_only_after_its_grace(tmp_path: Path) -> None:
    guard = CollapseGuard(grace=0.75)
    fit(well_trained(), tmp_path, guard, Spoil(*range(8)), epochs=8)
    assert [event.epoch for event in guard.events] == [5]  # the sixth of eight
    short = CollapseGuard(grace=0.0)
    fit(well_trained(), tmp_path, short, Spoil(*range(8)), epochs=4)
    assert short.events == []  # fewer than five epochs tell nothing


def test_one_class_for_nearly_all_is_a_collapse_also_above_chance(tmp_path: Path) -> None:
    # Ten classes would be needed to see it in a trained run; here the limit is lowered.
    guard = CollapseGuard(one_class_share=0.34, grace=0.0, validations=1)
    module = well_trained()

    class Bias(Callback):
        def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 5:
                classifier = [p for n, p in module.student.network.named_parameters() if n.endswith("classifier.bias")]
                classifier[0].data[0] += 4.0

    fit(module, tmp_path, guard, Bias(), epochs=6)
    kinds = {event.kind for event in guard.events}
    assert kinds <= {"one_class", "chance"}
    assert kinds


def test_a_fault_counts_when_it_is_seen_three_times_in_a_row(tmp_path: Path) -> None:
    guard = CollapseGuard()
    fit(well_trained(), tmp_path, guard, Blink(1, 2, 4, 5, 6, 7), epochs=8)
    assert [event.epoch for event in guard.events] == [6]


def test_what_was_warned_of_is_withdrawn_when_the_peers_are_well_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guard = CollapseGuard(validations=2)
    fit(well_trained(), tmp_path, guard, Blink(1, 2), epochs=5)
    (event,) = events(tmp_path)
    assert (event["epoch"], event["recovered"]) == (2, 4)
    assert "No collapse: student_0, student_1 of epoch 3 recovered (" in capsys.readouterr().out
    assert RunRecord(tmp_path).collapse is None


def test_too_few_images_do_not_tell_a_peer_that_learns_slowly_from_one_that_knows_nothing(tmp_path: Path) -> None:
    assert not can_tell(0.1, chance_bound(0.1, 20))  # 35 % of twenty images in ten classes
    assert can_tell(0.1, chance_bound(0.1, 144))
    assert can_tell(0.01, chance_bound(0.01, 5000))
    guard = CollapseGuard(grace=0.0)
    run = trainer(guard, Spoil(*range(8)), max_epochs=8, default_root_dir=tmp_path)
    run.fit(well_trained(), train_loader(48), val_loader(9, 9))
    assert guard.events == []


def test_stop_ends_the_run_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(CollapseError, match=r"^Collapse in epoch 3: student_0, student_1 are at chance") as caught:
        fit(well_trained(), tmp_path, CollapseGuard("stop", validations=1), Spoil(2))
    assert "\n" not in str(caught.value)
    assert events(tmp_path)[0]["action"] == "stopped"


def test_restore_goes_back_and_goes_on_with_a_lower_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = Score()
    module = well_trained()
    run = fit(module, tmp_path, CollapseGuard("restore", validations=1), Spoil(2), score)
    assert run.current_epoch == 4
    assert score.zero == [False] * 4
    assert score.rates == [0.05, 0.05, 0.025, 0.025]
    out = capsys.readouterr().out
    assert "Back to the state after step 12, going on with learning rate 0.025 (restoration 1 of 3)." in out
    assert events(tmp_path)[0]["action"] == "restored"
    assert module.validation_accuracy[:2].min() > 0.8


def test_restore_takes_weights_momentum_and_the_teachers_counter_back(tmp_path: Path) -> None:
    module = build("dkel", 2, optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9))
    guard = CollapseGuard("restore")
    seen: dict[str, Any] = {}

    class Look(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            states = trainer.optimizers[0].state_dict()["state"]
            now = {k: v.clone() for k, v in module.state_dict().items() if not k.startswith(("term_", "train_"))}
            now |= {f"momentum{key}": state["momentum_buffer"].clone() for key, state in states.items()}
            seen[str(trainer.current_epoch)] = now

    def break_down(trainer: Trainer) -> None:
        guard._restore(trainer, module, Collapse("chance", 1, 12, "by hand"))

    class BreakDown(Callback):
        def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                break_down(trainer)

    guard.on_validation_end = lambda t, m: guard._remember(t, module) if t.current_epoch == 0 else None  # type: ignore[assignment]
    fit(module, tmp_path, guard, BreakDown(), Look(), epochs=2)
    in_force = {"method.rampup_weight", "ensemble.weight", "teacher.rate"}
    skipped = {"validation_accuracy", *in_force}
    assert seen["0"].keys() == seen["1"].keys()
    # The schedules go on: what the log says of the epoch is what was in force.
    assert seen["1"]["ensemble.weight"].item() == pytest.approx(math.exp(-0.5))
    assert all(torch.equal(value, seen["1"][name]) for name, value in seen["0"].items() if name not in skipped)
    assert module.teacher.updates.item() == 6


def test_a_loss_that_is_no_number_is_restored_too_and_the_epochs_sums_stay_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, seen = build("dkel", 2), Recorder()
    run = trainer(seen, CollapseGuard("restore"), max_epochs=1, default_root_dir=tmp_path)
    run.fit(module, poisoned_loader(2))
    # Before any validation it goes back to where the first step began: to an initialised teacher.
    assert module.teacher.initialised
    assert same(seen.teachers[3], seen.teachers[0])
    assert same(seen.students[3], seen.students[0])
    assert run.global_step == 5
    assert all(bool(value.isfinite().all()) for value in module.parameters())
    assert torch.isfinite(run.callback_metrics["train/loss"])
    assert "non-finite terms: ce, ce_ensemble" in capsys.readouterr().out
    assert (tmp_path / "collapse" / "step_2.pt").is_file()
    assert events(tmp_path)[0]["action"] == "restored"
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.025)


@pytest.mark.slow
def test_restoring_ends_after_its_number_of_times(tmp_path: Path) -> None:
    guard = CollapseGuard("restore", times=2, validations=1)
    with pytest.raises(CollapseError, match=r"It was restored 2 times\."):
        fit(well_trained(), tmp_path, guard, Spoil(1, 2, 3), epochs=4)
    assert [event.action for event in guard.events] == ["restored", "restored", "stopped"]
    again = CollapseGuard("restore", times=1)
    with pytest.raises(NonFiniteError, match=r"It was restored 1 times\."):
        trainer(again, max_epochs=3, default_root_dir=tmp_path).fit(build("dkel", 2), poisoned_loader(2))


SCHEDULERS = {
    "multistep": lambda optimizer: MultiStepLR(optimizer, [3, 5], gamma=0.1),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, T_max=6),
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_the_lowered_rate_survives_the_scheduler_and_a_resume(name: str, tmp_path: Path) -> None:
    def run(folder: Path, epochs: int, *callbacks: Callback, resume: Path | None = None) -> list[float]:
        score = Score()
        module = well_trained(scheduler=SCHEDULERS[name])
        fitting = trainer(*callbacks, score, max_epochs=epochs, default_root_dir=folder)
        fitting.fit(module, train_loader(48), val_loader(60, 20), ckpt_path=resume, weights_only=True)
        fitting.save_checkpoint(folder / "end.ckpt")
        return score.rates

    plain = run(tmp_path, 6)
    through = run(tmp_path, 6, CollapseGuard("restore", validations=1), Spoil(2))
    assert through[:2] == plain[:2]
    assert through[2:] == pytest.approx([rate / 2 for rate in plain[2:]])
    run(tmp_path, 4, CollapseGuard("restore", validations=1), Spoil(2))
    guard = CollapseGuard("restore", validations=1)
    resumed = run(tmp_path, 6, guard, Spoil(2), resume=tmp_path / "end.ckpt")
    assert resumed == pytest.approx(through[4:])
    assert guard.restored == 1
    assert [event.epoch for event in guard.events] == [2]
    assert guard._well == {"student_0", "student_1"}


def test_rates_of_all_groups_and_nested_schedulers_are_scaled() -> None:
    optimizer = SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.4, 0.1)])
    after = torch.optim.lr_scheduler.SequentialLR(
        optimizer, [LambdaLR(optimizer, lambda e: 0.1 * (e + 1)), MultiStepLR(optimizer, [5])], milestones=[2]
    )

    class Config:
        scheduler = after

    class Fake:
        optimizers = [optimizer]  # noqa: RUF012
        lr_scheduler_configs = [Config]  # noqa: RUF012

    scale_rates(Fake(), 0.5)  # type: ignore[arg-type]
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.2, 0.05]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.005])
    assert after._schedulers[0].base_lrs == after._schedulers[1].base_lrs == [0.2, 0.05]


def test_state_survives_a_checkpoint_and_a_bad_choice_is_named() -> None:
    guard = CollapseGuard()
    guard.events = [Collapse("chance", 3, 40, "x", ("student_0",), (0.1,), (1.0,), 0.1, 0.12, True, "warned")]
    guard._well, guard._ill, guard.restored, guard._restored_at = {"student_0"}, {"student_0"}, 2, 4
    other = CollapseGuard()
    other.load_state_dict(guard.state_dict())
    assert other.events == guard.events
    assert other.state_dict() == guard.state_dict()
    with pytest.raises(ConfigError, match=r"callbacks\.on_collapse is 'ignore': choose one of warn, stop, restore"):
        CollapseGuard("ignore")
