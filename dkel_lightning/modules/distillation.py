"""The coordinator: student, teacher and ensemble trained together by one method, one optimizer, one loss.

Read from top to bottom it is the order of events: the parts, a training step, the optimizer's step after which the
teacher follows, what surrounds a fit, what is measured, kept in a checkpoint, deployed. Weights that schedules set, and
the teacher's initialisation, come from callbacks (`callbacks.OF_MODULES`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from dkel_lightning import callbacks
from dkel_lightning.assembly import build as building
from dkel_lightning.assembly import parts
from dkel_lightning.execution import begin_step, compile_networks
from dkel_lightning.methods import Method
from dkel_lightning.metrics import scores_of
from dkel_lightning.modules import continuation, deployment, evaluation
from dkel_lightning.modules.batch import Batch, checked, number_of_views, with_shape_errors_explained
from dkel_lightning.modules.ensemble import EnsembleModule
from dkel_lightning.modules.interface import Augmentation, Coordinator
from dkel_lightning.modules.optim import (
    PLATEAU,
    OptimizerFactory,
    SchedulerFactory,
    check_factories,
    configure,
)
from dkel_lightning.modules.outputs import MethodInputs, StepResult, StudentOutput
from dkel_lightning.modules.student import StudentModule
from dkel_lightning.modules.targets import TargetMaker, peers_first
from dkel_lightning.modules.teacher import TeacherModule
from dkel_lightning.runtime.processes import outlast_threads
from dkel_lightning.settings.deploy import Deploy
from dkel_lightning.settings.execution import Execution
from dkel_lightning.settings.targets import Targets


class DistillationModule(Coordinator):
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
        targets: what becomes of the labels: smoothed, mixed, weighted.
        deploy: which network `deploy()` returns and `val/acc` reports.
        seed: from which the views, the initialisation batches and `build`'s weights are drawn.
        execution: `eager`, `compile` or `reduce_overhead`, or `Execution`'s settings.

    What is logged: see modules.evaluation and callbacks.DiversityMonitor.
    """

    def __init__(
        self,
        student: StudentModule,
        method: Method,
        *,
        teacher: TeacherModule | None = None,
        ensemble: EnsembleModule | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        interval: str = "epoch",
        augmentation: Augmentation | None = None,
        views: str = "per_peer",
        targets: Targets | None = None,
        deploy: Deploy | None = None,
        seed: int = 0,
        execution: str | Mapping[str, Any] | Execution = "eager",
    ) -> None:
        super().__init__()
        parts.check_parts(student, method, teacher, ensemble, views)
        check_factories(optimizer, scheduler, interval)
        self.student, self.teacher, self.ensemble, self.method = student, teacher, ensemble, method
        if teacher is not None:
            teacher.stand_alone(False)  # a fit of its own that was interrupted leaves it unfrozen
        self.execution = Execution.of(execution)
        self.augmentation = augmentation
        self.num_views = number_of_views(views, student.num_peers)
        self.targets = TargetMaker(targets or Targets(), student.num_classes, student.num_peers, method.wants_classes)
        self.seed = seed
        self.recipe: dict[str, Any] | None = None
        self._factories = (optimizer, scheduler, interval)
        self.deployment = deploy or Deploy()
        deployment.check_deployment(self, self.deployment)
        parts.attach(self)
        self.members = deployment.members(self)
        evaluation.attach_metrics(self)
        self.observers, self.readers = [], []
        self._restored = continuation.Restored()

    build = building.ConstructedBy(building.build)
    load_from_checkpoint = building.ConstructedBy(building.load_from_checkpoint)  # type: ignore[assignment]

    # ---------------------------------------------------------------------- a training step

    def forward(self, views: Tensor) -> StudentOutput:
        """Classify `views` [B, V, C, H, W] or [B, C, H, W] with the student peers and their ensemble."""
        output: StudentOutput = self.student(views)
        if self.method.needs.ensemble == "own":
            return output.with_ensemble(self.method.combine(output))
        if self.ensemble is not None and self.method.wants_ensemble_classifier:
            return output.with_ensemble(self.ensemble(output.features))
        return output

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the loss of a batch: the sum of the method's terms, and the teacher's own where it learns."""
        if batch_idx == 0:
            parts.check_is_trained_itself(self)
        student, teacher_too = self.student, self.method.needs.teacher_views
        given = checked(self.read(batch), batch_idx, student.num_peers, student.num_classes, teacher_too)
        rank, epoch = (self.global_rank, self.trainer.current_epoch) if self.is_attached else (0, 0)
        result = self.compute_step(self.make_batch(given, epoch, batch_idx, rank))
        for observe in self.observers:
            observe(result.inputs, result.terms, result.loss)
        for read in self.readers:
            read(result.terms, result.loss.detach())
        self.term_means.update(result.values)
        self.train_scores.update(result.correct, result.nll, len(given.labels))
        return result.loss

    def compute_step(self, batch: Batch) -> StepResult:
        """Compute all of a training step that lies before its gradients; a function of tensors alone."""
        begin_step(self.execution)
        inputs = self.forward_all(batch)
        terms, loss = self.losses(inputs)
        values = torch.stack([terms[name].detach() for name in self.method.terms])
        return StepResult(inputs, terms, values, loss, *scores_of(inputs.student.logits, peers_first(batch.labels)))

    def forward_all(self, batch: Batch) -> MethodInputs:
        """Pass a batch through student, ensemble and teacher, and assemble the teachers' knowledge."""
        views, shown = self.views_of_each(batch.views)
        with with_shape_errors_explained(batch.views, self.student.network):
            student = self(views)
            part = self.teacher
            teacher = part.teach(shown) if part is not None and part.takes_part(self.student.network) else None
        assembled, weight = None, student.logits.new_zeros(())
        if self.ensemble is not None:
            weight = self.ensemble.weight
            if teacher is not None:
                assembled = self.ensemble.assemble(teacher.logits, getattr(self.method.settings, "temperature", 1.0))
        given = peers_first(batch.labels)
        return MethodInputs(self.targets(given), student, teacher, assembled, weight, batch.indices, given)

    def losses(self, inputs: MethodInputs) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the terms, and the loss: their sum, and the teacher's own where it learns."""
        terms = self.method.named_terms(inputs)
        loss = torch.stack([terms[name] for name in self.method.terms]).sum()
        if self.teacher is not None and self.teacher.learns:
            assert inputs.teacher is not None
            # No term of the method: it trains another network.
            loss = loss + self.teacher.supervised_loss(inputs.teacher.logits, inputs.labels) * self.teacher.num_peers
        return terms, loss

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Optimizer | Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step the optimizer, then let the teacher follow.

        Lightning calls this once for each real step, accumulation included, so a checkpoint holds the counter that
        belongs to its `global_step`. A step that the loss scaler of fp16 skips counts as well.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.follow()

    # ---------------------------------------------------------------------- around a fit

    def configure_callbacks(self) -> Sequence[Callback]:
        """Attach the callbacks that the method needs, except those the user has passed."""
        present: list[Callback] = list(getattr(self.trainer, "callbacks", []))
        missing = [each for each in callbacks.OF_MODULES if not any(isinstance(old, each) for old in present)]
        return [each() for each in missing if each.needed_by(self)]

    def setup(self, stage: str) -> None:
        """Choose the memory layout before the optimizer is made, and compile the networks."""
        outlast_threads()
        if self.execution.channels_last:
            self.to(memory_format=torch.channels_last)
        if stage == "fit":
            compile_networks(self.peers_modules, self.execution)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Put all that learns into one optimizer, one named parameter group a network."""
        learning = {"student": self.student.network, "ensemble": self.ensemble, "method": self.method}
        if self.teacher is not None and self.teacher.learns:
            learning["teacher"] = self.teacher.network
        present = {name: part for name, part in learning.items() if part is not None}
        optimizer, scheduler, interval = self._factories
        return configure(present, optimizer, scheduler, interval, self.lr, plateau=PLATEAU, trainer=self._trainer)

    def on_fit_start(self) -> None:
        """Go on with the random numbers of the checkpoint: before the loaders, which may draw from them, are made."""
        continuation.restore_processes(self, self._restored)
        continuation.let_learn_what_is_unfrozen(self)
        parts.check_nobody_averages_scores(self)
        parts.warn_of_an_untrained_teacher(self)

    def on_train_start(self) -> None:
        """Do the same where a strategy restores the checkpoint only now; see that training goes on with its parts."""
        continuation.restore_processes(self, self._restored)
        continuation.check_parts_of_training(self, self._restored)

    def teardown(self, stage: str) -> None:
        """Let go of what was compiled: the tensors are going to move."""
        for part in self.peers_modules:
            part.compiled = None

    # ---------------------------------------------------------------------- what is measured

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean terms, the peers' training accuracy and the weights in force."""
        evaluation.log_training_epoch(self)

    def on_validation_start(self) -> None:
        """Give all processes the same BatchNorm statistics, and begin anew."""
        continuation.synchronise_statistics(self)
        evaluation.begin_validation(self)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Score every member on a batch; hand what they say of it to the callbacks."""
        evaluated, labels = evaluation.score(self, batch, batch_idx, "validation")
        return {"evaluated": evaluated, "labels": labels}

    def on_validation_epoch_end(self) -> None:
        """Log the members' scores and remember them for the choice of the deployed peer."""
        evaluation.end_validation(self)

    def on_test_epoch_start(self) -> None:
        """Begin anew, and look up which member is deployed."""
        evaluation.begin_test(self)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Score every member on a batch, its calibration, the peers' disagreement and the deployed one's mistakes."""
        evaluation.score_test(self, batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log the members' scores; the best peers are those that validation chose."""
        evaluation.end_test(self)

    def member_logits(self, views: Tensor) -> Tensor:
        """Stack the logits of all `members`, [N, B, C]."""
        return evaluation.evaluate(self, views).logits

    # ---------------------------------------------------------------------- what a checkpoint holds

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the networks, and each process's own state: primitives and tensors only."""
        continuation.save(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of something else before any weight is touched."""
        self._restored = continuation.read(self, checkpoint)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of copies the observers of callbacks."""
        return {**super().__getstate__(), "observers": [], "readers": []}

    # ---------------------------------------------------------------------- what is deployed

    def deployed_member(self) -> str:
        """Name the member that is deployed, such as `teacher_1`."""
        return deployment.deployed_member(self)

    def deploy(self, network: str | None = None, peer: int | str | None = None) -> nn.Module:
        """Return the deployed network: a plain module [B, C, H, W] -> logits [B, classes], in eval mode.

        A deep copy on the CPU: later training does not touch it. It takes float32 images: what a Trainer has put into
        another precision as a whole (`bf16-true`, `64-true`) is float32 here, buffers included.

        Args:
            network: `teacher`, `student`, `ensemble`, or `auto` of both; as configured by default, which is `auto`.
            peer: an index, or `best` of the last validation; as configured by default.

        Raises:
            ConfigError: there is no such network or peer.
        """
        return deployment.deploy(self, deployment.choose(self, network, peer))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the deployed network's logits [B, C] for a batch of images, a tuple that starts so, or a mapping."""
        return evaluation.predict(self, batch)
