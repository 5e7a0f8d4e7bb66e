"""The coordinator: student, teacher and ensemble trained together by one method, one optimizer, one loss.

The file follows the order of events: the parts, a training step from the batch to the loss, the step of
the optimizer and the update of the teacher, setup, validation and test, checkpoints, deployment.
Callbacks set the scheduled weights and initialise the teacher, see `configure_callbacks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from dkel_lightning.assembly import build as building
from dkel_lightning.assembly import parts
from dkel_lightning.callbacks import (
    CollapseGuard,
    DiversityMonitor,
    MethodBatches,
    TeacherCheckpoints,
    TeacherInitialisation,
    WeightSchedules,
)
from dkel_lightning.data.batch import Batch
from dkel_lightning.errors import ConfigError
from dkel_lightning.execution import begin_step, compile_networks
from dkel_lightning.functional import classes_of
from dkel_lightning.methods import Method
from dkel_lightning.metrics import relative_distance
from dkel_lightning.modules import checkpoint_state, deployment
from dkel_lightning.modules.batch import (
    Augmentation,
    check_views,
    explain_shape_errors,
    images_of,
    number_of_views,
    rename_entries,
    unpack_checked,
)
from dkel_lightning.modules.ensemble import EnsembleModule
from dkel_lightning.modules.optim import OptimizerFactory, SchedulerFactory, configure
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.modules.scores import Scores, mean_probability
from dkel_lightning.modules.student import StudentModule
from dkel_lightning.modules.targets import TargetMaker
from dkel_lightning.modules.teacher import TeacherModule
from dkel_lightning.networks import PeerOutputs
from dkel_lightning.runtime.processes import outlast_threads, process_rank
from dkel_lightning.runtime.seeding import generator
from dkel_lightning.schedules import Clock
from dkel_lightning.settings.deploy import Deploy
from dkel_lightning.settings.execution import Execution
from dkel_lightning.settings.targets import Targets

Observer = Callable[[MethodInputs, Mapping[str, Tensor], Tensor], None]
"""Called in a training step with its inputs, terms and loss, before the backward pass."""


class DistillationModule(LightningModule):
    """Train peers with online distillation in any Lightning Trainer.

    One training step: student and teacher process all views, the ensemble classifies the student's features, the method
    computes named loss terms, and one optimizer minimises their sum.
    After each optimizer step the teacher follows its student. Use `build` unless you construct the parts yourself.
    `modules.scores` and `callbacks.DiversityMonitor` list what is logged.

    Args:
        student: the peers that are optimised.
        method: computes the loss terms.
        teacher: the teacher peers, of the same form; required by most methods.
        ensemble: required by methods with an ensemble classifier.
        optimizer: makes the optimizer from named parameter groups (`student`, `ensemble`, `method`, and `teacher`
            where it learns by gradient); AdamW at 3e-3 by default, with warm-up over a twentieth of the run and
            cosine decay where there is no scheduler either.
        scheduler: makes the scheduler from the optimizer; none by default where an optimizer is passed.
        interval: step the scheduler every `epoch` or every `step`.
        augmentation: for batches [B, C, H, W]: makes the views on the device, called as
            `augmentation(images, generator)` once a view. Without it all peers share the view of such a batch.
        views: the views that it makes: one `per_peer`, one `shared` by all, or `per_peer_and_teacher`.
        targets: label smoothing, mixup, cutmix and class weights.
        deploy: which network `deploy()` returns and `val/acc` reports.
        seed: of the views, the initialisation batches and the weights that `build` draws.
        execution: `eager`, `compile` or `reduce_overhead`, or settings of `Execution`.

    Attributes:
        recipe: primitives from which the networks are rebuilt; None without `build`.
        observers: called in each training step with its inputs, terms and loss.
        batch_keys: names of images, labels and indices in batches that are mappings; empty: common names.
        lr: the learning rate of all groups, set by `Tuner.lr_find`; None: that of the optimizer.
    """

    batch_keys: Mapping[str, str] = MappingProxyType({})
    _ddp_params_and_buffers_to_ignore: list[str]

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
        self.student, self.method = student, method
        self.teacher: TeacherModule | None = teacher
        self.ensemble: EnsembleModule | None = ensemble
        if teacher is not None:
            teacher.stand_alone(False)  # an interrupted training of the teacher alone leaves it unfrozen
        self.execution = Execution.of(execution)
        self.augmentation = augmentation
        self.num_views = number_of_views(views, student.num_peers)
        self.targets = TargetMaker(targets or Targets(), student.num_classes, method.wants_classes)
        self.seed = seed
        self.lr: float | None = None
        self.recipe: dict[str, Any] | None = None
        self._factories = (optimizer, scheduler, interval)
        parts.attach(self)
        self.scores = Scores(deployment.members(self), student.num_classes, method.terms)
        self.deployment = deploy or Deploy()
        deployment.check_deployment(self, self.deployment)
        self.observers: list[Observer] = []
        self._restored: dict[str, Any] = {}
        self._epoch = 0

    build = classmethod(building.build)
    load_from_checkpoint = classmethod(building.load_from_checkpoint)  # type: ignore[assignment]

    # ---------------------------------------------------------------------- a training step

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the loss of a batch: the method's terms, and the supervised loss of a teacher that learns."""
        if batch_idx == 0:
            self.scores.begin_training()
            parts.check_is_trained_itself(self)
        batch = self._checked(batch, batch_idx, known_labels=self.method.wants_classes)
        batch = self.make_batch(batch, self._epoch, batch_idx, process_rank())
        begin_step(self.execution)
        inputs = self.forward_all(batch)
        terms, loss = self.losses(inputs)
        for observe in self.observers:
            observe(inputs, terms, loss)
        stacked = torch.stack([terms[name] for name in self.method.terms])
        self.scores.update_training(stacked, inputs.student.logits, batch.labels)
        return loss

    def read(self, batch: Any) -> Any:
        """Rename the entries of a mapping. Not a hook of Lightning, which would replace that of the data module."""
        return rename_entries(batch, self.batch_keys)

    def make_batch(self, batch: Batch, *key: int | str) -> Batch:
        """Make the views of a batch, and apply mixup or cutmix, drawn from (seed, key)."""
        return self.targets.mix(batch._replace(views=self.make_views(batch.views, *key)), self.seed, *key)

    def make_views(self, images: Tensor, *key: int | str) -> Tensor:
        """Augment images [B, C, H, W] once for each view, [B, V, C, H, W], drawn from (seed, key).

        Views, and images without an augmentation, are returned unchanged.
        """
        if self.augmentation is None or images.dim() != 4:
            return images
        draws = generator(self.seed, "views", *key, device=images.device)
        views = [self.augmentation(images, draws) for _ in range(self.num_views)]
        if not isinstance(views[0], Tensor):
            raise ConfigError(
                f"augmentation(images, generator) returns a {type(views[0]).__name__}, not images: pass a "
                "transform of torchvision as lambda images, generator: transform(images)."
            )
        return torch.stack(views, dim=1)

    def forward_all(self, batch: Batch) -> MethodInputs:
        """Pass a batch through student, ensemble and teacher."""
        views, teacher_views = self.views_of_each(batch.views)
        with explain_shape_errors(batch.views, self.student.network):
            student = self(views)
            teacher = None
            if self.teacher is not None and self.teacher.sees_batches:
                teacher = self.teacher.teach(teacher_views)
        return MethodInputs(self.targets(batch.labels), student, teacher, batch.indices, batch.labels)

    def views_of_each(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Return the views of the student and those of the teacher: the same, or one half of 2 P views each."""
        peers = self.student.num_peers
        if self.method.needs.teacher_views and views.dim() == 5 and views.shape[1] == 2 * peers:
            return views[:, :peers], views[:, peers:]
        return views, views

    def forward(self, views: Tensor) -> PeerOutputs:
        """Classify `views` [B, V, C, H, W] or [B, C, H, W] with the student peers and their ensemble."""
        output: PeerOutputs = self.student(views)
        if self.method.needs.ensemble == "own":
            return output._replace(ensemble_logits=self.method.combine(output))
        if self.method.wants_ensemble_classifier:
            assert self.ensemble is not None
            return output._replace(ensemble_logits=self.ensemble(output.features))
        return output

    def losses(self, inputs: MethodInputs) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the terms and the loss: their sum, and the supervised loss of a teacher that learns."""
        terms = self.method.weighted_terms(inputs)
        loss = torch.stack([terms[name] for name in self.method.terms]).sum()
        if self.teacher is not None and self.teacher.learns:
            assert inputs.teacher is not None
            # Not a term of the method: it trains another network.
            loss = loss + self.teacher.supervised_loss(inputs.teacher.logits, inputs.labels) * self.teacher.num_peers
        return terms, loss

    def _checked(self, batch: Any, batch_idx: int, known_labels: bool = False) -> Batch:
        peers, classes = self.student.num_peers, self.student.num_classes
        teacher_views = self.method.needs.teacher_views
        return unpack_checked(self.read(batch), batch_idx, peers, classes, teacher_views, known_labels)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean terms, the peers' training accuracy and the weights that schedules have set."""
        weights = self.method.current_weights()
        if self.teacher is not None and self.teacher.settings.update == "ema":
            weights = {**weights, "ema_rate": self.teacher.rate}
        self.scores.log_training(self, weights)

    # ---------------------------------------------------------------------- the optimizer's step

    def configure_optimizers(self) -> OptimizerLRScheduler:
        learning = {"student": self.student.network, "ensemble": self.ensemble, "method": self.method}
        if self.teacher is not None and self.teacher.learns:
            learning["teacher"] = self.teacher.network
        present: dict[str, nn.Module] = {name: part for name, part in learning.items() if part is not None}
        scale = self.student.lr_scale
        if scale != 1.0:
            present |= self.student.parts()
        return configure(present, *self._factories, self.lr, trainer=self._trainer, scales={"student": scale})

    def scale_rate(self, scale: float) -> None:
        """Train all but the classifiers at `scale` times the learning rate; 0 freezes them, statistics included.

        The same layers are frozen in an EMA teacher. A teacher that learns has the full rate. A student that the method
        freezes stays frozen.
        """
        if self.method.needs.fixed_student:
            return
        for part in self._parts:
            if part is self.student or not (part.learns or self.method.needs.foreign_teacher):
                part.lr_scale = scale
                part.train(part.training)
        if scale == 0:
            self.student.network.requires_grad_(False)
            for classifier in self.student.network.classifiers:
                classifier.requires_grad_(True)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip a learning teacher's gradients separately: a joint norm would let the student influence it."""
        by_norm = bool(gradient_clip_val) and gradient_clip_algorithm != "value"
        mixed = isinstance(self.trainer.precision_plugin, MixedPrecision)
        refused = mixed and getattr(optimizer, "_step_supports_amp_scaling", False)  # by Lightning
        if self.teacher is None or not self.teacher.learns or not by_norm or refused:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        learning = [self.teacher, *(getattr(self.method, name) for name in self.method.teacher_parts)]
        teacher = {parameter for part in learning for parameter in part.parameters()}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for of_teacher in (False, True):
            chosen = [parameter for parameter in parameters if (parameter in teacher) == of_teacher]
            nn.utils.clip_grad_norm_(chosen, float(gradient_clip_val or 0))

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Optimizer | Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step the optimizer, then let the teacher follow.

        Lightning calls this once per optimizer step, also with gradient accumulation, so the teacher's counter in a
        checkpoint matches its `global_step`. A step that the fp16 loss scaler skips counts too.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.update_teacher()

    def update_teacher(self) -> None:
        """Update an EMA teacher from the student; in your own training loop, call it after each optimizer step."""
        if self.teacher is not None:
            self.teacher.follow(self.student.network)

    def set_time(self, clock: Clock) -> None:
        """Set all scheduled weights to their values at `clock`; its epoch is part of the key that draws the views.

        In your own training loop, call it before each batch. Methods with `Needs.batches` need a Trainer.
        """
        self._epoch = clock.epoch
        self.method.set_time(clock)
        if self.teacher is not None and self.teacher.settings.update == "ema":
            self.teacher.set_rate(self.teacher.settings.rate(clock))

    # ---------------------------------------------------------------------- around a fit

    @property
    def backbone(self) -> nn.Module:
        """The shared trunk of the student, which Lightning's BackboneFinetuning freezes at first."""
        return self.student.network.shared_part()

    @property
    def _parts(self) -> list[StudentModule | TeacherModule]:
        return [self.student] if self.teacher is None else [self.student, self.teacher]

    def configure_callbacks(self) -> Sequence[Callback]:
        """Add the callbacks that the method needs, except those the user has passed."""
        wanted: list[type[Callback]] = [CollapseGuard, DiversityMonitor]
        wanted += [TeacherInitialisation] if self.teacher is not None else []
        wanted += [WeightSchedules]
        wanted += [MethodBatches] if self.method.needs.batches else []
        wanted += [TeacherCheckpoints] if getattr(self.method.settings, "checkpoints", None) is not None else []
        present: list[Callback] = list(getattr(self.trainer, "callbacks", []))
        return [kind() for kind in wanted if not any(isinstance(old, kind) for old in present)]

    def setup(self, stage: str) -> None:
        """Set the memory layout before the optimizer is created, and compile the networks."""
        outlast_threads()
        if self.execution.channels_last:
            self.to(memory_format=torch.channels_last)
        if stage == "fit":
            compile_networks(self._parts, self.execution)

    def on_fit_start(self) -> None:
        """Restore the random generators before the loaders are created, which may draw from them."""
        checkpoint_state.restore_process(self, self._restored)
        checkpoint_state.unfreeze_optimized(self)
        parts.check_no_weight_averaging(self)
        parts.check_data(self)
        parts.warn_of_an_untrained_teacher(self)

    def on_train_start(self) -> None:
        checkpoint_state.restore_process(self, self._restored)  # some strategies restore the checkpoint only now
        checkpoint_state.check_training_classes(self, self._restored)

    def on_train_end(self) -> None:
        """Average BatchNorm statistics over the processes; callbacks have written their checkpoints before."""
        checkpoint_state.synchronise_statistics(self)

    def teardown(self, stage: str) -> None:
        for part in self._parts:
            part.compiled = None

    # ---------------------------------------------------------------------- validation and test

    def evaluate(self, views: Tensor) -> PeerOutputs:
        """Pass `views` through all members once.

        The logits [N, B, C] are float32, in the order of `scores.members`; features are [B, D_i] of each student peer,
        then of each teacher peer.
        """
        with explain_shape_errors(views, self.student.network):
            views, teacher_views = self.views_of_each(views)
            student = self(views)
            rows, features = [student.logits.float()], [*student.features]
            if self.student.num_peers > 1:
                rows.append(mean_probability(rows[0]))
            if student.ensemble_logits is not None:
                rows.append(student.ensemble_logits.float().unsqueeze(0))
            if self.teacher is not None:
                # A single teacher of peers that see different views is scored on the first view.
                single = self.teacher.num_peers == 1 and teacher_views.dim() == 5
                teacher = self.teacher(teacher_views[:, 0] if single else teacher_views)
                rows.append(teacher.logits.float())
                rows += [mean_probability(rows[-1])] if self.teacher.num_peers > 1 else []
                features += [*teacher.features]
        return PeerOutputs(torch.cat(rows), tuple(features))

    def on_validation_start(self) -> None:
        """Average BatchNorm statistics over the processes, and reset the scores."""
        checkpoint_state.synchronise_statistics(self)
        self.scores.begin()

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Score every member on a batch; return the outputs of `evaluate` to the callbacks."""
        views, labels, _ = self._checked(batch, batch_idx)
        evaluated = self.evaluate(views)
        self.scores.update_validation(evaluated.logits, labels, classes_of(labels))
        return {"evaluated": evaluated}

    def on_validation_epoch_end(self) -> None:
        accuracy = self.scores.log_validation(self)
        self._log_deployed("val", accuracy, accuracy)

    def on_test_epoch_start(self) -> None:
        parts.warn_of_an_untrained_teacher(self)
        self.scores.begin(self.deployed_member())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        views, labels, _ = self._checked(batch, batch_idx)
        self.scores.update_test(self.evaluate(views).logits, labels, classes_of(labels))

    def on_test_epoch_end(self) -> None:
        self._log_deployed("test", self.scores.log_test(self), self.scores.validation_accuracy)
        if (distance := self.teacher_distance()) is not None:
            self.log("test/distance", distance, sync_dist=True)

    def _log_deployed(self, stage: str, accuracy: Tensor, selected_by: Tensor) -> None:
        member = self.scores.members.index(deployment.deployed_member(self, selected_by))
        self.log(f"{stage}/acc", accuracy[member], prog_bar=True, sync_dist=True)

    def teacher_distance(self) -> Tensor | None:
        """Return `||theta_t - theta_s|| / ||theta_s||` of all parameters; None without a teacher of the same form."""
        if self.teacher is None:
            return None
        return relative_distance([*self.teacher.network.parameters()], [*self.student.network.parameters()])

    # ---------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add to Lightning's checkpoint what rebuilds the networks and continues the run.

        That is the recipe, the members' last validation, the random generators and BatchNorm statistics of each
        process, and the classes of optimizer, scheduler and augmentation. A frozen teacher from
        another file or library is left out.
        """
        checkpoint_state.save(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another configuration before any weight is loaded."""
        self._restored = checkpoint_state.read(self, checkpoint)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "observers": []}

    # ---------------------------------------------------------------------- deployment

    def deployed_member(self) -> str:
        """Name the member that is deployed, such as `teacher_1`."""
        return deployment.deployed_member(self)

    def deploy(self, network: str | None = None, peer: int | str | None = None) -> nn.Module:
        """Return the deployed network: a plain module [B, C, H, W] -> logits [B, classes], in eval mode.

        A deep copy on the CPU, which later training does not change. It takes float32 images: after `bf16-true` or
        `64-true`, parameters and buffers are converted to float32.

        Args:
            network: `teacher`, `student`, `ensemble`, or `auto` of both; as configured by default, which is `auto`.
            peer: an index, or `best` of the last validation; as configured by default.
        """
        return deployment.deploy(self, deployment.choose(self, network, peer))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the deployed network's logits [B, C] for images, a tuple that starts with them, or a mapping."""
        views = images_of(self.read(batch))
        check_views(views, self.student.num_peers, self.method.needs.teacher_views)
        return self.evaluate(views).logits[self.scores.members.index(self.deployed_member())]
