"""The coordinator: student, teacher and ensemble trained together by one method, one optimizer, one loss."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from dkel_lightning import callbacks, methods, networks
from dkel_lightning.checkpoints import format
from dkel_lightning.errors import CheckpointError, ConfigError, DataError
from dkel_lightning.execution.compiled import CompiledNetworks
from dkel_lightning.execution.runner import InForce, Runner, wants_channels_last
from dkel_lightning.metrics import (
    CalibrationErrors,
    Confusion,
    Disagreement,
    NetworkScores,
    TermMeans,
    relative_distance,
    scores_of,
)
from dkel_lightning.modules.batch import (
    Batch,
    FiniteWatch,
    check_labels,
    check_views,
    images_of,
    number_of_views,
    sync_blocks,
    unpack,
    with_shape_errors_explained,
)
from dkel_lightning.modules.ensemble import EnsembleModule
from dkel_lightning.modules.optim import OptimizerFactory, SchedulerFactory, configure, fused
from dkel_lightning.modules.outputs import Evaluated, MethodInputs, StepResult, StudentOutput
from dkel_lightning.modules.peers import batch_norms
from dkel_lightning.modules.student import StudentModule
from dkel_lightning.modules.teacher import TeacherModule, average_over_processes
from dkel_lightning.runtime import processes
from dkel_lightning.runtime.seeding import generator, seeded
from dkel_lightning.schedules import one_of
from dkel_lightning.settings.declarations import from_mapping, merge
from dkel_lightning.settings.deploy import Deploy
from dkel_lightning.settings.execution import Execution
from dkel_lightning.settings.teacher import TeacherSettings

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
Observer = Callable[[MethodInputs, Mapping[str, Tensor], Tensor], None]
Reader = Callable[[Mapping[str, Tensor], Tensor], None]


class DistillationModule(LightningModule):
    """Train peers with online distillation in any Lightning Trainer.

    One training step: all views pass the student and the teacher, the ensemble classifies the student's features
    and assembles the teachers' logits, the method turns these into named loss terms, and their sum is optimised by
    one optimizer. After each optimizer step the teacher follows its student. Use `build` unless you bring your own
    parts.

    Args:
        student: the peers that are optimised.
        method: turns outputs into loss terms.
        teacher: the teacher peers, of the same form; required by most methods.
        ensemble: required by methods with an ensemble classifier.
        optimizer: makes the optimizer from named parameter groups (`student`, `ensemble`, `method`, and `teacher`
            where it learns by gradient); SGD of the CIFAR protocol by default.
        scheduler: makes the scheduler from the optimizer; none by default.
        interval: step the scheduler every `epoch` or every `step`.
        augmentation: for batches [B, C, H, W]: makes the views on the device, called as
            `augmentation(images, generator)` once a view. Without it all peers share the view of such a batch.
        views: the views that it makes: one `per_peer`, one `shared` by all, or `per_peer_and_teacher`.
        deploy: which network `deploy()` returns and `val/acc` reports.
        seed: from which the views, the initialisation batches and `build`'s weights are drawn.
        execution: how training steps are executed, a name or a mapping of `Execution`'s settings; `execution_in_force`
            says how they are in fact.

    Logged each epoch: `train/loss`, `train/loss_per_peer`, `train/<term>`, `train/acc/...`, `weights/...`;
    `val/acc`, `val/acc/...`, `val/nll/...` with student_0.., student_mean, student_best, student_ensemble (mean of
    probabilities), ensemble (the ensemble classifier, or what the method makes), and the same of the teacher. In tests
    `best` and `acc` are the peers that the last validation chose, and `test/ece/...` (expected calibration error),
    `test/disagreement` (of the student peers) and `test/distance` (of teacher and student) are logged too. What
    `diversity/...` and `share/...` hold: see callbacks.DiversityMonitor.
    """

    def __init__(
        self,
        student: StudentModule,
        method: methods.Method,
        *,
        teacher: TeacherModule | None = None,
        ensemble: EnsembleModule | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        interval: str = "epoch",
        augmentation: Augmentation | None = None,
        views: str = "per_peer",
        deploy: Deploy | None = None,
        seed: int = 0,
        execution: str | Mapping[str, Any] | Execution = "eager",
    ) -> None:
        super().__init__()
        self.execution = Execution.of(execution)
        _check_parts(student, method, teacher, ensemble)
        self.student = student
        self.teacher = teacher
        if teacher is not None:
            # A fit of its own that was interrupted leaves it unfrozen.
            teacher.stand_alone(False)
        self.ensemble = ensemble
        self.method = method
        self.augmentation = augmentation
        self.num_views = number_of_views(views, student.num_peers)
        self.deployment = deploy or _deployment({}, method, teacher is not None)
        self.seed = seed
        self.recipe: dict[str, Any] | None = None
        for what, factory in (("optimizer", optimizer), ("scheduler", scheduler)):
            if factory is not None and not callable(factory):
                raise ConfigError(
                    f"{what}= is made when the training begins: pass what makes it, such as "
                    f"partial(torch.optim.SGD, lr=0.1), and not a {type(factory).__name__}."
                )
        one_of("interval", interval, ("epoch", "step"))
        self._factories = (optimizer, scheduler, interval)
        self._tested = 0
        self._finite = FiniteWatch()
        self._check_deployment(self.deployment)

        with seeded(seed, "method parts"):
            method.attach(student.network)
        self.members = self._members()
        self.term_means = TermMeans(method.terms)
        self.train_scores = NetworkScores(student.num_peers, persistent=True)
        self.scores = NetworkScores(len(self.members))
        self.calibration = CalibrationErrors(len(self.members))
        self.disagreement = Disagreement()
        self.confusion = Confusion(student.num_classes)
        # Of the deployed network in the last test: rows are true classes, columns predicted ones.
        self.tested_confusion: Tensor | None = None
        # Called in a training step with its outputs, terms and loss, before the backward pass: such a step is eager.
        self.observers: list[Observer] = []
        # Called with the terms and the loss of every step, without gradient. In a captured one they are overwritten by
        # the next.
        self.readers: list[Reader] = []
        # The networks as compiled for this fit, and what executes its steps.
        self.compiled: CompiledNetworks | None = None
        self._runner: Runner | None = None
        # What the checkpoint has of each process, until the fit that goes on from it has taken it over.
        self._restored: list[dict[str, Any]] = []
        self._began_with: dict[str, str] = {}
        # What the last validation said of each member; chooses the deployed peer, so it belongs to the checkpoint.
        self.register_buffer("validation_accuracy", torch.full((len(self.members),), float("nan")))

    validation_accuracy: Tensor

    @classmethod
    def build(
        cls,
        backbone: str | nn.Module = "resnet32",
        num_classes: int | None = None,
        method: str | Mapping[str, Any] | methods.Method = "dkel",
        peers: int | Sequence[str] | None = None,
        *,
        split_at: str | None = None,
        classifier: str | None = None,
        teacher: Mapping[str, Any] | None = None,
        in_channels: int = 3,
        image_size: tuple[int, int] | None = None,
        views_per_pass: str = "all",
        classifiers: str | None = None,
        sharing: str | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        interval: str = "epoch",
        augmentation: Augmentation | None = None,
        views: str | None = None,
        schedules: str = "epochs",
        deploy: Mapping[str, Any] | None = None,
        peer_lr_scale: Sequence[float] | None = None,
        frozen_peers: Sequence[int] | None = None,
        seed: int = 0,
        execution: str | Mapping[str, Any] | Execution = "eager",
    ) -> DistillationModule:
        """Build student, teacher, ensemble and method from names and primitives.

        Args:
            backbone: a registered name, or any torch classifier (then give `split_at`).
            num_classes: C; by default those of a model of your own, or 100.
            method: a registered name, a mapping `{"name": ..., <settings>}`, or a Method.
            peers: P, the method's by default; or a backbone's name for each peer, which then share nothing.
            split_at: for a model of your own, the module at which the branches begin, such as "layer4".
            classifier: for a model of your own, its classifier's name; the last linear layer by default.
            teacher: settings laid over the method's, see TeacherSettings; `{"update": "none"}` for no teacher.
            in_channels: channels of the images.
            image_size: (height, width), checked against what the backbone can take; 224 for a model of your own.
            views_per_pass: `all` views through the trunk as one batch, which pools BatchNorm statistics over
                views, or `one` after the other.
            classifiers: how the branches' classifiers start: `own`, `equal`, `released`; the method's by default.
            sharing: peers given as a number share a `trunk`, or `nothing`; the method's by default. Peers of a model
                of your own that share nothing all keep its weights up to `split_at`.
            optimizer: see the class.
            scheduler: see the class.
            interval: see the class.
            augmentation: see the class.
            views: see the class; the method's by default.
            schedules: ramp-up, ensemble decay and EMA that you do not set last as many `epochs` as in the CIFAR
                protocol of 300, or the same `shares` of any run.
            deploy: settings of Deploy.
            peer_lr_scale: see StudentModule.
            frozen_peers: see StudentModule.
            seed: student, teacher and ensemble are drawn from it, each for itself.
            execution: see the class.

        Raises:
            ConfigError: an unknown name or key, or parts that do not fit together.
        """
        if isinstance(backbone, str) and split_at is not None:
            raise ConfigError(f"split_at={split_at!r} belongs to a model of your own; {backbone} has its own split.")
        if isinstance(peers, str) or not isinstance(peers, int | Sequence | None):
            raise ConfigError(f"peers is {peers!r}: give a number of peers, or a list of backbones.")
        if image_size is not None and not isinstance(image_size, Sequence):
            raise ConfigError(f"image_size is {image_size!r}: give (height, width).")
        with seeded(seed, "method"):
            chosen, preset = _method(method, len(peers) if isinstance(peers, Sequence) else peers, schedules)
        peers = chosen.peers if peers is None else peers
        share = sharing or preset.sharing
        if share not in ("trunk", "nothing"):
            raise ConfigError(f"method.sharing is {share!r}: choose one of trunk, nothing.")
        if isinstance(peers, int) and share == "nothing" and isinstance(backbone, str):
            peers = [backbone] * peers
        settings = _teacher_settings(chosen, preset, teacher, schedules)
        if num_classes is None:
            num_classes = 100 if isinstance(backbone, str) else _classes_of(backbone, split_at, classifier)
        draw = _Draw(
            backbone, num_classes, peers, split_at, classifier, in_channels, image_size, views_per_pass,
            classifiers or preset.classifiers, share,
        )  # fmt: skip
        student = StudentModule(draw(seed, "student"), peer_lr_scale=peer_lr_scale, frozen_peers=frozen_peers or ())
        teacher_module = None
        if settings is not None:
            drawn = draw.alone(settings.backbone) if chosen.needs.foreign_teacher else draw
            # A model of the user's own comes with weights, which an independent draw must not keep.
            teacher_module = TeacherModule(drawn(seed, "teacher", redraw=settings.draw == "independent"), settings)
            teacher_module.start_from(student.network)
            teacher_module.load()
        ensemble = None
        if chosen.wants_ensemble_classifier or chosen.ensemble is not None:
            with seeded(seed, "ensemble"):
                ensemble = EnsembleModule(student.network.feature_dims, num_classes, chosen.ensemble)
        module = cls(
            student,
            chosen,
            teacher=teacher_module,
            ensemble=ensemble,
            optimizer=optimizer,
            scheduler=scheduler,
            interval=interval,
            augmentation=augmentation,
            views=views or preset.views,
            deploy=_deployment(deploy or {}, chosen, teacher_module is not None),
            seed=seed,
            execution=execution,
        )
        module.recipe = {
            **draw.recipe(),
            "method": _method_recipe(method, chosen),
            "teacher": teacher_module.settings_as_dict() if teacher_module is not None else {"update": "none"},
            "deploy": {"network": module.deployment.network, "peer": module.deployment.peer},
            "peer_lr_scale": list(peer_lr_scale) if peer_lr_scale is not None else None,
            "frozen_peers": list(frozen_peers) if frozen_peers else None,
            "views": views or preset.views,
            "interval": interval,
            "seed": seed,
        }
        # Under one name: Lightning refuses a data module that saves another `seed` or `image_size` beside them.
        module.save_hyperparameters({"distillation": module.recipe})
        return module

    # ------------------------------------------------------------------ one step

    def forward(self, views: Tensor) -> StudentOutput:
        """Classify `views` [B, V, C, H, W] or [B, C, H, W] with the student peers and their ensemble."""
        output: StudentOutput = self.student.stages(views) if self.method.needs.stages else self.student(views)
        if self.method.needs.ensemble == "own":
            return output.with_ensemble(self.method.combine(output))
        if self.ensemble is not None and self.method.wants_ensemble_classifier:
            return output.with_ensemble(self.ensemble(output.features))
        return output

    def forward_all(self, batch: Batch) -> MethodInputs:
        """Pass a batch through student, ensemble and teacher."""
        views, teacher_views = self.views_of_each(batch.views)
        with with_shape_errors_explained(batch.views, self.student.network):
            student = self(views)
            teacher = self.teacher.teach(teacher_views) if self.teacher is not None else None
        assembled, weight = None, student.logits.new_zeros(())
        if self.ensemble is not None:
            weight = self.ensemble.weight
            if teacher is not None:
                assembled = self.ensemble.assemble(teacher.logits, getattr(self.method.settings, "temperature", 1.0))
        return MethodInputs(batch.labels, student, teacher, assembled, weight, batch.indices)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the loss of a batch: the sum of the method's terms, and the teacher's own where it learns.

        A captured step has made its gradients as well, and its loss has no graph.
        """
        views, labels, indices = unpack(batch)
        if batch_idx == 0:
            self._check_is_trained_itself()
        self._check_views(views)
        if batch_idx == 0 or not sync_blocks(labels.device):
            check_labels(labels, self.student.num_classes)
        rank = self.global_rank if self._trainer is not None else 0
        epoch = self.trainer.current_epoch if self._trainer is not None else 0
        made = Batch(self.make_views(views, epoch, batch_idx, rank), labels, indices)
        passed = self.runner(made, batch_idx) if self.runner is not None else None
        if passed is None:
            passed = self._compute_eagerly(made, batch_idx)
        for read in self.readers:
            read(passed.terms, passed.loss.detach())
        self.term_means.add(passed.values)
        self.train_scores.add(passed.correct, passed.nll, len(labels))
        return passed.loss

    def compute_step(self, batch: Batch) -> StepResult:
        """Compute all of a training step that lies before its gradients; a function of tensors alone."""
        compiled = self.compiled if self.compiled is not None and self.compiled.rows == len(batch.labels) else None
        with compiled.in_force() if compiled is not None else contextlib.nullcontext():
            step = self.forward_all(batch)
        terms, loss = self.losses(step)
        values = torch.stack([terms[name].detach() for name in self.method.terms])
        return StepResult(step, terms, values, loss, *scores_of(step.student.logits, batch.labels))

    def compile_networks(self, rows: int) -> None:
        """Compile the networks for training batches of so many samples; others pass them as they are.

        A Trainer does this by itself as `execution` says; call it for a loop of your own.
        """
        self.compiled = CompiledNetworks(self, rows)

    def _compute_eagerly(self, batch: Batch, batch_idx: int) -> StepResult:
        try:
            passed = self.compute_step(batch)
        except ValueError as error:
            if len(batch.labels) == 1 and "more than 1 value per channel" in str(error):
                raise DataError(
                    f"Batch {batch_idx} holds a single image, which BatchNorm cannot normalise where it is 1x1: "
                    "pass drop_last=True to the DataLoader, or choose another batch size."
                ) from error
            raise
        assert passed.step is not None
        for observe in self.observers:
            observe(passed.step, passed.terms, passed.loss)
        return passed

    def losses(self, step: MethodInputs) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the method's terms, and the loss: their sum, and the teacher's own where it learns.

        Raises:
            ConfigError: the method computes other terms than it names.
        """
        terms = self.method.loss_terms(step)
        if terms.keys() != set(self.method.terms):
            raise ConfigError(
                f"{type(self.method).__name__} names the terms {', '.join(self.method.terms)} "
                f"but computes {', '.join(terms)}: a term without a name would be left out of the loss."
            )
        loss = torch.stack([terms[name] for name in self.method.terms]).sum()
        if self.teacher is not None and self.teacher.learns:
            assert step.teacher is not None
            # Not one of the method's terms: it trains another network, and would blur the student's loss.
            loss = loss + self.teacher.supervised_loss(step.teacher.logits, step.labels) * self.teacher.num_peers
        return terms, loss

    def make_views(self, images: Tensor, *key: int | str) -> Tensor:
        """Augment images [B, C, H, W] once for each view, [B, V, C, H, W], drawn from (seed, key).

        Without an augmentation, or given views already, they are returned as they are.
        """
        if self.augmentation is None or images.dim() != 4:
            return images
        drawn = generator(self.seed, "views", *key, device=images.device)
        return torch.stack([self.augmentation(images, drawn) for _ in range(self.num_views)], dim=1)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step the optimizer, then let the teacher follow.

        Lightning calls this once for each real step, accumulation included, so a checkpoint holds the counter that
        belongs to its `global_step`. Under fp16 a step that the loss scaler skips counts as well: the teacher then
        moves towards a student that stood still.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.follow()

    def follow(self) -> None:
        """Let the teacher follow, after an optimizer step."""
        if self.teacher is not None:
            self.teacher.follow(self.student.network)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients, unless a captured step has done it."""
        if self._runner is None or not self._runner.replayed:
            super().backward(loss, *args, **kwargs)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Drop the gradients of the step before, unless a captured step has put its own in their place."""
        if self._runner is None or not self._runner.replayed:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    @property
    def runner(self) -> Runner | None:
        """What executes the training steps of the present fit; None outside of a Trainer."""
        if self._trainer is None:
            return None
        if self._runner is None or self._runner.trainer is not self._trainer:
            self._runner = Runner(self, self._trainer)
        return self._runner

    @property
    def execution_in_force(self) -> InForce | None:
        """How training steps are executed, and why not as asked for; None before there is a Trainer."""
        return self.runner.in_force if self.runner is not None else None

    def setup(self, stage: str) -> None:
        """Choose the memory layout before the optimizer is made, and begin with nothing captured."""
        processes.outlast_threads()
        self._runner, self.compiled = None, None
        if wants_channels_last(self.execution, self.trainer.strategy.root_device, self.trainer):
            self.to(memory_format=torch.channels_last)

    def teardown(self, stage: str) -> None:
        """Let go of what was captured: the tensors are going to move."""
        if self._runner is not None:
            self._runner.release()
        self.compiled = None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Put all that learns into one optimizer, one named parameter group a network."""
        parts = {"student": self.student.network, "ensemble": self.ensemble, "method": self.method}
        if self.teacher is not None and self.teacher.learns:
            parts["teacher"] = self.teacher.network
        present = {name: part for name, part in parts.items() if part is not None}
        optimizer, scheduler, interval = self._factories
        if self._wants_fused():
            one_kernel = fused(optimizer)
            if one_kernel is None and self.execution.fused_optimizer is True:
                raise ConfigError(
                    "execution.fused_optimizer=true, but the optimizer has no fused form, or was told which to take: "
                    "set it to auto."
                )
            optimizer = one_kernel or optimizer
        return configure(present, optimizer, scheduler, interval, own=self.student.scaled_parts("student"))

    def configure_callbacks(self) -> Sequence[Callback]:
        """Attach the callbacks that the method needs, except those the user has passed."""
        needed: list[Callback] = [callbacks.CollapseGuard(), callbacks.DiversityMonitor()]
        if self.method.rampup is not None:
            needed.append(callbacks.RampUpSchedule())
        if self.method.ensemble is not None:
            needed.append(callbacks.EnsembleDecaySchedule())
        if self.teacher is not None:
            needed.append(callbacks.TeacherInitialisation())
        if self.teacher is not None and self.teacher.settings.update == "ema":
            needed.append(callbacks.EMARateSchedule())
        present: list[Callback] = list(getattr(self.trainer, "callbacks", []))
        return [new for new in needed if not any(isinstance(old, type(new)) for old in present)]

    # ------------------------------------------------------------------ evaluation

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Score every member on a batch, and hand what they say of it to the callbacks (`evaluated`, `labels`)."""
        evaluated, labels = self._score(batch, batch_idx, "validation")
        return {"evaluated": evaluated, "labels": labels}

    def on_validation_epoch_start(self) -> None:
        """Begin anew, also after a validation that was broken off."""
        self.scores.reset()
        self._finite.begin()

    def on_test_epoch_start(self) -> None:
        """Begin anew, also after a test that was broken off; look up which member is deployed, which is a read."""
        for sums in (self.scores, self.calibration, self.confusion, self.disagreement):
            sums.reset()
        self._finite.begin()
        self._tested = self.members.index(self.deployed_member())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Score every member on a batch, its calibration, the peers' disagreement and the deployed one's mistakes."""
        evaluated, labels = self._score(batch, batch_idx, "test")
        self.calibration.update(evaluated.logits, labels)
        self.confusion.update(evaluated.logits[self._tested], labels)
        if self.student.num_peers > 1:
            self.disagreement.update(evaluated.logits[: self.student.num_peers])

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the deployed network's logits [B, C] for a batch of images, a tuple that starts so, or a mapping."""
        views = images_of(batch)
        self._check_views(views)
        logits = self.member_logits(views)
        return logits[self.members.index(self.deployed_member())]

    def member_logits(self, views: Tensor) -> Tensor:
        """Stack the logits of all `members`, [N, B, C]."""
        return self.evaluate(views).logits

    def evaluate(self, views: Tensor) -> Evaluated:
        """Ask all `members` about `views`, once."""
        with with_shape_errors_explained(views, self.student.network):
            return self._evaluated(*self.views_of_each(views))

    def _evaluated(self, views: Tensor, teacher_views: Tensor) -> Evaluated:
        student = self(views)
        rows = [student.logits.float()]
        if self.student.num_peers > 1:
            rows.append(_mean_probability(rows[0]))
        if student.ensemble_logits is not None:
            rows.append(student.ensemble_logits.float().unsqueeze(0))
        features = [*student.features]
        if self.teacher is not None:
            taught = self.teacher(teacher_views)
            teachers = taught.logits.float()
            rows += [teachers, _mean_probability(teachers)] if self.teacher.num_peers > 1 else [teachers]
            features += [*taught.features]
        return Evaluated(torch.cat(rows), tuple(features))

    def on_validation_start(self) -> None:
        """Give all processes the same BatchNorm statistics."""
        self.synchronise_statistics()

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean terms, the peers' training accuracy and the weights in force."""
        means = self.term_means.compute()
        total = torch.stack(list(means.values())).sum()
        accuracy = self.train_scores.per_network()["accuracy"]
        logs = {f"train/{name}": value for name, value in means.items()}
        logs |= {"train/loss": total, "train/loss_per_peer": total / self.student.num_peers}
        logs |= {f"train/acc/student_{i}": value for i, value in enumerate(accuracy)}
        logs["train/acc/student_mean"] = accuracy.mean()
        weight = self.ensemble.weight if self.ensemble is not None else torch.zeros(())
        logs |= {f"weights/{name}": value for name, value in self.method.weights_in_force(weight).items()}
        if self.teacher is not None and self.teacher.settings.update == "ema":
            logs["weights/ema_rate"] = self.teacher.rate
        self.log_dict({name: value.detach().float() for name, value in logs.items()}, sync_dist=True)
        self.term_means.reset()
        self.train_scores.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the members' scores and remember them for the choice of the deployed peer."""
        self._finite.end("validation")
        scores = self.scores.per_network()
        self.scores.reset()
        if not self.trainer.sanity_checking:
            self.validation_accuracy.copy_(scores["accuracy"])
        self._log_scores("val", scores, scores["accuracy"])

    def on_test_epoch_end(self) -> None:
        """Log the members' scores; the best peers are those that validation chose."""
        self._finite.end("test")
        scores = self.scores.per_network() | {"calibration": self.calibration.compute().reshape(-1)}
        self.log("test/images", self.scores.samples.clone(), reduce_fx="sum", sync_dist=True)
        self.tested_confusion = self.confusion.compute().clone()
        self.scores.reset()
        self.calibration.reset()
        self.confusion.reset()
        self._log_scores("test", scores, self.validation_accuracy)
        if self.student.num_peers > 1:
            self.log("test/disagreement", self.disagreement.compute(), sync_dist=True)
            self.disagreement.reset()
        distance = self.teacher_distance()
        if distance is not None:
            self.log("test/distance", distance, sync_dist=True)

    def teacher_distance(self) -> Tensor | None:
        """Return `||theta_t - theta_s|| / ||theta_s||` of all parameters; None without a teacher of the same form."""
        if self.teacher is None:
            return None
        return relative_distance([*self.teacher.network.parameters()], [*self.student.network.parameters()])

    def scored_names(self) -> list[str]:
        """Name what is scored: all members, and the mean and best peer of each network."""
        kinds = ["student"] if self.teacher is None else ["student", "teacher"]
        return [*self.members, *(f"{kind}_{what}" for kind in kinds for what in ("mean", "best"))]

    def best_peer(self, network: str, scores: Tensor | None = None) -> int:
        """Return the peer of `teacher` or `student` with the highest score; 0 when there was no validation."""
        scores = self.validation_accuracy if scores is None else scores
        of_network = [scores[i] for i, name in enumerate(self.members) if name in self._peer_names(network)]
        return int(torch.nan_to_num(torch.stack(of_network), nan=0.0).argmax())

    def deployed_member(self, scores: Tensor | None = None) -> str:
        """Name the member that is deployed, such as `teacher_1`."""
        if self.deployment.network == "ensemble":
            return "ensemble"
        peer = self.deployment.peer
        network = self.deployment.network
        index = self.best_peer(network, scores) if peer == "best" else int(peer) % len(self._peer_names(network))
        return f"{network}_{index}"

    def deploy(self, network: str | None = None, peer: int | str | None = None) -> nn.Module:
        """Return the deployed network: a plain module [B, C, H, W] -> logits [B, classes], in eval mode.

        A deep copy on the CPU: later training does not touch it. It takes float32 images: what a Trainer has put into
        another precision as a whole (`bf16-true`, `64-true`) is float32 here, buffers included.

        Args:
            network: `teacher`, `student` or `ensemble`; as configured by default.
            peer: an index, or `best` of the last validation; as configured by default.

        Raises:
            ConfigError: there is no such network or peer.
        """
        choice = Deploy(network or self.deployment.network, self.deployment.peer if peer is None else peer)
        self._check_deployment(choice)
        if choice.network == "ensemble":
            whole: nn.Module = EnsembleNetwork(self)
        else:
            part = self.teacher if choice.network == "teacher" else self.student
            assert part is not None
            index = self.best_peer(choice.network) if choice.peer == "best" else int(choice.peer) % part.num_peers
            whole = part.peer(index)
        deployed = copy.deepcopy(whole).cpu().to(memory_format=torch.contiguous_format)
        if self.dtype != torch.float32:  # else a network of the user's own may hold other types on purpose
            deployed = deployed.float()
        return deployed.requires_grad_(True).eval()

    # ------------------------------------------------------------------ several processes, checkpoints

    def synchronise_statistics(self) -> None:
        """Average BatchNorm's running statistics over the processes; parameters are equal anyway."""
        statistics: list[Tensor] = []
        for layer in batch_norms(self):
            statistics += [buffer for buffer in (layer.running_mean, layer.running_var) if buffer is not None]
        average_over_processes(statistics)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the networks, and each process's own state: primitives and tensors only.

        BatchNorm's statistics are written as their mean over the processes; those of the module stay as they are.
        """
        processes.average_statistics(self, checkpoint["state_dict"])
        format.sign(checkpoint, self.recipe, self.members, processes.gather(self), self._trains_with())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of something else before any weight is touched."""
        format.check(checkpoint, self.recipe)
        if self._trainer is not None and self.trainer.state.fn == "fit":
            self._restored = format.own_states(checkpoint)
            self._began_with = format.trained_with(checkpoint)

    def on_fit_start(self) -> None:
        """Go on with the random numbers of the checkpoint: before the loaders, which may draw from them, are made."""
        self._restore_processes()
        self._warn_of_an_untrained_teacher()

    def on_train_start(self) -> None:
        """Do the same where a strategy restores the checkpoint only now; see that training goes on with its parts.

        Raises:
            ConfigError: the checkpoint belongs to another optimizer, whose state does not fit.
        """
        self._restore_processes()
        self._check_parts_of_training()

    def _check_parts_of_training(self) -> None:
        """Hold what trains now against what the checkpoint names, once; there is nothing to hold without one."""
        began, self._began_with = self._began_with, {}
        ours = self._trains_with()
        other = [what for what in ours if began.get(what, ours[what]) != ours[what]]
        if not other:
            return
        said = "; ".join(f"{what}: {began[what]} in the checkpoint, {ours[what]} here" for what in other)
        cure = f"pass {', '.join(f'{what}=' for what in other)} to build or load_from_checkpoint as the training had it"
        if "optimizer" in other:
            raise ConfigError(f"This training cannot go on from its checkpoint ({said}): {cure}.")
        rank_zero_warn(f"This training goes on otherwise than it began ({said}): to keep it as it was, {cure}.")

    def _trains_with(self) -> dict[str, str]:
        """Name the classes of what no recipe can hold; nothing outside of a Trainer, where there is no optimizer."""
        if self._trainer is None:
            return {}
        made: dict[str, list[Any]] = {"optimizer": self.trainer.optimizers, "augmentation": [self.augmentation]}
        made["scheduler"] = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        return {
            what: ", ".join(_name(part) for part in parts if part is not None) or "none" for what, parts in made.items()
        }

    def _restore_processes(self) -> None:
        states, self._restored = self._restored, []
        if states:
            processes.restore_tensors(self, states)
            processes.restore_generators(self, states)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        *,
        backbone: nn.Module | None = None,
        method: methods.Method | None = None,
        **others: Any,
    ) -> DistillationModule:
        """Rebuild a module from its checkpoint. Nothing in the file is executed.

        Args:
            checkpoint_path: a file written by a Trainer.
            map_location: the device on which the tensors are put.
            backbone: the model it was built from, if that was not a registered name.
            method: the method, if that was not a registered name.
            others: passed to `build`: `optimizer`, `scheduler` and `augmentation`, which no checkpoint holds and a
                training that goes on needs as it had them; and what is to differ, such as `deploy`.

        Raises:
            CheckpointError: missing, torn, unsafe, or not written by this library.
        """
        checkpoint = format.load(checkpoint_path, map_location)
        recipe = dict(format.recipe(checkpoint, checkpoint_path))
        unknown = recipe.keys() - inspect.signature(cls.build).parameters.keys()
        if unknown:
            raise CheckpointError(
                f"{checkpoint_path} cannot be rebuilt from its recipe, which has unknown keys: {', '.join(unknown)}."
            )
        given = {"backbone": backbone, "method": method}
        for key, value in given.items():
            if value is not None:
                recipe[key] = value
            elif recipe.get(key) is None:
                raise CheckpointError(f"{checkpoint_path} was trained with a {key} of its own: pass {key}= to load it.")
        module = cls.build(**(recipe | others))
        format.load_weights(module, checkpoint, checkpoint_path)
        return module

    # ------------------------------------------------------------------ inside

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of copies what belongs to the fit under way: observers of callbacks, and what was compiled."""
        state: dict[str, Any] = super().__getstate__()
        return {**state, "observers": [], "readers": [], "compiled": None, "_runner": None}

    def _wants_fused(self) -> bool:
        """Decide whether the optimizer's step is to be one kernel, where the optimizer has such a one."""
        wanted = self.execution.fused_optimizer
        if wanted != "auto" or self.device.type != "cuda":
            return wanted is True
        # Lightning takes a fused optimizer for one that undoes loss scaling itself, and then refuses to clip.
        clips = self._trainer is not None and bool(self.trainer.gradient_clip_val)
        return not (clips and isinstance(self.trainer.precision_plugin, MixedPrecision))

    def _check_is_trained_itself(self) -> None:
        if self._trainer is not None and self.trainer.lightning_module is not self:
            raise ConfigError(
                f"{type(self).__name__} is a part of {type(self.trainer.lightning_module).__name__} here, so nothing "
                "calls its hooks: the teacher would never follow, and weights would stay at their start. Pass it to "
                "Trainer.fit itself, and derive from it what it should do differently."
            )

    def _check_views(self, views: Tensor) -> None:
        check_views(views, self.student.num_peers, self.method.needs.teacher_views)

    def _score(self, batch: Any, batch_idx: int, stage: str) -> tuple[Evaluated, Tensor]:
        views, labels, _ = unpack(batch)
        self._check_views(views)
        if batch_idx == 0 or not sync_blocks(labels.device):
            check_labels(labels, self.student.num_classes)
        evaluated = self.evaluate(views)
        correct, nll = scores_of(evaluated.logits, labels)
        self._finite.look(nll, views, batch_idx, stage)
        self.scores.add(correct, nll, len(labels))
        return evaluated, labels

    def _log_scores(self, stage: str, scores: Mapping[str, Tensor], chooser: Tensor) -> None:
        logs: dict[str, Tensor] = {}
        for short, name in (("acc", "accuracy"), ("nll", "nll"), ("ece", "calibration")):
            if name not in scores:
                continue
            values = dict(zip(self.members, scores[name], strict=True))
            for network in ("student", "teacher"):
                peers = [values[peer] for peer in self._peer_names(network) if peer in values]
                if peers:
                    values[f"{network}_mean"] = torch.stack(peers).mean()
                    values[f"{network}_best"] = peers[self.best_peer(network, chooser)]
            logs |= {f"{stage}/{short}/{member}": value for member, value in values.items()}
        deployed = self.deployed_member(chooser)
        if self.trainer.state.fn != "fit":
            self._warn_of_overflow(stage, scores["nll"])
        self.log_dict(logs, sync_dist=True)
        self.log(f"{stage}/acc", logs[f"{stage}/acc/{deployed}"], prog_bar=True, sync_dist=True)

    def _warn_of_overflow(self, stage: str, nll: Tensor) -> None:
        """Say that scores mean nothing; in a training the CollapseGuard does."""
        bad = [name for name, value in zip(self.members, nll.tolist(), strict=True) if not math.isfinite(value)]
        if bad:
            rank_zero_warn(
                f"Outputs of {', '.join(bad[:3])} became NaN or infinite ({stage}), on images that are finite: their "
                "scores mean nothing. Take a checkpoint whose weights are sound, or precision=bf16 or fp32."
            )

    def _warn_of_an_untrained_teacher(self) -> None:
        teacher = self.teacher
        untrained = teacher is not None and teacher.settings.update == "frozen" and not bool(teacher.initialised)
        if untrained and self.method.needs.foreign_teacher and self.recipe is not None:
            rank_zero_warn(
                f"The teacher of {type(self.method).__name__} has random weights and stays as it is: pass "
                'teacher={"weights": PATH}, or {"update": "gradient"} for one that learns beside the student.'
            )

    def _peer_names(self, network: str) -> list[str]:
        part = self.teacher if network == "teacher" else self.student
        return [f"{network}_{i}" for i in range(part.num_peers)] if part is not None else []

    @property
    def has_ensemble(self) -> bool:
        """Whether there are ensemble logits, of the ensemble classifier or made by the method."""
        return self.method.needs.ensemble == "own" or (
            self.ensemble is not None and self.method.wants_ensemble_classifier
        )

    def views_of_each(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Return the views of the student and those of the teacher: the same ones, or each its half of 2 P."""
        peers = self.student.num_peers
        if self.method.needs.teacher_views and views.dim() == 5 and views.shape[1] == 2 * peers:
            return views[:, :peers], views[:, peers:]
        return views, views

    def _members(self) -> tuple[str, ...]:
        names = self._peer_names("student")
        if self.student.num_peers > 1:
            names.append("student_ensemble")
        if self.has_ensemble:
            names.append("ensemble")
        if self.teacher is not None:
            names += self._peer_names("teacher") + (["teacher_ensemble"] if self.teacher.num_peers > 1 else [])
        return tuple(names)

    def _check_deployment(self, choice: Deploy) -> None:
        network, peer = choice.network, choice.peer
        if network == "teacher" and self.teacher is None:
            raise ConfigError("deploy.network=teacher, but this method has no teacher: choose student.")
        if network == "ensemble" and not self.has_ensemble:
            raise ConfigError(
                "deploy.network=ensemble, but there is no ensemble classifier: choose teacher or student."
            )
        peers = len(self._peer_names(network))
        if isinstance(peer, int) and network != "ensemble" and not -peers <= peer < peers:
            raise ConfigError(f"deploy.peer={peer}, but peers are numbered 0 to {peers - 1}.")


class EnsembleNetwork(nn.Module):
    """All peers and the ensemble classifier as one plain network: images [B, C, H, W] -> logits [B, classes]."""

    def __init__(self, module: DistillationModule) -> None:
        super().__init__()
        self.network = module.student.network
        self.method = module.method if module.method.needs.ensemble == "own" else None
        self.classifier = module.ensemble.classifier if self.method is None and module.ensemble is not None else None

    def forward(self, images: Tensor) -> Tensor:
        """Classify `images`."""
        if self.method is not None:
            seen = self.network.stages(images)
            return self.method.combine(StudentOutput(seen.logits, seen.features, trunk=seen.trunk, maps=seen.maps))
        assert self.classifier is not None
        _, features = self.network(images)
        logits: Tensor = self.classifier(torch.cat(tuple(features), dim=-1))
        return logits


@dataclass(frozen=True)
class _Draw:
    """Draws a peer network as often as asked, each time from its own seed."""

    backbone: str | nn.Module
    num_classes: int
    peers: int | Sequence[str]
    split_at: str | None
    classifier: str | None
    in_channels: int
    image_size: tuple[int, int] | None
    views_per_pass: str
    classifiers: str
    sharing: str

    def __call__(self, seed: int, purpose: str, *, redraw: bool = False) -> networks.PeerNetwork:
        with seeded(seed, purpose):
            if isinstance(self.backbone, str):
                return networks.create(
                    self.backbone,
                    self.num_classes,
                    self.peers,
                    in_channels=self.in_channels,
                    image_size=self.image_size,
                    equal_classifiers=self._equal_classifiers(),
                    views_per_pass=self.views_per_pass,
                )
            if self.split_at is None:
                raise ConfigError(_NO_SPLIT)
            if not isinstance(self.peers, int):
                raise ConfigError("A model of your own is given with the number of peers, not with their names.")
            if self.sharing == "nothing":
                separate = networks.IndependentPeers([self._cut(1, redraw).peer(0) for _ in range(self.peers)])
                separate.image_shape = (self.in_channels, *(self.image_size or separate.image_shape[1:]))
                return separate
            network = self._cut(self.peers, redraw)
            network.image_shape = (self.in_channels, *(self.image_size or network.image_shape[1:]))
            if self._equal_classifiers():
                classifiers = [branch.classifier for branch in cast("Iterable[networks.Branch]", network.branches)]
                for classifier in classifiers[1:]:
                    classifier.load_state_dict(classifiers[0].state_dict())
            return network

    def _cut(self, peers: int, redraw: bool) -> networks.BranchedNetwork:
        assert isinstance(self.backbone, nn.Module)
        assert self.split_at is not None
        model = _made(self.backbone)
        if redraw:
            networks.redraw_(model)
        return networks.branch_model(
            model,
            self.split_at,
            peers,
            self.num_classes,
            classifier=self.classifier,
            views_per_pass=self.views_per_pass,
        )

    def alone(self, backbone: str | None) -> _Draw:
        """Draw one whole network: of `backbone`, or of the peers' own."""
        return replace(self, backbone=backbone or self.backbone, peers=1, classifiers="own", sharing="trunk")

    def _equal_classifiers(self) -> bool:
        if self.classifiers not in ("own", "equal", "released"):
            raise ConfigError(f"method.classifiers is {self.classifiers!r}: choose one of own, equal, released.")
        # The released VGG draws each branch's classifier; the released ResNets and DenseNet repeat the first.
        return self.classifiers == "equal" or (self.classifiers == "released" and self.backbone != "vgg16")

    def recipe(self) -> dict[str, Any]:
        return {
            "backbone": self.backbone if isinstance(self.backbone, str) else None,
            "num_classes": self.num_classes,
            "peers": self.peers if isinstance(self.peers, int) else list(self.peers),
            "split_at": self.split_at,
            "classifier": self.classifier,
            "in_channels": self.in_channels,
            "image_size": list(self.image_size) if self.image_size is not None else None,
            "views_per_pass": self.views_per_pass,
            "classifiers": self.classifiers,
            "sharing": self.sharing,
        }


_NO_SPLIT = 'A model of your own needs split_at=, the module at which branches begin ("layer4").'


def _made(model: nn.Module) -> nn.Module:
    """Copy a model; a LightningModule that makes its layers in `configure_model` makes them now."""
    made = copy.deepcopy(model)
    if isinstance(made, LightningModule):
        made.configure_model()
    return made


def _classes_of(model: nn.Module, split_at: str | None, classifier: str | None) -> int:
    if split_at is None:
        raise ConfigError(_NO_SPLIT)
    return networks.classes_of(_made(model), split_at, classifier)


# Lengths of the CIFAR protocol of 300 epochs as shares of it; experiment=own_data has the same.
_SHARES: dict[str, dict[str, float | None]] = {
    "rampup": {"epochs": None, "share": 0.27},
    "ensemble": {"decay": None, "decay_share": 0.02},
    "teacher": {"decay": None, "decay_share": 0.01},
}


def _lengths(name: str, given: Any, schedules: str) -> Mapping[str, Any]:
    """Give what `schedules` says of the length of `name`, unless the user has set it."""
    if schedules not in ("epochs", "shares"):
        raise ConfigError(f"schedules is {schedules!r}: choose one of epochs, shares.")
    set_by_user = isinstance(given, Mapping) and any(given.get(key) is not None for key in _SHARES[name])
    return {} if schedules == "epochs" or set_by_user else _SHARES[name]


def _method(
    method: str | Mapping[str, Any] | methods.Method, peers: int | None, schedules: str
) -> tuple[methods.Method, methods.Preset]:
    if isinstance(method, methods.Method):
        return method, methods.Preset(type(method))
    settings: dict[str, Any] = {"name": method} if isinstance(method, str) else dict(method)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError('A method given as a mapping needs its "name".')
    preset = methods.preset(name)
    for term in ("rampup", "ensemble"):
        lengths = _lengths(term, settings.get(term), schedules)
        if lengths and any(item.name == term for item in fields(preset.method.Settings)):
            settings[term] = {**(settings.get(term) or {}), **lengths}
    return methods.create(name, preset.peers if peers is None else peers, settings), preset


def _teacher_settings(
    method: methods.Method, preset: methods.Preset, given: Mapping[str, Any] | None, schedules: str
) -> TeacherSettings | None:
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f'teacher is {given!r}: give its settings, such as {{"draw": "student", "start": "copy"}}.')
    given = dict(given or {})
    name = type(method).__name__
    if method.needs.teacher == "none" or given.get("update") == "none":
        others = [key for key in given if key != "update"]
        if method.needs.teacher == "required":
            raise ConfigError(f"{name} needs a teacher, but teacher.update is none: choose ema, gradient or frozen.")
        if others:
            raise ConfigError(f"{name} has no teacher, so teacher.{others[0]} means nothing: choose teacher=none.")
        return None
    given |= _lengths("teacher", given, schedules)
    settings = from_mapping(TeacherSettings, merge(preset.teacher, given), "teacher")
    if not method.needs.foreign_teacher and settings.backbone is not None:
        raise ConfigError(f"teacher.backbone is set, but the teacher of {name} has the student's form: leave it out.")
    if method.needs.foreign_teacher and settings.draw == "student":
        raise ConfigError(f"teacher.draw is student, but the teacher of {name} is a network of its own: independent.")
    return settings


