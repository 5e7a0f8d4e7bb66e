"""What every run has, and what experiments fit to their length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from dkel_lightning.app.config import kinds
from dkel_lightning.settings.declarations import Settings
from dkel_lightning.settings.deploy import Deploy
from dkel_lightning.settings.keys import (
    MACHINE,
    SEEDS,
    TIME,
    choice,
    number,
    schedule,
    several,
    switch,
    text,
    whole,
)
from dkel_lightning.settings.targets import Targets
from dkel_lightning.settings.teacher import TeacherSettings
from dkel_lightning.settings.weights import EnsembleTerm, RampUp


@dataclass(frozen=True)
class RampUpProtocol(Settings, node="protocol.rampup"):
    """Length of the ramp-up."""

    epochs: Annotated[float | None, number("Length of the ramp-up in epochs.", 0, TIME)] = RampUp.epochs
    share: Annotated[float | None, number("The same as a share of the run.", 0, 1)] = None


@dataclass(frozen=True)
class EnsembleProtocol(Settings, node="protocol.ensemble"):
    """Decay of the ensemble."""

    decay: Annotated[float | None, number("k of the decaying ensemble.", 0, 1e6)] = EnsembleTerm.decay
    decay_share: Annotated[float | None, number("1/k as a share of the run.", 1e-9, 1e9)] = None


@dataclass(frozen=True)
class EmaProtocol(Settings, node="protocol.ema"):
    """Memory of the teacher."""

    decay: Annotated[float | Mapping[float, float] | None, schedule("EMA rate of the teacher.", 0, 1)] = (
        TeacherSettings.decay
    )
    decay_share: Annotated[
        float | Mapping[float, float] | None, schedule("EMA time constant as a share of the run.", 1e-9, 1e9)
    ] = None


@dataclass(frozen=True)
class Protocol(Settings, node="protocol"):
    """What method and teacher presets read, so that an experiment can fit them to its length."""

    rampup: RampUpProtocol = field(default_factory=RampUpProtocol)
    ensemble: EnsembleProtocol = field(default_factory=EnsembleProtocol)
    ema: EmaProtocol = field(default_factory=EmaProtocol)
    milestones: Annotated[
        tuple[float, ...],
        several(
            "Milestones of the learning rate, in epochs or (all below 1) shares of the run.",
            number("", 0, TIME),
            least=0,
        ),
    ] = (0.5, 0.75)


@dataclass(frozen=True)
class FigureSettings(Settings, node="figures"):
    """How figures are written."""

    also: Annotated[
        tuple[str, ...],
        several("Forms in which each figure is written beside PNG.", choice("", "pdf", "svg"), least=0),
        MACHINE,
    ] = ()


@dataclass(frozen=True)
class RunSettings(Settings, node=""):
    """What every run has."""

    name: Annotated[str, kinds.folder_name("Folder of the run under outputs/.")] = "default"
    seed: Annotated[int, whole("Seed of weights, order, augmentation and initialisation batches.", 0, SEEDS)] = 0
    resume: Annotated[str | None, text("Checkpoint to go on from, or `last`: the newest under outputs/."), MACHINE] = (
        None
    )
    checkpoint: Annotated[str | None, text("Checkpoint to evaluate, export or predict with, or an exported file.")] = (
        None
    )
    modules: Annotated[
        tuple[str, ...],
        kinds.modules("Python modules to import first: methods and backbones of your own register themselves."),
    ] = ()
    trust: Annotated[
        bool,
        switch("Let a saved configuration name folders, hosts, loggers and code, and predict open a .pt2 file."),
        MACHINE,
    ] = False
    deploy: Deploy = field(default_factory=Deploy)
    targets: Targets = field(default_factory=Targets)
    figures: FigureSettings = field(default_factory=FigureSettings)
    protocol: Protocol = field(default_factory=Protocol)
