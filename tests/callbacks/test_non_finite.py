"""A loss that is no number stops the run before weights or checkpoints are spoilt, and says what was at fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from dkel_lightning import DistillationModule
from dkel_lightning.callbacks import collapse
from dkel_lightning.callbacks.non_finite import Verdict, all_finite, non_finite
from dkel_lightning.errors import NonFiniteError
from tests.modules.toy import Toy, build, parameters_of, same, train_loader, trainer, val_loader


def poisoned_loader(bad_batch: int, value: float = float("nan")) -> DataLoader[Any]:
    data = Toy(40)
    data.images[8 * bad_batch] = value
    return DataLoader(data, batch_size=8)


class PoisonGradient(Callback):
    """Makes one gradient infinite in the second step, after a loss that is finite."""

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 1:
            assert isinstance(pl_module, DistillationModule)
            weight = next(pl_module.student.parameters())
            assert weight.grad is not None
            weight.grad[0] = float("inf")


class PoisonWeight(Callback):
    """Spoils a weight after the last step of the epoch, whose loss was finite."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.is_last_batch:
            assert isinstance(pl_module, DistillationModule)
            next(pl_module.student.parameters()).data[0] = float("nan")


class Before(Callback):
    """Keeps the weights at the start of the last step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.weights = parameters_of(pl_module)
        self.step = trainer.global_step


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the guard read its verdicts as on a GPU: two steps later."""
    monkeypatch.setattr(collapse, "sync_blocks", lambda device: True)


def test_nan_images_stop_the_run_and_the_terms_are_named(tmp_path: Path) -> None:
    module = build(teacher={"init_steps": 0})
    with pytest.raises(NonFiniteError) as caught:
        trainer(default_root_dir=tmp_path).fit(module, poisoned_loader(1))
    text = str(caught.value)
    assert "The training loss became NaN or infinite; non-finite terms: ce, ce_ensemble, kd_ensemble" in text
    assert "; 1 of 8 images of batch 1 are NaN or infinite (the first at position 0) (step 1, epoch 1)." in text
    (event,) = json.loads((tmp_path / "collapse.json").read_text())["events"]
    assert (event["kind"], event["step"], event["action"]) == ("non_finite", 1, "stopped")


def test_only_the_term_at_fault_is_named(tmp_path: Path) -> None:
    module = build(teacher={"init_steps": 0})
    original = module.method.loss_terms
    module.method.loss_terms = lambda inputs: original(inputs) | {"kd_assembled": torch.tensor(float("inf"))}
    with pytest.raises(NonFiniteError, match=r"; non-finite terms: kd_assembled \(step 0, epoch 1\)\. Lower"):
        trainer(default_root_dir=tmp_path).fit(module, train_loader())


def test_the_weights_are_those_from_before_the_step(tmp_path: Path) -> None:
    module, before = build(), Before()
    with pytest.raises(NonFiniteError):
        trainer(before, default_root_dir=tmp_path).fit(module, poisoned_loader(2))
    assert before.step == 2
    assert same(parameters_of(module), before.weights)
    assert module.readers == []
    assert module.observers == []


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_late_verdict_names_the_step_and_its_images_too(tmp_path: Path, step: int, late: None) -> None:
    fit = trainer(default_root_dir=tmp_path)
    module = build(teacher={"init_steps": 0})
    said = rf"non-finite terms: ce, .*; 1 of 8 images of batch {step} are NaN .* \(step {step}, epoch 1\)"
    with pytest.raises(NonFiniteError, match=said):
        fit.fit(module, poisoned_loader(step))
    # Read two steps later, or at the end of the epoch.
    assert fit.global_step == min(step + 2, 5)


@pytest.mark.parametrize("when", [{}, {"every_n_train_steps": 1}])
@pytest.mark.parametrize("reads", ["at once", "late"])
def test_no_checkpoint_holds_what_the_loss_has_spoilt(
    tmp_path: Path, when: dict[str, Any], reads: str, request: pytest.FixtureRequest
) -> None:
    if reads == "late":
        request.getfixturevalue("late")
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, **when)
    with pytest.raises(NonFiniteError):
        trainer(saving, enable_checkpointing=True, default_root_dir=tmp_path).fit(
            build(teacher={"init_steps": 0}), poisoned_loader(2)
        )
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

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
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


@pytest.mark.filterwarnings("ignore:Error detected in")
def test_where_anomalies_are_looked_for_torch_names_the_operation(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"Function '\w+Backward\w*' returned nan values"):
        trainer(default_root_dir=tmp_path, detect_anomaly=True).fit(build(), poisoned_loader(2))


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
