from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dkel_lightning.data.augment import CropFlip, Normalize
from dkel_lightning.data.batch import Batch
from dkel_lightning.data.imageset import StoredImages
from dkel_lightning.data.loaders import EvaluationLoader, TrainingLoader
from dkel_lightning.data.sources import DeviceImages, WorkerImages
from dkel_lightning.errors import DataError

from .batches import each, whole

COUNT = 22
AUGMENT = CropFlip(2, True, (0.4,), (0.3,))
Make = Callable[..., TrainingLoader]


def arrays() -> tuple[Tensor, Tensor]:
    images = torch.randint(0, 256, (COUNT, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images, torch.arange(COUNT) % 3


def stored() -> StoredImages:
    # Stored in reverse, to see that indices into the split and into the array are kept apart.
    images, labels = arrays()
    return StoredImages(images.flip(0).numpy(), labels.numpy(), np.arange(COUNT)[::-1].copy())


def on_device(**settings: Any) -> TrainingLoader:
    return TrainingLoader(DeviceImages(*arrays(), AUGMENT, 2), **{"batch_size": 4, **settings})


def in_workers(workers: int = 0, **settings: Any) -> TrainingLoader:
    return TrainingLoader(WorkerImages(stored(), AUGMENT, 2, workers=workers), **{"batch_size": 4, **settings})


both_loaders = pytest.mark.parametrize("make", [on_device, in_workers])


def assert_same(one: Iterable[Batch], two: Iterable[Batch]) -> None:
    pairs = list(zip(one, two, strict=True))
    assert pairs
    for first, second in pairs:
        assert all(torch.equal(a, b) for a, b in zip(whole(first), whole(second), strict=True))


@both_loaders
def test_batches_keep_the_contract(make: Make) -> None:
    images, labels = arrays()
    batches = list(each(make()))
    assert len(batches) == len(make()) == 6
    seen: list[int] = []
    for views, targets, indices in batches:
        assert views.dtype == torch.float32
        assert views.shape == (len(indices), 2, 1, 8, 8)
        assert targets.dtype == indices.dtype == torch.int64
        assert torch.equal(targets, labels[indices])
        assert views.transpose(0, 1).flatten(0, 1).data_ptr() == views.data_ptr()
        seen += indices.tolist()
    assert sorted(seen) == list(range(COUNT))
    plain = make()
    exact = CropFlip(0, False, (0.4,), (0.3,))
    source: Any = plain.source
    (source if make is on_device else source.data).augment = exact
    for views, _, indices in each(plain):
        assert torch.equal(views[:, 1], Normalize((0.4,), (0.3,))(images[indices]))


@both_loaders
def test_batches_are_a_function_of_seed_epoch_and_rank(make: Make) -> None:
    assert_same(make(seed=3, epoch=2), make(seed=3, epoch=2))
    moved = make(seed=3)
    list(islice(moved, 2))
    moved.set_epoch(2)
    assert_same(moved, make(seed=3, epoch=2))
    for other in ({"seed": 4, "epoch": 2}, {"seed": 3, "epoch": 1}, {"seed": 3, "epoch": 2, "rank": 1, "world": 2}):
        assert not torch.equal(next(iter(make(seed=3, epoch=2)))[0], next(iter(make(**other)))[0])


@both_loaders
def test_views_are_keyed_by_seed_epoch_rank_batch_and_view(make: Make) -> None:
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(COUNT, -1, -1, -1).contiguous()  # all alike
    labels, augment = torch.zeros(COUNT, dtype=torch.int64), CropFlip(4, True, (0.0,), (1.0,))
    workers = WorkerImages(StoredImages(images.numpy(), labels.numpy(), np.arange(COUNT)), augment, 2)
    source = DeviceImages(images, labels, augment, 2) if make is on_device else workers
    keys: list[dict[str, Any]] = [
        {"seed": seed, "epoch": epoch, "rank": rank} for seed in (0, 1) for epoch in (0, 1) for rank in (0, 1)
    ]
    passes = [TrainingLoader(source, batch_size=4, world=2, **key) for key in keys]
    views = [batch.views for loader in passes for batch in islice(loader, 2)]
    views += [batch.views for loader in passes[:2] for batch in loader.initialisation_batches(5, 2)]
    assert len({batch.numpy().tobytes() for batch in views}) == len(views) == 20
    assert all((batch[:, 0] != batch[:, 1]).any() for batch in views)


@both_loaders
@pytest.mark.parametrize("done", [0, 1, 4, 6])
def test_a_resume_in_the_middle_of_an_epoch_gives_the_batches_that_were_left(make: Make, done: int) -> None:
    uninterrupted = list(make(seed=1, epoch=3))
    interrupted = make(seed=1, epoch=3)
    list(islice(interrupted, done))
    state = interrupted.state_dict()
    resumed = make(seed=1, epoch=0)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state  # a checkpoint written before the next batch
    resumed.set_epoch(3)
    left = list(resumed)
    assert len(left) == 6 - done
    if left:
        assert_same(left, uninterrupted[done:])
    resumed.set_epoch(4)
    assert_same(resumed, make(seed=1, epoch=4))


@both_loaders
def test_initialisation_batches_disturb_nothing_and_repeat(make: Make) -> None:
    undisturbed = list(make(seed=1))
    loader = make(seed=1)
    mine = iter(loader)
    first = [next(mine), next(mine)]
    state = loader.state_dict()
    batches = list(loader.initialisation_batches(9, 14))  # more than two epochs
    init = list(each(batches))
    assert len(init) == 14
    assert loader.state_dict() == state
    assert_same([*first, *mine], undisturbed)
    assert_same(batches, make(seed=2, epoch=3).initialisation_batches(9, 14))
    assert init[0][0].shape == (4, 2, 1, 8, 8)
    assert sorted(index for batch in init[:6] for index in batch[2].tolist()) == list(range(COUNT))
    assert not torch.equal(init[0][2], init[6][2])
    other = next(each(make(rank=1, world=2).initialisation_batches(9, 1)))
    assert not torch.equal(other[2], next(each(make(rank=0, world=2).initialisation_batches(9, 1)))[2])


def test_the_number_of_workers_changes_nothing() -> None:
    alone, shared = in_workers(workers=0), in_workers(workers=2)
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        shared.set_epoch(epoch)
        assert_same(alone, shared)
    list(islice(shared, 2))  # an epoch broken off leaves nothing behind in living workers
    shared.set_epoch(4)
    assert_same(shared, in_workers(epoch=4))


def test_both_sources_give_an_evaluation_the_normalised_images_in_order() -> None:
    images, labels = arrays()
    normalize = Normalize((0.4,), (0.3,))
    for rank in range(2):
        device, workers = (
            EvaluationLoader(source, batch_size=4, rank=rank, world=2)
            for source in (DeviceImages(images, labels, AUGMENT), WorkerImages(stored(), AUGMENT))
        )
        assert len(device) == len(workers) == 3
        assert_same(device, workers)
        parts = [torch.cat(part) for part in zip(*device, strict=True)]
        assert parts[2].tolist() == list(range(rank, COUNT, 2))
        assert torch.equal(parts[0], normalize(images[parts[2]]))
        assert torch.equal(parts[1], labels[parts[2]])


def test_a_memory_map_travels_to_a_worker_by_name(tmp_path: Any) -> None:
    images, labels = arrays()
    np.save(tmp_path / "images.npy", np.tile(images.numpy(), (50, 1, 1, 1)))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    part = StoredImages(mapped, labels.numpy(), np.arange(COUNT))
    message = pickle.dumps(part)
    assert len(message) < 5000 < mapped.nbytes
    assert torch.equal(pickle.loads(message).read(torch.arange(3)), images[:3])


def test_a_broken_image_that_a_worker_meets_is_one_error_without_its_traceback() -> None:
    class Broken(StoredImages):
        def read(self, indices: Tensor) -> Tensor:
            raise DataError("7.png is not a readable image: replace or remove it")

    broken = Broken(arrays()[0].numpy(), arrays()[1].numpy(), np.arange(COUNT))
    with pytest.raises(DataError, match=r"^7\.png is not a readable image: replace or remove it$"):
        list(EvaluationLoader(WorkerImages(broken, AUGMENT, workers=1), batch_size=11))
