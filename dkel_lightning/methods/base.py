"""What a method of online distillation is, and the registry that finds one by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from dkel_lightning.data.batch import Batch
from dkel_lightning.errors import ConfigError
from dkel_lightning.functional import not_halved
from dkel_lightning.modules.interface import Coordinator
from dkel_lightning.modules.outputs import MethodInputs, StudentOutput
from dkel_lightning.networks import PeerNetwork
from dkel_lightning.schedules import Clock
from dkel_lightning.settings.backbone import BackboneSettings
from dkel_lightning.settings.declarations import from_mapping, merge
from dkel_lightning.settings.keys import unknown_choice
from dkel_lightning.settings.methods import PRESETS, MethodPreset, NoSettings, unmet_needs
from dkel_lightning.settings.needs import Needs
from dkel_lightning.settings.weights import EnsembleTerm, RampUp


class Method(nn.Module, ABC):
    """Turn what the networks say into named loss terms.

    A method states which networks it needs and computes its loss; it neither owns the peers nor steps anything.
    It is a module so that it may hold trainable parts of its own (a gate, an attention), which are then optimised
    and checkpointed with the rest.

    Attributes:
        Settings: frozen dataclass of primitives (nested dataclasses allowed) from which the method is rebuilt.
        needs: what it needs of what stands around it: teacher, ensemble, views, peers. Of the shipped methods both are
            said in `settings.methods.PRESETS`.
        own_buffers: buffers of which each process has its own between the moments when the method makes them equal;
            no Trainer turns them into a half type (`bf16-true`), in which counts end at 256.
        teacher_parts: attributes that hold modules which learn with the teacher; they are clipped with it.
        rampup: the ramp-up of its distillation weight, None without one.
        ensemble: its decaying ensemble of teachers, None without one.
    """

    Settings: ClassVar[type[Any]] = NoSettings
    needs: ClassVar[Needs] = Needs()
    own_buffers: ClassVar[tuple[str, ...]] = ()
    teacher_parts: ClassVar[tuple[str, ...]] = ()

    rampup_weight: Tensor

    def __init__(self, peers: int, settings: Any = None) -> None:
        super().__init__()
        self.settings = settings if settings is not None else self.Settings()
        for mistake in unmet_needs(type(self).__name__, self.needs, peers):
            raise ConfigError(mistake)
        self.peers = peers
        self.rampup: RampUp | None = getattr(self.settings, "rampup", None)
        self.ensemble: EnsembleTerm | None = getattr(self.settings, "ensemble", None)
        # On the device, so that a changed weight neither recompiles nor breaks a captured graph.
        self.register_buffer("rampup_weight", torch.zeros(()))

    def _apply(self, fn: Any, recurse: bool = True) -> Method:
        """Keep `own_buffers` out of half types."""
        own = {name: each for name, each in self.named_buffers(recurse=False) if name in self.own_buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, each in own.items():
            setattr(self, name, not_halved(fn)(each))
        return self

    def attach(self, network: PeerNetwork) -> None:
        """Make the method's own trainable parts to fit the student's network; called once, under the seed.

        Raises:
            ConfigError: the network does not offer what the method builds on.
        """

    def attach_teacher(self, network: PeerNetwork) -> None:
        """Make the parts that depend on the teacher's network; called after `attach` where there is a teacher.

        Raises:
            ConfigError: the network does not offer what the method builds on.
        """

    def tell_time(self, clock: Clock, batch_idx: int, seed: int) -> None:
        """Put in force what depends on the time, before a training batch: of a method with `Needs(time=True)`.

        Args:
            clock: the time.
            batch_idx: the batch's number in its epoch.
            seed: the module's, to draw from with the time: a resume draws the same then.
        """

    def wants_batches(self, when: str, clock: Clock) -> int | None:
        """Say how many training batches it wants at an epoch's `start` or `end`; None: it is not asked to look at any.

        Of a method with `Needs(batches=True)`.
        """
        return None

    def take_batches(self, when: str, module: Coordinator, batches: Iterable[Batch]) -> None:
        """Look at the batches that it has asked for: other ones on each process, drawn from the seed."""

    def take_over(self, prepared: Coordinator) -> None:
        """Take what a stage before this one has prepared, from the module of the checkpoint with the teacher's weights.

        Raises:
            ConfigError: it holds something else.
        """

    def start_student(self, student: PeerNetwork) -> None:
        """Give a student weights of parts that were trained beside its teacher by this method.

        Raises:
            ConfigError: there are none.
        """
        raise ConfigError(
            "teacher.init_student_from_branches takes the branches of a teacher that was trained by method=sftn: set "
            "teacher.training=sftn, or give its checkpoint as teacher.weights."
        )

    def lacks(self) -> str | None:
        """Say what should have been prepared in a stage before this one and was not; None where nothing is lacking."""
        return None

    def combine(self, student: StudentOutput) -> Tensor:
        """Make the method's own ensemble logits [B, C] of its peers, where it needs an ensemble of its `own`."""
        raise NotImplementedError(f"{type(self).__name__} needs an ensemble of its own, but has no combine().")

    @property
    def wants_ensemble_classifier(self) -> bool:
        """Whether an ensemble classifier is trained beside the peers."""
        return self.needs.ensemble == "classifier"

    @property
    def wants_classes(self) -> bool:
        """Whether it works on one class a sample (`inputs.classes`), and mixed or other soft labels are refused."""
        return self.needs.classes

    @property
    @abstractmethod
    def terms(self) -> tuple[str, ...]:
        """Name the loss terms, in the order in which they are logged; a class attribute will do."""

    @abstractmethod
    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Compute the weighted loss terms of a step, one scalar for each of `terms`; the loss is their sum."""

    def named_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Compute the terms, and see that they are those that it names.

        Raises:
            ConfigError: it computes others.
        """
        terms = self.loss_terms(inputs)
        if terms.keys() != set(self.terms):
            raise ConfigError(
                f"{type(self).__name__} names the terms {', '.join(self.terms)} but computes {', '.join(terms)}: a "
                "term without a name would be left out of the loss."
            )
        return terms

    def weights_in_force(self, ensemble_weight: Tensor) -> dict[str, Tensor]:
        """Name the weights that the schedules have set, for the log."""
        return {"rampup": self.rampup_weight} if self.rampup is not None else {}

    def settings_as_dict(self) -> dict[str, Any]:
        """Return the settings as nested dicts of primitives."""
        return asdict(self.settings)


