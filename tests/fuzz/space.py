"""The configurations that are tried: a choice in each group, then keys whose values fit, lie on the edge, or do not.

Values are derived from what `schema.KEYS` says of a key, so a new key is tried without a line here. `BOUNDED` holds
the keys of which some fitting value would take hours, all memory, or further processes.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from dkel_lightning.app.config import choices, schema
from dkel_lightning.settings.methods import PRESETS
from tests.compose import compose

NAN, INF = float("nan"), float("inf")
POOL: tuple[Any, ...] = (
    *(0, 1, 2, 3, 7, -1, 10**9, 0.0, 0.5, 1.0, 2.0, 1e-9, 1e-3, 0.05, 0.9, 0.999, -0.1, 1.5, 1e30, NAN, INF, -INF),
    *(None, True, False, "", " ", "x", "1", "auto", "ünï", "a b", "it's", "1epochs", "0.5 epochs"),
    *([], [0], [1], [0, 1], [0.5, 0.75], [1, 2], [2, 1], [0.1, 0.1, 0.1], [1.0, 0.5], ["x"], [None], [NAN]),
    *({}, {0: 0.5}, {0: 0.5, 1: 0.9}, {0: 0.9, 0.5: 0.1}, {1: 0.5}, {"x": 1}, {0: None}),
)
"""What is tried for every key, if only to be refused."""

EXTREMES: tuple[Any, ...] = (
    *(1e308, -1e308, 1e-308, 5e-324, 1e38, 1e30, 1e-30, 1e12, 1e9, 1e-9, 0, 0.0, -0.0, -1, -1e-9),
    *(10**20, 10**400, 2**63, 2**63 - 1, 2**31, 10**9, 100_000),
)
"""Numbers that a key may take for a slip of the finger, and a float or a machine's whole number not at all."""

INTERNALS = re.compile(
    r"NoneType|has no attribute|unsupported operand|not supported between|Traceback|object is not|positional argument"
    r"|can't convert|cannot be interpreted|<class |<function |0x[0-9a-f]{6}"
)
"""Words of Python for Python's programmers: who reads them learns nothing of what to change."""

MONITORS = ("val/acc", "val/acc/student_0", "val/nll/student_mean", "val/acc/teacher_0", "val/acc/ensemble", "acc")

BOUNDED: Mapping[str, tuple[Any, ...]] = {
    "data.download": (False,),
    "data.workers": (0, 0, 1),
    "data.image_size": (1, 2, 8, 17),
    "data.eval_batch_size": (1, 2, 100, 10**6),
    "teacher.init_steps": (0, 1, 3, "0.5epochs", "1 epoch", "0epochs"),
    "teacher.backbone": (None, "resnet8", "vgg16", "resnet9", "torchvision:nothing", "timm:nothing"),
    "teacher.weights": (None, "nowhere.ckpt"),
    "teacher.training_epochs": (None, 1, 2),
    "method.statistics_batches": (0, 1, 3),
    "method.fit_batches": (1, 3),
    "backbone.weights": (None, "nowhere.ckpt"),
    "method.peers": (1, 2, 3, 4, ["resnet8"], ["resnet8"] * 2, ["resnet8"] * 3, ["resnet8", "nothing"], ["vgg16"] * 2),
    "trainer.max_epochs": (1, 1, 2, 0, -1),
    "trainer.max_steps": (-1, 1, 2, 3),
    "trainer.max_time": (None, "00:00:00:30", {"seconds": 30}),
    "trainer.accelerator": ("auto", "cpu", "cpu", "gpu", "tpu", "x"),
    "trainer.devices": (1, "1", "auto", [0], "0,"),
    "trainer.num_nodes": (1,),
    "trainer.strategy": ("auto", "x", "ddp_fork", "fsdp", "deepspeed"),
    "trainer.profiler": (None, "simple"),
    "trainer.limit_train_batches": (1, 2, 3, 0.5, 1.0, 1e-3, 10**9, 0),
    "trainer.limit_val_batches": (1, 2, 0.5, 1.0, 1e-3, 0),
    "trainer.limit_test_batches": (1, 2, 0.5, 1.0, 1e-3, 0),
    "trainer.overfit_batches": (0, 0.0, 1, 0.5, 1e-3),
    "trainer.num_sanity_val_steps": (0, 1, -1, 2),
    "execution.threads": (None, 1, 2),
    "execution.name": ("eager",),
    "callbacks.monitor": MONITORS,
    "callbacks.progress": ("none", "lines"),
}
"""Values that are tried in place of the fitting ones of the pool."""

