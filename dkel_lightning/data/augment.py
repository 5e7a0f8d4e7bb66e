"""Augmentation of uint8 batches, on the device where they are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from dkel_lightning.data.imageset import StoredImages
from dkel_lightning.runtime.seeding import seeded

POLICIES: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "randaugment": v2.RandAugment,
    "trivial": v2.TrivialAugmentWide,
}
"""torchvision's policies with their defaults, applied to each view after crop and flip."""


class Normalize:
    """Scale uint8 images to [0, 1], subtract the channel means and divide by the channel deviations.

    Args:
        mean: Channel means of images in [0, 1].
        std: Channel deviations of images in [0, 1].
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = tuple(mean)
        self.std = tuple(std)

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 images of the same shape `[..., C, H, W]`."""
        mean, std = _constant(self.mean, images.device), _constant(self.std, images.device)
        # Division, not a multiply-add: bit-equal to torchvision's ToTensor and Normalize.
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)


@functools.cache  # avoids a copy from the host per batch
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


class Crops(NamedTuple):
    """Random draws for each view of each sample, int64 `[V, B]`.

    `tops` and `lefts` are offsets in the padded image, in pixels; `flips` are 0 or 1; `seeds` are for torchvision's
    transforms of single images.
    """

    tops: Tensor
    lefts: Tensor
    flips: Tensor
    seeds: Tensor


class CropFlip:
    """Random crop of the zero-padded image, random horizontal flip, colour policy and normalisation, in batches.

    The distribution is that of torchvision's `RandomCrop(size, padding)` and `RandomHorizontalFlip(0.5)`, drawn
    independently for each view of each sample.

    Args:
        padding: Pixels on each side; 0 disables cropping.
        flip: Whether to mirror half of the views.
        mean: As in `Normalize`.
        std: As in `Normalize`.
        policy: `standard` (none) or one of `POLICIES`, for images of 1 or 3 channels.
        strong: One of `POLICIES` for the first half of the views, those of the students, in place of `policy`.

    Source of the policies: RandAugment (arXiv 1909.13719), TrivialAugment (2103.10158).
    """

    def __init__(
        self,
        padding: int,
        flip: bool,
        mean: Sequence[float],
        std: Sequence[float],
        policy: str = "standard",
        strong: str | None = None,
    ) -> None:
        self.padding = padding
        self.flip = flip
        self.normalize = Normalize(mean, std)
        names = (policy if strong is None else strong, policy)
        self._policies = [None if name == "standard" else POLICIES[name]() for name in names]

    def __call__(self, images: Tensor, generator: torch.Generator, views: int) -> Tensor:
        """Return float32 views `[B, V, C, H, W]` of uint8 images `[B, C, H, W]`; the generator is on their device.

        The memory is ordered `[V, B, C, H, W]`, so `views.transpose(0, 1).flatten(0, 1)` copies nothing.
        """
        return self.normalize(self.cut(images, self.draw(generator, len(images), views)))

    def draw(self, generator: torch.Generator, samples: int, views: int) -> Crops:
        shape, device = (views, samples), generator.device
        offsets = torch.randint(2 * self.padding + 1, (2, *shape), generator=generator, device=device)
        flips = torch.randint(2 if self.flip else 1, shape, generator=generator, device=device)
        seeds = torch.randint(2**62 if any(self._policies) else 1, shape, generator=generator, device=device)
        return Crops(offsets[0], offsets[1], flips, seeds)

    def cut(self, images: Any, crops: Crops) -> Tensor:
        """Return the uint8 views `[B, V, C, H, W]` of the images that `read` returns, before normalisation."""
        views = self._cut(images, crops)
        if any(self._policies):
            sizes = [len(views) // 2, len(views) - len(views) // 2]
            halves = zip(torch.split(views, sizes), torch.split(crops.seeds, sizes), self._policies, strict=True)
            views = torch.cat([half if p is None else _transform_each(half, seeds, p) for half, seeds, p in halves])
        return views.transpose(0, 1)

    def _cut(self, images: Tensor, crops: Crops) -> Tensor:
        height, width = images.shape[-2:]
        padded = F.pad(images, (self.padding,) * 4)
        # A mirrored crop is a crop of the mirrored image from the other side, so one gather suffices.
        both = torch.stack([padded, padded.flip(-1)]) if self.flip else padded[None]
        lefts = torch.where(crops.flips == 1, 2 * self.padding - crops.lefts, crops.lefts)
        windows = both.unfold(3, height, 1).unfold(4, width, 1)  # [2, B, C, tops, lefts, H, W], a view
        samples = torch.arange(len(images), device=images.device)
        return windows[crops.flips, samples, :, crops.tops, lefts]

    def read(self, stored: StoredImages, indices: Tensor) -> Any:
        """Read the images of these samples in the form that `cut` takes."""
        return stored.read(indices)


class ResizedCropFlip(CropFlip):
    """torchvision's `RandomResizedCrop(size)`, a random horizontal flip and a policy, for images of any size.

    Args:
        size: Height and width of the views.
        flip: As in `CropFlip`.
        mean: As in `Normalize`.
        std: As in `Normalize`.
        policy: As in `CropFlip`.
        strong: As in `CropFlip`.
    """

    def __init__(
        self,
        size: int,
        flip: bool,
        mean: Sequence[float],
        std: Sequence[float],
        policy: str,
        strong: str | None = None,
    ) -> None:
        super().__init__(0, flip, mean, std, policy, strong)
        self._crop = v2.Compose([v2.RandomResizedCrop(size), *([v2.RandomHorizontalFlip()] if flip else [])])

    def draw(self, generator: torch.Generator, samples: int, views: int) -> Crops:
        seeds = torch.randint(2**62, (views, samples), generator=generator, device=generator.device)
        zeros = torch.zeros_like(seeds)
        return Crops(zeros, zeros, zeros, seeds)

    def _cut(self, images: Sequence[Tensor], crops: Crops) -> Tensor:  # type: ignore[override]
        cuts = []
        with seeded(0):
            for row in crops.seeds.tolist():
                for image, seed in zip(images, row, strict=True):
                    torch.default_generator.manual_seed(seed + 2)
                    cuts.append(self._crop(image))
        return torch.stack(cuts).view(*crops.seeds.shape, *cuts[0].shape)

    def read(self, stored: StoredImages, indices: Tensor) -> list[Tensor]:
        """Read the whole images, each uint8 `[C, H, W]`."""
        encoded: Any = stored.images  # `EncodedImages`
        return [torch.from_numpy(encoded.original(int(index))) for index in stored.chosen[indices.numpy()]]


def _transform_each(views: Tensor, seeds: Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """Transform each view of `[V, B, C, H, W]` with its own seed of the global generator, which torchvision uses."""
    result = torch.empty_like(views)
    with seeded(0):  # restores the user's generator
        targets, images = result.flatten(0, 1), views.flatten(0, 1)
        for target, image, seed in zip(targets, images, seeds.flatten().tolist(), strict=True):
            torch.default_generator.manual_seed(seed)
            target.copy_(transform(image))
    return result
