"""The base class of methods, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from dkel_lightning.data.batch import Batch
from dkel_lightning.errors import ConfigError
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.modules.student import StudentModule
from dkel_lightning.modules.teacher import TeacherModule
from dkel_lightning.networks import PeerNetwork, PeerOutputs
from dkel_lightning.runtime.mappings import merge
from dkel_lightning.schedules import Clock, at_time, time_of
from dkel_lightning.settings.backbone import BackboneSettings
from dkel_lightning.settings.declarations import (
    Settings,
    choice,
    either,
    from_mapping,
    import_path,
    names,
    node_of,
    schedule,
    text,
    unknown_choice,
    whole,
)
from dkel_lightning.settings.deploy import Deploy
from dkel_lightning.settings.rampup import RampUp
from dkel_lightning.settings.teacher import TEACHERS

STUDENT = Deploy("student", "best")

Layers = Annotated[tuple[str, ...] | None, names("Modules by name, as in named_modules(); null: every stage.", least=0)]

Draw = Callable[[int], Iterable[Batch]]
"""Called with a number of training batches, which are drawn from the seed."""


@dataclass(frozen=True)
class Needs:
    """What a method needs of the parts around it.

    Attributes:
        teacher: the method needs a teacher. A teacher that the preset or the user adds to another method follows the
            student; with `teacher.batchnorm=ema` it processes no batches.
        teacher_outputs: the method reads the teacher's logits. Otherwise a frozen teacher processes no batches.
        foreign_teacher: the teacher is one network of any architecture, which teaches all peers, rather than peers of
            the student's form. If it is frozen and has no weights, it is trained first, in a stage of its own.
        fitted_by: the method that fits parts on the frozen teacher in a previous stage, see `Method.load_prepared`; the
            buffer `fitted` tells whether that was done.
        fixed_student: the student is frozen and in eval mode, and only the method's own parts learn.
        batches: `on_epoch_start` and `on_epoch_end` are called, so training needs a Trainer.
        teacher_views: the method accepts 2 P views, of which the teacher sees the second half.
        ensemble: `classifier` (trained on the features of two or more peers), `own` (made by `combine`), or `none`.
        trunk: the peers must share a trunk.
        minimum_peers: the smallest number of peers.
        maximum_peers: the largest number of peers; None for any.
        deploy: the deployed network, also among equals in validation. A peer given by number is the only candidate of
            its network unless the user chooses another.
    """

    teacher: bool = True
    teacher_outputs: bool = True
    foreign_teacher: bool = False
    fitted_by: str | None = None
    fixed_student: bool = False
    batches: bool = False
    teacher_views: bool = False
    ensemble: str = "none"
    trunk: bool = False
    minimum_peers: int = 1
    maximum_peers: int | None = None
    deploy: Deploy = field(default_factory=lambda: Deploy("teacher", "best"))

    def check(self, method: str, peers: int, trunk: bool, views: str) -> None:
        """Raise an error if the number of peers, their trunk or their views do not suit the method."""
        if peers < self.minimum_peers:
            hint = "raise method.peers, or choose method=baseline"
            raise ConfigError(f"{method} needs at least {self.minimum_peers} peers, got {peers}: {hint}.")
        if self.maximum_peers is not None and peers > self.maximum_peers:
            raise ConfigError(f"{method} takes at most {self.maximum_peers} peer, got {peers}: lower method.peers.")
        if self.trunk and not trunk:
            hint = "give method.peers as a number and method.sharing=trunk"
            raise ConfigError(f"{method} needs peers that share a trunk: {hint}.")
        if views == "per_peer_and_teacher" and not self.teacher_views:
            names = ", ".join(name for name, preset in METHODS.items() if preset.method.needs.teacher_views)
            raise ConfigError(f"method.views=per_peer_and_teacher is for {names}: choose per_peer or shared.")


@dataclass(frozen=True)
class MethodSettings(Settings, node="method"):
    """The setting that every method has; the base of all settings of methods."""

    labels: Annotated[
        float | Mapping[float, float],
        schedule("Factor of the terms ce and ce_*, or a schedule {from epoch, or share of the run: factor}.", 0, 1e6),
    ] = 1.0


class Method(nn.Module, ABC):
    """Turn the outputs of the networks into named loss terms.

    A method states which networks it needs and computes its loss; it neither owns the peers nor steps the optimizer. It
    may hold trainable parts (a gate, an attention), which are optimised and saved with the rest.

    Attributes:
        Settings: a subclass of MethodSettings, from which the method is rebuilt.
        needs: what it needs of the parts around it.
        process_buffers: buffers that differ between processes until the method makes them equal.
        teacher_parts: names of modules that learn with the teacher; their gradients are clipped with the teacher's.
        rampup: the ramp-up of its distillation weight, the field `rampup` of its settings; None without one.
    """

    Settings: ClassVar[type[Any]] = MethodSettings
    needs: ClassVar[Needs] = Needs()
    process_buffers: ClassVar[tuple[str, ...]] = ()
    teacher_parts: ClassVar[tuple[str, ...]] = ()

    labels_weight: Tensor
    rampup_weight: Tensor

    def __init__(self, peers: int, settings: Any = None) -> None:
        super().__init__()
        self.settings = settings if settings is not None else self.Settings()
        self.peers = peers
        self.rampup: RampUp | None = getattr(self.settings, "rampup", None)
        # On the device, so that a changed weight does not recompile.
        self.register_buffer("rampup_weight", torch.zeros(()))
        labels = self.settings.labels
        self.register_buffer("labels_weight", torch.tensor(float(at_time(labels, 0))), persistent=labels != 1)

    def attach(self, student: PeerNetwork, teacher: PeerNetwork | None = None) -> None:
        """Make the method's trainable parts to fit the networks; called once, under the seed."""

    def load_prepared(self, prepared: Method) -> None:
        """Load what the previous stage prepared: the method of the checkpoint that holds the teacher's weights."""

    def set_time(self, clock: Clock) -> None:
        """Set what follows a schedule, before every training batch; an override calls this one too."""
        labels = self.settings.labels
        if isinstance(labels, Mapping):
            self.labels_weight.fill_(at_time(labels, time_of(labels, clock, "method.labels")))
        if self.rampup is not None:
            self.rampup_weight.fill_(self.rampup.weight(clock))

    def on_epoch_start(self, student: StudentModule, teacher: TeacherModule | None, clock: Clock, draw: Draw) -> None:
        """Use training batches before an epoch, see `Needs.batches`. They differ between processes."""

    def on_epoch_end(self, student: StudentModule, teacher: TeacherModule | None, clock: Clock, draw: Draw) -> None:
        """Use training batches after the last batch of an epoch, and before a validation within one."""

    def combine(self, student: PeerOutputs) -> Tensor:
        """Compute the ensemble's logits [B, C] where `needs.ensemble` is `own`."""
        raise NotImplementedError

    @property
    def wants_ensemble_classifier(self) -> bool:
        """Whether an ensemble classifier is trained with the peers; over a single peer it would be that peer again."""
        return self.needs.ensemble == "classifier" and self.peers > 1

    @property
    def has_ensemble(self) -> bool:
        """Whether there are ensemble logits, of the ensemble classifier or of `combine`."""
        return self.needs.ensemble == "own" or self.wants_ensemble_classifier

    @property
    def wants_classes(self) -> bool:
        """Whether it needs one known class per sample (`inputs.classes`); unknown, mixed or soft labels are refused."""
        return False

    @property
    @abstractmethod
    def terms(self) -> tuple[str, ...]:
        """Names of the loss terms, in the order in which they are logged; may be a class attribute.

        The setting `labels` weighs `ce` and those whose names begin with `ce_`.
        """

    @abstractmethod
    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Compute the weighted loss terms of a step, one scalar for each of `terms`; the loss is their sum."""

    def weighted_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Compute the terms, check their names, and weigh those of the labels by `labels_weight`."""
        terms = self.loss_terms(inputs)
        if terms.keys() != set(self.terms):
            raise ConfigError(
                f"{type(self).__name__}.terms names {', '.join(self.terms)}, but loss_terms returns "
                f"{', '.join(terms)}: make them agree."
            )
        if self.settings.labels != 1:
            of_labels = [name for name in terms if name == "ce" or name.startswith("ce_")]
            terms = terms | {name: self.labels_weight * terms[name] for name in of_labels}
        return terms

    def current_weights(self) -> dict[str, Tensor]:
        """Return the current weights of the schedules by name, for the log."""
        weights = {"rampup": self.rampup_weight} if self.rampup is not None else {}
        return weights | ({"labels": self.labels_weight} if self.settings.labels != 1 else {})

    def settings_as_dict(self) -> dict[str, Any]:
        """Return the settings as nested dicts of primitives."""
        return asdict(self.settings)


