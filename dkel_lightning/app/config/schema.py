"""The configuration: where it lies, what each key may hold, and which combinations contradict each other.

Imports neither torch nor Lightning nor Hydra, so that a mistake is answered at once.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dkel_lightning.app.tasks import registry
from dkel_lightning.errors import ConfigError
from dkel_lightning.schedules import EPOCHS

Values = Mapping[str, Any]


def folder() -> Path:
    """Return the absolute folder of the YAML files: packed into the wheel, or beside the package in a checkout."""
    here = Path(__file__).resolve().parents[2]
    for candidate in (here / "conf", here.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(f"The configuration folder conf/ is missing beside {here}: install dkel_lightning again.")


def has_aliases(text: str) -> bool:
    """Tell whether a YAML file uses aliases. No file of ours does, and a few lines of them can stand for gigabytes.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    import yaml  # omegaconf brings it

    return "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))


# ---------------------------------------------------------------------- what each key may hold


@dataclass(frozen=True)
class Key:
    """What one key may hold, and what it means.

    `kind` names the type in words; `check` returns the value's fault, or None.
    """

    kind: str
    meaning: str
    check: Callable[[Any], str | None]
    optional: bool = False

    def fault(self, value: Any) -> str | None:
        """Say what is wrong with `value`, None if nothing is."""
        if value is None:
            return None if self.optional else f"must be {self.kind}, and is null"
        fault = self.check(value)
        return None if fault is None else f"must be {self.kind}, got {shortened(repr(value))}.{fault}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _range(low: float | None, high: float | None, open_low: bool) -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f" {'above' if open_low else 'of at least'} {low:g}"
    return f" between {low:g} and {high:g}"


def number(
    meaning: str, low: float | None = None, high: float | None = None, *, above: bool = False, optional: bool = False
) -> Key:
    """Describe a finite number; `above` excludes the lower bound."""

    def check(value: Any) -> str | None:
        inside = _is_number(value) and (low is None or value > low or (value == low and not above))
        return None if inside and (high is None or value <= high) else ""

    return Key(f"a number{_range(low, high, above)}", meaning, check, optional)


def whole(meaning: str, low: int | None = None, high: int | None = None, *, optional: bool = False) -> Key:
    """Describe a whole number."""

    def check(value: Any) -> str | None:
        inside = isinstance(value, int) and not isinstance(value, bool)
        return None if inside and (low is None or value >= low) and (high is None or value <= high) else ""

    return Key(f"a whole number{_range(low, high, False)}", meaning, check, optional)


def switch(meaning: str, *, optional: bool = False) -> Key:
    """Describe true or false."""
    return Key("true or false", meaning, lambda value: None if isinstance(value, bool) else "", optional)


def text(meaning: str, *, optional: bool = False) -> Key:
    """Describe a piece of text."""
    return Key("text", meaning, lambda value: None if isinstance(value, str) and value else "", optional)


def choice(meaning: str, *options: str) -> Key:
    """Describe one of some words."""

    def check(value: Any) -> str | None:
        return None if value in options else _did_you_mean(str(value), options)

    return Key(f"one of {', '.join(options)}", meaning, check)


def either(first: Key, second: Key) -> Key:
    """Describe a value that fits one of two descriptions."""

    def check(value: Any) -> str | None:
        return None if first.fault(value) is None or second.fault(value) is None else ""

    return Key(f"{first.kind}, or {second.kind}", first.meaning, check, first.optional or second.optional)


def epochs(meaning: str) -> Key:
    """Describe a number of epochs as a word."""

    def check(value: Any) -> str | None:
        return None if isinstance(value, str) and EPOCHS.fullmatch(value) else ""

    return Key("epochs as in 3epochs", meaning, check)


def numbers(meaning: str, *, optional: bool = False) -> Key:
    """Describe a list of finite numbers."""

    def check(value: Any) -> str | None:
        return None if isinstance(value, list) and all(map(_is_number, value)) else ""

    return Key("a list of numbers", meaning, check, optional)


def several(meaning: str, each: Key, *, least: int = 1, optional: bool = False) -> Key:
    """Describe a list of at least `least` values that each fit a description."""

    def check(value: Any) -> str | None:
        fits = isinstance(value, list) and len(value) >= least and all(each.fault(item) is None for item in value)
        return None if fits else ""

    return Key(f"a list, each {each.kind}", meaning, check, optional)


def folder_name(meaning: str) -> Key:
    """Describe the name of a folder."""

    def check(value: Any) -> str | None:
        fits = isinstance(value, str) and value.strip(". ") and not set(value) & set("/\\\0")
        return None if fits and len(os.fsencode(value)) <= 200 else ""  # file systems allow 255, less what is added

    return Key("the name of a folder, without slashes and of at most 200 bytes", meaning, check)


def modules(meaning: str) -> Key:
    """Describe a list of importable modules."""

    def check(value: Any) -> str | None:
        fits = isinstance(value, list) and all(
            isinstance(item, str) and all(part.isidentifier() for part in item.split(".")) for item in value
        )
        return None if fits else ""

    return Key("a list of Python modules", meaning, check)


def names(meaning: str) -> Key:
    """Describe a list of words."""

    def check(value: Any) -> str | None:
        return None if isinstance(value, list) and value and all(isinstance(item, str) for item in value) else ""

    return Key("a list of names", meaning, check)


def schedule(meaning: str, low: float, high: float) -> Key:
    """Describe a number, or a mapping {from time: number}."""
    each = number("", low, high)

    def check(value: Any) -> str | None:
        if not isinstance(value, Mapping):
            return each.check(value)
        fits = bool(value) and all(_is_number(key) and key >= 0 and each.check(v) is None for key, v in value.items())
        return None if fits else ""

    return Key(f"{each.kind}, or a schedule {{from: value}} of them", meaning, check, optional=True)


def amount(meaning: str) -> Key:
    """Describe a number of batches, or a share of them."""

    def check(value: Any) -> str | None:
        fits = _is_number(value) and (0 <= value <= 1 if isinstance(value, float) else value >= 0)
        return None if fits else ""

    return Key("a whole number of batches, or a share of them between 0.0 and 1.0", meaning, check, optional=True)


