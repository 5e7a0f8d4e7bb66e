"""A loss that is no number stops the run before weights or checkpoints are spoilt, and leaves a step to replay."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from dkel_lightning.callbacks import CollapseGuard, step_recorder
from dkel_lightning.callbacks.step_recorder import Verdict, all_finite, non_finite, validates_after
from dkel_lightning.data import WithIndices
from dkel_lightning.errors import NonFiniteError
from tests.modules.toy import Stream, Toy, build, parameters_of, same, train_loader, trainer, val_loader


def poisoned_loader(bad_batch: int, value: float = float("nan")) -> DataLoader[Any]:
    data = Toy(40)
    data.images[8 * bad_batch] = value
    return DataLoader(data, batch_size=8)


class PoisonGradient(Callback):
    """Makes one gradient infinite in the second step, after a loss that is finite."""

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.global_step == 1:
            next(pl_module.student.parameters()).grad[0] = float("inf")


class PoisonWeight(Callback):
    """Spoils a weight after the last step of the epoch, whose loss was finite."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.is_last_batch:
            next(pl_module.student.parameters()).data[0] = float("nan")


class Before(Callback):
    """Keeps the weights at the start of the last step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.weights = parameters_of(pl_module)
        self.step = trainer.global_step


class States(Callback):
    """Keeps the state of the module at the start of each step, and of some parts at its end."""

    def __init__(self, *at_end: str) -> None:
        self.at_end = at_end
        self.seen: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.seen.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.seen[-1] |= {name: value.clone() for name, value in pl_module.state_dict().items() if name in self.at_end}


IN_FORCE = ("method.rampup_weight", "ensemble.weight", "teacher.rate")
"""What the schedules set, only after the start of the batch."""


class LateGuard(CollapseGuard):
    """Behaves on the CPU as on a GPU: takes note of every loss, but reads the verdict two steps later only."""

    def _reads_late(self, device: torch.device) -> bool:
        return True

    def on_before_optimizer_step(self, *_: Any) -> None:
        """A GPU does not look at the gradients."""


def test_nan_images_stop_the_run_and_the_terms_are_named(tmp_path: Path) -> None:
    module = build(teacher={"init_steps": 0})
    with pytest.raises(NonFiniteError) as caught:
        trainer(default_root_dir=tmp_path).fit(module, poisoned_loader(1))
    text = str(caught.value)
    assert "The training loss became NaN or infinite; non-finite terms: ce, ce_ensemble, kd_ensemble" in text
    assert "; 1 of 8 images of batch 1 are NaN or infinite (the first at position 0) (step 1, epoch 1)." in text
    assert f"task=replay checkpoint={tmp_path / 'collapse' / 'step_1.pt'}" in text
    (event,) = json.loads((tmp_path / "collapse.json").read_text())["events"]
    assert (event["kind"], event["step"], event["action"]) == ("non_finite", 1, "stopped")


def test_only_the_term_at_fault_is_named(tmp_path: Path) -> None:
    module = build(teacher={"init_steps": 0})
    original = module.method.loss_terms
    module.method.loss_terms = lambda inputs: original(inputs) | {"kd_assembled": torch.tensor(float("inf"))}
    with pytest.raises(NonFiniteError, match=r"; non-finite terms: kd_assembled \(step 0, epoch 1\)\. Lower"):
        trainer(default_root_dir=tmp_path).fit(module, train_loader())


def test_weights_optimizer_and_teacher_are_those_from_before_the_step(tmp_path: Path) -> None:
    module, before = build(), Before()
    fit = trainer(before, default_root_dir=tmp_path)
    with pytest.raises(NonFiniteError):
        fit.fit(module, poisoned_loader(2))
    assert before.step == 2
    assert same(parameters_of(module), before.weights)
    record = torch.load(tmp_path / "collapse" / "step_2.pt", weights_only=True)
    assert all(torch.equal(record["state_dict"][name], value) for name, value in before.weights.items())
    assert all(value.isfinite().all() for name, value in record["state_dict"].items() if "running" in name)
    momenta = [state["momentum_buffer"] for state in record["optimizer"]["state"].values()]
    assert momenta
    assert all(momentum.isfinite().all() for momentum in momenta)
    assert record["clock"] == {"epoch": 0, "step": 2, "batch_idx": 2, "rank": 0}
    assert module.readers == []
    assert module.observers == []


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_late_verdict_still_records_the_step_as_it_began(tmp_path: Path, step: int) -> None:
    watch, guard = States(*IN_FORCE), LateGuard()
    scheduler = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    module = build(teacher={"init_steps": 0}, scheduler=scheduler, interval="step")
    found = pytest.raises(NonFiniteError, match=rf"non-finite terms: ce, .* \(step {step}, epoch 1\)")
    # As on a GPU: everything is copied at the start of each step.
    with found, patch.object(step_recorder, "sync_blocks", return_value=True):
        trainer(guard, watch, default_root_dir=tmp_path).fit(module, poisoned_loader(step))
    # Read two steps later, or at the end of the epoch.
    assert len(watch.seen) == min(step + 2, 5)
    record = torch.load(tmp_path / "collapse" / f"step_{step}.pt", weights_only=True)
    differing = [name for name, value in record["state_dict"].items() if not torch.equal(value, watch.seen[step][name])]
    # NaN before the first validation, and sums for the log: no part of a step.
    assert {name.split(".")[0] for name in differing} <= {"validation_accuracy", "term_means", "train_scores"}
    assert all(v["momentum_buffer"].isfinite().all() for v in record["optimizer"]["state"].values())
    assert bool(record["optimizer"]["state"]) == (step > 0)
    assert {group["lr"] for group in record["optimizer"]["param_groups"]} == {0.05 * 0.5**step}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("method", "told", "written"),
    [
        ({"name": "soteacher", "samples": 40}, ("coefficient", "rate"), ("memory", "visits", "written")),
        ({"name": "iakd", "schedule": "uniform", "start": 0.5}, ("own_blocks", "chance"), ()),
    ],
)
def test_a_method_s_buffers_are_those_of_the_step(
    method: dict[str, Any], told: tuple[str, ...], written: tuple[str, ...], whole: bool, tmp_path: Path
) -> None:
    # The time is told after the start of the batch; the memory is written by its forward pass.
    watch = States(*(f"method.{name}" for name in told))
    teacher = {"backbone": "resnet8"} if method["name"] == "iakd" else None
    module = build(method, 1, teacher=teacher, image_size=(8, 8))
    guard = LateGuard() if whole else CollapseGuard()
    data = poisoned_loader(3).dataset
    loader = DataLoader(WithIndices(data), batch_size=8)
    with pytest.raises(NonFiniteError), patch.object(step_recorder, "sync_blocks", return_value=whole):
        trainer(guard, watch, default_root_dir=tmp_path, max_epochs=2).fit(module, loader)
    record = torch.load(tmp_path / "collapse" / "step_3.pt", weights_only=True)["state_dict"]
    checked = [*written, *(told if whole else ())]
    if not whole:  # the step does not end, so nobody has seen what it was told
        watch.seen[3] |= {f"method.{name}": module.state_dict()[f"method.{name}"] for name in told}
        checked += told
    for name in checked:
        assert torch.equal(record[f"method.{name}"], watch.seen[3][f"method.{name}"]), name
        assert not written or record["method.visits"].sum() == 24


@pytest.mark.parametrize("when", [{}, {"every_n_train_steps": 1}])
@pytest.mark.parametrize("late", [False, True])
def test_no_checkpoint_holds_what_the_loss_has_spoilt(tmp_path: Path, when: dict[str, Any], late: bool) -> None:
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, **when)
    fit = trainer(saving, *([LateGuard()] if late else []), enable_checkpointing=True, default_root_dir=tmp_path)
    with pytest.raises(NonFiniteError):
        fit.fit(build(teacher={"init_steps": 0}), poisoned_loader(2))
    written = sorted(tmp_path.glob("*.ckpt"))
    assert len(written) == (2 if when else 0)
    for path in written:
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.isfinite(value).all() for name, value in state.items() if "validation" not in name), path


def test_an_infinite_gradient_is_caught_before_it_reaches_the_weights(tmp_path: Path) -> None:
    module, before = build(), Before()
    with pytest.raises(NonFiniteError, match=r"1 gradients became NaN or infinite \(student\.network\.\S+\) \(step 1"):
        trainer(PoisonGradient(), before, default_root_dir=tmp_path).fit(module, train_loader())
    assert same(parameters_of(module), before.weights)
    assert (tmp_path / "collapse" / "step_1.pt").is_file()


def test_a_spoilt_weight_is_caught_at_the_end_of_the_epoch_before_saving(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, save_on_train_epoch_end=True)
    with pytest.raises(NonFiniteError, match=r"1 weights became NaN or infinite \(student\.network\.\S+\)"):
        trainer(PoisonWeight(), saving, enable_checkpointing=True, default_root_dir=tmp_path).fit(
            build(), train_loader()
        )
    assert list(tmp_path.glob("*.ckpt")) == []


class Swell(Callback):
    """Makes weights, or one running variance, so large after the epoch's last step that what follows overflows."""

    def __init__(self, part: str) -> None:
        self.part = part

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        if self.part == "weights":
            for parameter in pl_module.student.network.parameters():
                parameter.data.fill_(1e37)
        else:
            variances = (buffer for name, buffer in pl_module.named_buffers() if name.endswith("running_var"))
            next(variances).fill_(float("inf"))


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ("variance", r"1 running statistics became NaN or infinite \(student\.network\.\S+running_var\)"),
        ("weights", r"Outputs became NaN or infinite in the validation \(student_0, "),
    ],
)
def test_what_overflows_after_the_last_step_is_caught_before_saving(part: str, what: str, tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, save_on_train_epoch_end=True)
    fit = trainer(Swell(part), saving, enable_checkpointing=True, limit_val_batches=1, default_root_dir=tmp_path)
    with pytest.raises(NonFiniteError, match=what):
        fit.fit(build(), train_loader(), val_loader())
    assert list(tmp_path.glob("*.ckpt")) == []


