"""Pairs of modules of two networks: their feature maps, and layers that adapt one's output to the other's shape."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.networks.peers import PeerNetwork
from dkel_lightning.networks.watching import Named, layers_of

KINDS = {2: "vectors [B, D]", 3: "tokens [B, N, D]", 4: "maps [B, C, H, W]"}


def adapter(source: Sequence[int], target: Sequence[int], what: str = "An output") -> nn.Module:
    """Make the layer from one shape [B, ...] to another: for maps a 1x1 convolution and BatchNorm, else a linear layer.

    Heights and widths may differ, see `at_common_size`.
    """
    if len(source) != len(target) or len(source) not in KINDS or (len(source) == 3 and source[1] != target[1]):
        shown = " and ".join(f"{KINDS.get(len(shape), 'of another form')} {list(shape)}" for shape in (source, target))
        raise ConfigError(f"{what} cannot be adapted ({shown}): name modules whose outputs are of one form.")
    if len(source) == 4:
        return nn.Sequential(nn.Conv2d(source[1], target[1], 1, bias=False), nn.BatchNorm2d(target[1]))
    return nn.Linear(source[-1], target[-1])


def at_common_size(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Average the larger of two maps [B, C, H, W] down to the smaller size, a side at a time; others stay."""
    if first.dim() != 4 or first.shape[2:] == second.shape[2:]:
        return first, second
    size = (min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3]))
    return F.adaptive_avg_pool2d(first, size), F.adaptive_avg_pool2d(second, size)


def maps_of(
    network: PeerNetwork, layers: Sequence[str] | None, setting: str, why: str
) -> tuple[tuple[str, ...], Named]:
    """Watch modules that return feature maps, by default every stage.

    Args:
        network: is watched from now on.
        layers: names; None for every stage.
        setting: the user's setting, for messages.
        why: use of the maps, such as "ekd guides blocks", for messages.

    Returns:
        The names, and the maps [B, C, H, W] of a dry run.
    """
    names = layers_of(network.peer(0), layers, setting)
    if not names:
        raise ConfigError(f"{setting} is empty, and {why}: name modules, or null for every stage.")
    maps = network.watch(names, setting)
    flat = [name for name, outputs in maps.items() if any(output.dim() != 4 for output in outputs)]
    if flat:
        raise ConfigError(f"{setting} names {', '.join(flat)}, which gives no maps [B, C, H, W]: name convolutions.")
    return names, maps


def check_pairs(ours: Collection[str], theirs: Collection[str], why: str) -> None:
    """Require as many modules of the student as of the teacher."""
    if len(ours) != len(theirs):
        raise ConfigError(
            f"{why} in pairs, and the student has {len(ours)} ({', '.join(ours)}), the teacher {len(theirs)} "
            f"({', '.join(theirs)}): give method.layers and method.teacher_layers as many."
        )