def devices(meaning: str) -> Key:
    """Describe what Lightning takes for devices."""

    def check(value: Any) -> str | None:
        if isinstance(value, list):
            return None if value and all(_is_count(item) and item >= 0 for item in value) else ""
        fits = _is_count(value) and (value > 0 or value == -1)
        return None if fits or (isinstance(value, str) and _DEVICES.fullmatch(value)) else ""

    return Key("a number of devices, a list of their indices, -1 or auto", meaning, check)


_DEVICES = re.compile(r"auto|-1|[1-9]\d*|\d+(,\d*)+")


def duration(meaning: str) -> Key:
    """Describe a span of time."""

    def check(value: Any) -> str | None:
        if isinstance(value, Mapping):
            named = set(value) <= {"days", "hours", "minutes", "seconds"}
            fits = named and all(_is_number(each) and each >= 0 for each in value.values())
            return None if fits and any(value.values()) else ""
        written = isinstance(value, str) and _DURATION.fullmatch(value) is not None
        return None if written and set(value) != {"0", ":"} else ""

    return Key("days:hours:minutes:seconds as in 00:11:55:00", meaning, check, optional=True)


_DURATION = re.compile(r"\d+:\d\d:\d\d:\d\d")


def anything(meaning: str) -> Key:
    """Describe a value that another library checks."""
    return Key("any value but NaN", meaning, lambda value: "" if value != value else None, optional=True)


def seeds(meaning: str) -> Key:
    """Describe a list of seeds, each once."""

    def check(value: Any) -> str | None:
        each = whole("", 0)
        fits = isinstance(value, list) and bool(value) and all(each.fault(item) is None for item in value)
        return None if fits and len(set(value)) == len(value) else ""

    return Key("a list of whole numbers of at least 0, each once", meaning, check)


def variants(meaning: str) -> Key:
    """Describe a list of names, each alone or with a list of overrides."""

    def labelled(item: Any) -> bool:
        if not isinstance(item, Mapping) or len(item) != 1:
            return False
        ((label, overrides),) = item.items()
        return isinstance(label, str) and isinstance(overrides, list) and all(isinstance(o, str) for o in overrides)

    def check(value: Any) -> str | None:
        fits = isinstance(value, list) and value and all(isinstance(v, str) or labelled(v) for v in value)
        return None if fits else ""

    return Key("a list of names, or of {label: [override, ...]}", meaning, check)


def executions(meaning: str) -> Key:
    """Describe sides of a benchmark by the execution settings in which they differ."""

    def fault(label: Any, node: Any) -> str | None:
        if not isinstance(label, str) or _LABEL.fullmatch(label) is None:
            return f" {label!r} is no label: use letters, digits and the signs _.+-."
        if label in SIDES:
            return f" {label} is a side by itself: give the variant another label."
        if not isinstance(node, Mapping):
            return f" {label} must hold keys of execution, got {node!r}."
        for name, value in node.items():
            key = KEYS.get(f"execution.{name}")
            if key is None:
                return f" {label}: {unknown_key(f'execution.{name}', KEYS)}"
            if name in ("threads", "keep_memory"):
                return f" {label}: execution.{name} holds for the whole process: give it by itself, one run a value."
            wrong = key.fault(value)
            if wrong is not None:
                return f" {label}: execution.{name} {wrong}"
        return None

    def check(value: Any) -> str | None:
        if not isinstance(value, Mapping):
            return ""
        return next((found for label, node in value.items() if (found := fault(label, node)) is not None), None)

    return Key("labels of their own, each with keys of execution", meaning, check, optional=True)


_LABEL = re.compile(r"\w[\w.+-]*")

# What task=benchmark may measure: a loop written by hand, the Trainer in each execution mode, with images in workers,
# and the library's step without Lightning.
SIDES: tuple[str, ...] = ("plain", "eager", "compile", "cuda_graph", "cuda_graph_compiled", "eager_workers")
SIDES += ("bare_eager", "bare_compile", "bare_cuda_graph", "bare_cuda_graph_compiled")
# Of the methods that ship; others state their needs in their class and are checked when they are built.
NEED_A_TEACHER = ("dkel", "dkel_released", "pcl", "mean_teacher", "kd")
# Whose teacher may be a network of its own, of another backbone and with one peer.
FOREIGN_TEACHER = ("kd",)
SEPARATE_TEACHER_VIEWS = ("mean_teacher",)
MINIMUM_PEERS = dict.fromkeys(("dkel", "dkel_released", "pcl", "dml", "kdcl", "cl_ilr", "one", "ffl"), 2) | {
    "okddip": 3
}
NEED_A_TRUNK = ("one", "cl_ilr")
# What each group chooses, in the order in which --help explains them.
GROUPS = {
    "task": "what to do",
    "experiment": "data, network and length that belong together",
    "experiment/ablation": "sweeps by themselves: one switch, its values, three seeds",
    "scale": "data, network and length of an ablation",
    "data": "the images",
    "backbone": "the network of each peer",
    "method": "how peers and teacher learn from each other",
    "teacher": "how the teacher begins and follows; a method chooses its own",
    "optimizer": "its keys are arguments of torch's class",
    "scheduler": "of the learning rate",
    "trainer": "devices and processes",
    "precision": "of the arithmetic",
    "execution": "how a step is executed",
    "logger": "where metrics go besides metrics.csv; several: logger=[tensorboard,wandb]",
    "callbacks": "checkpoints, progress, collapse guard, early stopping",
    "debug": "quick or strict runs",
    "hydra/launcher": "what runs the jobs of a sweep (-m)",
    "hydra/sweeper": "what chooses the jobs of a sweep (-m)",
}
# What each extra of the package brings, by the names under which it is imported.
EXTRAS = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "joblib": ("hydra_plugins.hydra_joblib_launcher",),
    "submitit": ("hydra_plugins.hydra_submitit_launcher",),
    "optuna": ("hydra_plugins.hydra_optuna_sweeper",),
}
# Of Lightning's loggers those whose package is an extra.
TRACKERS = {
    "lightning.pytorch.loggers.TensorBoardLogger": "tensorboard",
    "lightning.pytorch.loggers.WandbLogger": "wandb",
    "lightning.pytorch.loggers.MLFlowLogger": "mlflow",
}
# Lightning's name of each precision.
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}

