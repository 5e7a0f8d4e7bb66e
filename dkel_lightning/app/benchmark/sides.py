"""The sides of a benchmark: each trains until its turns are over, and stops at a step border while others have theirs.

Every side begins with what a user waits for: reading images, building networks, the teacher's initialisation,
compiling, capturing, and one step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from dkel_lightning import networks
from dkel_lightning.app import build
from dkel_lightning.app.benchmark import plain
from dkel_lightning.app.benchmark.loaders import plain_loader
from dkel_lightning.app.benchmark.setting import Side, images_of
from dkel_lightning.app.benchmark.watch import Pace, Parts, TimedLoader, Turns, replace_method, wrapped
from dkel_lightning.app.callbacks import Throughput
from dkel_lightning.app.config.schema import Values
from dkel_lightning.app.loggers.metrics_file import MetricsFile
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.tasks.train import usual_callbacks
from dkel_lightning.data import ImageDataModule
from dkel_lightning.errors import ConfigError
from dkel_lightning.execution.captured import CapturedStep
from dkel_lightning.execution.runner import wants_channels_last
from dkel_lightning.modules.batch import Batch, unpack
from dkel_lightning.modules.distillation import DistillationModule
from dkel_lightning.networks import BranchedNetwork
from dkel_lightning.runtime import memory
from dkel_lightning.runtime.seeding import seed_process, seeded
from dkel_lightning.schedules import Clock
from dkel_lightning.settings.teacher import TeacherSettings
from dkel_lightning.settings.weights import EnsembleTerm, RampUp


@dataclass(frozen=True)
class Task:
    """What a side is told: which it is, all settings, and whether the images are invented.

    Attributes:
        side: which.
        values: the settings of the run.
        invented: see `setting.images_of`.
        folder: for what the Trainer writes.
        steps: that it will be asked for at most.
        cache: folder of what torch.compile makes.
    """

    side: Side
    values: Values
    invented: bool
    folder: Path
    steps: int
    cache: Path


def train(task: Task, turns: Turns) -> None:
    """Be a side, from reading the images to the last turn."""
    values = {**task.values, "execution": {**task.side.execution}}
    if task.side.residency is not None:
        values["data"] = {**values["data"], "residency": task.side.residency}
    if values["execution"]["threads"] is not None:
        torch.set_num_threads(values["execution"]["threads"])
    device = build.device(values)
    if task.side.kind != "plain":
        memory.keep_freed_as_asked(values["execution"]["keep_memory"], device)
    torch.set_float32_matmul_precision(values["precision"]["matmul"])
    seed_process(values["seed"], "training", 0)
    images = images_of(values, invented=task.invented)
    pace = Pace(turns, Parts(device))
    {"plain": _plain, "trainer": _trainer, "bare": _bare}[task.side.kind](task, values, images, pace)


# ---------------------------------------------------------------------- written by hand


def _plain(task: Task, values: Values, images: ImageDataModule, pace: Pace) -> None:
    device = pace.parts.device
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    loader = plain_loader(values, images, device)
    weights = plain.Weights(
        scale=values["method"]["rampup"]["scale"],
        ramped=values["method"]["ensemble"]["ramped"],
        temperature=values["method"]["temperature"],
    )
    loop = plain_loop(values, images, weights, pace.parts)
    teacher = TeacherSettings(**values["teacher"])
    first = itertools.islice(plain.batches_on(device, loader), teacher.batches_of_initialisation(len(loader)))
    lr = values["optimizer"]["lr"] * teacher.init_lr_scale
    loop.initialise(first, lr, teacher.init_weight_decay)
    for epoch in itertools.count():
        _put_in_force(weights, values, Clock(epoch, epoch * len(loader), len(loader), _planned(values, len(loader))))
        for views, labels in TimedLoader(plain.batches_on(device, loader), pace.parts):
            loop.step(views, labels)
            if not pace.border(len(labels)):
                return


def plain_loop(values: Values, images: ImageDataModule, weights: plain.Weights, parts: Parts) -> plain.PlainLoop:
    """Draw the networks as `DistillationModule.build` does, and put the loop together."""
    channels, height, width = images.image_shape
    drawn: list[BranchedNetwork] = []
    for purpose in ("student", "teacher"):
        with seeded(values["seed"], purpose):
            network = networks.create(
                values["backbone"]["name"],
                images.num_classes,
                values["method"]["peers"],
                in_channels=channels,
                image_size=(height, width),
            )
        drawn.append(cast(BranchedNetwork, network.to(parts.device)))
    student, teacher = drawn
    with seeded(values["seed"], "ensemble"):
        classifier = nn.Linear(sum(student.feature_dims), images.num_classes)
    classifier.to(parts.device)
    learning = [*student.parameters(), *classifier.parameters()]
    optimizer = build.optimizer(values["optimizer"])([{"params": learning, "name": "student"}])
    return plain.PlainLoop(student, teacher, classifier, optimizer, weights, parts)


def _put_in_force(weights: plain.Weights, values: Values, clock: Clock) -> None:
    weights.rampup = RampUp(**values["method"]["rampup"]).weight(clock)
    weights.ensemble = EnsembleTerm(**values["method"]["ensemble"]).weight(clock)
    weights.rate = TeacherSettings(**values["teacher"]).rate(clock)


def _planned(values: Values, batches: int) -> int | None:
    epochs = values["trainer"]["max_epochs"]
    return epochs * batches if epochs is not None and epochs > 0 else None


# ---------------------------------------------------------------------- through the Trainer


def _trainer(task: Task, values: Values, images: ImageDataModule, pace: Pace) -> None:
    """Fit with all that task=train attaches but checkpoints; validation is left out, since it is no training step."""
    parts = pace.parts
    batches = len(images.train_dataloader())
    epochs = values["trainer"]["max_epochs"] or -1
    settings = {
        **values["trainer"],
        "max_epochs": epochs if epochs < 0 else max(epochs, task.steps // batches + 2),
        "max_steps": -1,
        "max_time": None,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
    }
    chosen = {**values["callbacks"], "progress": "none", "early_stopping": None}
    values = {**values, "trainer": settings, "callbacks": chosen}
    module = build.distillation(values, images)
    # A callback that looks at the backward pass would keep the step from being captured.
    captures = task.side.execution["name"] == "cuda_graph" or (
        task.side.execution["name"] == "auto" and parts.device.type == "cuda"
    )
    border = _Border(pace) if captures else _Watch(pace)
    trainer = build.trainer(
        values,
        loggers=[MetricsFile(task.folder / "metrics.csv")],
        callbacks=[Throughput(), *usual_callbacks(Run(values, task.folder)), border],
        plugins=[],
    )
    replace_method(images, "train_dataloader", _timed(images.train_dataloader, parts))
    watch_module(module, parts)
    trainer.fit(module, images)


def _timed(make: Callable[[], Any], parts: Parts) -> Callable[[], Any]:
    return lambda: TimedLoader(make(), parts)


def watch_module(module: DistillationModule, parts: Parts) -> None:
    """Let what a step of the module consists of count for parts; what a graph replays counts as a whole."""
    wrapped(CapturedStep, "replay", "replay", parts)
    wrapped(module, "forward", "student", parts)
    wrapped(module, "losses", "loss", parts)
    if module.teacher is not None:
        wrapped(module.teacher, "teach", "teacher", parts)
        wrapped(module.teacher, "follow", "ema", parts)


class _Border(Callback):
    """Tells the pace of every step that is done."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn when the optimizer is done."""
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda *_: self.pace.parts.end("optimizer"))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Count for clipping and the optimizer's step."""
        self.pace.parts.begin("optimizer")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stand at the border, unless the steps are not executed as they should be."""
        in_force = cast(DistillationModule, pl_module).execution_in_force
        if in_force is not None and in_force.why and in_force.asked != "auto":
            raise ConfigError(f"execution={in_force.asked} is not possible: {in_force.why}")
        if not self.pace.border(len(unpack(batch).labels)):
            trainer.should_stop = True


class _Watch(_Border):
    """Watches the backward pass too."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        """Count for the backward pass."""
        self.pace.parts.begin("backward")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End that."""
        self.pace.parts.end("backward")


