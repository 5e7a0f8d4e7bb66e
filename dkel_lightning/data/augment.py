"""Augmentation of whole uint8 batches, on whatever device they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from dkel_lightning.data.imageset import StoredImages
from dkel_lightning.runtime.seeding import seeded


class _AugMix(v2.AugMix):  # type: ignore[misc]  # torchvision declares no types
    """Draws its weights on the CPU, as torchvision's other policies do: there the generator is seeded."""

    def _sample_dirichlet(self, params: Tensor) -> Tensor:
        drawn: Tensor = super()._sample_dirichlet(params.cpu())
        return drawn.to(params.device)


POLICIES: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "randaugment": v2.RandAugment,
    "trivial": v2.TrivialAugmentWide,
    "augmix": _AugMix,
}
"""What follows crop and flip, by torchvision with its own defaults; drawn for each view of each image."""


class Normalize:
    """Scale uint8 images to [0, 1], subtract the channel means and divide by the channel deviations.

    Args:
        mean: One mean a channel, of images scaled to [0, 1].
        std: One standard deviation a channel, likewise.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = tuple(mean)
        self.std = tuple(std)
        # Kept per device: building the constants anew would copy from the host in every batch.
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 images of the shape `[..., C, H, W]` of the uint8 ones given."""
        mean, std = self._constants_on(images.device)
        # Division, not a multiply-add: bit-equal to torchvision's ToTensor and Normalize.
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what lies on a device: workers get a copy, and cannot share the memory of every device."""
        return {**self.__dict__, "_constants": {}}

    def _constants_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._constants:
            shape = (-1, 1, 1)
            self._constants[device] = (
                torch.tensor(self.mean, dtype=torch.float32, device=device).view(shape),
                torch.tensor(self.std, dtype=torch.float32, device=device).view(shape),
            )
        return self._constants[device]


class Crops(NamedTuple):
    """What was drawn for each view of each sample: integers `[V, B]`.

    `tops` and `lefts` count pixels from the corner of the padded image; `flips` are 0 or 1; of `seeds` torchvision's
    transforms of single images are drawn.
    """

    tops: Tensor
    lefts: Tensor
    flips: Tensor
    seeds: Tensor


class CropFlip:
    """Cut every view of every sample at its own random place, flip it or not, change its colours and normalise it.

    The distribution is that of torchvision's `RandomCrop(size, padding)` followed by `RandomHorizontalFlip(0.5)`:
    padding comes before normalisation, and all `(2 * padding + 1) ** 2` places are equally likely.

    Args:
        padding: Pixels on each side; 0 leaves the images where they are.
        flip: Whether half of the views are mirrored left to right.
        mean: As in `Normalize`.
        std: As in `Normalize`.
        padding_mode: What these pixels are: zeros (`constant`), or the image mirrored at its edge (`reflect`), which
            must be larger than the padding.
        policy: `standard`, nothing more; or one of `POLICIES`, for images of 1 or 3 channels, one by one.
        erasing: Probability that a rectangle of a view is erased (to the channel means), likewise one by one.

    Source of the policies: RandAugment (arXiv 1909.13719), TrivialAugment (2103.10158), AugMix (1912.02781), random
    erasing (1708.04896).
    """

    def __init__(
        self,
        padding: int,
        flip: bool,
        mean: Sequence[float],
        std: Sequence[float],
        padding_mode: str = "constant",
        policy: str = "standard",
        erasing: float = 0.0,
    ) -> None:
        self.padding = padding
        self.padding_mode = padding_mode
        self.flip = flip
        self.normalize = Normalize(mean, std)
        self._policy = POLICIES[policy]() if policy != "standard" else None
        self._erase = v2.RandomErasing(erasing) if erasing > 0 else None

    def __call__(self, images: Tensor, generator: torch.Generator, views: int) -> Tensor:
        """Return float32 views `[B, V, C, H, W]` of the uint8 images `[B, C, H, W]`.

        The generator must lie on the device of the images. The memory is ordered `[V, B, C, H, W]`, so that
        `result.transpose(0, 1).flatten(0, 1)` copies nothing.
        """
        return self.apply(images, self.draw(generator, len(images), views))

    def draw(self, generator: torch.Generator, samples: int, views: int) -> Crops:
        """Draw where `views` views of each of `samples` samples are cut."""
        shape, device = (views, samples), generator.device
        offsets = torch.randint(2 * self.padding + 1, (2, *shape), generator=generator, device=device)
        flips = torch.randint(2 if self.flip else 1, shape, generator=generator, device=device)
        each = self._policy is not None or self._erase is not None
        seeds = torch.randint(2**62 if each else 1, shape, generator=generator, device=device)
        return Crops(offsets[0], offsets[1], flips, seeds)

    def apply(self, images: Any, crops: Crops) -> Tensor:
        """Make the views that were drawn, of what `read` gives; shapes as in `__call__`."""
        views = self.normalize(self.cut(images, crops))
        if self._erase is not None:
            views = _one_by_one(views, crops.seeds + 1, self._erase)
        return views.transpose(0, 1)

    def apply_in_worker(self, images: Any, crops: Crops) -> Tensor:
        """Make the views as far as uint8 goes, a quarter of the bytes: `normalize` makes those of `apply` of them."""
        return self.cut(images, crops).transpose(0, 1) if self._erase is None else self.apply(images, crops)

    def cut(self, images: Any, crops: Crops) -> Tensor:
        """Cut, flip and recolour: uint8 `[V, B, C, H, W]`."""
        views = self._cut(images, crops)
        return views if self._policy is None else _one_by_one(views, crops.seeds, self._policy)

    def _cut(self, images: Tensor, crops: Crops) -> Tensor:
        height, width = images.shape[-2:]
        padded = self._padded(images)
        # A mirrored crop is a crop of the mirrored image from the other side, so that one gather does both.
        both = torch.stack([padded, padded.flip(-1)]) if self.flip else padded[None]
        lefts = torch.where(crops.flips == 1, 2 * self.padding - crops.lefts, crops.lefts)
        windows = both.unfold(3, height, 1).unfold(4, width, 1)  # [2, B, C, tops, lefts, H, W], a view
        samples = torch.arange(len(images), device=images.device)
        return windows[crops.flips, samples, :, crops.tops, lefts]

    def read(self, stored: StoredImages, indices: Tensor) -> Any:
        """Read what `apply` takes of these samples of a split."""
        return stored.read(indices)

    def _padded(self, images: Tensor) -> Tensor:
        if self.padding_mode == "constant":
            return F.pad(images, (self.padding,) * 4)
        for axis in (-2, -1):  # torch reflects no uint8
            last = images.shape[axis] - 1
            places = torch.arange(-self.padding, last + self.padding + 1, device=images.device).abs()
            images = images.index_select(axis, last - (last - places).abs())
        return images


class ResizedCropFlip(CropFlip):
    """Cut a random part of every view of every sample, scale it, flip it or not, change its colours and normalise it.

    torchvision's `RandomResizedCrop(size)` and `RandomHorizontalFlip(0.5)`, for images of any size.

    Args:
        size: Height and width of the views.
        flip: As in `CropFlip`.
        mean: As in `Normalize`.
        std: As in `Normalize`.
        policy: As in `CropFlip`.
        erasing: As in `CropFlip`.
    """

    def __init__(
        self, size: int, flip: bool, mean: Sequence[float], std: Sequence[float], policy: str, erasing: float
    ) -> None:
        super().__init__(0, flip, mean, std, "constant", policy, erasing)
        self._crop = v2.Compose([v2.RandomResizedCrop(size), *([v2.RandomHorizontalFlip()] if flip else [])])

    def draw(self, generator: torch.Generator, samples: int, views: int) -> Crops:
        """Draw the seeds of `views` views of each of `samples` samples."""
        seeds = torch.randint(2**62, (views, samples), generator=generator, device=generator.device)
        none = torch.zeros_like(seeds)
        return Crops(none, none, none, seeds)

    def _cut(self, images: Sequence[Tensor], crops: Crops) -> Tensor:  # type: ignore[override]
        cuts = []
        with seeded(0):
            for row in crops.seeds.tolist():
                for image, seed in zip(images, row, strict=True):
                    torch.default_generator.manual_seed(seed + 2)
                    cuts.append(self._crop(image))
        return torch.stack(cuts).view(*crops.seeds.shape, *cuts[0].shape)

    def read(self, stored: StoredImages, indices: Tensor) -> list[Tensor]:
        """Read the whole images of these samples, uint8 `[C, H, W]` of any size each."""
        encoded: Any = stored.images  # which is `EncodedImages`
        return [torch.from_numpy(encoded.original(int(index))) for index in stored.chosen[indices.numpy()]]


def _one_by_one(views: Tensor, seeds: Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """Transform each of the views `[V, B, C, H, W]` on its own; torchvision draws from the global generator."""
    made = torch.empty_like(views)
    with seeded(0):  # which gives the user's numbers back
        for place, image, seed in zip(made.flatten(0, 1), views.flatten(0, 1), seeds.flatten().tolist(), strict=True):
            torch.default_generator.manual_seed(seed)
            place.copy_(transform(image))
    return made
