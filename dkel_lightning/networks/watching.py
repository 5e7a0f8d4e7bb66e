"""What stands in for the `forward` of single modules, and the outputs of modules by name that are seen so.

A stand-in leaves class, name, weights and keys of its module as they are, works eagerly, compiled and captured, and is
taken off from what is deployed (`release_`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dkel_lightning.errors import ConfigError
from dkel_lightning.settings.declarations import did_you_mean

Named = dict[str, tuple[Tensor, ...]]
"""Outputs of modules by name, one tensor [B, ...] a peer."""

_INSIDE = ("", "trunk.", "branch.body.", "branch.")
"""Where a name is looked for: registered backbones come in two parts, and `stage3` may lie in either."""


class StandIn:
    """Stands in for the `forward` of one module."""

    def __init__(self, module: nn.Module) -> None:
        self.forward = module.forward
        module.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do as the module's own forward does."""
        return self.forward(*args, **kwargs)


def release_(model: nn.Module) -> nn.Module:
    """Give every module its own forward back, in place."""
    for module in model.modules():
        forward = module.__dict__.get("forward")
        while isinstance(forward, StandIn):
            forward = forward.forward
            _put_back(module, forward)
    return model


def _put_back(module: nn.Module, forward: Any) -> None:
    del module.forward
    if getattr(forward, "__func__", None) is not type(module).forward:
        module.forward = forward  # another stand-in, ours or the user's own


class _Seen:
    """What the watched modules have returned in a pass: a list of outputs by number; None while nobody looks.

    Attributes:
        versions: in a dry pass, how often each output had been changed in place when it was returned.
    """

    def __init__(self) -> None:
        self.outputs: list[list[Tensor]] | None = None
        self.versions: list[tuple[Tensor, int]] | None = None


class _Watch(StandIn):
    """Of a watched module. It lies inside of other stand-ins, which may answer without computing."""

    def __init__(self, module: nn.Module, number: int, seen: _Seen) -> None:
        innermost = module.__dict__.get("forward")
        while isinstance(innermost, StandIn) and isinstance(innermost.forward, StandIn):
            innermost = innermost.forward
        if isinstance(innermost, StandIn):
            self.forward, innermost.forward = innermost.forward, self
        else:
            super().__init__(module)
        self.module = module
        self.number = number
        self.seen = seen

    def take_off(self) -> None:
        """Give the module the forward of before; nothing where it was released meanwhile."""
        outer = self.module.__dict__.get("forward")
        if outer is self:
            _put_back(self.module, self.forward)
        while isinstance(outer, StandIn):
            if outer.forward is self:
                outer.forward = self.forward
            outer = outer.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.forward(*args, **kwargs)
        if self.seen.outputs is not None:
            leaves = [output] if isinstance(output, Tensor) else tree_leaves(output)
            first = next(leaf for leaf in leaves if isinstance(leaf, Tensor))
            self.seen.outputs[self.number].append(first)
            if self.seen.versions is not None:
                self.seen.versions.append((first, first._version))
        return output