# ---------------------------------------------------------------------- without Lightning


def _bare(task: Task, values: Values, images: ImageDataModule, pace: Pace) -> None:
    device = pace.parts.device
    module = build.distillation(values, images).train().to(device)
    half = values["precision"]["name"] != "fp32"
    auto = module.execution.channels_last == "auto"
    if wants_channels_last(module.execution, device, None) or (auto and half and device.type == "cuda"):
        module.to(memory_format=torch.channels_last)
    configured: Any = module.configure_optimizers()
    optimizer: Optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
    loader = images.training_loader_on(device)
    if module.teacher is not None:
        steps = module.teacher.settings.batches_of_initialisation(len(loader))
        lr = values["optimizer"]["lr"] * module.teacher.settings.init_lr_scale
        module.teacher.initialise(loader.initialisation_batches(values["seed"], steps), lr)
    _first_epoch(module, len(loader), values)
    watch_module(module, pace.parts)
    step = BareStep(module, optimizer, pace.parts, half=half)
    for batch in _endless(loader, pace.parts):
        step(batch)
        if not pace.border(len(batch.labels)):
            return


def _first_epoch(module: DistillationModule, batches: int, values: Values) -> None:
    """Put in force what the schedules give at the start; its values change nothing of the time."""
    clock = Clock(0, 0, batches, _planned(values, batches))
    if module.method.rampup is not None:
        module.method.rampup_weight.fill_(module.method.rampup.weight(clock))
    if module.method.ensemble is not None and module.ensemble is not None:
        module.ensemble.weight.fill_(module.method.ensemble.weight(clock))
    if module.teacher is not None and module.teacher.settings.update == "ema":
        module.teacher.set_rate(module.teacher.settings.rate(clock))


def _endless(loader: Any, parts: Parts) -> Iterator[Batch]:
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        for batch in TimedLoader(loader, parts):
            yield unpack(batch)


class BareStep:
    """One step of the library's parts in a loop of one's own: no hooks, no metrics, no log.

    Executed as the module's settings say: eagerly, with compiled networks, or as a graph that is replayed.

    Args:
        module: on the device, in training mode.
        optimizer: its own.
        parts: measures the parts, where asked to.
        half: autocast to bfloat16.
    """

    def __init__(self, module: DistillationModule, optimizer: Optimizer, parts: Parts, *, half: bool = False) -> None:
        self.module = module
        self.optimizer = optimizer
        self.parts = parts
        self.half = half
        self.captured = CapturedStep(module, optimizer) if module.execution.name == "cuda_graph" else None
        self._compiles = module.execution.name == "compile" or module.execution.compile

    def __call__(self, batch: Batch) -> None:
        """Make a step; the first one compiles and captures, for batches of its size."""
        if self._compiles and self.module.compiled is None:
            self.module.compile_networks(len(batch.labels))
        with self._context():
            if self.captured is not None:
                if not len(self.captured):
                    self.captured.capture(batch)
                self.captured.step(batch)
                return
            loss = self.module.compute_step(batch).loss
        with self.parts("backward"):
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        with self.parts("optimizer"):
            self.optimizer.step()
        self.module.follow()

    def _context(self) -> Any:
        return torch.autocast(self.parts.device.type, torch.bfloat16) if self.half else nullcontext()