class Foreseen(Callback):
    """Asks at the start and the end of each batch whether a validation follows, and notes after which one did."""

    def __init__(self) -> None:
        self.said: list[list[bool]] = []
        self.came: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.said.append([validates_after(trainer)])

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.said[-1].append(validates_after(trainer))

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.came.append(len(self.said) - 1)


@pytest.mark.parametrize(
    ("settings", "after"),
    [
        ({}, [2, 5]),
        ({"val_check_interval": 2}, [1, 4]),
        ({"check_val_every_n_epoch": 2}, [5]),
        ({"check_val_every_n_epoch": None, "val_check_interval": 4}, [3]),  # counted over epochs
        ({"limit_val_batches": 0}, []),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_validation_is_foreseen_however_its_batches_are_counted(
    settings: dict[str, Any], after: list[int], stream: bool
) -> None:
    watch = Foreseen()
    data = DataLoader(Stream(), batch_size=8) if stream else train_loader()
    module = build("baseline", 1, teacher={"update": "none"})
    trainer(watch, max_epochs=2, **settings).fit(module, data, val_loader(5))
    assert watch.came == after
    assert watch.said == [[step in after] * 2 for step in range(6)]


def test_finite_runs_pass(tmp_path: Path) -> None:
    fit = trainer(default_root_dir=tmp_path)
    fit.fit(build(), train_loader(), train_loader())
    assert fit.global_step == 3
    assert list(tmp_path.iterdir()) == []


def test_names_of_what_is_not_finite() -> None:
    large = torch.tensor([3e38, 3e38])  # whose norm overflows
    pairs = [("a", torch.ones(2)), ("b", torch.tensor([1.0, float("inf")])), ("c", large)]
    assert non_finite(pairs) == ["b"]
    assert non_finite(pairs[::2]) == []
    assert not all_finite([large])
    assert Verdict(torch.tensor(float("nan"))).read()
    assert not Verdict(torch.tensor(1.0)).read()
