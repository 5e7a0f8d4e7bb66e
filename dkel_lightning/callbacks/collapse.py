"""Warn of a training that has collapsed, or stop it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from dkel_lightning.callbacks.schedules import clock
from dkel_lightning.errors import CollapseError, NonFiniteError
from dkel_lightning.runtime.processes import print_once, world_size
from dkel_lightning.schedules import one_of
from dkel_lightning.studies.seed_statistics import chance_bound

if TYPE_CHECKING:
    from dkel_lightning.distillation import DistillationModule

ACTIONS = ("warn", "stop")
CURE = "Lower the learning rate, clip gradients (trainer.gradient_clip_val=1), or use precision=bf16 or fp32."
CONFIDENCE = 0.95
CHECK_EVERY = 50


class CollapseGuard(Callback):
    """Watch for a loss that is NaN or infinite, and for student peers that stay at chance.

    A loss that is not finite always raises a NonFiniteError: on the CPU before the weights are updated, on a GPU within
    50 steps, as reading it back each step stalls the device. Weights that are not finite are never saved.

    A peer has collapsed when its validation accuracy is no better than chance in `validations` validations in a row,
    after a share `grace` of the run. Chance is the accuracy of the best constant prediction, and better is above its
    one-sided 95 % binomial bound. A validation set in which a peer at twice chance would fall below this bound more
    often than in 5 % of cases is too small to be judged. Teachers are not judged either: an independent
    one is at chance until its average has reached the student.

    Args:
        on_collapse: `warn` prints one line, `stop` raises a CollapseError.
        grace: share of the run in which no peer is judged.
        validations: in a row in which a peer must be at chance.
    """

    def __init__(self, on_collapse: str = "warn", *, grace: float = 0.25, validations: int = 3) -> None:
        one_of("callbacks.on_collapse", on_collapse, ACTIONS)
        self.on_collapse = on_collapse
        self.grace = grace
        self.validations = validations
        self._at_chance: dict[str, int] = {}  # validations in a row
        self._non_finite: Tensor | None = None

    # ---------------------------------------------------------------------- the loss

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._non_finite = None

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Tensor) -> None:
        non_finite = (~loss.detach().isfinite()).to(torch.uint8)
        if world_size() > 1:  # all processes stop at the same step
            torch.distributed.all_reduce(non_finite, op=torch.distributed.ReduceOp.MAX)
        self._non_finite = non_finite if self._non_finite is None else self._non_finite | non_finite
        if loss.device.type == "cpu" or trainer.global_step % CHECK_EVERY == 0:
            self._check_loss(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._check_loss(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._check_loss(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._check_loss(trainer)
        if not all(bool(parameter.isfinite().all()) for parameter in pl_module.parameters()):
            self._fail(trainer, "Weights")

    def _check_loss(self, trainer: Trainer) -> None:
        if self._non_finite is not None and bool(self._non_finite):
            self._fail(trainer, "The training loss")

    def _fail(self, trainer: Trainer, what: str) -> NoReturn:
        raise NonFiniteError(
            f"{what} became NaN or infinite (step {trainer.global_step}, epoch {trainer.current_epoch + 1}). {CURE} "
            "To find the operation, resume with +trainer.detect_anomaly=true."
        )

    # ---------------------------------------------------------------------- validation accuracy

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit" or _progress(trainer) < self.grace:
            return
        module: DistillationModule = pl_module
        seen = module.scores.predictions.compute()
        chance = round(float(seen["commonest"]), 6)
        bound = chance_bound(chance, int(seen["samples"]), CONFIDENCE)
        twice = min(2 * chance, (1 + chance) / 2)
        if 1 - chance_bound(1 - twice, int(seen["samples"]), CONFIDENCE) <= bound:
            return
        # The student peers are the first members.
        accuracy = dict(zip(module.scores.peers["student"], module.scores.validation_accuracy.tolist(), strict=False))
        self._at_chance = {peer: self._at_chance.get(peer, 0) + 1 for peer in accuracy if accuracy[peer] <= bound}
        collapsed = [peer for peer, count in self._at_chance.items() if count >= self.validations]
        if not collapsed:
            return
        reached = ", ".join(f"{peer} {accuracy[peer]:.1%}" for peer in collapsed)
        message = (
            f"Collapse in epoch {trainer.current_epoch + 1}: validation accuracy at chance ({reached}; the best "
            f"constant prediction {chance:.1%}). {CURE}"
        )
        if self.on_collapse == "stop":
            raise CollapseError(message)
        if any(self._at_chance[peer] == self.validations for peer in collapsed):
            print_once(message)

    def state_dict(self) -> dict[str, Any]:
        return {"at_chance": dict(self._at_chance)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._at_chance = dict(state_dict["at_chance"])


def _progress(trainer: Trainer) -> float:
    """Return the share of the run that is done; of a run without a planned end, 1."""
    now = clock(trainer)
    return now.step / now.steps if now.steps else 1.0
