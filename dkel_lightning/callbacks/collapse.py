"""Notice a training that collapses, by its outcome; report it, end it, or go back and go on more carefully."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.optim import Optimizer

from dkel_lightning.callbacks.collapse_criteria import Collapse, can_tell, clearly_better, describe, fault_of
from dkel_lightning.callbacks.step_recorder import StepRecorder, Verdict, all_finite, non_finite, on_host
from dkel_lightning.errors import CollapseError, NonFiniteError
from dkel_lightning.modules.batch import DATA_CURE, sync_blocks
from dkel_lightning.modules.deployment import peer_names
from dkel_lightning.modules.interface import Coordinator, coordinator
from dkel_lightning.modules.peers import named_weights
from dkel_lightning.runtime import command_lines
from dkel_lightning.runtime.atomic_files import write_text
from dkel_lightning.runtime.processes import any_process, print_once
from dkel_lightning.schedules import one_of
from dkel_lightning.studies.seed_statistics import chance_bound

ACTIONS = ("warn", "stop", "restore")
CURE = "Lower the learning rate, clip gradients (trainer.gradient_clip_val=1), or use precision=bf16 or fp32."
LEAST_EPOCHS = 5
KEPT = (
    *("term_means.", "train_scores.", "method.rampup_weight", "ensemble.weight", "teacher.rate"),
    *("method.fitted", "method.places_"),  # of a consistent teacher
)
"""What a restoration leaves: sums of the epoch, and what schedules have put in force, as no clock is turned back."""
RATES = ("lr", "initial_lr", "max_lr", "min_lr")


class CollapseGuard(Callback):
    """Watch for collapse, which is defined by its outcome.

    * The loss, a gradient (on the CPU), a weight, a running statistic or an output in validation becomes NaN or
      infinite. Where the loss does, the images of the step are looked at: if they are not finite, they are at fault.
    * A student peer's validation accuracy is at chance: not above the 99.9 % quantile of what the best constant
      prediction would reach by luck on as many images. It counts once the peer had been clearly better (three times
      that quantile, or half way from it to 1), or once it should have been: after `grace` of the run, and after 5
      epochs (5 again from where it was restored), on images enough to tell.
    * One class takes at least `one_class_share` of a student peer's predictions, from the same moment on, unless the
      labels are distributed so.

    The latter two count from the `validations`th validation in a row in which they are seen. Where the peers are well
    again for as many, what was warned of is withdrawn: in one line, and in `collapse.json`.

    Teachers are not judged: an independent one is at chance by design until the average has reached its student.

    What follows is one line, `collapse.json` in the folder of the run, and `on_collapse`:

    * `warn`: go on. After a loss that is no number nothing can go on, so the run ends as with `stop`.
    * `stop`: raise a CollapseError; what the last checkpoint holds is not touched.
    * `restore`: take weights, optimizer state and the teacher's counter back to the last validation that was well (or
      the start), multiply the learning rate by `lr_scale`, for good, and go on with the next batch. The clock is not
      turned back. After `times` of them it stops.

    A step whose loss is no number is written to `collapse/step_<n>.pt`, n the steps done before; so is the last step
    before the validation that finds a collapse (with `warn`: the first one). `task=replay` runs it again. On the CPU
    the loss is judged before the weights are touched. On a GPU the verdict is read at the start of the next step but
    one, when it has long arrived, and a copy of the state from before the step lies on the device until then: no wait,
    for two copies of weights and optimizer state in memory. With `restore` it is read at once.

    Args:
        on_collapse: `warn`, `stop` or `restore`.
        folder: of the run; the Trainer's log folder by default.
        lr_scale: factor on the learning rate at each restoration.
        times: how often it is restored.
        one_class_share: share of the predictions from which one class counts as nearly all.
        grace: share of the run in which a peer may be at chance that has never been better.
        validations: in a row, for which a peer must be at chance, or predict one class, to have collapsed.
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
        lr_scale: float = 0.5,
        times: int = 3,
        one_class_share: float = 0.95,
        grace: float = 0.25,
        validations: int = 3,
    ) -> None:
        one_of("callbacks.on_collapse", on_collapse, ACTIONS)
        self.on_collapse = on_collapse
        self.folder = folder
        self.lr_scale = lr_scale
        self.times = times
        self.one_class_share = one_class_share
        self.grace = grace
        self.validations = validations
        self.events: list[Collapse] = []
        self.restored = 0
        self._restored_at = 0
        self._well: set[str] = set()
        self._ill: set[str] = set()
        # Of each peer, validations in a row with a fault; below 0: without.
        self._streak: dict[str, int] = {}
        # Of the step under way, and of the one before where its verdict is still to come.
        self._recorder, self._other = StepRecorder(), StepRecorder()
        self._pending: list[tuple[Verdict, StepRecorder]] = []
        self._due: Collapse | None = None
        self._good: dict[str, Any] = {}
        # Networks whose outputs were no numbers in the validation of this epoch.
        self._overflown: list[str] = []

    # ------------------------------------------------------------------ every step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the losses."""
        module = coordinator(pl_module)
        self._pending, self._due, self._good = [], None, {}
        if self._read_loss not in module.readers:
            module.readers.append(self._read_loss)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Read the verdict on an earlier step, and keep what a replay of this one needs.

        What the first one begins with is good: only now has the teacher been initialised.
        """
        if not self._good:
            self._remember(trainer, coordinator(pl_module))
        self._read(trainer, pl_module, all_but=1 if self._reads_late(pl_module.device) else 0)
        if self._pending:
            self._recorder, self._other = self._other, self._recorder
        self._recorder.begin(trainer, coordinator(pl_module), batch, batch_idx)
        self._at = (trainer, coordinator(pl_module))

    def _read_loss(self, terms: Mapping[str, Tensor], loss: Tensor) -> None:
        self._recorder.note(terms, loss)
        self._pending.append((Verdict(loss), self._recorder))
        if not self._reads_late(loss.device):
            self._read(*self._at)

    def _reads_late(self, device: torch.device) -> bool:
        return sync_blocks(device) and self.on_collapse != "restore"

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradients where that is free, before they reach the weights."""
        if sync_blocks(pl_module.device) or self._due is not None:
            return
        learning = (p.grad for group in optimizer.param_groups for p in group["params"])
        gradients = [gradient for gradient in learning if gradient is not None]
        if not gradients or all_finite(gradients):
            return
        # Their names only now: to walk through all modules takes longer than the sums.
        names = non_finite((name, p.grad) for name, p in pl_module.named_parameters() if p.grad is not None)
        if names:
            what = f"{len(names)} gradients became NaN or infinite ({', '.join(names[:3])})"
            self._not_a_number(trainer, coordinator(pl_module), what, self._recorder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Go back, if this step was no good."""
        if self._due is not None:
            event, self._due = self._due, None
            self._restore(trainer, coordinator(pl_module), event)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the verdict before the epoch's checkpoint is written, and look at the weights themselves.

        A step may spoil the weights after a loss and gradients that were still finite; or make them so large that
        running statistics, or the outputs in validation, overflow.
        """
        self._read(trainer, pl_module)
        module = coordinator(pl_module)
        weights = named_weights(module)
        overflown, self._overflown = self._overflown, []
        what = ""
        if not all_finite([parameter.detach() for _, parameter in weights]) and (names := non_finite(weights)):
            kind = "running statistics" if all("running_" in name for name in names) else "weights"
            what = f"{len(names)} {kind} became NaN or infinite ({', '.join(names[:3])})"
        elif overflown:
            what = f"Outputs became NaN or infinite in the validation ({', '.join(overflown[:3])})"
        if what:
            self._not_a_number(trainer, module, what, self._recorder, replayable=False)
            self.on_train_batch_end(trainer, module, None, None, 0)
        elif not trainer.enable_validation:
            self._remember(trainer, module)

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
        self._good, self._pending = {}, []
        self._recorder, self._other = StepRecorder(), StepRecorder()
        self._at = ()  # type: ignore[assignment]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop watching."""
        self.on_train_end(trainer, pl_module)

    _at: tuple[Trainer, Coordinator]

    def _read(self, trainer: Trainer, module: LightningModule, *, all_but: int = 0) -> None:
        while len(self._pending) > all_but:
            verdict, recorder = self._pending.pop(0)
            if verdict.read():
                names = non_finite(recorder.terms.items())
                terms = f"; non-finite terms: {', '.join(names)}" if names else ""
                images = _broken_images(recorder, coordinator(module))
                what = f"The training loss became NaN or infinite{terms}{f'; {images}' if images else ''}"
                cure = f"The data is at fault, and not the learning rate: {DATA_CURE}" if images else CURE
                self._not_a_number(trainer, coordinator(module), what, recorder, cure=cure)

    def _not_a_number(
        self,
        trainer: Trainer,
        module: Coordinator,
        what: str,
        recorder: StepRecorder,
        *,
        replayable: bool = True,
        cure: str = CURE,
    ) -> None:
        """Record the step, and raise, or ask for a restoration once the step is over."""
        where = f"step {recorder.step}, epoch {trainer.current_epoch + 1}"
        path = recorder.save(self._place(trainer) / "collapse", trainer, module, what) if replayable else None
        event = Collapse("non_finite", trainer.current_epoch, recorder.step, what, record=str(path) if path else None)
        if self.on_collapse == "restore" and self.restored < self.times:
            self._due = event
            return
        self._stop(trainer, event, NonFiniteError, f"{what} ({where})", cure)

    # ------------------------------------------------------------------ every validation

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge each student peer."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        module = coordinator(pl_module)
        logged = trainer.callback_metrics.items()
        self._overflown = non_finite((n.removeprefix("val/nll/"), v) for n, v in logged if n.startswith("val/nll/"))
        found = {name: value.reshape(-1).tolist() for name, value in module.predictions.compute().items()}
        chance, samples = found["commonest"][0], int(found["samples"][0])
        bound = chance_bound(chance, samples)
        peers = peer_names(module, "student")
        # The first members are they.
        accuracy = dict(zip(peers, module.validation_accuracy.tolist(), strict=False))
        shares = dict(zip(peers, found["top_share"], strict=False))
        faults = {
            peer: fault
            for peer in peers
            if (fault := fault_of(accuracy[peer], shares[peer], chance, bound, self.one_class_share)) is not None
        }
        self._well |= {peer for peer in peers if accuracy[peer] >= clearly_better(bound)}
        for peer in peers:
            before = self._streak.get(peer, 0)
            self._streak[peer] = max(before, 0) + 1 if peer in faults else min(before, 0) - 1
        late = self._past_grace(trainer) and can_tell(chance, bound)
        ill = [p for p in faults if self._streak[p] >= self.validations and (late or p in self._well)]
        if not faults:
            self._remember(trainer, module)
        self._withdraw(trainer, accuracy)
        fresh, self._ill = set(ill) - self._ill, set(ill)
        if not fresh:
            return
        kind = "chance" if "chance" in [faults[peer] for peer in ill] else "one_class"
        reached, predicted = (tuple(each[peer] for peer in ill) for each in (accuracy, shares))
        what = describe(kind, ill, reached, predicted, chance)
        seen = (reached, predicted, chance, bound, _homogenised(trainer))
        record = self._last_step(trainer, module, what)
        event = Collapse(kind, trainer.current_epoch, trainer.global_step, what, tuple(ill), *seen, record=record)
        self._act(trainer, module, event)

    def _last_step(self, trainer: Trainer, module: Coordinator, what: str) -> str | None:
        """Write the step before this validation; with `warn` the first one alone, as a peer may come and go."""
        known = self.on_collapse == "warn" and any(event.record for event in self.events)
        if known or not self._recorder.whole:
            return None
        return str(self._recorder.save(self._place(trainer) / "collapse", trainer, module, what))

    def _act(self, trainer: Trainer, module: Coordinator, event: Collapse) -> None:
        if self.on_collapse == "warn":
            self._note(trainer, event, "warned")
            print_once(f"Collapse in epoch {event.epoch + 1}: {event.what}.{_again(event)}")
        elif self.on_collapse == "restore" and self.restored < self.times:
            self._ill = set()
            self._restore(trainer, module, event)
        else:
            self._stop(trainer, event, CollapseError, f"Collapse in epoch {event.epoch + 1}: {event.what}", CURE)

    def _stop(self, trainer: Trainer, event: Collapse, error: type[CollapseError], said: str, cure: str) -> NoReturn:
        self._note(trainer, event, "stopped")
        tried = f" It was restored {self.restored} times." if self.restored else ""
        raise error(f"{said}.{tried} {cure}{_untouched(trainer)}{_again(event)}")

    def _withdraw(self, trainer: Trainer, accuracy: Mapping[str, float]) -> None:
        """Take back what was warned of, where all peers concerned have been well for as long as it took to say so."""
        for place, event in enumerate(self.events):
            over = all(self._streak[peer] <= -self.validations for peer in event.members)
            if event.action == "warned" and event.recovered is None and over:
                self.events[place] = replace(event, recovered=trainer.current_epoch)
                self._save(trainer)
                now = ", ".join(f"{100 * accuracy[peer]:.1f} %" for peer in event.members)
                print_once(f"No collapse: {', '.join(event.members)} of epoch {event.epoch + 1} recovered ({now}).")

    def _past_grace(self, trainer: Trainer) -> bool:
        done = trainer.current_epoch + 1
        epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else 0
        share = done / epochs if epochs else trainer.global_step / max(trainer.max_steps, 1)
        # A peer that was sent back to where it knew nothing has to have time to learn, too.
        return done - self._restored_at >= LEAST_EPOCHS and share >= self.grace

    # ------------------------------------------------------------------ what follows

    def _remember(self, trainer: Trainer, module: Coordinator) -> None:
        """Keep what a restoration goes back to, on the host."""
        if self.on_collapse == "restore":
            with torch.inference_mode(False):
                kept, state = _kept(module), module.state_dict()
                self._good = {
                    "weights": on_host({name: value for name, value in state.items() if not name.startswith(kept)}),
                    "optimizer": on_host(trainer.optimizers[0].state_dict()["state"]),
                    "well": set(self._well),
                    "step": trainer.global_step,
                }

    def _restore(self, trainer: Trainer, module: Coordinator, event: Collapse) -> None:
        # Validation runs in inference mode, whose tensors no later step could change.
        with torch.inference_mode(False), torch.no_grad():
            kept = {name: value for name, value in module.state_dict().items() if name.startswith(_kept(module))}
            module.load_state_dict({**self._good["weights"], **kept})
            # What a peer has learnt since then is gone, and it may be at chance again.
            self._well, self._streak = set(self._good["well"]), {}
            # The sums of the epoch begin anew.
            if event.kind == "non_finite":
                module.term_means.reset()
                module.train_scores.reset()
            for optimizer in trainer.optimizers:
                optimizer.zero_grad()
                groups = optimizer.state_dict()["param_groups"]
                optimizer.load_state_dict({"state": self._good["optimizer"], "param_groups": groups})
        scale_rates(trainer, self.lr_scale)
        self.restored += 1
        self._restored_at = trainer.current_epoch + 1
        self._note(trainer, event, "restored")
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        print_once(
            f"Collapse in epoch {event.epoch + 1}: {event.what}. Back to the state after step {self._good['step']}, "
            f"going on with learning rate {rate:g} (restoration {self.restored} of {self.times}).{_again(event)}"
        )

    def _note(self, trainer: Trainer, event: Collapse, action: str) -> None:
        self.events.append(replace(event, action=action))
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        _write(self._place(trainer) / "collapse.json", [asdict(each) for each in self.events])

    def _place(self, trainer: Trainer) -> Path:
        return self.folder or Path(trainer.log_dir or trainer.default_root_dir)

    def state_dict(self) -> dict[str, Any]:
        """Keep what has happened."""
        return {
            "events": [asdict(event) for event in self.events],
            "restored": self.restored,
            "restored_at": self._restored_at,
            "well": sorted(self._well),
            "ill": sorted(self._ill),
            "streak": dict(self._streak),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what has happened."""
        self.events = [Collapse(**event) for event in state_dict["events"]]
        self.restored, self._restored_at = int(state_dict["restored"]), int(state_dict.get("restored_at", 0))
        self._well, self._ill = set(state_dict["well"]), set(state_dict["ill"])
        self._streak = dict(state_dict.get("streak", {}))


def _kept(module: Coordinator) -> tuple[str, ...]:
    """Name what a restoration leaves, by its beginning; a frozen teacher too, which no training has spoilt."""
    frozen = module.teacher is not None and module.teacher.settings.update == "frozen"
    return (*KEPT, "teacher.network.") if frozen else KEPT


def scale_rates(trainer: Trainer, factor: float) -> None:
    """Multiply the learning rates in force, and all from which schedulers compute later ones."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group.update({name: group[name] * factor for name in RATES if name in group})
    for config in trainer.lr_scheduler_configs:
        _scale_scheduler(config.scheduler, factor)


def _scale_scheduler(scheduler: Any, factor: float) -> None:
    for nested in getattr(scheduler, "_schedulers", []):
        _scale_scheduler(nested, factor)
    for name in ("base_lrs", "_last_lr", "min_lrs"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, [rate * factor for rate in getattr(scheduler, name)])


def _again(event: Collapse) -> str:
    if not event.record:
        return ""
    return f" Replay the step: {command_lines.typed('task=replay', command_lines.override('checkpoint', event.record))}"


def _broken_images(recorder: StepRecorder, module: Coordinator) -> str | None:
    """Say which images of the step are no numbers, None if none; all processes ask, and all find the same at fault."""
    said = recorder.broken_images(module)
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


@rank_zero_only
def _write(path: Path, events: list[dict[str, Any]]) -> None:
    write_text(path, json.dumps({"events": events}, indent=2) + "\n")
