"""Notice a training that collapses, by its outcome; report it, or end it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.optim import Optimizer

from dkel_lightning.callbacks.collapse_criteria import Collapse, chance_bound, clearly_better, describe, fault_of
from dkel_lightning.callbacks.non_finite import Step, Verdict, all_finite, non_finite
from dkel_lightning.errors import CollapseError, ConfigError, NonFiniteError
from dkel_lightning.metrics import ClassShares
from dkel_lightning.modules.batch import DATA_CURE, sync_blocks
from dkel_lightning.modules.interface import Coordinator, coordinator
from dkel_lightning.runtime.atomic_files import write_text
from dkel_lightning.runtime.processes import any_process, print_once

ACTIONS = ("warn", "stop")
CURE = "Lower the learning rate, clip gradients (trainer.gradient_clip_val=1), or use precision=bf16 or fp32."
LEAST_EPOCHS = 5


class CollapseGuard(Callback):
    """Watch for collapse, which is defined by its outcome.

    * The loss, a gradient (on the CPU), a weight, a running statistic or an output in validation becomes NaN or
      infinite. Where the loss does, the images of the step are looked at: if they are not finite, they are at fault.
    * A student peer's validation accuracy is at chance: not above the 99.9 % quantile of what the best constant
      prediction would reach by luck on as many images. It counts once the peer had been clearly better (three times
      that quantile, or half way from it to 1), or once it should have been: after `grace` of the run, and after 5
      epochs.
    * One class takes at least `one_class_share` of a student peer's predictions, from the same moment on, unless the
      labels are distributed so.

    Teachers are not judged: an independent one is at chance by design until the average has reached its student.

    What follows is one line, `collapse.json` in the folder of the run, and `on_collapse`: `warn` goes on, `stop` raises
    a CollapseError. After a loss that is no number nothing can go on, so the run ends by either, and what the last
    checkpoint holds is not touched. On the CPU the loss is judged before the weights are touched. On a GPU the verdict
    is read at the start of the next step but one, when it has long arrived, and before every checkpoint.

    Args:
        on_collapse: `warn` or `stop`.
        folder: of the run; the Trainer's log folder by default.
        one_class_share: share of the predictions from which one class counts as nearly all.
        grace: share of the run in which a peer may be at chance that has never been better.
    """

    @staticmethod
    def needed_by(module: Coordinator) -> bool:
        """Every training is watched."""
        return True

    def __init__(
        self,
        on_collapse: str = "warn",
        *,
        folder: Path | None = None,
        one_class_share: float = 0.95,
        grace: float = 0.25,
    ) -> None:
        if on_collapse not in ACTIONS:
            raise ConfigError(f"callbacks.on_collapse is {on_collapse!r}: choose one of {', '.join(ACTIONS)}.")
        self.on_collapse = on_collapse
        self.folder = folder
        self.one_class_share = one_class_share
        self.grace = grace
        self.events: list[Collapse] = []
        self._well: set[str] = set()
        self._ill: set[str] = set()
        self._shares: ClassShares | None = None
        # Networks whose outputs were no numbers in the validation of this epoch.
        self._overflown: list[str] = []
        self._step: Step
        self._forget()

    def _forget(self) -> None:
        self._at: tuple[Trainer, Coordinator] | None = None
        self._pending: list[tuple[Verdict, Step]] = []

    # ------------------------------------------------------------------ every step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the losses."""
        self._forget()
        readers = coordinator(pl_module).readers
        if self._read_loss not in readers:
            readers.append(self._read_loss)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Read the verdict on an earlier step, and note what tells of this one."""
        module = coordinator(pl_module)
        self._read(trainer, module, all_but=1 if sync_blocks(module.device) else 0)
        self._step = Step(batch, trainer.current_epoch, trainer.global_step, batch_idx, trainer.global_rank)
        self._at = trainer, module

    def _read_loss(self, terms: Mapping[str, Tensor], loss: Tensor) -> None:
        self._step.note(terms)
        self._pending.append((Verdict(loss), self._step))
        # Where anomalies are looked for, torch shall find it: it knows the operation.
        if not (sync_blocks(loss.device) or torch.is_anomaly_enabled()):
            assert self._at is not None
            self._read(*self._at)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradients where that is free, before they reach the weights."""
        if sync_blocks(pl_module.device):
            return
        learning = (p.grad for group in optimizer.param_groups for p in group["params"])
        gradients = [gradient for gradient in learning if gradient is not None]
        if not gradients or all_finite(gradients):
            return
        # Their names only now: to walk through all modules takes longer than the sums.
        names = non_finite((name, p.grad) for name, p in pl_module.named_parameters() if p.grad is not None)
        if names:
            self._not_a_number(trainer, f"{len(names)} gradients became NaN or infinite ({', '.join(names[:3])})")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the verdict before the epoch's checkpoint is written, and look at the weights themselves.

        A step may spoil the weights after a loss and gradients that were still finite; or make them so large that
        running statistics, or the outputs in validation, overflow.
        """
        self._read(trainer, pl_module)
        statistics = [pair for pair in pl_module.named_buffers() if "running_" in pair[0]]
        overflown, self._overflown = self._overflown, []
        if names := non_finite([*pl_module.named_parameters(), *statistics]):
            kind = "running statistics" if all("running_" in name for name in names) else "weights"
            self._not_a_number(trainer, f"{len(names)} {kind} became NaN or infinite ({', '.join(names[:3])})")
        if overflown:
            what = f"Outputs became NaN or infinite in the validation ({', '.join(overflown[:3])})"
            self._not_a_number(trainer, what)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the verdict before a checkpoint can be written after validation."""
        self._read(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read the verdict before a checkpoint is written in the middle of an epoch."""
        self._read(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop watching."""
        readers = coordinator(pl_module).readers
        if self._read_loss in readers:
            readers.remove(self._read_loss)
        self._forget()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop watching."""
        self.on_train_end(trainer, pl_module)

    def _read(self, trainer: Trainer, module: LightningModule, *, all_but: int = 0) -> None:
        while len(self._pending) > all_but:
            verdict, step = self._pending.pop(0)
            if verdict.read():
                names = non_finite(step.terms.items())
                terms = f"; non-finite terms: {', '.join(names)}" if names else ""
                images = _broken_images(step, coordinator(module))
                what = f"The training loss became NaN or infinite{terms}{f'; {images}' if images else ''}"
                cure = f"The data is at fault, and not the learning rate: {DATA_CURE}" if images else CURE
                self._not_a_number(trainer, what, step, cure)

    def _not_a_number(self, trainer: Trainer, what: str, step: Step | None = None, cure: str = CURE) -> None:
        """Note it and raise: nothing that is computed from it is of use."""
        number = (step or self._step).number
        self._note(trainer, Collapse("non_finite", trainer.current_epoch, number, what, action="stopped"))
        where = f"step {number}, epoch {trainer.current_epoch + 1}"
        raise NonFiniteError(f"{what} ({where}). {cure}{_untouched(trainer)}")

    # ------------------------------------------------------------------ every validation

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count."""
        module = coordinator(pl_module)
        if self._shares is None:
            self._shares = ClassShares(module.student.num_peers, module.student.num_classes)
        self._shares.to(module.device)
        self._shares.reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count which classes the student peers predict."""
        if self._shares is not None and isinstance(outputs, Mapping):
            peers = coordinator(pl_module).student.num_peers
            self._shares.update(outputs["evaluated"].logits[:peers], outputs["labels"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge each student peer."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or self._shares is None:
            return
        module = coordinator(pl_module)
        logged = trainer.callback_metrics.items()
        self._overflown = non_finite((n.removeprefix("val/nll/"), v) for n, v in logged if n.startswith("val/nll/"))
        found = {name: value.reshape(-1).tolist() for name, value in self._shares.compute().items()}
        chance, samples = found["commonest"][0], int(found["samples"][0])
        bound = chance_bound(chance, samples)
        peers = [f"student_{i}" for i in range(module.student.num_peers)]
        accuracy = module.validation_accuracy[: len(peers)].tolist()
        faults = {
            peer: fault
            for peer, right, share in zip(peers, accuracy, found["top_share"], strict=True)
            if (fault := fault_of(right, share, chance, bound, self.one_class_share)) is not None
        }
        self._well |= {peer for peer, right in zip(peers, accuracy, strict=True) if right >= clearly_better(bound)}
        late = self._past_grace(trainer)
        ill = [peer for peer in faults if late or peer in self._well]
        fresh, self._ill = set(ill) - self._ill, set(ill)
        if fresh:
            kind = "chance" if "chance" in [faults[peer] for peer in ill] else "one_class"
            reached = [accuracy[peers.index(peer)] for peer in ill]
            shares = [found["top_share"][peers.index(peer)] for peer in ill]
            what = describe(kind, ill, reached, shares, chance)
            at = trainer.current_epoch, trainer.global_step
            self._act(trainer, Collapse(kind, *at, what, ill, reached, shares, chance, bound, _homogenised(trainer)))

    def _act(self, trainer: Trainer, event: Collapse) -> None:
        said = f"Collapse in epoch {event.epoch + 1}: {event.what}."
        if self.on_collapse == "warn":
            self._note(trainer, replace(event, action="warned"))
            print_once(said)
        else:
            self._note(trainer, replace(event, action="stopped"))
            raise CollapseError(f"{said} {CURE}{_untouched(trainer)}")

    def _past_grace(self, trainer: Trainer) -> bool:
        done = trainer.current_epoch + 1
        epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else 0
        share = done / epochs if epochs else trainer.global_step / max(trainer.max_steps, 1)
        return done >= LEAST_EPOCHS and share >= self.grace

    # ------------------------------------------------------------------ what follows

    def _note(self, trainer: Trainer, event: Collapse) -> None:
        self.events.append(event)
        folder = self.folder or Path(trainer.log_dir or trainer.default_root_dir)
        rank_zero_only(write_text)(folder / "collapse.json", json.dumps(self._written(), indent=2) + "\n")

    def _written(self) -> dict[str, Any]:
        return {"events": [asdict(event) for event in self.events]}

    def state_dict(self) -> dict[str, Any]:
        """Keep what has happened."""
        return {**self._written(), "well": sorted(self._well), "ill": sorted(self._ill)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what has happened; earlier versions noted more of it."""
        known = {item.name for item in fields(Collapse)}
        self.events = [Collapse(**{name: each[name] for name in known & each.keys()}) for each in state_dict["events"]]
        self._well, self._ill = set(state_dict["well"]), set(state_dict["ill"])


def _broken_images(step: Step, module: Coordinator) -> str | None:
    """Say which images of the step are no numbers, None if none; all processes ask, and all find the same at fault."""
    said = step.broken_images(module)
    anywhere = any_process(said is not None, module.device)
    return said or ("images of another process are NaN or infinite" if anywhere else None)


def _untouched(trainer: Trainer) -> str:
    """Say that there is a checkpoint to go back to, where there is one."""
    paths = [trainer.ckpt_path]
    for saving in trainer.checkpoint_callbacks:
        paths += [getattr(saving, name, None) for name in ("path", "last_model_path", "best_model_path")]
    return " The last checkpoint is untouched." if any(path and Path(path).exists() for path in paths) else ""


def _homogenised(trainer: Trainer) -> bool | None:
    value = trainer.callback_metrics.get("diversity/homogenised")
    return None if value is None else bool(value)
