"""Every task in one row: what does it, what it needs and refuses, where it writes, and whether it may sweep.

A new task is a row here, a file beside this one and `conf/task/<name>.yaml`. Imports neither torch nor Lightning: the
rows are read before anything heavy is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from dkel_lightning.app.tasks import requirements
from dkel_lightning.app.tasks.requirements import Values

_HERE = "dkel_lightning.app.tasks"


class Place(Enum):
    """Where a task writes, unless hydra.run.dir names a folder."""

    OWN = "own"
    """A folder of its time under outputs/, claimed before anything is written."""
    SHARED = "shared"
    """The folder that its settings name, which it goes on with."""
    BESIDE_CHECKPOINT = "beside the checkpoint"
    """A folder in the run of the checkpoint."""
    REPORTED = "reported"
    """The folder that it reads."""


def nothing(_: Values) -> Iterator[str]:
    """Find no mistake."""
    yield from ()


@dataclass(frozen=True)
class Task:
    """What the command line knows of a task.

    Attributes:
        name: as in `task=NAME`.
        function: what does it, as `module:function`: takes a Run (and a plan, if it `plans`) and gives its result.
        place: where it writes.
        folder: begins the name of its folder in a checkpoint's run; the checkpoint's name follows.
        owner: gives what of the settings decides how it ends, as `module:function`: the same again takes the same
            folder, and anything else one beside it. None: such a folder is written over.
        needs: keys without which it has nothing to do, and of what their PATH is.
        refuses: of `resume` and `checkpoint`, those that mean nothing to it.
        refusal: what is said then.
        mistakes: finds what else in the settings does not fit it.
        no_sweep: why it is no job of a sweep; empty: it may be one.
        named_after_itself: whether its run is named after it rather than after the experiment.
        plans: whether the command line composes a plan of several trainings for it.
        reads_exports: whether its checkpoint may be an exported file.
        resumable: whether its runs can be gone on with by `resume=`.
        keeps_memory: whether `execution.keep_memory` is for it.
    """

    name: str
    function: str
    place: Place = Place.OWN
    folder: str = ""
    owner: str | None = None
    needs: Mapping[str, str] = field(default_factory=dict)
    refuses: tuple[str, ...] = ()
    refusal: str = ""
    mistakes: Callable[[Values], Iterator[str]] = nothing
    no_sweep: str = ""
    named_after_itself: bool = False
    plans: bool = False
    reads_exports: bool = False
    resumable: bool = False
    keeps_memory: bool = False

    @property
    def reads_checkpoint(self) -> bool:
        """Whether `checkpoint=` names what it works on."""
        return "checkpoint" in self.needs

    def contradictions(self, values: Values) -> Iterator[str]:
        """Say what it lacks, and what does not go with it."""
        for key, what in self.needs.items():
            if _select(values, key) is None:
                yield f"task={self.name} needs {key}=PATH of {what}."
        if any(values[key] is not None for key in self.refuses):
            yield self.refusal
        yield from self.mistakes(values)


def load(function: str) -> Callable[..., Any]:
    """Import what a row names as `module:function`."""
    module, _, name = function.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _select(values: Values, key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        found = found[part]
    return found


_ROWS = (
    Task(
        "train",
        f"{_HERE}.train:train",
        refuses=("checkpoint",),
        refusal="checkpoint= belongs to task=evaluate, export or predict; to go on with a run use resume=PATH.",
        resumable=True,
        keeps_memory=True,
    ),
    Task(
        "evaluate",
        f"{_HERE}.evaluate:evaluate",
        Place.BESIDE_CHECKPOINT,
        "evaluation",
        owner=f"{_HERE}.evaluate:settings",
        needs={"checkpoint": "a .ckpt file"},
        keeps_memory=True,
    ),
    Task(
        "export",
        f"{_HERE}.export:export_checkpoint",
        Place.BESIDE_CHECKPOINT,
        "export",
        needs={"checkpoint": "a .ckpt file"},
    ),
    Task(
        "predict",
        f"{_HERE}.predict:predict",
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
        f"{_HERE}.compare:compare",
        Place.SHARED,
        refuses=("resume", "checkpoint"),
        refusal="resume= and checkpoint= belong to single runs: go on with a comparison by compare.folder=PATH.",
        mistakes=requirements.of_comparison,
        no_sweep="runs its methods and seeds itself: leave out -m, or the preset that sweeps",
        plans=True,
        keeps_memory=True,
    ),
    Task(
        "replay",
        f"{_HERE}.replay:replay",
        Place.BESIDE_CHECKPOINT,
        "replay",
        needs={"checkpoint": "a collapse/step_<n>.pt"},
    ),
    Task(
        "report",
        f"{_HERE}.report:report",
        Place.REPORTED,
        refuses=("resume", "checkpoint"),
        refusal="task=report reads the folder of a run: give it as report.of=PATH, without resume= and checkpoint=.",
        no_sweep="reads what runs have written: leave -m out, and give the folder of a sweep",
    ),
    Task(
        "benchmark",
        f"{_HERE}.benchmark:benchmark",
        refuses=("resume", "checkpoint"),
        refusal="task=benchmark begins anew: leave resume= and checkpoint= out.",
        mistakes=requirements.of_benchmark,
        no_sweep="lets its sides take turns by itself: leave -m out, and run it once a setting",
        named_after_itself=True,
    ),
    Task("geometry", f"{_HERE}.geometry:geometry", named_after_itself=True),
    Task("convergence", f"{_HERE}.convergence:convergence", named_after_itself=True),
)

TASKS: Mapping[str, Task] = {task.name: task for task in _ROWS}
"""The tasks by name, in the order in which the documentation lists them."""


def of(values: Values) -> Task:
    """Give the task that checked settings name."""
    return TASKS[values["task"]["name"]]