def _deployment(given: Mapping[str, Any], method: methods.Method, has_teacher: bool) -> Deploy:
    network = method.needs.deploy.network if has_teacher or method.needs.deploy.network != "teacher" else "student"
    own = {"network": network, "peer": method.needs.deploy.peer if given.get("network", network) == network else "best"}
    return from_mapping(Deploy, {**own, **given}, "deploy")


def _mean_probability(logits: Tensor) -> Tensor:
    """Give logits whose softmax is the peers' mean probability: [P, B, C] -> [1, B, C]."""
    return logits.log_softmax(-1).logsumexp(0, keepdim=True) - math.log(logits.shape[0])


def _method_recipe(method: str | Mapping[str, Any] | methods.Method, chosen: methods.Method) -> dict[str, Any] | None:
    if isinstance(method, methods.Method):
        return None
    name = method if isinstance(method, str) else method["name"]
    return {"name": name, **chosen.settings_as_dict()}


def _check_parts(
    student: StudentModule, method: methods.Method, teacher: TeacherModule | None, ensemble: EnsembleModule | None
) -> None:
    name = type(method).__name__
    if student.num_peers != method.peers:
        raise ConfigError(f"{name} was built for {method.peers} peers, the student has {student.num_peers}.")
    if method.needs.teacher == "required" and teacher is None:
        raise ConfigError(f"{name} needs a teacher: pass teacher=TeacherModule(...).")
    if method.needs.teacher == "none" and teacher is not None:
        raise ConfigError(f"{name} has no teacher: leave teacher= out, and remove teacher.* settings.")
    if method.wants_ensemble_classifier and ensemble is None:
        raise ConfigError(f"{name} needs an ensemble classifier: pass ensemble=EnsembleModule(...).")
    if method.ensemble is not None and (ensemble is None or ensemble.term != method.ensemble):
        raise ConfigError(f"{name} assembles teachers: pass ensemble=EnsembleModule(..., term=method.ensemble).")
    if method.needs.foreign_teacher:
        _check_foreign_teacher(name, student, teacher)
    elif teacher is not None and (teacher.num_peers, teacher.num_classes) != (student.num_peers, student.num_classes):
        raise ConfigError(
            f"Student and teacher must have as many peers and classes: {student.num_peers} and {student.num_classes} "
            f"against {teacher.num_peers} and {teacher.num_classes}."
        )


def _name(part: Any) -> str:
    """Name a function, or the class of anything else."""
    part = getattr(part, "func", part)
    return str(getattr(part, "__qualname__", type(part).__qualname__))


def _check_foreign_teacher(name: str, student: StudentModule, teacher: TeacherModule | None) -> None:
    if teacher is None:
        return
    if teacher.num_peers != 1 or teacher.num_classes != student.num_classes:
        raise ConfigError(
            f"{name} learns from one teacher of the same classes: it has {teacher.num_peers} peers and "
            f"{teacher.num_classes} classes, the student {student.num_classes} classes."
        )
    if teacher.settings.update == "ema":
        raise ConfigError(f"The teacher of {name} is a network of its own: teacher.update must be frozen or gradient.")
    if teacher.settings.update == "frozen" and teacher.settings.batches_of_initialisation(1):
        raise ConfigError(f"The teacher of {name} is trained beforehand: set teacher.init_steps to 0.")
