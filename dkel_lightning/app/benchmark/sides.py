"""What a benchmark times: a loop written by hand, the Trainer in each execution mode, the step without Lightning.

A side is asked for so many steps and makes them. With the first it does all that a user waits for: reading images,
building networks, the teacher's initialisation, compiling, capturing. Between its turns it holds its memory and
computes nothing; the workers of a DataLoader fill their queue and wait.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from dkel_lightning.app import build
from dkel_lightning.app.benchmark import plain
from dkel_lightning.app.config.schema import Values
from dkel_lightning.app.loggers.metrics_file import MetricsFile
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.tasks.registry import GROWTH, SIDES
from dkel_lightning.app.tasks.requirements import side_fault
from dkel_lightning.callbacks.schedules import put_in_force
from dkel_lightning.data import ImageDataModule
from dkel_lightning.data.imageset import Images, ImageSet
from dkel_lightning.errors import ConfigError, DataError, DkelError
from dkel_lightning.execution.captured import CapturedStep
from dkel_lightning.execution.runner import wants_channels_last
from dkel_lightning.modules.batch import unpack
from dkel_lightning.modules.distillation import DistillationModule
from dkel_lightning.networks import BranchedNetwork
from dkel_lightning.runtime.seeding import seed_process
from dkel_lightning.schedules import Clock


@dataclass(frozen=True)
class Side:
    """One way of training that is timed.

    Attributes:
        label: of its row.
        kind: `plain` (the loop written by hand), `trainer` or `bare` (without Lightning).
        execution: the settings of `execution.*` that are in force for it.
        residency: where its images lie, as in `data.residency`; None: as configured.
        size: how many peers or images a batch it has (`benchmark.over`); None: as configured.
    """

    label: str
    kind: str
    execution: Mapping[str, Any]
    residency: str | None = None
    size: int | None = None


def chosen(values: Values, device: torch.device) -> tuple[list[Side], dict[str, str]]:
    """List the sides to time, in the order of the table, and say why others are left out."""
    asked = values["benchmark"]["sides"]
    found: list[Side] = []
    missing: dict[str, str] = {}
    for label in asked or SIDES:
        fault = side_fault(label, values)
        if fault is None and "cuda_graph" in label and device.type != "cuda":
            fault = "CUDA graphs need a CUDA device"
        if fault is None:
            found.append(_side(label, values))
        elif asked or label == "plain":
            missing[label] = fault
    over = values["benchmark"]["over"]
    if over is not None and found:
        side = found[0] if asked else next(each for each in found if each.kind == "trainer")
        found = [replace(side, label=f"{side.label}_{size}_{over}", size=size) for size in GROWTH[over]]
    return found, missing


def _side(label: str, values: Values) -> Side:
    if label == "plain":
        return Side(label, "plain", values["execution"])
    mode = label.removeprefix("bare_").removesuffix("_workers").removesuffix("_contiguous")
    name = mode.removesuffix("_compiled")
    execution = {**values["execution"], "name": name, "compile": name != mode}
    if label.endswith("_contiguous"):
        execution["channels_last"] = False
    kind = "bare" if label.startswith("bare_") else "trainer"
    return Side(label, kind, execution, "workers" if label.endswith("_workers") else None)


# ---------------------------------------------------------------------- images

SHAPES = {"cifar10": (3, 32, 32, 10), "cifar100": (3, 32, 32, 100), "tinyimagenet": (3, 64, 64, 200)}
"""Channels, height, width and classes of the sets that may have to be fetched."""
RANDOM_IMAGES = 50_000
"""Random images that take the place of a set's training images."""


def images_of(values: Values, *, invented: bool) -> ImageDataModule:
    """Read the images, or invent random ones of the same shape and number of classes; downloads nothing."""
    data = {**values["data"], **({"download": False} if "download" in values["data"] else {})}
    images = build.datamodule({**values, "data": data})
    if not isinstance(images, ImageDataModule):
        raise ConfigError("task=benchmark measures this library's loaders: choose a data set of its own, data=digits.")
    if invented:
        made: Any = images
        made.prepare_data = lambda: None
        made.read = lambda: random_images(data["name"])
    images.prepare_data()
    images.setup()
    return images


