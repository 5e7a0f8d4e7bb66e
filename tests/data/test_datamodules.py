from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from dkel_lightning.data import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    DigitsDataModule,
    ImageDataModule,
    NpzDataModule,
    TinyImageNetDataModule,
)
from dkel_lightning.data import datamodule as datamodule_file
from dkel_lightning.data.sources import DeviceImages, WorkerImages
from dkel_lightning.errors import DataError
from tests.modules import toy

from .archives import npz_arrays, tiny_members, write_folder
from .batches import each, whole

Seen = list[tuple[int, int, tuple[int, ...], float]]
"""Epoch, batch number, indices, and the sum of the views of each training batch."""


class Recorder(LightningModule):
    """A small network with BatchNorm that writes down what it is trained and evaluated on."""

    def __init__(self, features: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(features, classes), nn.BatchNorm1d(classes))
        self.seen: Seen = []
        self.evaluated: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        views, labels, indices = batch
        self.seen.append((self.current_epoch, batch_idx, tuple(indices.tolist()), float(views.double().sum())))
        return nn.functional.cross_entropy(self.network(views[:, 0]), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, _, indices = batch
        self.network(images)
        self.evaluated += indices.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def digits(**settings: Any) -> DigitsDataModule:
    return DigitsDataModule(**{"batch_size": 16, "views": 2, "limit": 90, "workers": 0, **settings})


def trainer(folder: Path, **settings: Any) -> Trainer:
    return toy.trainer(default_root_dir=folder, **{"max_epochs": -1, **settings})


def expected(epochs: int, **settings: Any) -> Seen:
    """What should be seen, from the loaders alone."""
    module = digits(**settings)
    module.setup()
    seen: Seen = []
    for epoch in range(epochs):
        loader = module.train_dataloader()
        loader.set_epoch(epoch)
        for number, (views, _, indices) in enumerate(each(loader)):
            seen.append((epoch, number, tuple(indices.tolist()), float(views.double().sum())))
    return seen


# Without a Trainer


def test_digits_work_without_a_trainer() -> None:
    module = DigitsDataModule(batch_size=64, views=3)
    module.prepare_data()
    module.setup()
    assert (module.num_classes, module.image_shape) == (10, (1, 8, 8))
    assert module.class_names == tuple("0123456789")
    assert (module.train_size, module.val_size, module.test_size) == (1293, 144, 360)
    views, labels, indices = next(each(module.train_dataloader()))
    assert views.shape == (64, 3, 1, 8, 8)
    assert labels.shape == indices.shape == (64,)
    images, _, _ = next(iter(module.val_dataloader()))
    assert images.shape == (144, 1, 8, 8)
    assert sum(len(batch[1]) for batch in module.test_dataloader()) == 360


def test_training_and_validation_images_are_apart_and_all_there_are() -> None:
    module = digits(limit=None)
    module.setup()
    train, val = (module._splits[name].chosen for name in ("train", "val"))
    assert sorted([*train, *val]) == list(range(1437))


def test_the_seed_of_the_run_does_not_move_the_validation_images() -> None:
    def validation_images(**settings: Any) -> Tensor:
        module = digits(**settings)
        module.setup()
        return torch.cat([batch[0] for batch in module.val_dataloader()])

    assert torch.equal(validation_images(seed=0), validation_images(seed=1))
    assert not torch.equal(validation_images(), validation_images(split_seed=1))


def test_a_resume_with_other_held_out_images_is_refused_also_where_labels_are_sorted(tmp_path: Path) -> None:
    arrays = npz_arrays()
    for split in ("train", "test"):
        arrays[f"{split}_labels"].sort()
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]

    def sorted_npz(split_seed: int) -> NpzDataModule:
        made = NpzDataModule(str(tmp_path / "data.npz"), split_seed=split_seed)
        made.setup()
        return made

    state = sorted_npz(0).state_dict()
    with pytest.raises(DataError, match="is not the data of the resumed run"):
        sorted_npz(1).load_state_dict(state)
    sorted_npz(0).load_state_dict(state)
    tested = sorted_npz(1)
    tested.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    tested.trainer.state.fn = TrainerFn.TESTING
    tested.load_state_dict(state)  # a test of a checkpoint may read other images


