"""Wrappers around the `forward` of single modules, and the outputs of modules by name that are recorded with them.

A wrapper leaves class, name, weights and keys of its module as they are, and is removed from deployed networks
(`release_`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dkel_lightning.errors import ConfigError
from dkel_lightning.settings.declarations import did_you_mean

Named = dict[str, tuple[Tensor, ...]]
"""Outputs of modules by name, one tensor [B, ...] a peer."""

_PARTS = ("trunk.", "branch.body.", "branch.")
"""Prefixes of a registered backbone's two parts: its `stage3` may be in either."""


class StandIn:
    """Wraps the `forward` of one module."""

    def __init__(self, module: nn.Module) -> None:
        self.forward = module.forward
        module.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


def release_(model: nn.Module) -> nn.Module:
    """Restore the original `forward` of every module, in place."""
    for module in model.modules():
        forward = module.__dict__.get("forward")
        while isinstance(forward, StandIn):
            forward = forward.forward
            _restore(module, forward)
    return model


def _restore(module: nn.Module, forward: Any) -> None:
    del module.forward
    if getattr(forward, "__func__", None) is not type(module).forward:
        module.forward = forward  # another wrapper, ours or the user's


class _Outputs:
    """Outputs of the watched modules in a pass, by number; None while nothing is recorded."""

    tensors: list[list[Tensor]] | None = None


class _Watch(StandIn):
    """Records the output of a module. Innermost of all wrappers, as outer ones may answer without computing."""

    def __init__(self, module: nn.Module, number: int, outputs: _Outputs) -> None:
        innermost = module.__dict__.get("forward")
        while isinstance(innermost, StandIn) and isinstance(innermost.forward, StandIn):
            innermost = innermost.forward
        if isinstance(innermost, StandIn):
            self.forward, innermost.forward = innermost.forward, self
        else:
            super().__init__(module)
        self.module = module
        self.number = number
        self.outputs = outputs

    def remove(self) -> None:
        """Take this wrapper out of the chain, if it was not released meanwhile."""
        outer = self.module.__dict__.get("forward")
        if outer is self:
            _restore(self.module, self.forward)
        while isinstance(outer, StandIn):
            if outer.forward is self:
                outer.forward = self.forward
            outer = outer.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.forward(*args, **kwargs)
        if self.outputs.tensors is not None:
            leaves = [output] if isinstance(output, Tensor) else tree_leaves(output)
            self.outputs.tensors[self.number].append(next(leaf for leaf in leaves if isinstance(leaf, Tensor)))
        return output


class Watched:
    """The outputs of modules by name, of all peers of a network.

    Args:
        peers: the classifier of each peer, which may share modules.
        names: as in a peer's `named_modules()`; of registered backbones also without the prefix of the part.
        setting: the user's setting, for messages.
    """

    def __init__(self, peers: Sequence[nn.Module], names: Sequence[str], setting: str) -> None:
        self.setting = setting
        self._outputs = _Outputs()
        modules: list[nn.Module] = []
        self._numbers: dict[str, tuple[int, ...]] = {}
        for name in dict.fromkeys(names):
            of_peers = [find(peer, name, setting) for peer in peers]
            modules += [module for module in dict.fromkeys(of_peers) if module not in modules]
            self._numbers[name] = tuple(modules.index(module) for module in of_peers)
        self._watches = [_Watch(module, number, self._outputs) for number, module in enumerate(modules)]

    def begin(self) -> None:
        """Start recording."""
        self._outputs.tensors = [[] for _ in self._watches]

    def end(self, several_views: bool) -> Named:
        """Stop recording and return the outputs; `several_views`: each peer saw another view."""
        tensors, self._outputs.tensors = self._outputs.tensors, None
        assert tensors is not None
        named: Named = {}
        for name, numbers in self._numbers.items():
            is_shared = len(numbers) > 1 and len(set(numbers)) == 1
            calls = [len(tensors[number]) for number in numbers]
            if is_shared and several_views and calls[0] == len(numbers):  # a pass for each view
                named[name] = tuple(tensors[numbers[0]])
                continue
            if any(count != 1 for count in calls):
                raise ConfigError(
                    f"{self.setting} names {name!r}, which a pass calls {max(calls)} times: name a module that is "
                    "called once."
                )
            if not is_shared:
                named[name] = tuple([tensors[number][0] for number in numbers])
            else:
                output = tensors[numbers[0]][0]
                named[name] = tuple(output.chunk(len(numbers))) if several_views else (output,) * len(numbers)
        return named

    def remove(self) -> None:
        """Restore the modules' forward."""
        for watch in self._watches:
            watch.remove()


def find(peer: nn.Module, name: str, setting: str) -> nn.Module:
    """Return the module `name` of a peer's classifier."""
    modules: dict[str, nn.Module] = dict(peer.named_modules())
    for part in ("", *_parts(peer)):
        if name and f"{part}{name}" in modules:
            return modules[f"{part}{name}"]
    names = dict.fromkeys(_short(full_name, peer) for full_name in modules if full_name)
    hint = did_you_mean(name, names, most=3) or f" The first are {', '.join([*names][:12])}."
    raise ConfigError(f"{setting} names {name!r}, but {type(peer).__name__} has no such module.{hint}")


def stages_of(peer: nn.Module, setting: str) -> tuple[str, ...]:
    """Name the stages of a peer's classifier, in the order of its forward.

    Of registered backbones `stage1`, ...; of torchvision's and timm's ResNets `layer1`, ...; of other models of timm
    their `feature_info`.
    """
    names = [_short(name, peer) for name, _ in peer.named_modules()]
    for pattern in (r"stage\d+", r"layer\d+"):
        if stages := [name for name in names if re.fullmatch(pattern, name)]:
            return tuple(stages)
    info: Any = getattr(peer, "feature_info", None)
    stages = info.module_name() if hasattr(info, "module_name") else [entry["module"] for entry in info or []]
    if stages:
        return tuple(name for name in stages if name in names)
    raise ConfigError(
        f"The stages of {type(peer).__name__} are not known: give {setting} names of its modules, such as "
        f"{', '.join(names[1:8])}."
    )


def layers_of(peer: nn.Module, layers: Sequence[str] | None, setting: str) -> tuple[str, ...]:
    """Return `layers`, or every stage if it is None."""
    return stages_of(peer, setting) if layers is None else tuple(layers)


def _short(name: str, peer: nn.Module) -> str:
    return next((name.removeprefix(part) for part in _parts(peer) if name.startswith(part)), name)


def _parts(peer: nn.Module) -> tuple[str, ...]:
    return _PARTS if {"trunk", "branch"} <= peer._modules.keys() else ()