# ---------------------------------------------------------------------- the registry


@dataclass(frozen=True)
class Arrangement(Settings, node="method"):
    """The name of a method and the arrangement of its peers: settings of every method."""

    name: Annotated[str, text("Method.")]
    peers: Annotated[
        int | tuple[str, ...],
        either(whole("Peers, or the backbone of each.", 1, 64), names()),
    ] = 3
    sharing: Annotated[str, choice("What peers given as a number share.", "trunk", "nothing")] = "trunk"
    views: Annotated[
        str,
        choice(
            "Augmented views of an image: one for each peer, one for all, or also one for each teacher.",
            "per_peer",
            "shared",
            "per_peer_and_teacher",
        ),
    ] = "per_peer"
    classifiers: Annotated[str, choice("Initial classifiers of the branches.", "own", "equal", "released")] = "own"


@dataclass(frozen=True)
class Preset:
    """A method under a name.

    Attributes:
        method: the class.
        meaning: a sentence.
        settings: differences from the defaults of `method.Settings`.
        teacher: name of a preset in `settings.teacher.TEACHERS`, or differences from the defaults of TeacherSettings.
        arrangement: peers, sharing, views and classifiers.
        views_per_pass: see BackboneSettings.
    """

    method: type[Method]
    meaning: str
    settings: Mapping[str, Any]
    teacher: str | Mapping[str, Any]
    arrangement: Arrangement
    views_per_pass: str

    @property
    def teacher_settings(self) -> Mapping[str, Any]:
        """Differences from the defaults of TeacherSettings, or `{"update": "none"}`."""
        return TEACHERS[self.teacher].settings if isinstance(self.teacher, str) else self.teacher

    def default_settings(self) -> Any:
        """Build the settings of this preset."""
        return from_mapping(self.method.Settings, self.settings, "method")

    def node(self) -> dict[str, Any]:
        """Return the content of conf/method/NAME.yaml; Hydra gets the same for a user's method."""
        node: dict[str, Any] = {"method": {**node_of(self.arrangement), **node_of(self.default_settings())}}
        if self.views_per_pass != BackboneSettings.views_per_pass:
            node["backbone"] = {"views_per_pass": self.views_per_pass}
        if not isinstance(self.teacher, str):
            node["teacher"] = dict(self.teacher)
        elif self.teacher != "independent":  # the choice of conf/config.yaml
            node["defaults"] = [{"override /teacher": self.teacher}]
        return node


