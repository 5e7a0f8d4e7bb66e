"""Settings of the methods whose teacher is prepared in stages, or learns beside its student, and of those stages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

from dkel_lightning.schedules import CONSISTENCY_RAMPS, SWAPS
from dkel_lightning.settings.declarations import Settings
from dkel_lightning.settings.distils import Distils, Temperature, Weight
from dkel_lightning.settings.keys import TIME, choice, either, number, registered, several, switch, whole

Layers = Annotated[
    tuple[str, ...] | None,
    replace(several("", registered(""), least=0), meaning="Modules by name, as in named_modules(); null: every stage."),
]


@dataclass(frozen=True)
class HeadsSettings(Settings, node="method"):
    """Settings of heads on a frozen network."""

    layers: Layers = None


@dataclass(frozen=True)
class DIHSettings(Distils):
    """Settings of DIH.

    The weight a is of the main output and each head; its complement 1 - a is of the labels, once for each of them as
    the released code has it, or `ce_once`. A weight of 0 in the list takes an output out, with its share of the labels.
    """

    weights: Annotated[
        float | tuple[float, ...],
        either(
            number("Weight a of what is distilled: of each output, or a list, the main one first (DIH).", 0, 1),
            several("", number("", 0, 1)),
        ),
    ] = 0.1
    temperature: Temperature = 5.0
    layers: Layers = None
    ce_once: Annotated[bool, switch("Count the labels once rather than once for each output (DIH).")] = False

    def contradictions(self) -> Iterator[str]:
        """Say it of the weights of outputs."""
        several_weights = not isinstance(self.weights, int | float)
        if several_weights and self.ce_once:
            yield "method.ce_once is of one weight for all outputs: give method.weights as a number."
        if not any(self.weights if several_weights else [self.weights]):  # type: ignore[arg-type]
            yield "method.weights leaves nothing to learn from: give one of the outputs a weight above 0."


@dataclass(frozen=True)
class KDPMSettings(Distils):
    """Settings of KDPM."""

    ce_weight: Annotated[float, number("Weight of the labels.", 0, 1e6)] = 1.0
    weight: Weight = 1.0
    peer_weight: Annotated[float, number("Weight of what the other students teach (KDPM).", 0, 1e6)] = 1.0
    channels: Annotated[
        tuple[str, ...] | None,
        several(
            "What each student is given of the teacher (KDPM): logits, features, both; null: logits.",
            choice("", "logits", "features", "both"),
        ),
    ] = None
    layer: Annotated[str | None, registered("Module of the student with the features; null: its last stage.")] = None
    teacher_layer: Annotated[
        str | None, registered("Module of the teacher with the features; null: its last stage.")
    ] = None


@dataclass(frozen=True)
class EKDSettings(Distils):
    """Settings of EKD; the teacher's lead is `teacher.init_steps`."""

    weight: Weight = 1.0
    feature_weight: Annotated[float, number("Weight of the guided modules' features (EKD).", 0, 1e6)] = 0.0
    width: Annotated[int, whole("Features of a guided module (EKD).", 1, 4096)] = 64
    layers: Layers = None
    teacher_layers: Layers = None


@dataclass(frozen=True)
class IAKDSettings(Settings, node="method"):
    """Settings of IAKD; q is the chance of the student's own block."""

    schedule: Annotated[
        str, choice("How q goes: constant, rising to 1 by half the run, a sawtooth (IAKD).", *SWAPS)
    ] = "linear"
    start: Annotated[float, number("q at the start (IAKD).", 0, 1)] = 0.5
    period: Annotated[float, number("Length of a tooth in epochs (IAKD, review).", 0, TIME, above=True)] = 10.0
    finetune_epochs: Annotated[float, number("Last epochs with the student's own blocks alone (IAKD).", 0, TIME)] = 0.0
    statistics_batches: Annotated[
        int, whole("Batches that estimate BatchNorm's statistics after an epoch of swaps; 0: none (IAKD).", 0, 100_000)
    ] = 50
    layers: Layers = None
    teacher_layers: Layers = None


@dataclass(frozen=True)
class ConsistentSettings(Distils):
    """Settings of the consistent teacher, whose channels are rearranged for its student."""

    weight: Weight = 1.0
    kd_weight: Annotated[float, number("Weight of the teacher's logits, beside its maps.", 0, 1e6)] = 0.0
    temperature: Temperature = 4.0
    matcher: Annotated[
        str, choice("How the teacher's channels find their places (consistent).", "hungarian", "greedy", "learned")
    ] = "hungarian"
    group: Annotated[str, choice("What several of its channels for one become (consistent).", "mean", "max")] = "mean"
    fit_batches: Annotated[int, whole("Batches on which the places are fitted (consistent).", 1, 100_000)] = 20
    refit_epochs: Annotated[
        int, whole("Epochs after which they are fitted again; 0: before the first step alone.", 0, 1_000_000)
    ] = 0
    layers: Layers = None
    teacher_layers: Layers = None


@dataclass(frozen=True)
class SFTNSettings(Settings, node="method"):
    """Settings of a student-friendly teacher."""

    student: Annotated[str | None, registered("Backbone of the student, whose blocks hang on the teacher (sftn).")] = (
        None
    )
    ce_weight: Annotated[float, number("Weight of the labels.", 0, 1e6)] = 1.0
    kl_weight: Annotated[float, number("Weight of the divergence of trunk and branches (sftn).", 0, 1e6)] = 3.0
    branch_weight: Annotated[float, number("Weight of the branches' labels (sftn).", 0, 1e6)] = 1.0
    temperature: Temperature = 1.0
    share_branches: Annotated[bool, switch("Let all branches have the same blocks (sftn).")] = False
    layers: Layers = None


@dataclass(frozen=True)
class SoTeacherSettings(Settings, node="method"):
    """Settings of a student-oriented teacher."""

    lipschitz_weight: Annotated[float, number("Weight of the layers' Lipschitz constants (soteacher).", 0, 1e6)] = 1e-5
    consistency_weight: Annotated[float, number("c_max, the consistency's weight at the end (soteacher).", 0, 1e6)] = (
        1.0
    )
    ramp: Annotated[str, choice("Form of c(e) on its way to c_max (soteacher).", *CONSISTENCY_RAMPS)] = "linear"
    ramp_start: Annotated[
        float, number("Epoch from which the consistency counts with ramp=step (soteacher).", 0, TIME)
    ] = 50
    counter: Annotated[
        str, choice("Visits of a sample: its own, or 0, 2, 3, ... by epoch (soteacher).", "uniform", "released")
    ] = "uniform"
    samples: Annotated[
        int | None, whole("Training samples that are remembered; null: those of the data.", 1, 10**9)
    ] = None