KEYS: dict[str, Key] = {
    "name": folder_name("Folder of the run under outputs/."),
    "seed": whole("Seed of weights, order, augmentation and initialisation batches.", 0),
    "resume": text("Checkpoint to go on from, or `last`: the newest under outputs/.", optional=True),
    "checkpoint": text(
        "Checkpoint to evaluate, export or predict with (or an exported file), or step to replay.", optional=True
    ),
    "modules": modules("Python modules to import first: methods and backbones of your own register themselves."),
    "trust": switch(
        "Let resume= import classes of your own that the saved configuration names, and predict open a .pt2 file."
    ),
    "deploy.network": choice(
        "Network that is deployed; auto: as the method says, mostly the teacher.",
        "auto",
        "teacher",
        "student",
        "ensemble",
    ),
    "deploy.peer": either(
        whole("Peer that is deployed; best: in validation; auto: as the method says.", 0), choice("", "auto", "best")
    ),
    "protocol.rampup.epochs": number("Length of the ramp-up in epochs.", 0, optional=True),
    "protocol.rampup.share": number("The same as a share of the run.", 0, 1, optional=True),
    "protocol.ensemble.decay": number("k of the decaying ensemble.", 0, optional=True),
    "protocol.ensemble.decay_share": number("1/k as a share of the run.", 0, above=True, optional=True),
    "protocol.ema.decay": schedule("EMA rate of the teacher.", 0, 1),
    "protocol.ema.decay_share": schedule("EMA time constant as a share of the run.", 1e-9, 1e9),
    "protocol.milestones": numbers("Milestones of the learning rate, in epochs or (all below 1) shares of the run."),
    "task.name": choice("What to do.", *registry.TASKS),
    "compare.methods": variants("What is compared: methods, controls, or labels with overrides of their own."),
    "compare.seeds": seeds("Seeds with which each is trained."),
    "compare.reference": text("Label that the others are compared to; null: the first.", optional=True),
    "compare.compute": choice(
        "Length of a label: its own epochs, or as long as the reference took.", "own", "reference"
    ),
    "compare.folder": text("Folder of the comparison; an earlier one is gone on with."),
    "export.format": choice("Format of the exported network.", "state_dict", "safetensors", "torch_export", "onnx"),
    "export.to": text(
        "Folder of the export; null: <member>_<format> in export_<checkpoint>/ of the run.", optional=True
    ),
    "export.images": whole("Test images on which file and training network are compared.", 1),
    "export.tolerance": number(
        "Largest difference of two logits, relative to the largest logit where that exceeds 1.", 0, above=True
    ),
    "export.repeats": whole("Repeats of each measurement of time; 0: none is made.", 0),
    "predict.images": text("Image file, or folder of images, to classify.", optional=True),
    "predict.top": whole("Most probable classes that are named of each image.", 1),
    "predict.to": text("Folder of predictions.csv and predictions.json; null: the run's.", optional=True),
    "predict.batch_size": whole("Images classified at once.", 1),
    "report.of": text("Folder of the run, sweep or comparison to report on; null: the newest.", optional=True),
    "benchmark.sides": several(
        "What is measured; null: all that the device and the method allow.", choice("", *SIDES), optional=True
    ),
    "benchmark.variants": executions("Further sides through the Trainer, {label: {key of execution: value}}."),
    "benchmark.rounds": whole("Turns of every side.", 1),
    "benchmark.steps": whole("Steps of a turn that count; null: 3 on a CPU, 100 on a GPU.", 1, optional=True),
    "benchmark.warmup": whole("Steps before them that do not; null: 1 on a CPU, 10 on a GPU.", 0, optional=True),
    "benchmark.to": text("Folder of benchmark.csv, .md and .png; null: the run's.", optional=True),
    "geometry.lr": number("Learning rate of the student.", 0, above=True),
    "geometry.decay": number("EMA rate of the teacher.", 1e-9, 0.999999),
    "geometry.bowl.curvatures": numbers("Curvature of a bowl's second direction, one bowl each; the other is 1."),
    "geometry.bowl.weights": numbers("Weights of the teacher, each constant and decaying."),
    "geometry.bowl.weight_time": number("Steps in which the decaying weight falls by e.", 0, above=True),
    "geometry.bowl.radius": number("Distance of both starts from the optimum.", 0, above=True),
    "geometry.bowl.student_angle": number("Direction of the student's start, in degrees."),
    "geometry.bowl.teacher_angle": number("Direction of the teacher's own draw, in degrees."),
    "geometry.bowl.init_steps": numbers("Gradient steps on an own draw before training; the last is drawn."),
    "geometry.bowl.init_lr_scale": number("Their learning rate as a share of geometry.lr.", 0, above=True),
    "geometry.bowl.directions": whole("Directions in which the teacher is drawn for the table of all.", 1, 360),
    "geometry.bowl.tolerance": number("Share of the first distance at which the student has arrived.", 1e-9, 0.999),
    "geometry.bowl.loss_tolerance": number("The same for its loss.", 1e-9, 0.999),
    "geometry.bowl.steps": whole("Steps that are drawn.", 1, 100_000),
    "geometry.bowl.max_steps": whole("Steps after which an arrival is no longer waited for.", 1, 100_000),
    "geometry.bowl.chords": numbers("Steps at which a line joins student and teacher."),
    "geometry.mirror.student": numbers("First position of the student, between two mirror optima."),
    "geometry.mirror.trained": numbers("A teacher at an optimum of the student's branch; mirrored, of the other."),
    "geometry.mirror.untrained": numbers("A teacher in the mirror branch, at no optimum."),
    "geometry.mirror.weights": numbers("Weights of the teacher; 0 is added."),
    "geometry.mirror.threshold": number("Loss below which a network counts as trained.", 0, above=True),
    "geometry.mirror.steps": whole("Length of the simulation.", 1, 100_000),
    "convergence.runs": whole("Simulated runs of the noisy quadratic model.", 2, 1_000_000),
    "convergence.epochs": whole("Length of a run in epochs.", 2, 10_000),
    "convergence.steps_per_epoch": whole("Steps in an epoch.", 1, 10_000),
    "convergence.peers": whole("Peers.", 2, 64),
    "convergence.curvatures": several("Curvature of each direction.", number("", 0, above=True)),
    "convergence.noise": number("Deviation of the gradient noise where the curvature is 1.", 0),
    "convergence.correlation": number("Share of the noise that all peers have in common.", 0, 1),
    "convergence.lr": number("Learning rate of the students.", 0, above=True),
    "convergence.milestones": several("Epochs at which it is multiplied.", whole("", 1), least=0),
    "convergence.gamma": number("Factor on it.", 0),
    "convergence.decay": number("EMA rate of the teachers.", 0, 0.999999),
    "convergence.lambda": number("lambda: weight of the teachers at the end of the ramp-up.", 0),
    "convergence.rampup": number("Length of the ramp-up in epochs.", 0),
    "convergence.k": number("Decay of the ensemble's weight, an epoch.", 0),
    "convergence.slow_k": number("A slower decay to compare with.", 0),
    "convergence.weak_lambda": number("A smaller lambda to compare with.", 0),
    "convergence.init_steps": whole("Gradient steps that put a teacher ahead before the run.", 0),
    "convergence.shift": number("Variance of the training optimum around the true one, times the curvature.", 0),
    "convergence.homogenisation.curvature": number("Curvature of the noise-free direction.", 0, above=True),
    "convergence.homogenisation.decay": number("EMA rate there.", 0, 0.999999),
    "convergence.homogenisation.steps_per_epoch": whole("Steps in an epoch there.", 1, 100_000),
    "convergence.homogenisation.at": several("Steps that its table shows.", whole("", 1, 1_000_000)),
    "convergence.collapse.runs": whole("Runs of each weight and start of the collapse experiment.", 1, 1_000_000),
    "convergence.collapse.sweep_runs": whole("Runs of each value of a sweep.", 1, 1_000_000),
    "convergence.collapse.steps": whole("Steps after which a run that has not left the plateau is stuck.", 1, 100_000),
    "convergence.collapse.lr": number("Learning rate there.", 0, above=True),
    "convergence.collapse.spread": number("Deviation of a start around the saddle.", 0, above=True),
    "convergence.collapse.noise": number("Deviation of the gradient noise there.", 0),
    "convergence.collapse.solved": number("Loss at which a run has left the plateau.", 0, 0.5, above=True),
    "convergence.collapse.near": number("Distance below which student and teacher count as homogenised.", 0),
    "convergence.collapse.weights": several("Weights of the teacher; the largest also decaying.", number("", 0)),
    "convergence.collapse.weight": number("Weight from which the sweeps vary one thing.", 0),
    "convergence.collapse.init_steps": several("Gradient steps on a teacher before the run.", whole("", 0), least=0),
    "convergence.sweeps.k": several("Values of k that are swept.", number("", 0)),
    "convergence.sweeps.lambda": several("Values of lambda.", number("", 0)),
    "convergence.sweeps.decay": several("EMA rates.", number("", 0, 0.999999)),
    "convergence.sweeps.init_steps": several("Steps of the initialisation.", whole("", 0)),
    "convergence.sweeps.noise": several("Factors on the noise.", number("", 0)),
    "data.name": text("Data set."),
    "data.root": text("Folder or file of the data set."),
    "data.download": switch("Fetch what is missing, where the set can be fetched."),
    "data.batch_size": whole("Training samples a batch and process.", 2),
    "data.eval_batch_size": whole("Evaluation samples a batch and process.", 1),
    "data.padding": whole(
        "Zeros around a training image before its crop; null: as the set defines.", 0, 256, optional=True
    ),
    "data.flip": switch("Mirror half of the training views; null: as the set defines.", optional=True),
    "data.mean": several(
        "Channel means of images in [0, 1]; null: as the set defines, or computed.", number("", 0, 1), optional=True
    ),
    "data.std": several("Channel deviations, likewise.", number("", 1e-6), optional=True),
    "data.validation": number("Share of the training images held out for validation.", 0, 0.9, above=True),
    "data.split_seed": whole("Seed of that choice.", 0),
    "data.selection": choice("What chooses epoch and peer.", "validation", "paper"),
    "data.residency": choice(
        "Where training images live; auto: by free memory, kept by a resume (the two augment with other draws).",
        "auto",
        "device",
        "workers",
    ),
    "data.workers": whole("Processes that read images, for workers.", 0),
    "data.drop_last": switch("Leave out a last, smaller training batch."),
    "data.limit": whole("Use only this many training images, stratified.", 2, optional=True),
    "data.label_noise.kind": choice(
        "Wrong labels among those trained on: any other class, or the next one.", "none", "symmetric", "pair"
    ),
    "data.label_noise.rate": number("Share of wrong labels; exact.", 0, 1),
    "data.label_noise.seed": whole("Seed of that choice.", 0),
    "data.image_size": whole("Side to which images are resized and cropped (image_folder).", 1, 2048),
    "data.cache_dir": text("Folder of the decoded images; null: beside them.", optional=True),
    "backbone.name": text("Network of each peer."),
    "backbone.views_per_pass": choice("Views through the trunk in one batch, or one after the other.", "all", "one"),
    "teacher.draw": choice(
        "First weights of the teacher: a draw of its own, or the student's.", "independent", "student"
    ),
    "teacher.start": choice("Rule of the first EMA updates.", "keep", "mean_teacher", "copy"),
    "teacher.init_steps": either(
        whole("Mini-batches of plain SGD on the teacher before training, or epochs of them.", 0), epochs("")
    ),
    "teacher.init_lr_scale": number("Their learning rate as a share of optimizer.lr.", 0),
    "teacher.init_weight_decay": number("Their weight decay.", 0),
    "teacher.decay": schedule("EMA rate, or a schedule {from epoch, or share of the run: rate}.", 0, 1),
    "teacher.decay_share": schedule("EMA time constant as a share of the run, or {from share: constant}.", 1e-9, 1e9),
    "teacher.batchnorm": choice("Running statistics of the teacher.", "own", "copy", "ema"),
    "teacher.update": choice("How the teacher learns.", "ema", "gradient", "frozen", "none"),
    "teacher.backbone": text(
        "Network of a teacher of its own (kd): a backbone, torchvision:NAME or timm:NAME; null: the student's.",
        optional=True,
    ),
    "teacher.weights": text(
        "File of its first weights: a checkpoint or a state_dict; null: drawn, or (kd) trained first.", optional=True
    ),
    "method.name": text("Method."),
    "method.peers": either(whole("Peers, or the backbone of each.", 1, 64), names("")),
    "method.sharing": choice("What peers given as a number share.", "trunk", "nothing"),
    "method.views": choice(
        "Augmented views of an image: one for each peer, one for all, or also one for each teacher.",
        "per_peer",
        "shared",
        "per_peer_and_teacher",
    ),
    "method.classifiers": choice("How the branches' classifiers start.", "own", "equal", "released"),
    "method.label_smoothing": number("Share of the label that is spread evenly over all classes.", 0, 0.99),
    "method.peer_lr_scale": numbers("Factor on the learning rate of each peer's own part; null: 1.", optional=True),
    "method.frozen_peers": several("Peers whose own part does not learn.", whole("", 0), least=0),
    "method.ce_weight": number("Weight of the labels.", 0),
    "method.temperature": number("Temperature T of the softened predictions.", 0, above=True),
    "method.weight": number("Weight of what is distilled, from the first step on.", 0),
    "method.targets": choice(
        "The other peers as targets (DML): each, or their mean logits.", "pairwise", "mean_logits"
    ),
    "method.target": choice("The one target of all peers (KDCL).", "naive", "linear", "min_logit", "mean"),
    "method.attention_divisor": whole("Queries and keys are this many times narrower than the features.", 1),
    "method.detach": switch("Keep the gradient out of the peers that teach."),
    "method.consistency": choice("Distance of student and teacher (Mean Teacher).", "mse", "kl"),
    "method.beta": number(
        "Weight of the labels, against 1 - beta of the other heads; null: both 1 (CL-ILR).", 0, 1, optional=True
    ),
    "method.rampup.scale": number("lambda: distillation weight at the end of the ramp-up.", 0),
    "method.rampup.epochs": number("a: length of the ramp-up, in whole epochs.", 0, optional=True),
    "method.rampup.share": number("Its length as a share of the run, read at every step.", 0, 1, optional=True),
    "method.rampup.form": choice("Form of the ramp-up.", "correct", "released"),
    "method.ensemble.decay": number("k in v(e) = exp(-k e), the decaying weight of the ensemble.", 0, optional=True),
    "method.ensemble.decay_share": number(
        "1/k as a share of the run, read at every step.", 0, above=True, optional=True
    ),
    "method.ensemble.cutoff": number("v at or below this is 0.", 0, 1),
    "method.ensemble.ramped": switch("Multiply the assembled term by the ramp-up."),
    "method.ensemble.space": choice("Space in which teachers are averaged.", "logits", "probabilities"),
    "method.ensemble.include_self": switch("Let a peer's own teacher take part in its mean."),
    "method.ensemble.weights": choice(
        "Pair of weights of assembled and individual teachers.", "complement", "decay", "ramp", "constant"
    ),
    "optimizer.lr": number("Learning rate.", 0),
    "optimizer.momentum": number("Momentum.", 0),
    "optimizer.nesterov": switch("Nesterov's form of it."),
    "optimizer.betas": several("Rates of the running means of the gradient and its square.", number("", 0, 1), least=2),
    "optimizer.weight_decay": number("Weight decay.", 0),
    "optimizer.*": anything("Argument of the optimizer."),
    "scheduler.interval": choice("How often the scheduler steps.", "epoch", "step"),
    "scheduler.milestones": numbers("Epochs, or (all below 1) shares of the run, at which the rate is multiplied."),
    "scheduler.gamma": number("Factor on the rate.", 0),
    "scheduler.T_max": number("Length of the cosine's fall, in epochs or steps as interval says."),
    "scheduler.eta_min": number("Rate at its end.", 0),
    "scheduler.*": anything("Argument of the scheduler."),
    "trainer.max_epochs": whole("Length of the run in epochs; -1: until max_steps or max_time.", -1),
    "trainer.max_steps": whole("Length of the run in optimizer steps; -1: no bound.", -1),
    "trainer.max_time": duration("Length of the run in time."),
    "trainer.accelerator": text("Kind of device: auto, cpu, gpu, mps, or another that Lightning knows."),
    "trainer.devices": devices("Devices of a machine."),
    "trainer.num_nodes": whole("Machines.", 1),
    "trainer.strategy": text("How devices work together: auto or ddp."),
    "trainer.sync_batchnorm": switch("BatchNorm over the batches of all processes."),
    "trainer.accumulate_grad_batches": whole("Batches an optimizer step.", 1),
    "trainer.check_val_every_n_epoch": whole("Epochs between validations.", 1),
    "trainer.gradient_clip_val": number("Largest gradient norm (or value); 0 or null: no bound.", 0, optional=True),
    "trainer.gradient_clip_algorithm": choice("What is limited.", "norm", "value"),
    "trainer.limit_train_batches": amount("Training batches an epoch."),
    "trainer.limit_val_batches": amount("Validation batches; 0: no validation."),
    "trainer.limit_test_batches": amount("Test batches."),
    "trainer.overfit_batches": amount("Train and validate on these batches only; 0: on all."),
    "trainer.num_sanity_val_steps": whole("Validation batches before the training; -1: all.", -1),
    "trainer.log_every_n_steps": whole("Steps between the rows of loggers that log steps.", 0),
    "trainer.deterministic": either(
        switch("Only deterministic operations; warn where there is none."), choice("", "warn")
    ),
    "trainer.detect_anomaly": switch("Look for NaN in the backward pass; slow."),
    "trainer.profiler": text("Lightning's profiler: simple, advanced or pytorch.", optional=True),
    "trainer.fast_dev_run": either(switch("One batch of everything, nothing written."), whole("", 1)),
    "trainer.process_timeout": number(
        "Minutes that a process waits for the others before the run ends.", 0, above=True
    ),
    "trainer.*": anything("Argument of Lightning's Trainer."),
    "precision.name": choice("Precision.", "fp32", "bf16", "fp16"),
    "precision.trainer": choice("Lightning's name of it.", "32-true", "bf16-mixed", "16-mixed"),
    "precision.matmul": choice("Precision of float32 matrix products.", "highest", "high", "medium"),
    "execution.name": choice("How a step is executed.", "auto", "eager", "compile", "cuda_graph"),
    "execution.compile": switch("Capture compiled networks (cuda_graph and auto)."),
    "execution.threads": whole("CPU threads; null: as torch chooses.", 1, 1024, optional=True),
    "execution.channels_last": either(
        switch("Channels-last memory layout; auto: on the CPU, and on CUDA in bf16 or fp16."), choice("", "auto")
    ),
    "execution.fused_optimizer": either(
        switch("One kernel for the optimizer's step; auto: on CUDA, where the optimizer has one."), choice("", "auto")
    ),
    "execution.keep_memory": either(
        switch("Freed memory stays with the process for the next step; auto: on the CPU."), choice("", "auto")
    ),
    "logger.extra.*": anything("A logger of your own, by _target_."),
    "callbacks.monitor": text("Metric that makes a checkpoint the best; higher is better."),
    "callbacks.checkpoint_every_n_epochs": whole("Epochs between checkpoints.", 1),
    "callbacks.checkpoint_every_n_steps": whole(
        "Optimizer steps between checkpoints within an epoch.", 1, optional=True
    ),
    "callbacks.early_stopping": whole("Stop after this many validations without improvement.", 1, optional=True),
    "callbacks.diversity": choice(
        "What is logged of how far apart the networks are: means over pairs of peers, each pair too, nothing.",
        "means",
        "pairs",
        "none",
    ),
    "callbacks.on_collapse": choice(
        "What follows a collapse; after a loss that is no number, warn ends the run too.", "warn", "stop", "restore"
    ),
    "callbacks.restore.lr_scale": number("Factor on the learning rate at each restoration.", 0, 1, above=True),
    "callbacks.restore.times": whole("Restorations before the run ends.", 1),
    "callbacks.one_class_share": number(
        "Share of a peer's predictions from which one class counts as nearly all.", 0, 1, above=True
    ),
    "callbacks.collapse_grace": number(
        "Share of the run in which a peer that was never better may be at chance.", 0, 1
    ),
    "callbacks.progress": choice("Progress display.", "auto", "bar", "lines", "none"),
    "callbacks.extra.*": anything("A callback of your own, by _target_."),
}
"""Every key, in the order of the groups. `x.*` describes the keys of x that have no entry of their own."""

