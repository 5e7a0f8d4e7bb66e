"""Order of samples in an epoch: pure functions of seed, epoch and rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime.seeding import Label, generator


@dataclass(frozen=True)
class TrainingOrder:
    """Shuffled batches of one process.

    Rank r takes every `world`-th entry of a shared permutation. All ranks get equally many samples; an epoch leaves out
    fewer than `world` samples, different ones each time. A last batch of one sample is dropped (unless `batch_size` is
    1), because BatchNorm cannot normalise it.
    """

    samples: int
    batch_size: int
    rank: int = 0
    world: int = 1
    drop_last: bool = False

    def __post_init__(self) -> None:
        if len(self) == 0:
            raise ConfigError(
                f"no training batch: {self.samples} training images on {self.world} process(es) with batch_size "
                f"{self.batch_size} and drop_last={str(self.drop_last).lower()}; lower batch_size or use more images"
            )

    def __len__(self) -> int:
        """Return the number of batches in an epoch, equal on all ranks."""
        full, rest = divmod(self.samples // self.world, self.batch_size)
        return full + int(rest > 1 and not self.drop_last)

    def batches(self, seed: int, *labels: Label) -> list[Tensor]:
        """Return the sample indices (int64, on the CPU) of each batch of the pass named by `labels`."""
        # On the CPU, so that the order does not depend on the device.
        order = torch.randperm(self.samples, generator=generator(seed, *labels))
        mine = order[self.rank :: self.world][: self.samples // self.world]
        return list(torch.split(mine, self.batch_size)[: len(self)])


@dataclass(frozen=True)
class MixedOrder:
    """Shuffled batches of one process with a fixed share of samples without labels.

    Labelled samples are numbered first. An epoch is one pass over the part that fills more batches, the last of which
    may be smaller; the other part is reshuffled after each of its passes. Ranks share each part as in `TrainingOrder`.
    """

    labelled: int
    unlabelled: int
    share: float
    batch_size: int
    rank: int = 0
    world: int = 1
    drop_last: bool = False

    def __post_init__(self) -> None:
        if min(self.labelled, self.unlabelled) < self.world or len(self) == 0:
            raise ConfigError(
                f"data.unlabelled_share={self.share:g} mixes {self.labelled} labelled and {self.unlabelled} unlabelled "
                f"training images on {self.world} process(es): it needs enough of both for a batch"
            )

    def _parts(self) -> list[tuple[int, int, int]]:
        """List (first sample, samples a process, samples a batch) of the labelled and the unlabelled part."""
        size = min(max(round(self.share * self.batch_size), 1), self.batch_size - 1)
        labelled = (0, self.labelled // self.world, self.batch_size - size)
        return [labelled, (self.labelled, self.unlabelled // self.world, size)]

    def __len__(self) -> int:
        """Return the number of batches in an epoch, equal on all ranks."""
        return max(mine // size + int(mine % size > 0 and not self.drop_last) for _, mine, size in self._parts())

    def batches(self, seed: int, *labels: Label) -> list[Tensor]:
        """Return the sample numbers (int64, on the CPU) of each batch of the pass named by `labels`."""
        halves = []
        for (first, mine, size), samples in zip(self._parts(), (self.labelled, self.unlabelled), strict=True):
            passes = 1 if mine > (len(self) - 1) * size else -(-len(self) * size // mine)
            orders = [torch.randperm(samples, generator=generator(seed, *labels, first, n)) for n in range(passes)]
            stream = torch.cat([first + order[self.rank :: self.world][:mine] for order in orders])
            halves.append(torch.split(stream, size)[: len(self)])
        return [torch.cat(both) for both in zip(*halves, strict=True)]


def evaluation_batches(samples: int, batch_size: int, rank: int = 0, world: int = 1) -> list[Tensor]:
    """Return the sample indices (int64) of each evaluation batch of one process, ascending.

    Each sample belongs to one rank. All ranks get equally many batches, none of them empty, since collective operations
    in an evaluation step would otherwise hang. If shares differ in length, the last batch is one shorter (or, with a
    batch size of 1, one longer).
    """
    if samples < world:
        raise ConfigError(
            f"{samples} evaluation image(s) cannot be divided between {world} processes: use fewer processes"
        )
    share = torch.arange(rank, samples, world)
    longest = -(-samples // world)
    count = min(-(-longest // batch_size), samples // world)
    # The second term keeps one sample for each remaining batch.
    starts = [min(batch * batch_size, len(share) - (count - batch)) for batch in range(count)]
    return [share[start:stop] for start, stop in zip(starts, [*starts[1:], len(share)], strict=True)]
