from __future__ import annotations

from collections import Counter
from importlib import import_module
from itertools import product

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from dkel_lightning.data.augment import CropFlip, Crops, Normalize

F = import_module("torchvision.transforms.functional")
MEAN, STD = (0.5071, 0.4866, 0.4409), (0.2675, 0.2565, 0.2761)


def images(count: int, channels: int = 3, size: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def by_torchvision(image: Tensor, padding: int, top: int, left: int, flip: bool) -> Tensor:
    size = image.shape[-1]
    result = F.crop(F.pad(image, [padding] * 4), top, left, size, size)
    result = F.hflip(result) if flip else result
    return F.normalize(F.convert_image_dtype(result, torch.float32), list(MEAN), list(STD))


def apply(augment: CropFlip, batch: Tensor, crops: Crops) -> Tensor:
    return augment.normalize(augment.cut(batch, crops))


def test_every_crop_and_flip_equals_torchvision_bit_for_bit() -> None:
    augment, batch = CropFlip(2, True, MEAN, STD), images(3)
    for top in range(5):
        for left in range(5):
            for flip in (0, 1):
                crops = Crops(*(torch.full((2, 3), value) for value in (top, left, flip, 0)))
                views = apply(augment, batch, crops)
                for sample in range(3):
                    expected = by_torchvision(batch[sample], 2, top, left, bool(flip))
                    assert torch.equal(views[sample, 0], expected)
                    assert torch.equal(views[sample, 1], expected)


def test_every_draw_is_independent_for_each_view_and_sample() -> None:
    for part in CropFlip(4, True, MEAN, STD, "trivial").draw(torch.Generator().manual_seed(0), 64, 3):
        assert len({tuple(row) for row in part.tolist()}) == 3  # one row for each view
        assert all(len(set(row)) > 1 for row in part.tolist())


def test_every_crop_is_equally_likely_as_in_torchvision() -> None:
    tops, lefts, flips, _ = CropFlip(1, True, (0.0,), (1.0,)).draw(torch.Generator().manual_seed(1), 1000, 18)
    seen = Counter(zip(*(part.flatten().tolist() for part in (tops, lefts, flips)), strict=True))
    assert set(seen) == set(product(range(3), range(3), range(2)))
    # 1,000 expected each; chi-squared with 17 degrees of freedom is below 40.8 in 999 cases of 1,000.
    assert sum((count - 1000) ** 2 / 1000 for count in seen.values()) < 40.8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_gives_the_same_crops_without_waiting_for_the_host() -> None:
    augment, batch = CropFlip(4, True, MEAN, STD), images(8)
    crops = augment.draw(torch.Generator("cuda").manual_seed(0), 8, 2)
    apply(augment, batch.cuda(), crops)  # the constants are copied once
    torch.cuda.set_sync_debug_mode("error")
    try:
        resident = batch.to("cuda", non_blocking=True)
        views = apply(augment, resident, crops)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    host = apply(augment, batch, Crops(*(part.cpu() for part in crops)))
    torch.testing.assert_close(views.cpu(), host)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", ["randaugment", "trivial"])
def test_a_policy_is_torchvisions_drawn_for_each_view_alone(policy: str, channels: int) -> None:
    mean, std = MEAN[:channels], STD[:channels]
    augment, batch = CropFlip(2, True, mean, std, policy=policy), images(3, channels, size=12)
    plain = CropFlip(2, True, (0.0,) * channels, (1.0,) * channels)
    crops = augment.draw(torch.Generator().manual_seed(3), 3, 2)
    assert len(set(crops.seeds.flatten().tolist())) == 6
    cut = (apply(plain, batch, crops) * 255).round().to(torch.uint8)
    torch.manual_seed(9)
    expected_next = torch.rand(2)
    torch.manual_seed(9)
    views = apply(augment, batch, crops)
    assert torch.equal(torch.rand(2), expected_next)  # the user's numbers go on as they were
    theirs = {"randaugment": v2.RandAugment, "trivial": v2.TrivialAugmentWide}[policy]()
    for sample in range(3):
        for view in range(2):
            torch.manual_seed(int(crops.seeds[view, sample]))
            assert torch.equal(views[sample, view], Normalize(mean, std)(theirs(cut[sample, view])))
