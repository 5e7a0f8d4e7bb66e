"""The plan of a comparison: which configuration each label and seed is trained with, checked before any training.

Imports neither torch nor Hydra: the command line composes, and hands in how.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dkel_lightning.app.config import checks
from dkel_lightning.app.config.schema import Values
from dkel_lightning.errors import ConfigError
from dkel_lightning.schedules import are_shares
from dkel_lightning.settings.keys import unknown_choice
from dkel_lightning.settings.teacher import TRAININGS

Settle = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Gives the resolved values of one composed configuration with some keys changed."""

CONTROLS: dict[str, tuple[str, ...]] = {
    "baseline_smoothing": ("method=baseline", "targets.label_smoothing=0.1"),
    "baseline_long": ("method=baseline", "compare.compute=reference"),
    **{
        f"kd_{training}": ("method=kd", f"teacher.training={training}") for training in TRAININGS if training != "plain"
    },
}
"""Ready-made labels beside the methods: what distillation has to beat, and teachers that are trained otherwise."""

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
SAME_DATA = ("name", "root", "selection", "split_seed", "validation", "limit", "image_size")
OF_THE_WHOLE = (
    *("task", "seed", "resume", "checkpoint", "hydra", "compare", "name", "modules"),
    "execution.threads",
)


@dataclass(frozen=True)
class Variant:
    """A label and its configuration.

    Attributes:
        label: names it in the table, and its folder.
        settle: gives its values with some keys changed, such as `{"seed": 1}`.
        same_compute: whether it trains as long as the reference took, rather than as many epochs.
    """

    label: str
    settle: Settle
    same_compute: bool = False

    def values(self, seed: int, epochs: int | None = None) -> dict[str, Any]:
        """Give the values of one member, an ordinary train task; other `epochs` stretch its schedule of rates."""
        changes: dict[str, Any] = {"seed": seed}
        if epochs is not None:
            changes["trainer.max_epochs"] = epochs
        values = self.settle(changes)
        del values["compare"]
        values["task"] = {"name": "train"}
        if epochs is not None:
            values["scheduler"] = _stretched(values["scheduler"], self.settle({}), epochs)
        return values


@dataclass(frozen=True)
class Comparison:
    """What is compared with what.

    Attributes:
        variants: in the order of the table.
        seeds: each variant is trained with each.
        reference: label that the others are compared to.
        go_on: the command that goes on with it when interrupted, without its folder.
    """

    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    reference: str
    go_on: str = "dkel task=compare"

    def members(self) -> Iterator[tuple[Variant, int]]:
        """Give all members by seed; within a seed those whose length follows from the reference come last."""
        ordered = sorted(self.variants, key=lambda variant: variant.same_compute)
        for seed in self.seeds:
            yield from ((variant, seed) for variant in ordered)


def plan(
    values: Values, given: Sequence[str], methods: Sequence[str], compose: Callable[[list[str]], Settle], go_on: str
) -> Comparison:
    """Compose and check every variant.

    Args:
        values: the comparison's own configuration.
        given: the overrides of the command line.
        methods: the choices of the group method.
        compose: composes a list of overrides, or raises a ConfigError.
        go_on: see Comparison.

    Raises:
        ConfigError: all mistakes, each with the label that it is in.
    """
    settings = values["compare"]
    entries = dict(_entries(settings["methods"], methods))
    mistakes, variants = [*_own_mistakes(values, given, entries)], []
    for label, overrides in entries.items():
        try:
            _check_overrides(overrides)
            variants.append(_variant(label, _merged(given, overrides), compose))
        except ConfigError as error:
            mistakes += [f"{label}: {line}" for line in str(error).splitlines()]
    reference = settings["reference"] or next(iter(entries))
    mistakes += [
        f"{variant.label}: compare.compute=reference means nothing for the reference itself."
        for variant in variants
        if variant.label == reference and variant.same_compute
    ]
    mistakes += _unlike_data(variants, reference, values["seed"])
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return Comparison(tuple(variants), tuple(settings["seeds"]), reference, go_on)


def _unlike_data(variants: Sequence[Variant], reference: str, seed: int) -> Iterator[str]:
    """Find labels that would train or be tested on other images than the reference, or be selected otherwise."""
    data = {variant.label: variant.values(seed)["data"] for variant in variants}
    for label, own in data.items():
        differing = [key for key in SAME_DATA if own.get(key) != data.get(reference, own).get(key)]
        if differing:
            listed = ", ".join(f"data.{key}" for key in differing)
            yield f"{label}: {listed} differs from that of {reference}: what is compared needs the same data."


def _stretched(scheduler: Values, own: Values, epochs: int) -> dict[str, Any]:
    """Stretch milestones and T_max that are numbers of epochs or steps, and so did not follow `max_epochs`."""
    factor = epochs / own["trainer"]["max_epochs"]
    found = dict(scheduler)
    milestones = found.get("milestones")
    if milestones and not are_shares(milestones):
        found["milestones"] = sorted({max(1, round(milestone * factor)) for milestone in milestones})
    if found.get("T_max") is not None and found["T_max"] == own["scheduler"]["T_max"]:
        found["T_max"] = max(1, round(found["T_max"] * factor))
    return found


def _entries(entries: Sequence[Any], methods: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    seen: set[str] = set()
    for entry in entries:
        label = entry if isinstance(entry, str) else next(iter(entry))
        if not LABEL.fullmatch(label):
            raise ConfigError(f"compare.methods: {label!r} names a folder; use letters, digits, and any of _ . + -")
        if label.lower() in seen:
            raise ConfigError(f"compare.methods has {label} twice: give each entry a label of its own.")
        seen.add(label.lower())
        if not isinstance(entry, str):
            yield label, tuple(entry[label])
        elif label in CONTROLS:
            yield label, CONTROLS[label]
        elif label in methods:
            yield label, (f"method={label}",)
        else:
            raise ConfigError(unknown_choice("compare.methods", label, [*methods, *CONTROLS]))


def _own_mistakes(values: Values, given: Sequence[str], labels: Mapping[str, Any]) -> Iterator[str]:
    reference = values["compare"]["reference"]
    if reference is not None and reference not in labels:
        yield unknown_choice("compare.reference", reference, list(labels))
    if any(_key(item) == "seed" for item in given):
        yield "seed= belongs to a single run: a comparison takes compare.seeds=[...]."


def _check_overrides(overrides: Sequence[str]) -> None:
    for item in overrides:
        key = _key(item)
        if f"{key}.".startswith(tuple(f"{own}." for own in OF_THE_WHOLE)) and key != "compare.compute":
            raise ConfigError(f"{item} cannot differ between what is compared: leave it out.")


def _merged(given: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Lay a variant's overrides over those of the command line."""
    own = {_key(item) for item in overrides}
    kept = [item for item in given if _key(item) not in own and not _key(item).startswith("hydra.")]
    return [*kept, *overrides]


def _key(override: str) -> str:
    return override.lstrip("+~").split("=", 1)[0]


def _variant(label: str, overrides: list[str], compose: Callable[[list[str]], Settle]) -> Variant:
    settle = compose(overrides)
    composed = settle({})
    variant = Variant(label, settle, composed["compare"]["compute"] == "reference")
    values = variant.values(composed["seed"])
    checks.check(values)
    trainer = values["trainer"]
    if variant.same_compute and (trainer["max_epochs"] < 1 or trainer["max_steps"] != -1 or trainer.get("max_time")):
        raise ConfigError("compare.compute=reference needs a length in epochs alone: trainer.max_epochs.")
    return variant
