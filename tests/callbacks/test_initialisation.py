"""The teacher's initialisation: exactly its steps, nothing else moved, never twice."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from functools import partial
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from dkel_lightning.callbacks.initialisation import initialisation_batches
from dkel_lightning.errors import DataError
from tests.modules.toy import (
    Recorder,
    Stream,
    Toy,
    build,
    images_and_labels,
    same,
    train_loader,
    trainer,
)


class KnownLoader(DataLoader[Any]):
    """A loader that says itself what the teacher is initialised with."""

    def initialisation_batches(self, seed: int, steps: int) -> Iterator[Any]:
        for step in range(steps):
            yield images_and_labels(6, seed=100 * seed + step)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_initialisation_is_that_many_plain_sgd_steps_at_a_share_of_the_rate(steps: int) -> None:
    module = build(peers=2, seed=5, teacher={"init_steps": steps, "init_lr_scale": 0.5, "init_weight_decay": 0.1})
    expected = copy.deepcopy(module.teacher.network).train().requires_grad_(True)
    loader, recorder = KnownLoader(Toy(), batch_size=8), Recorder()
    for images, labels in loader.initialisation_batches(5, steps):
        logits, *_ = expected(images)
        expected.zero_grad()
        ((F.cross_entropy(logits[0], labels) + F.cross_entropy(logits[1], labels)) / 2).backward()
        with torch.no_grad():
            for parameter in expected.parameters():
                assert parameter.grad is not None
                parameter.sub_(0.05 * 0.5 * (parameter.grad + 0.1 * parameter))
    trainer(recorder, limit_train_batches=1).fit(module, loader)
    for name, value in recorder.teachers[0].items():
        torch.testing.assert_close(value, expected.get_parameter(name).detach(), rtol=1e-5, atol=1e-6)
    assert bool(module.teacher.initialised)
    assert not any(p.requires_grad for p in module.teacher.network.parameters())


def test_initialisation_for_epochs_takes_as_many_batches_as_training_does() -> None:
    teachers = []
    for steps in ("1.5epochs", 3):
        recorder = Recorder()
        module = build(seed=5, teacher={"init_steps": steps, "init_lr_scale": 0.5})
        trainer(recorder, limit_train_batches=2).fit(module, KnownLoader(Toy(), batch_size=8))
        teachers.append(recorder.teachers[0])
    assert same(*teachers)


def test_the_rate_is_a_share_of_the_base_rate_also_under_a_warm_up_and_a_scaled_rate() -> None:
    still = build(teacher={"init_steps": 1, "init_lr_scale": 1.0, "init_weight_decay": 0.0})
    warm = build(
        teacher={"init_steps": 1, "init_lr_scale": 1.0, "init_weight_decay": 0.0},
        scheduler=partial(torch.optim.lr_scheduler.ConstantLR, factor=0.1, total_iters=5),
    )
    scaled = build(teacher={"init_steps": 1, "init_lr_scale": 1.0, "init_weight_decay": 0.0}, lr_scale=0.1)
    recorders = [Recorder(), Recorder(), Recorder()]
    for module, recorder in zip((still, warm, scaled), recorders, strict=True):
        trainer(recorder, limit_train_batches=1).fit(module, KnownLoader(Toy(), batch_size=8))
    assert same(recorders[0].teachers[0], recorders[1].teachers[0])
    assert same(recorders[0].teachers[0], recorders[2].teachers[0])


class RandomTransforms(Toy):
    """Draws from every global generator, as transforms do."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = super().__getitem__(index)
        noise = torch.rand(()) + float(np.random.rand()) + random.random()
        return image + 0.1 * noise, label


def batches_of_a_fit(init_steps: int, make: Any) -> list[torch.Tensor]:
    torch.manual_seed(11)
    random.seed(11)
    np.random.seed(11)
    module, recorder = build(teacher={"init_steps": init_steps}), Recorder()
    trainer(recorder, max_epochs=2).fit(module, make())
    after = torch.rand(3), torch.tensor(np.random.rand()), torch.tensor(random.random())
    return [batch[0] for batch in recorder.batches] + list(after)