def must_invent(values: Values) -> str | None:
    """Say why the images have to be invented; None if they are there.

    Raises:
        DataError: they are not, and what they look like is not known.
    """
    try:
        images_of(values, invented=False)
    except DataError as error:
        if values["data"]["name"] not in SHAPES:
            raise
        return str(error).split(". ")[0].split("; ")[0]
    return None


@functools.lru_cache(maxsize=1)
def random_images(name: str) -> ImageSet:
    """Invent a set of the shape of a known one; all sides share it."""
    channels, height, width, classes = SHAPES[name]
    draws = np.random.default_rng(0)

    def split(count: int) -> Images:
        pixels = draws.integers(0, 256, (count, channels, height, width), dtype=np.uint8)
        return Images(pixels, np.arange(count, dtype=np.int64) % classes)

    return ImageSet(split(RANDOM_IMAGES), split(10 * classes), tuple(f"class {i}" for i in range(classes)))


# ---------------------------------------------------------------------- making steps

Steps = Callable[[int], int]
"""Makes so many steps and returns how many images were in them, views counted once."""
Callbacks = Callable[[Run], Sequence[Callback]]
"""Makes what the Trainer of a run is given."""


class Turns:
    """A training that can be left between two steps and gone on with.

    It runs in a thread of its own, which waits while it is not asked: Lightning's loop cannot be left otherwise.

    Args:
        train: trains and calls what it is given after each step with its number of images; ends when that says so.
    """

    def __init__(self, train: Callable[[Callable[[int], bool]], None]) -> None:
        self._train = train
        self._orders: SimpleQueue[int] = SimpleQueue()
        self._answers: SimpleQueue[int | Exception] = SimpleQueue()
        self._left = self._images = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __call__(self, steps: int) -> int:
        """Make so many steps and return how many images were in them; raises what the training raises."""
        self._orders.put(steps)
        answer = self._answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End the training."""
        self._orders.put(0)
        self._thread.join()

    def _serve(self) -> None:
        if not self._asked():
            return
        torch.set_num_threads(torch.get_num_threads())  # OpenMP has a number of its own for every thread
        try:
            self._train(self._border)
            if self._left > 0:
                raise DkelError("the training ended before its turn was over")
        except Exception as error:  # whatever it is, who asks has to hear it
            self._answers.put(error)

    def _border(self, images: int) -> bool:
        self._left, self._images = self._left - 1, self._images + images
        if self._left > 0:
            return True
        self._answers.put(self._images)
        return self._asked()

    def _asked(self) -> bool:
        self._left, self._images = self._orders.get(), 0
        return self._left > 0


def begin(side: Side, run: Run, callbacks: Callbacks, *, most: int, invented: bool) -> Steps:
    """Make a side ready to be asked for its first step.

    Args:
        side: which.
        run: the settings, and the folder for what the Trainer writes.
        callbacks: of the Trainer.
        most: steps that it will be asked for at most.
        invented: see `images_of`.
    """
    values = {**run.values, "execution": dict(side.execution)}
    if side.residency is not None:
        values["data"] = {**values["data"], "residency": side.residency}
    if side.size is not None:
        group, key = ("method", "peers") if values["benchmark"]["over"] == "peers" else ("data", "batch_size")
        values[group] = {**values[group], key: side.size}
    if side.kind == "trainer":
        trained = Run(_as_timed(values, most), run.folder / "sides" / side.label)
        return Turns(lambda border: _fit(trained, callbacks, border, invented=invented))
    steps = (_plain if side.kind == "plain" else _bare)(values, invented)
    return lambda count: sum(itertools.islice(steps, count))


def _plain(values: Values, invented: bool) -> Iterator[int]:
    device, images = build.device(values), images_of(values, invented=invented)
    seed_process(values["seed"], "training", 0)
    data, normalize = values["data"], images.augment.normalize
    per_image = plain.PerImage(
        images.training_images,
        images.views,
        padding=images.padding,
        padding_mode=images.padding_mode,
        flip=images.flip,
        mean=normalize.mean,
        std=normalize.std,
    )
    loader = plain.loader(per_image, data["batch_size"], data["workers"], data["drop_last"], device.type == "cuda")
    # The very networks of the library, with the weights that it draws for them.
    module = build.distillation(values, images).to(device)
    method, teacher, ensemble = module.method, module.teacher, module.ensemble
    assert method.rampup is not None
    assert method.ensemble is not None
    assert teacher is not None
    assert ensemble is not None
    student, follower = (cast(BranchedNetwork, each.network) for each in (module.student, teacher))
    learning = [*student.parameters(), *ensemble.classifier.parameters()]
    optimizer = build.optimizer(values["optimizer"])([{"params": learning, "name": "student"}])
    weights = plain.Weights(
        scale=values["method"]["rampup"]["scale"],
        ramped=values["method"]["ensemble"]["ramped"],
        temperature=values["method"]["temperature"],
    )
    loop = plain.PlainLoop(student, follower, ensemble.classifier, optimizer, weights)
    first = itertools.islice(plain.batches_on(device, loader), teacher.settings.batches_of_initialisation(len(loader)))
    lr = values["optimizer"]["lr"] * teacher.settings.init_lr_scale
    loop.initialise(first, lr, teacher.settings.init_weight_decay)
    for epoch in itertools.count():
        clock = _clock(values, len(loader), epoch)
        weights.rampup, weights.ensemble = method.rampup.weight(clock), method.ensemble.weight(clock)
        weights.rate = teacher.settings.rate(clock)
        for views, labels in plain.batches_on(device, loader):
            loop.step(views, labels)
            yield len(labels)


def _clock(values: Values, batches: int, epoch: int = 0) -> Clock:
    epochs = values["trainer"]["max_epochs"]
    return Clock(epoch, epoch * batches, batches, epochs * batches if epochs is not None and epochs > 0 else None)


def _as_timed(values: Values, most: int) -> Values:
    """Let a training go on for so many steps; validation is left out, since it is no training step."""
    epochs = values["trainer"]["max_epochs"] or -1
    trainer = {
        **values["trainer"],
        "max_epochs": epochs if epochs < 0 else max(epochs, most + 1),
        "max_steps": -1,
        "max_time": None,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
    }
    callbacks = {**values["callbacks"], "progress": "none", "early_stopping": None}
    return {**values, "trainer": trainer, "callbacks": callbacks}


def _fit(run: Run, callbacks: Callbacks, border: Callable[[int], bool], *, invented: bool) -> None:
    images = images_of(run.values, invented=invented)
    seed_process(run.values["seed"], "training", 0)
    module = build.distillation(run.values, images)
    trainer = build.trainer(
        run.values,
        loggers=[MetricsFile(run.folder / "metrics.csv")],
        callbacks=[*callbacks(run), _Border(border)],
        plugins=[],
    )
    trainer.fit(module, images)


class _Border(Callback):
    """Stands between two steps."""

    def __init__(self, border: Callable[[int], bool]) -> None:
        self.border = border

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell of a step, unless the steps are not executed as they should be."""
        in_force = cast(DistillationModule, pl_module).execution_in_force
        if in_force is not None and in_force.why and in_force.asked != "auto":
            raise ConfigError(f"execution={in_force.asked} is not possible: {in_force.why}")
        if not self.border(len(unpack(batch).labels)):
            trainer.should_stop = True


def _bare(values: Values, invented: bool) -> Iterator[int]:
    """Make steps of the library's parts in a loop of one's own: no hooks, no metrics, no log."""
    device, images = build.device(values), images_of(values, invented=invented)
    seed_process(values["seed"], "training", 0)
    module = build.distillation(values, images).train().to(device)
    half = build.precision(values) != "fp32"
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
    put_in_force(module, _clock(values, len(loader)))  # the start's, as its values change nothing of the time
    captured = CapturedStep(module, optimizer) if module.execution.name == "cuda_graph" else None
    compiles = module.execution.name == "compile" or module.execution.compile
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        for batch in map(unpack, loader):
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                if compiles and module.compiled is None:
                    module.compile_networks(len(batch.labels))
                if captured is not None and not len(captured):
                    captured.capture(batch)
                loss = module.compute_step(batch).loss if captured is None else captured.step(batch)
            if captured is None:
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                module.follow()
            yield len(batch.labels)