METHODS: dict[str, type[Method]] = {}
"""The classes by name; what else is chosen under it says `settings.methods.PRESETS`."""

M = TypeVar("M", bound=type[Method])


def register(
    name: str,
    *,
    settings: Mapping[str, Any] | None = None,
    teacher: str | Mapping[str, Any] | None = None,
    views_per_pass: str = BackboneSettings.views_per_pass,
    **arrangement: Any,
) -> Callable[[M], M]:
    """Make a method known under `name`; may be stacked to give one class several presets.

    Args:
        name: as it is chosen by.
        settings: differences from the defaults of `method.Settings`.
        teacher: name of a preset in `settings.teacher.TEACHERS`, or differences from the defaults of TeacherSettings.
        views_per_pass: see `BackboneSettings`.
        arrangement: `peers`, `sharing`, `views` and `classifiers`, see `settings.methods.Arrangement`.

    Raises:
        ConfigError: the name is taken by another class.
    """

    def add(method: M) -> M:
        meaning = (method.__doc__ or name).strip().splitlines()[0]
        given = method.Settings, method.needs, settings or {}, teacher or "", arrangement, views_per_pass
        _known(name, method)
        PRESETS[name] = MethodPreset(meaning, *given)
        return method

    return add


def shipped(name: str) -> Callable[[M], M]:
    """Make a method known under a name of `settings.methods.PRESETS`, which says its settings and needs."""

    def add(method: M) -> M:
        _known(name, method)
        method.Settings, method.needs = PRESETS[name].Settings, PRESETS[name].needs
        return method

    return add


def _known(name: str, method: type[Method]) -> None:
    taken = METHODS.get(name)
    if taken is not None and taken.__qualname__ != method.__qualname__:
        raise ConfigError(f"The method name {name!r} is taken by {taken.__qualname__}: choose another.")
    METHODS[name] = method


def preset(name: str) -> MethodPreset:
    """Find what is chosen under the name of a method, or raise a ConfigError that lists the names."""
    if name not in METHODS:
        raise ConfigError(unknown_choice("method", name, METHODS))
    return PRESETS[name]


def create(name: str, peers: int, settings: Mapping[str, Any] | None = None) -> Method:
    """Build a method from its preset with `settings` (nested mappings of primitives) laid over it."""
    merged = merge(preset(name).settings, settings or {})
    return METHODS[name](peers, from_mapping(METHODS[name].Settings, merged, "method"))
