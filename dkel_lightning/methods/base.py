"""What a method of online distillation is, and the registry that finds one by name."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, TypeVar, get_type_hints

import torch
from torch import Tensor, nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.modules.outputs import MethodInputs, StudentOutput
from dkel_lightning.networks import PeerNetwork
from dkel_lightning.settings.weights import EnsembleTerm, RampUp


@dataclass(frozen=True)
class NoSettings:
    """The settings of a method that has none."""


class Method(nn.Module, ABC):
    """Turn what the networks say into named loss terms.

    A method states which networks it needs and computes its loss; it neither owns the peers nor steps anything.
    It is a module so that it may hold trainable parts of its own (a gate, an attention), which are then optimised
    and checkpointed with the rest.

    Attributes:
        Settings: frozen dataclass of primitives (nested dataclasses allowed) from which the method is rebuilt.
        teacher: whether teacher peers are `required`, `optional` or must be `none`.
        uses_ensemble: needs the ensemble classifier over the peers' features.
        minimum_peers: with fewer it is refused.
        needs_stages: wants `inputs.student.trunk` and `inputs.student.maps`.
        makes_ensemble: `combine` makes logits of the peers by a way of its own (a gate, a fusion).
        foreign_teacher: its teacher is one network of its own, of any architecture, rather than peers of the
            student's form; it teaches all peers.
        separate_teacher_views: may be given 2 P views, of which the teacher sees the second half.
        deployed_network: `teacher`, `student` or `ensemble`, what is deployed unless the user says otherwise.
        deployed_peer: an index (negative counts from the last), or `best` in validation.
        rampup: the ramp-up of its distillation weight, None without one.
        ensemble: its decaying ensemble of teachers, None without one.
    """

    Settings: ClassVar[type[Any]] = NoSettings
    teacher: ClassVar[str] = "required"
    uses_ensemble: ClassVar[bool] = True
    minimum_peers: ClassVar[int] = 2
    needs_stages: ClassVar[bool] = False
    makes_ensemble: ClassVar[bool] = False
    foreign_teacher: ClassVar[bool] = False
    separate_teacher_views: ClassVar[bool] = False
    deployed_network: ClassVar[str] = "teacher"
    deployed_peer: ClassVar[int | str] = "best"

    rampup_weight: Tensor

    def __init__(self, peers: int, settings: Any = None) -> None:
        super().__init__()
        self.settings = settings if settings is not None else self.Settings()
        if peers < self.minimum_peers:
            raise ConfigError(
                f"{type(self).__name__} needs at least {self.minimum_peers} peers, got {peers}: "
                "raise method.peers, or choose method=baseline for a single network."
            )
        self.peers = peers
        self.rampup: RampUp | None = getattr(self.settings, "rampup", None)
        self.ensemble: EnsembleTerm | None = getattr(self.settings, "ensemble", None)
        # On the device, so that a changed weight neither recompiles nor breaks a captured graph.
        self.register_buffer("rampup_weight", torch.zeros(()))

    def attach(self, network: PeerNetwork) -> None:
        """Make the method's own trainable parts to fit the student's network; called once, under the seed.

        Raises:
            ConfigError: the network does not offer what the method builds on.
        """

    def combine(self, student: StudentOutput) -> Tensor:
        """Make the method's own ensemble logits [B, C] of its peers, where it `makes_ensemble`."""
        raise NotImplementedError(f"{type(self).__name__} says makes_ensemble, but has no combine().")

    @property
    def wants_ensemble_classifier(self) -> bool:
        """Whether an ensemble classifier is trained beside the peers."""
        return self.uses_ensemble

    @property
    @abstractmethod
    def terms(self) -> tuple[str, ...]:
        """Name the loss terms, in the order in which they are logged."""

    @abstractmethod
    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Compute the weighted loss terms of a step, one scalar for each of `terms`; the loss is their sum."""

    def weights_in_force(self, ensemble_weight: Tensor) -> dict[str, Tensor]:
        """Name the weights that the schedules have set, for the log."""
        return {"rampup": self.rampup_weight} if self.rampup is not None else {}

    def settings_as_dict(self) -> dict[str, Any]:
        """Return the settings as nested dicts of primitives."""
        return asdict(self.settings)


@dataclass(frozen=True)
class Preset:
    """A method under a name: its class and what differs from the defaults.

    Attributes:
        method: the class.
        settings: differences from the defaults of `method.Settings`.
        teacher: differences from the defaults of `TeacherSettings`.
        classifiers: how the classifiers of the branches start: `own`, `equal`, or `released` (equal, but for VGG).
        sharing: peers given as a number share a `trunk`, or `nothing`.
        views: views of an image: `per_peer`, `shared`, or `per_peer_and_teacher`.
        peers: P unless the user says otherwise.
    """

    method: type[Method]
    settings: Mapping[str, Any] = field(default_factory=dict)
    teacher: Mapping[str, Any] = field(default_factory=dict)
    classifiers: str = "own"
    sharing: str = "trunk"
    views: str = "per_peer"
    peers: int = 3


METHODS: dict[str, Preset] = {}

M = TypeVar("M", bound=type[Method])


def register(
    name: str,
    *,
    settings: Mapping[str, Any] | None = None,
    teacher: Mapping[str, Any] | None = None,
    classifiers: str = "own",
    sharing: str = "trunk",
    views: str = "per_peer",
    peers: int = 3,
) -> Callable[[M], M]:
    """Make a method known under `name`; may be stacked to give one class several presets.

    Raises:
        ConfigError: the name is taken by another class.
    """

    def add(method: M) -> M:
        taken = METHODS.get(name)
        if taken is not None and taken.method.__qualname__ != method.__qualname__:
            raise ConfigError(f"The method name {name!r} is taken by {taken.method.__qualname__}: choose another.")
        METHODS[name] = Preset(method, settings or {}, teacher or {}, classifiers, sharing, views, peers)
        return method

    return add


def preset(name: str) -> Preset:
    """Find a preset by name, or raise a ConfigError that lists the names."""
    try:
        return METHODS[name]
    except KeyError:
        raise ConfigError(unknown("method", name, METHODS)) from None


def create(name: str, peers: int, settings: Mapping[str, Any] | None = None) -> Method:
    """Build a method from its preset with `settings` (nested mappings of primitives) laid over it."""
    found = preset(name)
    merged = merge(found.settings, settings or {})
    return found.method(peers, from_mapping(found.method.Settings, merged, "method"))


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested mapping `over` over `base`."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build the (nested) dataclass `cls` from a mapping of primitives.

    Raises:
        ConfigError: an unknown key, with the nearest known ones; or a value of the wrong kind.
    """
    known = {item.name for item in fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(unknown(f"key {where}.", str(key), known))
        nested = hints[key]
        if is_dataclass(nested) and isinstance(value, Mapping):
            value = from_mapping(nested, value, f"{where}.{key}")  # type: ignore[arg-type]
        arguments[key] = value
    try:
        return cls(**arguments)
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"{where} has a value of the wrong kind: {error}.") from error


def unknown(kind: str, name: str, choices: Mapping[str, Any] | set[str]) -> str:
    """Say that `name` is no known `kind`, with the nearest choices first."""
    near = difflib.get_close_matches(name, list(choices), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    label = f"Unknown {kind}{name}" if kind.endswith(".") else f"Unknown {kind} {name!r}"
    return f"{label}.{hint} Choices: {', '.join(sorted(choices))}."
