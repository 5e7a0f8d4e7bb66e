"""Every task in one row: what does it, what it needs and refuses, where it writes, and whether it may sweep.

A new task is a row here, with its settings if it has any, and a file beside this one; outside of this library a `Task`
that is registered. Imports neither torch nor Lightning: the rows are read before anything heavy is.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Annotated, Any

from dkel_lightning.app.config import kinds
from dkel_lightning.app.tasks import requirements
from dkel_lightning.app.tasks.requirements import Values
from dkel_lightning.errors import ConfigError
from dkel_lightning.policies.settings import DualPolicySettings
from dkel_lightning.settings.declarations import Settings, at
from dkel_lightning.settings.keys import RESUMABLE, Key, choice, number, text, unknown_choice, whole
from dkel_lightning.studies.settings import ConvergenceSettings, GeometrySettings

_HERE = "dkel_lightning.app.tasks"


class Place(Enum):
    """Where a task writes, unless hydra.run.dir names a folder."""

    OWN = "own"
    """A folder of its time under outputs/, claimed before anything is written."""
    SHARED = "shared"
    """The folder that its settings name, which it goes on with."""
    BESIDE_CHECKPOINT = "beside the checkpoint"
    """A folder in the run of the checkpoint."""


@dataclass(frozen=True)
class Task:
    """What the command line knows of a task.

    Attributes:
        name: as in `task=NAME`.
        meaning: what it is for, in a sentence.
        function: what does it, as `module:function`: takes a Run (and a plan, if it `plans`) and gives its result.
        settings: what it can be told, under the node that they name; None: nothing.
        place: where it writes.
        folder: begins the name of its folder in a checkpoint's run; the checkpoint's name follows.
        owner: gives what of the settings decides how it ends, as `module:function`: the same again takes the same
            folder, and anything else one beside it. None: such a folder is written over.
        needs: keys without which it has nothing to do, and of what their PATH is.
        instead: what to give in place of a `resume=` or `checkpoint=` that means nothing to it.
        mistakes: finds what else in the settings does not fit it.
        no_sweep: why it is no job of a sweep; empty: it may be one.
        named_after_itself: whether its run is named after it rather than after the experiment.
        plans: whether the command line composes a plan of several trainings for it.
        reads_exports: whether its checkpoint may be an exported file.
        reads_data: whether it reads the images of the checkpoint's run.
        resumable: whether its runs can be gone on with by `resume=`.
    """

    name: str
    meaning: str
    function: str
    settings: type[Settings] | None = None
    place: Place = Place.OWN
    folder: str = ""
    owner: str | None = None
    needs: Mapping[str, str] = field(default_factory=dict)
    instead: str = "leave it out"
    mistakes: Callable[[Values], Iterable[str]] = lambda _: ()
    no_sweep: str = ""
    named_after_itself: bool = False
    plans: bool = False
    reads_exports: bool = False
    reads_data: bool = False
    resumable: bool = False

    @property
    def reads_checkpoint(self) -> bool:
        """Whether `checkpoint=` names what it works on."""
        return "checkpoint" in self.needs

    def refusal(self, key: str) -> str:
        """Say that `resume` or `checkpoint` means nothing to it."""
        return f"task={self.name} takes no {key}=: {self.instead}."

    def contradictions(self, values: Values) -> Iterator[str]:
        """Say what it lacks, and what does not go with it."""
        for key, what in self.needs.items():
            if at(values, key) is None:
                yield f"task={self.name} needs {key}=PATH of {what}."
        for key, taken in (("resume", self.resumable), ("checkpoint", self.reads_checkpoint)):
            if values[key] is not None and not taken:
                yield self.refusal(key)
        yield from self.mistakes(values)


def load(function: str) -> Callable[..., Any]:
    """Import what a row names as `module:function`."""
    found: Callable[..., Any] = pkgutil.resolve_name(function)
    return found


# ---------------------------------------------------------------------- what tasks can be told


@dataclass(frozen=True)
class CompareSettings(Settings, node="compare"):
    """task=compare."""

    methods: Annotated[
        tuple[Any, ...], kinds.variants("What is compared: methods, controls, or labels with overrides of their own.")
    ] = ("dkel", "pcl", "baseline", "baseline_smoothing", "baseline_long")
    seeds: Annotated[tuple[int, ...], kinds.seeds("Seeds with which each is trained.")] = (0, 1, 2)
    reference: Annotated[str | None, text("Label that the others are compared to; null: the first.")] = None
    compute: Annotated[
        str, choice("Length of a label: its own epochs, or as long as the reference took.", "own", "reference")
    ] = "own"
    folder: Annotated[str, text("Folder of the comparison; an earlier one is gone on with.")] = (
        "outputs/${name}/compare_${now:%Y-%m-%d_%H-%M-%S}"
    )


@dataclass(frozen=True)
class ExportSettings(Settings, node="export"):
    """task=export."""

    format: Annotated[
        str, choice("Format of the exported network.", "original", "state_dict", "safetensors", "torch_export", "onnx")
    ] = "safetensors"
    to: Annotated[
        str | None, text("Folder of the export; null: <member>_<format> in export_<checkpoint>/ of the run.")
    ] = None
    hub: Annotated[
        str | None, text("Repository of the Hugging Face Hub, user/name, to which the folder is sent; extra hub.")
    ] = None
    images: Annotated[int, whole("Test images on which file and training network are compared.", 1, 1_000_000)] = 256
    tolerance: Annotated[
        float,
        number(
            "Largest difference of two logits, relative to the largest logit where that exceeds 1.", 0, 1, above=True
        ),
    ] = 0.0001
    repeats: Annotated[int, whole("Repeats of each measurement of time; 0: none is made.", 0, 1_000_000)] = 20


@dataclass(frozen=True)
class PredictSettings(Settings, node="predict"):
    """task=predict."""

    images: Annotated[str | None, text("Image file, or folder of images, to classify.")] = None
    top: Annotated[int, whole("Most probable classes that are named of each image.", 1, 1_000_000)] = 5
    to: Annotated[str | None, text("Folder of predictions.csv; null: the run's.")] = None
    batch_size: Annotated[int, whole("Images classified at once.", 1, 1_000_000)] = 64


# ---------------------------------------------------------------------- the tasks

_ROWS = (
    Task(
        "train",
        "Train, then test the last and the best checkpoint.",
        f"{_HERE}.train:train",
        instead="choose task=evaluate, export or predict, or go on with a run by resume=PATH",
        resumable=True,
    ),
    Task(
        "evaluate",
        "Test the checkpoint given by checkpoint=, on the data of the run that wrote it.",
        f"{_HERE}.evaluate:evaluate",
        place=Place.BESIDE_CHECKPOINT,
        folder="evaluation",
        owner=f"{_HERE}.evaluate:settings",
        needs={"checkpoint": "a .ckpt file"},
        reads_data=True,
    ),
    Task(
        "export",
        "Write the deployed network of checkpoint= as files for use elsewhere, checked against it.",
        f"{_HERE}.export:export_checkpoint",
        ExportSettings,
        Place.BESIDE_CHECKPOINT,
        "export",
        needs={"checkpoint": "a .ckpt file"},
        reads_data=True,
    ),
    Task(
        "predict",
        "Name the classes of images with checkpoint=, a checkpoint or an exported file.",
        f"{_HERE}.predict:predict",
        PredictSettings,
        Place.BESIDE_CHECKPOINT,
        "predict",
        needs={
            "checkpoint": "a .ckpt file, or of what task=export wrote",
            "predict.images": "an image file or a folder of images",
        },
        named_after_itself=True,
        reads_exports=True,
    ),
    Task(
        "compare",
        "Train several methods with several seeds on one protocol, and end in one table.",
        f"{_HERE}.compare:compare",
        CompareSettings,
        Place.SHARED,
        instead="go on with a comparison by compare.folder=PATH",
        mistakes=requirements.of_comparison,
        no_sweep="runs its methods and seeds itself: leave out -m, or the preset that sweeps",
        plans=True,
    ),
    Task(
        "geometry",
        "Student and teacher as two points, in a bowl and between two mirror optima: figures and tables.",
        f"{_HERE}.studies:geometry",
        GeometrySettings,
        named_after_itself=True,
    ),
    Task(
        "convergence",
        "Simulate when and why teachers help, in a noisy quadratic model, and when training collapses.",
        f"{_HERE}.studies:convergence",
        ConvergenceSettings,
        named_after_itself=True,
    ),
    Task(
        "dual_policy",
        "Two reinforcement learners in one environment that teach each other; needs the extra `rl`.",
        f"{_HERE}.studies:dual_policy",
        DualPolicySettings,
        named_after_itself=True,
    ),
)

SHIPPED: Mapping[str, Task] = {task.name: task for task in _ROWS}
"""The tasks of this library by name, in the order in which the documentation lists them."""
TASKS: dict[str, Task] = dict(SHIPPED)
"""These, and those of the user's own that have been registered."""


def register(task: Task) -> None:
    """Make a task a choice of the command line; called in a module that `modules=[...]` names.

    Raises:
        ConfigError: one that ships has this name.
    """
    if task.name in SHIPPED:
        raise ConfigError(f"There is a task {task.name} already: give yours another name.")
    TASKS[task.name] = task


def _is_task() -> Key:
    """Describe the name of a task, also of one that is registered later."""
    shipped = choice("What to do.", *SHIPPED)
    return replace(
        shipped, check=lambda value: None if isinstance(value, str) and value in TASKS else shipped.check(value)
    )


@dataclass(frozen=True)
class TaskSettings(Settings, node="task", resumable=True):
    """What to do."""

    name: Annotated[str, _is_task(), RESUMABLE] = "train"


def of(values: Values) -> Task:
    """Give the task that the settings name.

    Raises:
        ConfigError: there is none of that name.
    """
    name = values["task"]["name"]
    if name not in TASKS:
        raise ConfigError(unknown_choice("task", name, TASKS))
    return TASKS[name]