OPEN = ("trainer", "optimizer", "scheduler", "logger.extra", "callbacks.extra")
"""Nodes whose further keys are arguments that another library checks."""


def describe(key: str) -> Key | None:
    """Find the description of a key, None if there is none."""
    if key in KEYS:
        return KEYS[key]
    if key in _OPEN_LEAVES:
        return KEYS[f"{key}.*"]
    parts = key.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        found = KEYS.get(".".join(parts[:depth]) + ".*")
        if found is not None:
            return found
    return None


# Of a resumed run only these may change: they do not alter what is computed (device and execution: but for rounding).
RESUMABLE = (
    "task",
    "resume",
    "trust",
    "trainer",
    "execution",
    "logger",
    "callbacks.progress",
    "data.root",
    "data.download",
    "data.workers",
)
DEVICE_KEYS = ["accelerator", "devices", "strategy", "num_nodes", "profiler", "log_every_n_steps", "_target_"]
DEVICE_KEYS += ["process_timeout"]


def may_change(key: str) -> bool:
    """Tell whether a resumed run may have another value of `key` than it began with."""
    if key.startswith("trainer."):
        return key.split(".")[1] in DEVICE_KEYS
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in RESUMABLE)


def leaves(values: Values, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk the keys of a resolved configuration down to where a description begins."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and path not in KEYS and path not in _OPEN_LEAVES:
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


_OPEN_LEAVES = frozenset(key[:-2] for key in KEYS if key.endswith(".extra.*"))


# ---------------------------------------------------------------------- checks


def missing_extra(choice: str, extra: str) -> str | None:
    """Say what is not installed that `choice` needs, and how it is; None if nothing."""
    for package in EXTRAS[extra]:
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:  # of a package that it lies in
            found = None
        if found is None:
            return f'{choice} needs {package}, which is not installed: pip install "dkel-lightning[{extra}]".'
    return None


def check(values: Values) -> None:
    """Raise one ConfigError that names every mistake in a resolved configuration."""
    mistakes = [*_value_mistakes(values)]
    if not mistakes:
        mistakes = [*_contradictions(values)]
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def warnings(values: Values) -> list[str]:
    """Say what is allowed but hardly meant."""
    epochs = values["trainer"]["max_epochs"]
    found = []
    length = values["method"].get("rampup", {}).get("epochs")
    if length is not None and 0 < epochs <= length:
        found.append(
            f"The ramp-up takes {length:g} epochs and the run only {epochs}: distillation stays weak. "
            "Set method.rampup.epochs, or method.rampup.epochs=null method.rampup.share=0.27."
        )
    noise = values["data"].get("label_noise", {})
    if noise.get("kind") == "pair" and noise["rate"] >= 0.5:
        found.append(f"data.label_noise.rate={noise['rate']:g}: the wrong class of a pair is as frequent as the right.")
    if values["data"]["selection"] == "paper":
        found.append(
            "data.selection=paper: epoch and peer are chosen on the test set; use its figures to compare only."
        )
    return found


def _value_mistakes(values: Values) -> Iterator[str]:
    for group in ("logger", "callbacks"):
        node = values.get(group)
        if isinstance(node, Mapping) and not isinstance(node.get("extra"), Mapping):
            yield f"{group}.extra must hold entries name: {{_target_: ...}}."
    own_data = values["data"].get("_target_") is not None
    for key, value in leaves(values):
        if key.rsplit(".", 1)[-1] in ("_target_", "_partial_") or (own_data and key.startswith("data.")):
            continue
        description = describe(key)
        if description is None and (below := _keys_below(key)):
            yield f"{key} must hold its keys ({', '.join(below)}), got {value!r}."
        elif description is None:
            # Methods and data sets of the user's own bring their own keys, which whoever builds them checks.
            if not key.startswith(("method.", "data.")):
                yield unknown_key(key, KEYS)
        elif (fault := description.fault(value)) is not None:
            yield f"{key} {fault}".rstrip(".") + ("" if fault.endswith("?") else ".")


def _keys_below(node: str) -> list[str]:
    return [key[len(node) + 1 :] for key in KEYS if key.startswith(f"{node}.")]


def _contradictions(values: Values) -> Iterator[str]:
    method, teacher, trainer, data = (values[group] for group in ("method", "teacher", "trainer", "data"))
    name = method["name"]
    peers = method["peers"] if isinstance(method["peers"], int) else len(method["peers"])
    least = MINIMUM_PEERS.get(name, 1)
    if peers < least:
        yield f"method.peers is {peers}, and {name} needs at least {least}: raise it, or choose method=baseline."
    separate = method.get("sharing") == "nothing" or not isinstance(method["peers"], int)
    if name in NEED_A_TRUNK and separate:
        yield f"{name} works on a trunk that its peers share: give method.peers as a number, and method.sharing=trunk."
    if method.get("views") == "per_peer_and_teacher" and name in MINIMUM_PEERS | dict.fromkeys(("baseline", "kd")):
        yield f"method.views=per_peer_and_teacher belongs to {SEPARATE_TEACHER_VIEWS[0]}: choose per_peer or shared."
    if teacher["update"] == "none" and "decay" in teacher:
        yield "teacher.update=none: choose teacher=none, which leaves out the other keys too."
    elif teacher["update"] == "none":
        if name in NEED_A_TEACHER:
            cure = "frozen" if name in FOREIGN_TEACHER else "independent, copy or follow"
            yield f"teacher=none, but method={name} needs a teacher: choose teacher={cure}."
        if values["deploy"]["network"] == "teacher":
            yield "deploy.network=teacher, but teacher=none: choose deploy.network=student."
    elif "decay" not in teacher:
        yield f"teacher.update={teacher['update']}, but teacher=none has no other key: choose another teacher=."
    else:
        yield from _one_of_two("teacher", teacher, "decay", "decay_share")
        yield from _teacher_contradictions(name, teacher)
    yield from _peer_contradictions(method, peers)
    if "rampup" in method:
        yield from _one_of_two("method.rampup", method["rampup"], "epochs", "share")
    if "ensemble" in method:
        yield from _one_of_two("method.ensemble", method["ensemble"], "decay", "decay_share")
    peer = values["deploy"]["peer"]
    # Of a checkpoint its own peers count, which whoever loads it knows.
    if values["checkpoint"] is None and isinstance(peer, int) and peer >= peers:
        yield f"deploy.peer={peer}, but {peers} peers are numbered 0 to {peers - 1}."
    if values["deploy"]["network"] == "ensemble" and peer not in ("auto", "best"):
        yield f"deploy.peer={peer} means nothing with deploy.network=ensemble: leave it out."
    if values["deploy"]["network"] == "ensemble" and peers < 2:
        yield "deploy.network=ensemble needs at least 2 peers: raise method.peers."
    if (data["mean"] is None) != (data["std"] is None):
        yield "data.mean and data.std belong together: give both or neither."
    noise = data.get("label_noise", {"kind": "none", "rate": 0})
    if noise["kind"] == "none" and noise["rate"] > 0:
        yield f"data.label_noise.rate={noise['rate']:g} without a kind: choose data.label_noise.kind=symmetric or pair."
    yield from _device_contradictions(values, trainer)
    # A configuration that was saved before there were loggers to choose lacks the group.
    for node in values.get("logger", {"extra": {}})["extra"].values():
        extra = TRACKERS.get(str(node.get("_target_")) if isinstance(node, Mapping) else "")
        fault = None if extra is None else missing_extra(f"logger={extra}", extra)
        yield from [] if fault is None else [fault]
    yield from registry.of(values).contradictions(values)


def _teacher_contradictions(name: str, teacher: Values) -> Iterator[str]:
    if name in FOREIGN_TEACHER and teacher["update"] == "ema":
        yield f"teacher.update=ema, but the teacher of method={name} is a network of its own: choose teacher=frozen."
    if name in FOREIGN_TEACHER and teacher["update"] == "frozen" and teacher.get("init_steps"):
        yield f"teacher.init_steps={teacher['init_steps']}, but method={name} trains its teacher first: set it to 0."
    if name in FOREIGN_TEACHER and teacher.get("draw") == "student":
        yield f"teacher.draw=student, but the teacher of method={name} is a network of its own: choose independent."
    shipped = name in NEED_A_TEACHER or name == "baseline"
    if shipped and name not in FOREIGN_TEACHER and teacher.get("backbone") is not None:
        yield f"teacher.backbone is set, but the teacher of method={name} has the student's form: leave it out."


def _peer_contradictions(method: Values, peers: int) -> Iterator[str]:
    scale, frozen = method.get("peer_lr_scale"), method.get("frozen_peers") or []
    if scale is not None and len(scale) != peers:
        yield f"method.peer_lr_scale has {len(scale)} entries for {peers} peers: give one for each."
    if scale is not None and min(scale, default=1) <= 0:
        yield "method.peer_lr_scale must be above 0; a peer that shall not learn belongs into method.frozen_peers."
    if any(peer not in range(peers) for peer in frozen) or len(set(frozen)) < len(frozen):
        yield f"method.frozen_peers is {frozen}: name each once, of 0 to {peers - 1}."
    elif len(frozen) == peers:
        yield "method.frozen_peers names all peers: at least one must learn."


def _device_contradictions(values: Values, trainer: Values) -> Iterator[str]:
    precision = values["precision"]
    if precision["trainer"] != PRECISIONS[precision["name"]]:
        yield f"precision.trainer={precision['trainer']} belongs to another precision=: choose that, and leave it out."
    if values["precision"]["name"] == "fp16" and trainer["accelerator"] == "cpu":
        yield "precision=fp16 needs a GPU: choose precision=bf16 or fp32 on the CPU."
    endless = trainer["max_epochs"] in (-1, None) and trainer["max_steps"] == -1 and not trainer.get("max_time")
    if endless:
        yield "The run has no end: set trainer.max_epochs, trainer.max_steps or trainer.max_time."
    for key in ("max_epochs", "max_steps", "limit_train_batches"):
        if trainer[key] == 0:
            yield f"trainer.{key} is 0: nothing would be trained."
    if values["callbacks"]["early_stopping"] is not None and trainer["limit_val_batches"] == 0:
        yield "callbacks.early_stopping needs validation, and trainer.limit_val_batches is 0."
    if trainer["limit_test_batches"] == 0:
        yield "trainer.limit_test_batches is 0: nothing would be tested."
    yield from _execution_contradictions(values)
    yield from _scheduler_contradictions(values["scheduler"], trainer)


def _execution_contradictions(values: Values) -> Iterator[str]:
    execution, trainer = values["execution"], values["trainer"]
    if execution["name"] == "eager" and execution["compile"]:
        yield "execution.compile=true means nothing in eager execution: choose execution=compile, cuda_graph or auto."
    mixed = values["precision"]["name"] != "fp32"
    if execution["fused_optimizer"] is True and mixed and trainer["gradient_clip_val"]:
        yield (
            "execution.fused_optimizer=true cannot be clipped in a mixed precision (Lightning refuses it): "
            "set it to auto, or trainer.gradient_clip_val to null."
        )


def _scheduler_contradictions(scheduler: Values, trainer: Values) -> Iterator[str]:
    milestones = scheduler.get("milestones")
    by_step = scheduler.get("interval") == "step"
    if milestones is not None:
        shares = [0 < milestone < 1 for milestone in milestones]
        whole_numbers = [milestone >= 1 and milestone == int(milestone) for milestone in milestones]
        if not (all(shares) or all(whole_numbers)) or sorted(set(milestones)) != list(milestones):
            yield f"scheduler.milestones is {milestones}: give rising epochs (150, 225) or rising shares (0.5, 0.75)."
        elif by_step and milestones and all(shares):
            yield "scheduler.interval=step counts milestones in steps: give scheduler.milestones in steps."
    if milestones and 0 < milestones[0] < 1 and trainer["max_steps"] != -1:
        yield "scheduler.milestones are shares of max_epochs, and trainer.max_steps is set: give milestones in epochs."
    if (
        not by_step
        and scheduler.get("T_max") == trainer["max_epochs"]
        and -1 not in (trainer["max_epochs"], trainer["max_steps"])
    ):
        yield (
            "scheduler.T_max is the length of trainer.max_epochs, and trainer.max_steps is set: set scheduler.T_max to "
            "the epochs that the run lasts, or scheduler.interval=step and scheduler.T_max to its steps."
        )
    if scheduler.get("T_max") is not None and scheduler["T_max"] < 1:
        yield f"scheduler.T_max is {scheduler['T_max']}: set it to the length of the run in {scheduler['interval']}s."
    if by_step and scheduler.get("T_max") is not None and scheduler["T_max"] == trainer["max_epochs"]:
        yield "scheduler.interval=step counts T_max in steps: set scheduler.T_max to the steps of the run."


def _one_of_two(where: str, node: Values, first: str, second: str) -> Iterator[str]:
    given = [key for key in (first, second) if node.get(key) is not None]
    if len(given) == 2:
        yield f"{where}.{first} and {where}.{second} exclude each other, and both are given: set one to null."
    if not given:
        yield f"One of {where}.{first} and {where}.{second} must be given, and both are null."


def unknown_key(key: str, known: Mapping[str, Any] | list[str]) -> str:
    """Say that a key does not exist, with the nearest ones and its siblings."""
    group = key.rsplit(".", 1)[0] + "." if "." in key else ""
    siblings = sorted(name for name in known if name.startswith(group) and not name.endswith("*"))
    groups = {name.split(".")[0] for name in known}
    near = difflib.get_close_matches(key, list(known) if group else [*groups, *known], n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]}?" if near else ""
    listed = (
        f" Keys of {group[:-1]}: {', '.join(name[len(group) :] for name in siblings)}." if group and siblings else ""
    )
    return f"Unknown key {key}.{hint}{listed}"


def unknown_choice(group: str, name: str, options: list[str]) -> str:
    """Say that a group has no such option."""
    near = _did_you_mean(name, options)
    return f"Unknown choice {group}={shortened(name)}.{near} Choices: {', '.join(sorted(options))}."


def shortened(text: str) -> str:
    """Keep a message readable that repeats what was typed."""
    return text if len(text) <= 200 else f"{text[:200]}..."


def _did_you_mean(name: str, options: Any) -> str:
    near = difflib.get_close_matches(name, list(options), n=1)
    return f" Did you mean {near[0]}?" if near else ""