METHODS: dict[str, Preset] = {}
"""The methods by name, those of this library and of the user."""

M = TypeVar("M", bound=type[Method])


def register(  # noqa: D417
    name: str,
    *,
    meaning: str | None = None,
    settings: Mapping[str, Any] | None = None,
    teacher: str | Mapping[str, Any] | None = None,
    peers: int | tuple[str, ...] = Arrangement.peers,
    sharing: str = Arrangement.sharing,
    views: str = Arrangement.views,
    classifiers: str = Arrangement.classifiers,
    views_per_pass: str = BackboneSettings.views_per_pass,
) -> Callable[[M], M]:
    """Register a method under `name`; stack it to give one class several presets.

    Args:
        name: the name by which it is chosen.
        meaning: a sentence; by default the first line of the class's docstring.
        settings: differences from the defaults of `method.Settings`. A ramp-up or ensemble that is named here keeps
            its length whatever the experiment.
        teacher: see Preset; by default `independent`, or `none` where the method reads no teacher.
        peers, sharing, views, classifiers: see Arrangement.
        views_per_pass: see BackboneSettings.
    """
    arrangement = Arrangement(name, peers, sharing, views, classifiers)

    def add(method: M) -> M:
        other = METHODS.get(name)
        if other is not None and import_path(other.method) != import_path(method):
            raise ConfigError(f"The method name {name!r} is taken by {import_path(other.method)}: choose another.")
        summary = meaning or (method.__doc__ or name).strip().splitlines()[0]
        default = "independent" if method.needs.teacher else "none"
        METHODS[name] = Preset(method, summary, settings or {}, teacher or default, arrangement, views_per_pass)
        return method

    return add


def get_preset(name: str) -> Preset:
    """Return the preset of a method, or raise an error that lists the names."""
    if name not in METHODS:
        raise ConfigError(unknown_choice("method", name, METHODS))
    return METHODS[name]


def create(name: str, peers: int, settings: Mapping[str, Any] | None = None) -> Method:
    """Build a method from its preset with `settings` (nested mappings of primitives) laid over it."""
    chosen = get_preset(name)
    merged = merge(chosen.settings, settings or {})
    return chosen.method(peers, from_mapping(chosen.method.Settings, merged, "method"))
