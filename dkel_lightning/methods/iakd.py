"""IAKD: interactive distillation, the teacher's blocks in the student's forward pass (arXiv 2007.01476)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Size, Tensor, nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.functional import cross_entropy
from dkel_lightning.methods.base import Draw, Layers, Method, MethodSettings, Needs, register
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.modules.peers import batch_norms, running_statistics
from dkel_lightning.modules.student import StudentModule
from dkel_lightning.modules.teacher import TeacherModule
from dkel_lightning.networks import PeerNetwork
from dkel_lightning.networks.adapters import adapter, check_pairs
from dkel_lightning.networks.peers import momentum
from dkel_lightning.networks.watching import StandIn, find, layers_of
from dkel_lightning.runtime.processes import average_over_processes
from dkel_lightning.runtime.seeding import generator
from dkel_lightning.schedules import SWAPS, Clock, swap_rate
from dkel_lightning.settings.declarations import TIME, choice, number, whole


class _Coins:
    """Which blocks of this step are the student's; None: nothing is swapped."""

    own: Tensor | None = None


class _Swapped(StandIn):
    """Wraps a student's block: both blocks compute, and a coin selects one output.

    The choice is made on tensors, so one compiled step serves all coins, and every parameter has a gradient on all
    processes.
    """

    def __init__(self, module: nn.Module, number: int, coins: _Coins, other: _Between) -> None:
        super().__init__(module)
        self.module, self.number, self.coins, self.other = module, number, coins, other

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = self.forward(*args, **kwargs)
        if self.coins.own is None or not self.module.training:
            return own
        return torch.where(self.coins.own[self.number], own, self.other(args[0]).to(own.dtype))


@dataclass(frozen=True)
class IAKDSettings(MethodSettings):
    """Settings of IAKD; q is the probability of the student's own block."""

    schedule: Annotated[str, choice("Schedule of q: constant, rising to 1 by half the run, a sawtooth.", *SWAPS)] = (
        "linear"
    )
    start: Annotated[float, number("q at the start.", 0, 1)] = 0.5
    period: Annotated[float, number("Length of a tooth in epochs (review).", 0, TIME, above=True)] = 10.0
    statistics_batches: Annotated[
        int, whole("Batches that estimate BatchNorm's statistics after an epoch of swaps; 0: none.", 0, 100_000)
    ] = 50
    layers: Layers = None
    teacher_layers: Layers = None