FIXED = {
    "trainer.max_epochs": 1,
    "trainer.limit_train_batches": 2,
    "trainer.limit_val_batches": 1,
    "trainer.limit_test_batches": 1,
    "callbacks.progress": "none",
    "data.workers": 0,
    "data.batch_size": 8,
    "data.eval_batch_size": 16,
}
"""What keeps a combination small, unless it is drawn."""

EXTRA = (
    *("+optimizer.maximize=true", "+optimizer.nothing=1", "+scheduler.last_epoch=3", "+scheduler.verbose=1"),
    *("+trainer.min_epochs=1", "+trainer.benchmark=true", "+trainer.val_check_interval=1"),
    *("+trainer.val_check_interval=0.5", "+trainer.val_check_interval=100"),
    *("+trainer.reload_dataloaders_every_n_epochs=1", "+trainer.nothing=1", "+trainer.barebones=true", "+seed=1"),
    "+callbacks.extra.own={_target_:lightning.pytorch.callbacks.LearningRateMonitor}",
    *("+callbacks.extra.own={_target_:lightning.pytorch.callbacks.Nothing}", "+callbacks.extra.own=1"),
    *("+logger.extra.own={_target_:lightning.pytorch.callbacks.Timer}", "optimizer._target_=torch.optim.Nothing"),
    *("+scheduler={_target_:torch.optim.lr_scheduler.OneCycleLR,max_lr:0.1,total_steps:1}", "name='a/b'"),
    *("method.name=pcl", "resume=nowhere", "resume=last", "checkpoint=nowhere.ckpt", "modules=[math]"),
    *("modules=[no_such_module]", "modules=['os; x']", "trainer.devices=[]", "trainer.max_steps=1e3", "seed=1e400"),
    *("~seed", "compare.seeds=[0]", "geometry.lr=0.1", "nothing=1"),
)


@dataclass(frozen=True)
class Combination:
    """One command: its arguments, and whether its figures are drawn too (which takes longer than all else)."""

    arguments: tuple[str, ...]
    figures: bool

    @property
    def groups(self) -> dict[str, str]:
        """What was chosen in each group."""
        pairs = (item.partition("=") for item in self.arguments)
        return {key: choice for key, _, choice in pairs if "." not in key and choices.options(key)}

    def __str__(self) -> str:
        return "dkel " + " ".join(self.arguments)


def text(value: Any) -> str:
    """Write a value as it is typed after `key=`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "'" + value.replace("'", "\\'") + "'"
    if isinstance(value, list):
        return f"[{','.join(map(text, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_bare(key)}:{text(each)}" for key, each in value.items()) + "}"
    return repr(value)


def _bare(key: Any) -> str:
    return key if isinstance(key, str) else text(key)


def options(group: str) -> list[str]:
    """List the choices of a group."""
    return [name for name in choices.options(group) if "/" not in name]


@cache
def keys_in(group: str, choice: str) -> tuple[str, ...]:
    """List the keys that a choice brings, with those that it takes over from another."""
    node = compose(f"{group}={choice}")[group]
    return tuple(key for key, _ in schema.leaves(node, f"{group}.") if not key.endswith("_target_"))


def keys_for(groups: Mapping[str, str]) -> list[tuple[str, ...]]:
    """List the keys that mean something with these choices, by group; a teacher left open is the method's own."""
    teacher = groups["teacher"] or ("none" if groups["method"] in WITHOUT_TEACHER else "independent")
    chosen = {**groups, "teacher": teacher, "trainer": "cpu", "callbacks": "default"}
    found = [_starting_with("seed", "trust", "deploy."), _starting_with("protocol."), ("backbone.views_per_pass",)]
    found += [keys_in("method", chosen["method"])]
    found += [
        keys_in(group, chosen[group])
        for group in ("teacher", "optimizer", "scheduler", "precision", "data", "trainer", "callbacks", "execution")
    ]
    meant = [tuple(key for key in keys if not key.endswith(".name")) for keys in found]
    return [keys for keys in meant if keys]


WITHOUT_TEACHER = [name for name, preset in PRESETS.items() if preset.teacher == "none"]


def _starting_with(*starts: str) -> tuple[str, ...]:
    return tuple(key for key in schema.KEYS if key.startswith(starts))


