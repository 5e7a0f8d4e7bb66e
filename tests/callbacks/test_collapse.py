"""The collapse guard: a loss that is not finite ends the run, peers that stay at chance are warned of or stop it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from dkel_lightning.callbacks import CollapseGuard
from dkel_lightning.errors import CollapseError, NonFiniteError
from dkel_lightning.studies.seed_statistics import chance_bound
from tests.modules.toy import Toy, build, parameters_of, same, train_loader, trainer, val_loader


def poisoned_loader(bad_batch: int) -> DataLoader[Any]:
    data = Toy(40)
    data.images[8 * bad_batch] = float("nan")
    return DataLoader(data, batch_size=8)


# ---------------------------------------------------------------------- a loss that is not finite


class Before(Callback):
    """Keeps the weights at the start of the last step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.weights, self.step = parameters_of(pl_module), trainer.global_step


@pytest.mark.parametrize("guards", [[], [CollapseGuard("warn")], [CollapseGuard("stop")]])  # [] attaches its own
def test_a_loss_that_is_nan_ends_the_run_before_the_weights_are_updated(guards: list[Callback]) -> None:
    module, before = build(), Before()
    with pytest.raises(NonFiniteError, match=r"^The training loss became NaN or infinite \(step 2, epoch 1\)\. Lower"):
        trainer(before, *guards).fit(module, poisoned_loader(2))
    assert before.step == 2
    assert same(parameters_of(module), before.weights)


class LateGuard(CollapseGuard):
    """Checks the loss as on a GPU: not at each step."""

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: torch.Tensor) -> None:
        check, self._check_loss = self._check_loss, lambda trainer: None
        super().on_before_backward(trainer, pl_module, loss)
        self._check_loss = check


@pytest.mark.parametrize("when", [{}, {"every_n_train_steps": 1}])
@pytest.mark.parametrize("guard", [CollapseGuard, LateGuard])
def test_no_checkpoint_is_written_after_a_loss_that_is_not_finite(
    tmp_path: Path, when: dict[str, Any], guard: type[CollapseGuard]
) -> None:
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, **when)
    with pytest.raises(NonFiniteError):
        trainer(saving, guard(), enable_checkpointing=True).fit(
            build(teacher={"init_steps": 0}), poisoned_loader(2), val_loader()
        )
    written = sorted(tmp_path.glob("*.ckpt"))
    assert len(written) == (2 if when else 0)
    for path in written:
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for name, value in state.items() if "validation" not in name)


class PoisonWeight(Callback):
    """Spoils a weight after the last step of the epoch, whose loss was finite."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.is_last_batch:
            next(pl_module.student.parameters()).data[0] = float("nan")


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, save_on_train_epoch_end=True)
    with pytest.raises(NonFiniteError, match=r"^Weights became NaN or infinite"):
        trainer(PoisonWeight(), saving, enable_checkpointing=True).fit(build(), train_loader())
    assert list(tmp_path.glob("*.ckpt")) == []


# ---------------------------------------------------------------------- peers at chance


class Blink(Callback):
    """Sets the student's weights to zero for the validation of some epochs."""

    def __init__(self, *epochs: int) -> None:
        self.epochs = epochs

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.kept = parameters_of(pl_module.student.network)
        if trainer.current_epoch in self.epochs:
            for parameter in pl_module.student.network.parameters():
                parameter.data.zero_()

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.student.network.load_state_dict(self.kept, strict=False)


def fit(epochs: int, *callbacks: Callback, validation: int = 60, **settings: Any) -> Trainer:
    """Train two peers that are far above chance after one epoch."""
    module = build("baseline", 2, optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9))
    run = trainer(*callbacks, max_epochs=epochs, **settings)
    run.fit(module, train_loader(48), val_loader(validation, 20))
    return run