def shuffled_by_global_state() -> DataLoader[Any]:
    return DataLoader(RandomTransforms(), batch_size=8, shuffle=True)


def shuffled_by_its_own_generator() -> DataLoader[Any]:
    return DataLoader(RandomTransforms(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(4))


def with_a_batch_sampler() -> DataLoader[Any]:
    data = RandomTransforms()
    sampler = BatchSampler(RandomSampler(data, generator=torch.Generator().manual_seed(4)), 8, drop_last=False)
    return DataLoader(data, batch_sampler=sampler)


@pytest.mark.parametrize("make", [shuffled_by_global_state, shuffled_by_its_own_generator, with_a_batch_sampler])
def test_training_batches_and_global_numbers_do_not_depend_on_initialisation(make: Any) -> None:
    without, with_five = batches_of_a_fit(0, make), batches_of_a_fit(5, make)
    assert len(without) == 2 * 3 + 3
    assert all(torch.equal(one, other) for one, other in zip(without, with_five, strict=True))


class CountInitialisations:
    """Counts how often the scheme runs, from the outside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from dkel_lightning import TeacherModule

        self.count = 0
        original = TeacherModule.initialise

        def counted(teacher: TeacherModule, batches: Any, lr: float) -> None:
            self.count += 1
            original(teacher, batches, lr)

        monkeypatch.setattr(TeacherModule, "initialise", counted)


def test_initialisation_is_never_repeated_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CountInitialisations(monkeypatch)
    saving = ModelCheckpoint(tmp_path, save_last=True)
    trainer(saving, enable_checkpointing=True).fit(build(), train_loader())
    assert counter.count == 1
    resumed = build()
    trainer(max_epochs=2).fit(resumed, train_loader(), ckpt_path=tmp_path / "last.ckpt")
    assert counter.count == 1
    assert resumed.teacher.updates.item() == 6
    trainer().fit(resumed, train_loader())  # nor by a second fit of the same module
    assert counter.count == 1


class Counted(Stream):
    """Without an order that could be drawn anew, but with a length."""

    def __len__(self) -> int:
        return 24


def test_persistent_workers_of_a_stream_go_on_where_training_stands() -> None:
    loader = DataLoader(Counted(), batch_size=10, num_workers=1, persistent_workers=True)
    training = iter(loader)
    assert len(list(initialisation_batches(loader, 0, 2, 0))) == 2
    assert [len(labels) for _, labels in training] == [10, 10, 4]


class Unopened(Dataset[tuple[Tensor, int]]):
    file: Tensor | None = None

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        assert self.file is not None
        return self.file, index


def open_file(_: int) -> None:
    worker: Any = get_worker_info()
    worker.dataset.file = torch.ones(3, 8, 8)


def test_what_opens_files_in_a_worker_does_so_before_the_initialisation() -> None:
    for sampler in ({"batch_size": 4}, {"batch_sampler": BatchSampler(range(8), 4, drop_last=False)}):
        loader: DataLoader[Any] = DataLoader(Unopened(), num_workers=2, worker_init_fn=open_file, **sampler)
        assert sorted(chain(*drawn(loader, 2))) == [*range(8)]


@pytest.mark.parametrize("source", ["order", "transforms", "augmentation"])
def test_each_rank_initialises_on_numbers_of_its_own(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Images(Numbers):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            noise = torch.rand(()) if source == "transforms" else torch.zeros(())
            return torch.full((3, 8, 8), float(index) if source == "order" else 1.0) + noise, index % 3

    def augment(images: Tensor, draws: torch.Generator) -> Tensor:
        return images + torch.rand(images.shape, generator=draws)

    def seen_by_teacher(rank: int) -> Tensor:
        monkeypatch.setattr(Trainer, "global_rank", property(lambda _: rank))
        batches: list[Tensor] = []
        augmentation = augment if source == "augmentation" else None
        module = build(peers=1, method="mean_teacher", views="per_peer", augmentation=augmentation,
                       teacher={"init_steps": 1, "draw": "independent"})  # fmt: skip
        module.teacher.network.register_forward_hook(lambda _, inputs, __: batches.append(inputs[0]))
        trainer(limit_train_batches=1).fit(module, DataLoader(Images(), batch_size=8))
        return batches[0]

    first, again, other = (seen_by_teacher(rank) for rank in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class Numbers(Dataset[tuple[Tensor, int]]):
    """Images that show their number."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3, 8, 8), float(index)), index


class Evens(Sampler[int]):
    """Even samples without an end, and so without a length."""

    def __iter__(self) -> Iterator[int]:
        return cycle(range(0, 24, 2))


def drawn(loader: DataLoader[Any], steps: int) -> list[list[int]]:
    return [labels.tolist() for _, labels in initialisation_batches(loader, 0, steps, 0)]


def test_only_samples_that_the_users_sampler_gives_are_drawn_and_its_order_is_left_alone() -> None:
    def made() -> tuple[torch.Generator, dict[str, DataLoader[Any]]]:
        own = torch.Generator().manual_seed(7)
        weights = [1.0] * 8 + [0.0] * 8 + [3.0] * 8
        subset = SubsetRandomSampler(range(10), own)
        return own, {
            "subset": DataLoader(Numbers(), 5, sampler=subset),
            "weighted": DataLoader(Numbers(), 6, sampler=WeightedRandomSampler(weights, 240, generator=own)),
            "part": DataLoader(Numbers(), 4, sampler=RandomSampler(range(8), generator=own)),
            "batches": DataLoader(Numbers(), batch_sampler=BatchSampler(subset, 5, drop_last=False)),
        }

    own, loaders = made()
    before = own.get_state()
    assert sorted(chain(*drawn(loaders["subset"], 2))) == [*range(10)]
    assert sorted(chain(*drawn(loaders["part"], 2))) == [*range(8)]
    batches = drawn(loaders["batches"], 4)
    assert sorted(chain(*batches[:2])) == sorted(chain(*batches[2:])) == [*range(10)]
    weighted = [*chain(*drawn(loaders["weighted"], 40))]
    assert not {*range(8, 16)} & {*weighted}
    assert 2 < sum(index >= 16 for index in weighted) / sum(index < 8 for index in weighted) < 4.5
    assert torch.equal(own.get_state(), before)
    assert drawn(loaders["subset"], 2) == drawn(made()[1]["subset"], 2) != [b.tolist() for _, b in loaders["subset"]]


def test_a_sampler_without_an_end_is_read_as_far_as_needed() -> None:
    assert drawn(DataLoader(Numbers(), 4, sampler=Evens()), 4)[:3] == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18, 20, 22]]


def test_a_loader_without_batches_is_named() -> None:
    with pytest.raises(DataError, match="The training loader gives no batches, so the teacher cannot be initialised"):
        list(initialisation_batches([], 0, 2, 0))


def test_transfer_hooks_see_the_batches_of_the_initialisation() -> None:
    module = build(teacher={"init_steps": 2})
    seen: list[str] = []

    def before(batch: Any, dataloader_idx: int) -> Any:
        seen.append("before")
        return batch

    def after(batch: Any, dataloader_idx: int) -> Any:
        seen.append("after")
        return batch

    module.on_before_batch_transfer = before
    module.on_after_batch_transfer = after
    trainer(limit_train_batches=1).fit(module, train_loader())
    assert seen == ["before", "after"] * 3


def test_the_teacher_is_initialised_on_augmented_views_of_each_peer() -> None:
    shapes: list[tuple[int, ...]] = []

    def augmentation(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return images + torch.rand(images.shape, generator=generator)

    module = build(peers=2, augmentation=augmentation, teacher={"init_steps": 1})
    module.teacher.network.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    trainer(limit_train_batches=1).fit(module, train_loader(batch_size=8))
    assert shapes == [(8, 2, 3, 8, 8)] * 2