@cache
def values_of(key: str) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the values to try for a key: those that its description allows, and the others."""
    description = schema.describe(key)
    assert description is not None, key
    candidates = [*POOL, *EXTREMES, *_edges(description.kind), *_words(description.kind)]
    fitting = [value for value in candidates if description.fault(value) is None]
    others = [value for value in candidates if description.fault(value) is not None]
    if key in BOUNDED:
        fitting = list(BOUNDED[key])
    return tuple(fitting), tuple(others)


def _edges(kind: str) -> list[Any]:
    """Give the bounds that a description names, and what lies just beside them."""
    found: list[Any] = []
    for number in map(float, re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", kind)):
        found += [number, math.nextafter(number, INF), math.nextafter(number, -INF)]
        if number == int(number) and "whole" in kind:
            found += [int(number) - 1, int(number), int(number) + 1]
    return found


def _words(kind: str) -> list[str]:
    return [word for part in re.findall(r"one of ([\w ,-]+)", kind) for word in part.split(", ")]


def extremes(draws: random.Random, sets: Mapping[str, Path]) -> Combination:
    """Draw a command with extreme values of one to three numbers: at the ends of their range, or far outside."""
    groups = _groups(draws)
    keys = [key for keys in keys_for(groups) for key in keys if "number" in _kind(key) and key not in BOUNDED]
    drawn = draws.sample(keys, draws.choice((1, 1, 2, 3)))
    given = {key: draws.choice([*EXTREMES, *_edges(_kind(key))]) for key in drawn}
    if draws.random() < 0.6:  # each at an end, so that more is trained
        given = {key: draws.choice(_ends(key) or [value]) for key, value in given.items()}
    items = {**_frame(groups["data"], groups["method"], sets), **given}
    chosen = [f"{group}={choice}" for group, choice in groups.items() if choice]
    return Combination((*chosen, *(f"{key}={text(value)}" for key, value in items.items())), figures=False)


def _kind(key: str) -> str:
    description = schema.describe(key)
    assert description is not None, key
    return description.kind


def _ends(key: str) -> list[Any]:
    description = schema.describe(key)
    assert description is not None, key
    numbers = (*EXTREMES, *_edges(description.kind))
    return [value for value in (*numbers, *([number] for number in numbers)) if description.fault(value) is None]


@st.composite
def combinations(draw: st.DrawFn, sets: Mapping[str, Path]) -> Combination:
    """Draw a command; `sets` holds the folder or file of each data set that the test has made.

    A quarter of the commands hold a value that does not fit, a tenth something that belongs elsewhere. All comes from
    one generator that Hypothesis seeds: drawn one by one, its choices would stay close to those of earlier examples.
    """
    draws = draw(st.randoms(use_true_random=True))
    groups = _groups(draws)
    keys: list[str] = []
    for _ in range(draws.randint(0, 4)):
        key = draws.choice(draws.choice(keys_for(groups)))
        keys += [key] if key not in keys else []
    items = [f"{key}={text(draws.choice(values_of(key)[0]))}" for key in keys]
    if draws.random() < 0.25:
        key = draws.choice(draws.choice(keys_for(groups)))
        fitting, others = values_of(key)
        items = [item for item in items if not item.startswith(f"{key}=")]
        items.append(f"{key}={text(draws.choice(others or fitting))}")
    if draws.random() < 0.1:
        items.append(draws.choice(EXTRA))
    given = {item.split("=", 1)[0] for item in items}
    frame = _frame(groups["data"], groups["method"], sets)
    items += [f"{key}={text(value)}" for key, value in frame.items() if key not in given]
    chosen = [f"{group}={choice}" for group, choice in groups.items() if choice]
    return Combination((*chosen, *items), draws.random() < 0.05)


def _groups(draws: random.Random) -> dict[str, str]:
    """Draw a choice in each group; "" leaves it to the method, or to the experiment."""
    method = draws.choice(options("method"))
    groups = {"method": method}
    for group, usual, others, share in (
        ("trainer", "cpu", ["auto", "gpu", "ddp"], 0.05),
        ("backbone", "resnet8", options("backbone"), 0.05),
        ("teacher", "", options("teacher"), 0.05 if method in WITHOUT_TEACHER else 0.3),
        ("optimizer", "sgd", options("optimizer"), 0.5),
        ("scheduler", "multistep", options("scheduler"), 0.5),
        ("precision", "fp32", options("precision"), 0.2),
        ("debug", "none", options("debug"), 0.2),
        ("data", "digits", options("data"), 0.3),
    ):
        groups[group] = draws.choice(others) if draws.random() < share else usual
    return groups


def _frame(data: str, method: str, sets: Mapping[str, Path]) -> dict[str, Any]:
    """Give what keeps a combination small: tiny data, two peers, two steps."""
    frame = dict(FIXED)
    if data == "digits":
        frame["data.limit"] = 32
    elif data in sets:
        frame["data.root"] = str(sets[data])
    else:
        frame |= {"data.root": str(sets["nowhere"]), "data.download": False}
    if data == "image_folder":
        frame["data.image_size"] = 8
    if method not in ("okddip", "kd", "mean_teacher"):
        frame["method.peers"] = 2
    return frame