class Watched:
    """The outputs of modules by name, of all peers of a network.

    Args:
        peers: the classifier of each peer, which may share modules.
        names: as in a peer's `named_modules()`; of a registered backbone without the part in which they lie.
        setting: under which the names are given, for messages.

    Raises:
        ConfigError: a peer has no such module; the nearest are named.
    """

    def __init__(self, peers: Sequence[nn.Module], names: Sequence[str], setting: str) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.setting = setting
        self._seen = _Seen()
        modules: list[nn.Module] = []
        self._numbers: dict[str, tuple[int, ...]] = {}
        for name in self.names:
            found = [find(peer, name, setting) for peer in peers]
            modules += [module for module in dict.fromkeys(found) if module not in modules]
            self._numbers[name] = tuple(modules.index(module) for module in found)
        self._watches = [_Watch(module, number, self._seen) for number, module in enumerate(modules)]

    def begin(self) -> None:
        """Look at the pass that follows."""
        self._seen.outputs = [[] for _ in self._watches]

    def end(self, several_views: bool) -> Named:
        """Give what the pass showed, and look no longer.

        Args:
            several_views: whether each peer saw a view of its own.
        """
        outputs, self._seen.outputs = self._seen.outputs, None
        assert outputs is not None
        if self._seen.versions is not None:
            self._judge(outputs, self._seen.versions)
        named: Named = {}
        for name, numbers in self._numbers.items():
            shared = len(numbers) > 1 and len(set(numbers)) == 1
            if not shared:
                named[name] = tuple([outputs[number][0] for number in numbers])
            elif len(outputs[numbers[0]]) > 1:  # a pass for each view
                named[name] = tuple(outputs[numbers[0]])
            else:
                seen = outputs[numbers[0]][0]
                named[name] = tuple(seen.chunk(len(numbers))) if several_views else (seen,) * len(numbers)
        return named

    @contextmanager
    def dry(self) -> Iterator[None]:
        """Judge the pass within.

        Raises:
            ConfigError: a module is not called just once, or its output is changed in place afterwards.
        """
        self._seen.versions = []
        try:
            yield
        finally:
            self._seen.outputs = self._seen.versions = None

    def remove(self) -> None:
        """Give the modules their forward back."""
        for watch in self._watches:
            watch.take_off()

    def _judge(self, outputs: list[list[Tensor]], versions: list[tuple[Tensor, int]]) -> None:
        for name, numbers in self._numbers.items():
            for number in set(numbers):
                if len(outputs[number]) != 1:
                    raise ConfigError(
                        f"{self.setting} names {name!r}, which a pass calls {len(outputs[number])} times: name a "
                        "module that is called once."
                    )
                if any(output is outputs[number][0] and output._version != version for output, version in versions):
                    raise ConfigError(
                        f"{self.setting} names {name!r}, whose output is changed in place by what follows: name the "
                        "module that changes it."
                    )


def find(peer: nn.Module, name: str, setting: str) -> nn.Module:
    """Return the module of a peer's classifier that a name means.

    Raises:
        ConfigError: there is none; the nearest are named.
    """
    modules: dict[str, nn.Module] = dict(peer.named_modules())
    for inside in _INSIDE:
        if name and f"{inside}{name}" in modules:
            return modules[f"{inside}{name}"]
    names = dict.fromkeys(_short(known) for known in modules if known)
    hint = did_you_mean(name, names, most=3) or f" The first are {', '.join([*names][:12])}."
    raise ConfigError(f"{setting} names {name!r}, but {type(peer).__name__} has no such module.{hint}")


def stages_of(peer: nn.Module, setting: str) -> tuple[str, ...]:
    """Name the stages of a peer's classifier, in the order of its pass.

    Of registered backbones `stage1`, ...; of torchvision's and timm's ResNets `layer1`, ...; of other models of timm
    what they say of themselves.

    Raises:
        ConfigError: they are not known.
    """
    names = [_short(name) for name, _ in peer.named_modules()]
    for pattern in (r"stage\d+", r"layer\d+"):
        if found := [name for name in names if re.fullmatch(pattern, name)]:
            return tuple(found)
    info: Any = getattr(peer, "feature_info", None)
    told = info.module_name() if hasattr(info, "module_name") else [each["module"] for each in info or []]
    if told:
        return tuple(name for name in told if name in names)
    raise ConfigError(
        f"The stages of {type(peer).__name__} are not known: give {setting} names of its modules, such as "
        f"{', '.join(names[1:8])}."
    )


def layers_of(peer: nn.Module, given: Sequence[str] | None, setting: str) -> tuple[str, ...]:
    """Give the modules that a setting names, or every stage where it names none (`stages_of`)."""
    return stages_of(peer, setting) if given is None else tuple(given)


def _short(name: str) -> str:
    return next((name.removeprefix(inside) for inside in _INSIDE[1:] if name.startswith(inside)), name)
