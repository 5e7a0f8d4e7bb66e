"""Which sample comes when, on which process: pure functions of a seed, an epoch and a rank."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime.seeding import Label, generator


@dataclass(frozen=True)
class TrainingOrder:
    """Shuffled batches of one process.

    Rank r takes every `world`-th entry of one permutation that all ranks share. Every rank gets equally many samples:
    fewer than `world` samples are left out of an epoch, different ones in each. A last batch of a single sample is
    dropped (unless batches of one were asked for), since BatchNorm cannot normalise it; no batch is ever larger than
    `batch_size`, so buffers of that size hold every one.

    With `weights`, [samples], the permutation gives way to as many draws with replacement, in their proportion. A draw
    is a number: the sample's index, and `samples` more for each time that the pass, on any rank, has drawn it before.
    """

    samples: int
    batch_size: int
    rank: int = 0
    world: int = 1
    drop_last: bool = False
    weights: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"rank {self.rank} of {self.world} processes: the rank must lie in 0..{self.world - 1}")
        if len(self) == 0:
            raise ConfigError(
                f"no training batch: {self.samples} training images on {self.world} process(es) with batch_size "
                f"{self.batch_size} and drop_last={str(self.drop_last).lower()}; lower batch_size or use more images"
            )

    def __len__(self) -> int:
        """Return the number of batches in an epoch, the same on every rank."""
        full, rest = divmod(self.samples // self.world, self.batch_size)
        return full + int(rest > 1 and not self.drop_last)

    def batches(self, seed: int, *labels: Label) -> list[Tensor]:
        """Return the draws (int64, on the CPU) of each batch in the pass that `labels` name."""
        # Always drawn on the CPU: the order is then the same whatever device the images lie on.
        draws = generator(seed, *labels)
        if self.weights is None:
            order = torch.randperm(self.samples, generator=draws)
        else:
            order = torch.multinomial(self.weights, self.samples, replacement=True, generator=draws)
            ordered, places = order.sort(stable=True)
            repeats = torch.arange(self.samples) - torch.searchsorted(ordered, ordered)
            order = order.index_add(0, places, repeats * self.samples)
        mine = order[self.rank :: self.world][: self.samples // self.world]
        return list(torch.split(mine, self.batch_size)[: len(self)])


def balancing_weights(labels: Tensor) -> Tensor:
    """Give each sample the inverse of its class's number of samples: labels [N] -> [N], on the CPU."""
    labels = labels.cpu()
    return 1 / torch.bincount(labels).double()[labels]


def evaluation_batches(samples: int, batch_size: int, rank: int = 0, world: int = 1) -> list[Tensor]:
    """Return the sample indices (int64) of each evaluation batch of one process, in ascending order.

    The ranks' shards are disjoint and together hold every sample once. All ranks get equally many batches, none empty:
    whatever talks to the other ranks in an evaluation step (a log with `sync_dist`, FSDP; plain DDP in the first one)
    would else wait for ever. Where the shards differ in length a short last batch makes up for it (with a batch size of
    1, a last batch of 2).

    Raises:
        ConfigError: There are fewer samples than processes.
    """
    if samples < world:
        raise ConfigError(f"{samples} evaluation image(s) cannot be shared by {world} processes: use fewer processes")
    shard = torch.arange(rank, samples, world)
    longest = -(-samples // world)
    count = min(-(-longest // batch_size), samples // world)
    # The second term keeps one sample for each batch that is still to come.
    starts = [min(batch * batch_size, len(shard) - (count - batch)) for batch in range(count)]
    return [shard[start:stop] for start, stop in zip(starts, [*starts[1:], len(shard)], strict=True)]
