"""A loss that is no number stops the run before a checkpoint can hold it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from dkel_lightning.callbacks import FiniteGuard
from dkel_lightning.errors import NonFiniteError
from tests.modules.toy import Toy, build, train_loader, trainer


def poisoned_loader(bad_batch: int, value: float = float("nan")) -> DataLoader[Any]:
    data = Toy(40)
    data.images[8 * bad_batch] = value
    return DataLoader(data, batch_size=8)


def test_nan_images_stop_the_run_and_the_terms_are_named() -> None:
    module = build(teacher={"init_steps": 0})
    with pytest.raises(NonFiniteError) as caught:
        trainer().fit(module, poisoned_loader(1))
    text = str(caught.value)
    assert "The training loss became NaN or infinite by step 2 (epoch 0); non-finite terms: ce, ce_ensemble," in text
    assert "Lower the learning rate, clip gradients (trainer.gradient_clip_val=1)" in text


def test_only_the_term_at_fault_is_named() -> None:
    module = build(teacher={"init_steps": 0})
    original = module.method.loss_terms
    module.method.loss_terms = lambda step: original(step) | {"kd_assembled": torch.tensor(float("inf"))}  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match=r"\(epoch 0\); non-finite terms: kd_assembled\. Lower"):
        trainer().fit(module, train_loader())


@pytest.mark.parametrize("when", [{}, {"every_n_train_steps": 1}])
def test_no_checkpoint_is_written_after_the_loss_was_nan(tmp_path: Path, when: dict[str, Any]) -> None:
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, save_last=True, **when)
    with pytest.raises(NonFiniteError):
        trainer(saving, enable_checkpointing=True).fit(build(teacher={"init_steps": 0}), poisoned_loader(2))
    written = sorted(tmp_path.glob("*.ckpt"))
    assert len(written) == (0 if not when else 3)  # steps 1 and 2, and last
    for path in written:
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.isfinite(value).all() for name, value in state.items() if "validation" not in name), path


class LateGuard(FiniteGuard):
    """Behaves on the CPU as on a GPU: takes note of every batch, but reads only every so often."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs["loss"]
        bad: Tensor = ~torch.isfinite(loss.detach()).all()
        self._bad = bad if self._bad is None else self._bad | bad


@pytest.mark.parametrize("when", [{}, {"every_n_train_steps": 1}])
def test_a_verdict_not_yet_read_is_read_before_saving(tmp_path: Path, when: dict[str, Any]) -> None:
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, **when)
    with pytest.raises(NonFiniteError):
        trainer(saving, LateGuard(), enable_checkpointing=True).fit(
            build(teacher={"init_steps": 0}), poisoned_loader(2)
        )
    assert len(list(tmp_path.glob("*.ckpt"))) == (0 if not when else 2)


def test_finite_runs_pass() -> None:
    fit = trainer()
    fit.fit(build(), train_loader(), train_loader())
    assert fit.global_step == 3