@register("iakd", teacher="frozen", peers=1)
class IAKD(Method):
    """Interactive distillation: blocks of a frozen teacher replace the student's at random in its forward pass.

    `L = CE(z)`, where each block i is `x -> a_i S_i(x) + (1 - a_i) T_i(x)`, `a_i ~ Bernoulli(q)` in every step.

    q, the probability of the student's own block, is constant, grows to 1 within half the run, or is a sawtooth.
    The teacher's blocks are frozen, in eval mode; the gradient flows through them to the student's earlier blocks.
    Coins are drawn from (seed, step), the same on all processes. BatchNorm's statistics, which would mix two
    kinds of input, are estimated again after each epoch, at the end of the run and before a validation within an epoch.
    Deployed and evaluated: the student's blocks only.

    Source: the abstract has idea and names of the schedules; their shapes and values are our reading.
    """

    Settings = IAKDSettings
    needs = Needs(foreign_teacher=True, teacher_outputs=False, maximum_peers=1, batches=True)
    settings: IAKDSettings
    terms = ("ce",)

    own_blocks: Tensor
    chance: Tensor

    def attach(self, student: PeerNetwork, teacher: PeerNetwork | None = None) -> None:
        assert teacher is not None
        own_blocks, own_borders = _blocks(student, self.settings.layers, "method.layers")
        blocks, borders = _blocks(teacher, self.settings.teacher_layers, "method.teacher_layers")
        check_pairs(own_blocks, blocks, "iakd swaps blocks")
        self._seed = int(torch.randint(2**62, ()))
        self.adapters = nn.ModuleDict()
        self._coins = _Coins()
        pairs = zip(own_blocks.items(), blocks.items(), own_borders, borders, strict=True)
        for index, ((name, own), (other_name, other), ours, theirs) in enumerate(pairs):
            what = f"{name} of the student and {other_name} of the teacher"
            if [shape[2:] for shape in ours] != [shape[2:] for shape in theirs]:
                raise ConfigError(f"{what} cannot be swapped: their maps are {_shown(ours)} and {_shown(theirs)}.")
            before = self._joined(f"{index}_before", ours[0], theirs[0], what)
            after = self._joined(f"{index}_after", theirs[1], ours[1], what)
            _Swapped(own, index, self._coins, _Between(before, other, after))
        self.register_buffer("own_blocks", torch.ones(len(blocks), dtype=torch.bool))
        self.register_buffer("chance", torch.ones(()))
        self._coins.own = self.own_blocks

    def _joined(self, name: str, source: Size, target: Size, what: str) -> nn.Module | None:
        if source[1:] == target[1:]:
            return None
        self.adapters[name] = adapter(source, target, what)
        return self.adapters[name]

    def _apply(self, fn: Any, recurse: bool = True) -> IAKD:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._coins.own = self.own_blocks  # moved to another device it is another tensor
        return self

    def chance_at(self, epochs: float, clock: Clock) -> float:
        """Return q after so many epochs of the run."""
        settings = self.settings
        length = None if clock.steps is None else clock.steps / clock.steps_per_epoch
        return swap_rate(settings.schedule, epochs, length, settings.start, settings.period)

    def set_time(self, clock: Clock) -> None:
        super().set_time(clock)
        chance = self.chance_at(clock.fraction, clock)
        tossed = torch.rand(len(self.own_blocks), generator=generator(self._seed, clock.step))
        self.own_blocks.copy_(tossed < chance)
        self.chance.fill_(chance)

    @torch.no_grad()
    def on_epoch_end(self, student: StudentModule, teacher: TeacherModule | None, clock: Clock, draw: Draw) -> None:
        if self.settings.statistics_batches == 0 or self.chance_at(clock.epoch, clock) >= 1:
            return
        layers = [layer for layer in batch_norms(student.network) if layer.training]  # not those that are frozen
        coins, self._coins.own = self._coins.own, None
        for layer in layers:
            layer.reset_running_stats()
        with momentum(layers, None):
            for batch in draw(self.settings.statistics_batches):
                student.network(batch.views)
        self._coins.own = coins
        average_over_processes(running_statistics(student.network))

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        return {"ce": cross_entropy(inputs.student.logits, inputs.labels).sum()}

    def current_weights(self) -> dict[str, Tensor]:
        return {**super().current_weights(), "own_blocks": self.chance}


class _Between:
    """A teacher's block, with a layer before and after it where widths differ."""

    def __init__(self, before: nn.Module | None, block: nn.Module, after: nn.Module | None) -> None:
        self.before, self.block, self.after = before, block, after

    def __call__(self, maps: Tensor) -> Tensor:
        hidden = maps if self.before is None else self.before(maps)
        weight = next(self.block.parameters(), None)  # of a teacher that computes in another type
        hidden = self.block(hidden if weight is None else hidden.to(weight.dtype))
        output: Tensor = hidden if self.after is None else self.after(hidden.to(maps.dtype))
        return output


_Border = tuple[Size, Size]
"""Shapes of the input and the output of a block."""


def _blocks(
    network: PeerNetwork, layers: tuple[str, ...] | None, setting: str
) -> tuple[dict[str, nn.Module], list[_Border]]:
    """Find the blocks of a network of one peer, and their borders in a dry pass."""
    names = layers_of(network.peer(0), layers, setting)
    blocks = {name: find(network.peer(0), name, setting) for name in names}
    shapes: dict[str, _Border] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            shapes[name] = (inputs[0].shape, output.shape)

        return hook

    hooks = [block.register_forward_hook(record(name)) for name, block in blocks.items()]
    try:
        network.watch(names, setting)  # raises an error that names a wrong layer
    finally:
        network.unwatch()
        for hook in hooks:
            hook.remove()
    return blocks, [shapes[name] for name in names]


def _shown(border: _Border) -> str:
    return " -> ".join(f"[{', '.join(map(str, shape[1:]))}]" for shape in border)