@pytest.mark.parametrize("residency", ["device", "workers"])
def test_paper_selection_trains_on_everything_and_chooses_on_the_test_set(residency: str) -> None:
    module = digits(selection="paper", limit=None, residency=residency)
    module.setup()
    assert (module.train_size, module.val_size, module.test_size) == (1437, 360, 360)
    for val, test in zip(module.val_dataloader(), module.test_dataloader(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(whole(val), whole(test), strict=True))


# Each data set


def test_npz_computes_its_constants_and_uses_its_validation_images(tmp_path: Path) -> None:
    arrays = npz_arrays(shape=(8, 8, 3))
    arrays |= {"val_images": arrays["test_images"][:4], "val_labels": arrays["test_labels"][:4]}
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    module = NpzDataModule(str(tmp_path / "data.npz"), batch_size=8)
    module.prepare_data()
    module.setup()
    assert (module.train_size, module.val_size, module.test_size) == (30, 4, 15)
    np.testing.assert_allclose(module.augment.normalize.mean, arrays["train_images"].mean((0, 1, 2)) / 255)
    assert not module.flip


@pytest.mark.parametrize(
    ("kind", "mean", "std"),
    [
        (CIFAR10DataModule, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        (CIFAR100DataModule, (0.5071, 0.4866, 0.4409), (0.2675, 0.2565, 0.2761)),
        (TinyImageNetDataModule, (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    ],
)
def test_constants_and_crops_are_those_of_the_released_code(
    kind: type[ImageDataModule], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    module = kind()
    assert (module.mean, module.std) == (mean, std)
    assert (module.padding, module.flip) == (4, True)


def test_a_memory_mapped_set_gives_the_same_evaluation_in_both_residencies(tmp_path: Path) -> None:
    write_folder(tmp_path / "tiny-imagenet-200", tiny_members())
    batches = []
    for residency, workers in (("device", 0), ("workers", 0), ("workers", 2)):
        module = TinyImageNetDataModule(
            str(tmp_path), validation=0.3, batch_size=2, eval_batch_size=2, residency=residency, workers=workers
        )
        module.prepare_data()
        module.setup()
        batches.append([*module.val_dataloader(), *module.test_dataloader()])
        expected_type = DeviceImages if residency == "device" else WorkerImages
        assert type(module.train_dataloader().source) is expected_type
        assert len(list(module.train_dataloader())) == 2
    for device, alone, shared in zip(*batches, strict=True):
        for parts in zip(device, alone, shared, strict=True):
            assert torch.equal(parts[0], parts[1])
            assert torch.equal(parts[0], parts[2])


def test_auto_residency_goes_by_the_size_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    module = digits(residency="auto")
    module.setup()
    assert module.chosen_residency == "device"
    monkeypatch.setattr(datamodule_file, "MOST_ON_DEVICE", 1797 * 64 - 1)  # each array counts once
    assert module.chosen_residency == "workers"
    assert digits(residency="device").chosen_residency == "device"


# Under a Trainer

both_residencies = pytest.mark.parametrize("residency", ["device", "workers"])


@both_residencies
@pytest.mark.parametrize("steps", [2, 6, 8], ids=["in the first", "at its end", "in the second"])
def test_a_resume_from_any_batch_sees_what_an_uninterrupted_run_sees(
    tmp_path: Path, residency: str, steps: int
) -> None:
    # 90 images in batches of 16: six batches an epoch.
    saved = ModelCheckpoint(tmp_path, every_n_train_steps=steps, save_top_k=-1, filename="{step}")
    first = Recorder()
    trainer(tmp_path, max_steps=steps, enable_checkpointing=True, callbacks=[saved]).fit(
        first, digits(residency=residency)
    )
    resumed = Recorder()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        trainer(tmp_path, max_epochs=3).fit(
            resumed, digits(residency=residency), ckpt_path=str(tmp_path / f"step={steps}.ckpt")
        )
    assert [*first.seen, *resumed.seen] == expected(3, residency=residency)


@pytest.mark.parametrize("when", ["on_train_epoch_end", "on_validation_end"])
def test_a_resume_from_the_end_of_an_epoch_starts_the_next(tmp_path: Path, when: str) -> None:
    saved = ModelCheckpoint(
        tmp_path, filename="end", save_on_train_epoch_end=when == "on_train_epoch_end", enable_version_counter=False
    )
    trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[saved]).fit(Recorder(), digits())
    resumed = Recorder()
    trainer(tmp_path, max_epochs=4).fit(resumed, digits(), ckpt_path=str(tmp_path / "end.ckpt"))
    assert resumed.seen == [entry for entry in expected(4) if entry[0] >= 2]
