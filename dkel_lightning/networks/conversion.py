"""Images of one data set for a network that was trained on others: another normalisation, another size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.networks.peers import BranchedNetwork, PeerNetwork

Constants = tuple[Sequence[float], Sequence[float]]
"""Mean and deviation of each channel, of images scaled to [0, 1]."""


class Conversion:
    """A hook before a module's forward: images [B, C, H, W] become what the module takes, where they lie.

    A normalisation is undone and another one made, in one multiplication and one addition; another size is resampled
    (bilinear, antialiased); the type becomes that of the module's weights.

    Args:
        given: constants with which the images come; None with `taken` None.
        taken: constants that the module takes; None: as they come.
        side: of the square that it takes; None: as they come.
    """

    def __init__(self, given: Constants | None, taken: Constants | None, side: int | None) -> None:
        self.side = side
        self.linear: tuple[list[float], list[float]] | None = None
        if given is not None and taken is not None:
            pairs = [*zip(*given, *taken, strict=True)]
            self.linear = [s / other for _, s, _, other in pairs], [(m - own) / other for m, _, own, other in pairs]
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Convert the first argument."""
        images, *others = arguments
        if self.linear is not None:
            scale, shift = self._constants_on(images.device)
            images = images * scale + shift
        if self.side is not None and images.shape[-2:] != (self.side, self.side):
            images = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        return images.to(next(module.parameters()).dtype), *others

    def _constants_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._on:  # kept: building them anew would copy from the host in every batch
            assert self.linear is not None
            scale, shift = (torch.tensor(values, device=device).view(-1, 1, 1) for values in self.linear)
            self._on[device] = scale, shift
        return self._on[device]


def converts(module: nn.Module) -> bool:
    """Tell whether a module, or a part of it, converts its images first."""
    return any(isinstance(hook, Conversion) for part in module.modules() for hook in part._forward_pre_hooks.values())


def convert_before(network: PeerNetwork, conversion: Conversion) -> None:
    """Let a network of one peer, and what is deployed of it, convert its images first; its weights keep their names.

    Raises:
        ConfigError: the constants are of another number of channels.
    """
    channels = network.image_shape[0]
    if conversion.linear is not None and len(conversion.linear[0]) not in (1, channels):
        raise ConfigError(
            f"teacher.mean has {len(conversion.linear[0])} values, and the images have {channels} channels: "
            "give one for each."
        )
    first = network.trunk if isinstance(network, BranchedNetwork) else network.peer(0)
    first.register_forward_pre_hook(conversion)
