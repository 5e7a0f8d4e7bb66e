"""Layers that bring an output of one network into the form of another's, made from the shapes that a dry pass shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dkel_lightning.errors import ConfigError

KINDS = {2: "vectors [B, D]", 3: "tokens [B, N, D]", 4: "maps [B, C, H, W]"}


def adapter(source: Sequence[int], target: Sequence[int], what: str = "An output") -> nn.Module:
    """Make the layer from a shape to another: of maps a 1x1 convolution and BatchNorm, else a linear layer.

    Heights and widths may differ, see `at_common_size`; the batch is the first entry of both and plays no part.

    Raises:
        ConfigError: no layer joins the two, as a map and a vector, or tokens of unequal number.
    """
    if len(source) != len(target) or len(source) not in KINDS or (len(source) == 3 and source[1] != target[1]):
        shown = " and ".join(f"{KINDS.get(len(each), 'of another form')} {list(each)}" for each in (source, target))
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
