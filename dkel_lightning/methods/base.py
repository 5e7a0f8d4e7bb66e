"""The base class of the methods, and the registry that finds one by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from dkel_lightning.data.batch import Batch
from dkel_lightning.errors import ConfigError
from dkel_lightning.functional import not_halved
from dkel_lightning.modules.interface import Coordinator
from dkel_lightning.modules.outputs import MethodInputs, StudentOutput
from dkel_lightning.networks import PeerNetwork
from dkel_lightning.schedules import Clock, at_time
from dkel_lightning.settings.backbone import BackboneSettings
from dkel_lightning.settings.declarations import (
    Settings,
    choice,
    either,
    from_mapping,
    import_path,
    merge,
    node_of,
    schedule,
    several,
    text,
    unknown_choice,
    whole,
)
from dkel_lightning.settings.deploy import Deploy
from dkel_lightning.settings.teacher import TEACHERS
from dkel_lightning.settings.weights import EnsembleTerm, RampUp

STUDENT = Deploy("student", "best")

Layers = Annotated[
    tuple[str, ...] | None, several("Modules by name, as in named_modules(); null: every stage.", text(""), least=0)
]


@dataclass(frozen=True)
class Needs:
    """What a method needs of the parts around it.

    Attributes:
        teacher: `required` (teacher peers), or `none`: the method reads no teacher. One that the preset or the user
            asks for then follows the student; with `teacher.batchnorm=ema` no batch passes it.
        teacher_outputs: the method reads the teacher's logits. Otherwise no batch passes a frozen teacher.
        foreign_teacher: the teacher is one network of any architecture, which teaches all peers, rather than peers of
            the student's form. One that is frozen and has no weights is trained first, in a stage of its own.
        fitted_by: the method that fits parts on the frozen teacher in a stage before this one.
        fixed_student: the student stays as it is, in eval mode, and only the method's own parts learn.
        time: call `set_time` before every training batch.
        batches: the method may ask for training batches at an epoch's start and end (`wants_batches`).
        teacher_views: accepts 2 P views, of which the teacher sees the second half.
        ensemble: `classifier` (trained over the peers' features), `own` (made by `combine`), or `none`.
        stages: reads `inputs.student.trunk` and `inputs.student.maps`.
        trunk: the peers must share a trunk.
        minimum_peers: the smallest number of peers.
        maximum_peers: the largest number of peers; None for any.
        deploy: what is deployed among equals in validation, and without validation. A peer that it numbers is the
            only one of its network that is chosen unless the user says otherwise.
    """

    teacher: str = "required"
    teacher_outputs: bool = True
    foreign_teacher: bool = False
    fitted_by: str | None = None
    fixed_student: bool = False
    time: bool = False
    batches: bool = False
    teacher_views: bool = False
    ensemble: str = "classifier"
    stages: bool = False
    trunk: bool = False
    minimum_peers: int = 2
    maximum_peers: int | None = None
    deploy: Deploy = field(default_factory=lambda: Deploy("teacher", "best"))

    def check(self, method: str, peers: int, trunk: bool = True, views: str = "per_peer") -> None:
        """Raise where the number of peers, their trunk or their views do not suit the method."""
        if peers < self.minimum_peers:
            cure = "raise method.peers, or choose method=baseline"
            raise ConfigError(f"{method} needs at least {self.minimum_peers} peers, got {peers}: {cure}.")
        if self.maximum_peers is not None and peers > self.maximum_peers:
            raise ConfigError(f"{method} takes at most {self.maximum_peers} peer, got {peers}: lower method.peers.")
        if self.trunk and not trunk:
            cure = "give method.peers as a number and method.sharing=trunk"
            raise ConfigError(f"{method} needs peers that share a trunk: {cure}.")
        if views == "per_peer_and_teacher" and not self.teacher_views:
            names = ", ".join(name for name, preset in METHODS.items() if preset.method.needs.teacher_views)
            raise ConfigError(f"method.views=per_peer_and_teacher is for {names}: choose per_peer or shared.")


@dataclass(frozen=True)
class MethodSettings(Settings, node="method"):
    """The setting that every method has; the base of a method's own."""

    labels: Annotated[
        float | Mapping[float, float],
        schedule("Factor of all terms with labels, or a schedule {from epoch, or share of the run: factor}.", 0, 1e6),
    ] = 1.0


class Method(nn.Module, ABC):
    """Turn the outputs of the networks into named loss terms.

    A method states which networks it needs and computes its loss; it neither owns the peers nor steps anything.
    It is a module so that it may hold trainable parts (a gate, an attention), which are then optimised and
    checkpointed with the rest.

    Attributes:
        Settings: frozen dataclass of primitives (nested dataclasses allowed) from which the method is rebuilt.
        needs: what it needs of the parts around it.
        process_buffers: buffers that differ between processes until the method makes them equal; no Trainer turns them
            into a half type (`bf16-true`), in which counts end at 256.
        teacher_parts: attributes that hold modules which learn with the teacher; they are clipped with it.
        labels: the factor of its terms with labels, a number or a schedule.
        rampup: the ramp-up of its distillation weight, None without one.
        ensemble: its decaying ensemble of teachers, None without one.
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
        self.needs.check(type(self).__name__, peers)
        self.peers = peers
        self.rampup: RampUp | None = getattr(self.settings, "rampup", None)
        self.ensemble: EnsembleTerm | None = getattr(self.settings, "ensemble", None)
        self.labels: float | Mapping[float, float] = getattr(self.settings, "labels", 1.0)
        # On the device, so that a changed weight does not recompile.
        self.register_buffer("rampup_weight", torch.zeros(()))
        self.register_buffer("labels_weight", torch.tensor(float(at_time(self.labels, 0))), self.labels != 1)

    def _apply(self, fn: Any, recurse: bool = True) -> Method:
        """Keep `process_buffers` out of half types."""
        own = {name: buffer for name, buffer in self.named_buffers(recurse=False) if name in self.process_buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in own.items():
            setattr(self, name, not_halved(fn)(buffer))
        return self

    def attach(self, network: PeerNetwork) -> None:
        """Make the method's trainable parts to fit the student's network; called once, under the seed."""

    def attach_teacher(self, network: PeerNetwork) -> None:
        """Make the parts that depend on the teacher's network; called after `attach` where there is a teacher."""

    def set_time(self, clock: Clock, batch_idx: int, seed: int) -> None:
        """Set what depends on the time, before batch `batch_idx` of an epoch; see `Needs.time`.

        Draw from `seed`, the module's, and the time, so that a resumed run draws the same.
        """

    def wants_batches(self, when: str, clock: Clock) -> int | None:
        """Return the number of training batches for `take_batches` at an epoch's `start` or `end`; None: no call.

        See `Needs.batches`.
        """
        return None

    def take_batches(self, when: str, module: Coordinator, batches: Iterable[Batch]) -> None:
        """Use the batches that `wants_batches` asked for: drawn from the seed, different on each process."""

    def take_over(self, prepared: Coordinator) -> None:
        """Take what a stage before this one has prepared, from the module of the teacher's checkpoint."""

    def start_student(self, student: PeerNetwork) -> None:
        """Give a student the weights of parts that this method trained beside its teacher."""
        raise ConfigError(
            "teacher.init_student_from_branches takes the branches of a teacher that was trained by method=sftn: set "
            "teacher.training=sftn, or give its checkpoint as teacher.weights."
        )

    def preparation_warning(self) -> str | None:
        """Return a warning where a stage before this one should have prepared something and did not."""
        return None

    def combine(self, student: StudentOutput) -> Tensor:
        """Make the ensemble's logits [B, C] of the peers' outputs; see `Needs.ensemble`."""
        raise NotImplementedError(f"{type(self).__name__} needs an ensemble of its own, but has no combine().")

    @property
    def wants_ensemble_classifier(self) -> bool:
        """Whether an ensemble classifier is trained beside the peers."""
        return self.needs.ensemble == "classifier"

    @property
    def wants_classes(self) -> bool:
        """Whether it works on one class a sample (`inputs.classes`); mixed or other soft labels are then refused."""
        return False

    @property
    def needs_labels(self) -> str:
        """What needs the class of every image, for a message; empty where labels may be -1, not known."""
        return f"{type(self).__name__} as it is set" if self.wants_classes else ""

    @property
    @abstractmethod
    def terms(self) -> tuple[str, ...]:
        """Names of the loss terms, in the order in which they are logged; a class attribute will do."""

    @property
    def label_terms(self) -> tuple[str, ...]:
        """The terms that `method.labels` weighs: by default those whose names begin with `ce`."""
        return tuple(name for name in self.terms if name.startswith("ce"))

    @abstractmethod
    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Compute the weighted loss terms of a step, one scalar for each of `terms`; the loss is their sum."""

    def weighted_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Compute the terms, check their names, and weigh those with labels by `labels_weight`."""
        terms = self.loss_terms(inputs)
        if terms.keys() != set(self.terms):
            raise ConfigError(
                f"{type(self).__name__} names the terms {', '.join(self.terms)} but computes {', '.join(terms)}: a "
                "term without a name would be left out of the loss."
            )
        if self.labels != 1:
            terms |= {name: self.labels_weight * terms[name] for name in self.label_terms}
        return terms

    def current_weights(self, ensemble_weight: Tensor) -> dict[str, Tensor]:
        """Return the current weights of the schedules by name, for the log."""
        return {"rampup": self.rampup_weight} if self.rampup is not None else {}

    def settings_as_dict(self) -> dict[str, Any]:
        """Return the settings as nested dicts of primitives."""
        return asdict(self.settings)


# ---------------------------------------------------------------------- the registry


@dataclass(frozen=True)
class Arrangement(Settings, node="method"):
    """The name of a method, and how its peers stand to each other; every method has these settings."""

    name: Annotated[str, text("Method.")]
    peers: Annotated[
        int | tuple[str, ...],
        either(whole("Peers, or the backbone of each.", 1, 64), replace(several("", text("")), kind="a list of names")),
    ] = 3
    sharing: Annotated[str, choice("What peers given as a number share.", "trunk", "nothing")] = "trunk"
    views: Annotated[
        str,
        choice(
            "Augmented views of an image: one for each peer, one for all, or also one for each teacher.",
            *("per_peer", "shared", "per_peer_and_teacher"),
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
        """Return the content of conf/method/NAME.yaml, which Hydra is also given for a method of one's own."""
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
        default = "none" if method.needs.teacher == "none" else "independent"
        METHODS[name] = Preset(method, summary, settings or {}, teacher or default, arrangement, views_per_pass)
        return method

    return add


def preset(name: str) -> Preset:
    """Return the preset of a method, or raise an error that lists the names."""
    if name not in METHODS:
        raise ConfigError(unknown_choice("method", name, METHODS))
    return METHODS[name]


def create(name: str, peers: int, settings: Mapping[str, Any] | None = None) -> Method:
    """Build a method from its preset with `settings` (nested mappings of primitives) laid over it."""
    chosen = preset(name)
    merged = merge(chosen.settings, settings or {})
    return chosen.method(peers, from_mapping(chosen.method.Settings, merged, "method"))
