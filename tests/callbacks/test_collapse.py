"""Collapse by its outcome: noticed, reported or ended; closeness of the networks is no part of it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from dkel_lightning import DistillationModule
from dkel_lightning.callbacks import CollapseGuard
from dkel_lightning.callbacks.collapse_criteria import Collapse, chance_bound, clearly_better, fault_of
from dkel_lightning.errors import CollapseError, ConfigError
from tests.modules.toy import build, train_loader, trainer, val_loader


class Spoil(Callback):
    """Takes the student's knowledge away in the validation of some epochs: every logit is then the same."""

    def __init__(self, *epochs: int) -> None:
        self.epochs = epochs

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        if trainer.current_epoch in self.epochs:
            for parameter in pl_module.student.network.parameters():
                parameter.data.zero_()


def well_trained(**settings: Any) -> DistillationModule:
    """Learns three bright channels within an epoch: above the bound of 15 of 30 images in three classes."""
    return build("baseline", 2, **{"optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9), **settings})


def fit(module: DistillationModule, folder: Path, *callbacks: Callback, epochs: int = 4, **settings: Any) -> Trainer:
    run = trainer(*callbacks, max_epochs=epochs, default_root_dir=folder, **settings)
    run.fit(module, train_loader(48), val_loader(60, 20))
    return run


def events(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "collapse.json").read_text())["events"]
    return found


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

        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            assert isinstance(pl_module, DistillationModule)
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
    run = fit(well_trained(), tmp_path, Spoil(2, 3))
    assert run.current_epoch == 4
    line = "Collapse in epoch 3: student_0, student_1 are at chance in validation (33.3 %, 33.3 %; the best constant"
    assert capsys.readouterr().out.startswith(line)
    (event,) = events(tmp_path)
    assert (event["kind"], event["epoch"], event["action"]) == ("chance", 2, "warned")
    assert event["members"] == ["student_0", "student_1"]
    assert event["top_share"] == [1.0, 1.0]
    assert event["chance"] == pytest.approx(1 / 3)
    assert event["homogenised"] is False


def test_a_peer_that_never_left_chance_collapses_only_after_its_grace(tmp_path: Path) -> None:
    guard = CollapseGuard(grace=0.75)
    fit(well_trained(), tmp_path, guard, Spoil(*range(8)), epochs=8)
    assert [event.epoch for event in guard.events] == [5]  # the sixth of eight
    short = CollapseGuard(grace=0.0)
    fit(well_trained(), tmp_path, short, Spoil(*range(8)), epochs=4)
    assert short.events == []  # fewer than five epochs tell nothing


def test_one_class_for_nearly_all_is_a_collapse_also_above_chance(tmp_path: Path) -> None:
    # Ten classes would be needed to see it in a trained run; here the limit is lowered.
    guard = CollapseGuard(one_class_share=0.34, grace=0.0)
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


def test_stop_ends_the_run_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(CollapseError, match=r"^Collapse in epoch 3: student_0, student_1 are at chance") as caught:
        fit(well_trained(), tmp_path, CollapseGuard("stop"), Spoil(2))
    assert "\n" not in str(caught.value)
    assert events(tmp_path)[0]["action"] == "stopped"


def test_state_survives_a_checkpoint_and_a_bad_choice_is_named() -> None:
    guard = CollapseGuard()
    guard.events = [Collapse("chance", 3, 40, "x", ["student_0"], [0.1], [1.0], 0.1, 0.12, True, "warned")]
    guard._well, guard._ill = {"student_0"}, {"student_0"}
    state = guard.state_dict()
    other = CollapseGuard()
    # What earlier versions noted besides is left out.
    other.load_state_dict({**state, "restored": 2, "events": [{**state["events"][0], "record": "step_40.pt"}]})
    assert other.events == guard.events
    assert other.state_dict() == state
    with pytest.raises(ConfigError, match=r"callbacks\.on_collapse is 'ignore': choose one of warn, stop"):
        CollapseGuard("ignore")