def validated(guard: CollapseGuard, module: Any, epoch: int, accuracy: float) -> None:
    """Call the guard after the validation of one of 8 epochs, on 60 images, in which all peers reach `accuracy`."""
    labels = torch.arange(60) % 3
    module.scores.begin()
    module.scores.update_validation(
        F.one_hot(labels, 3).float().expand(len(module.scores.members), -1, -1), labels, labels
    )
    module.scores.validation_accuracy.fill_(accuracy)
    run = {"max_epochs": 8, "max_steps": -1, "num_training_batches": 1, "accumulate_grad_batches": 1}
    now = {"state": SimpleNamespace(fn="fit"), "current_epoch": epoch, "global_step": epoch + 1}
    trainer: Any = SimpleNamespace(sanity_checking=False, estimated_stepping_batches=8, **run, **now)
    guard.on_validation_end(trainer, module)


def test_the_bound_of_chance_is_the_binomial_quantile() -> None:
    # Of ten fair coins P(X <= 8) = 1013/1024 < 0.999 <= P(X <= 9) = 1023/1024; P(X <= 7) = 968/1024 < 0.95.
    assert chance_bound(0.5, 10) == 0.9
    assert chance_bound(0.5, 10, 0.95) == 0.8
    # P(X <= 1) of three draws at 1/100 is 0.999702, P(X <= 0) is 0.970299.
    assert chance_bound(0.01, 3) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("at_chance", "grace", "warnings"),
    [
        ((), 0.0, 0),
        ((1, 2, 4, 5), 0.0, 0),  # never three in a row
        ((0, 1, 2), 0.0, 1),
        ((3, 4, 5, 6, 7), 0.0, 1),  # once, not in each validation that follows
        ((0, 1, 2, 3), 0.5, 0),  # epoch 4 of 8 is the first that counts
        ((0, 1, 2, 3, 4, 5), 0.5, 1),
    ],
)
def test_three_validations_at_chance_in_a_row_after_the_grace_are_a_collapse(
    at_chance: tuple[int, ...], grace: float, warnings: int, capsys: pytest.CaptureFixture[str]
) -> None:
    guard, module = CollapseGuard(grace=grace), build("baseline", 2)
    for epoch in range(8):
        validated(guard, module, epoch, 1 / 3 if epoch in at_chance else 0.9)
    assert capsys.readouterr().out.count("Collapse in epoch") == warnings


def test_a_collapse_ends_the_run_on_request() -> None:
    guard, module = CollapseGuard("stop", grace=0.0), build("baseline", 2)
    for epoch in range(2):
        validated(guard, module, epoch, 1 / 3)
    with pytest.raises(CollapseError, match=r"^Collapse in epoch 3: validation accuracy at chance \(student_0 33\.3%"):
        validated(guard, module, 2, 1 / 3)


def test_the_warning_names_peers_accuracy_and_chance(capsys: pytest.CaptureFixture[str]) -> None:
    fit(2, Blink(1), CollapseGuard(validations=1))
    line = "Collapse in epoch 2: validation accuracy at chance (student_0 33.3%, student_1 33.3%; the best constant"
    assert capsys.readouterr().out.startswith(line)


def test_a_run_that_ends_by_its_steps_is_judged_by_them(capsys: pytest.CaptureFixture[str]) -> None:
    fit(1000, Blink(0, 1), CollapseGuard(grace=0.5, validations=1), max_steps=12)
    assert capsys.readouterr().out.count("Collapse in epoch") == 1


@pytest.mark.parametrize(("images", "warnings"), [(6, 0), (60, 1)])
def test_too_few_validation_images_cannot_tell(images: int, warnings: int, capsys: pytest.CaptureFixture[str]) -> None:
    fit(3, Blink(0, 1, 2), CollapseGuard(grace=0.0), validation=images)
    assert capsys.readouterr().out.count("Collapse") == warnings


def test_the_count_survives_a_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = fit(2, Blink(0, 1), CollapseGuard(grace=0.0))
    first.save_checkpoint(tmp_path / "x.ckpt")
    assert "Collapse" not in capsys.readouterr().out
    run = trainer(Blink(2), CollapseGuard(grace=0.0), max_epochs=3)
    module = build("baseline", 2, optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9))
    run.fit(module, train_loader(48), val_loader(60, 20), ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    assert "Collapse in epoch 3" in capsys.readouterr().out
