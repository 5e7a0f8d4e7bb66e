"""Image files decoded at each use: against torchvision, with and without workers, and in a run."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from dkel_lightning.app.tasks.train import train
from dkel_lightning.data import ImageNetDataModule
from dkel_lightning.data.augment import Normalize
from dkel_lightning.errors import ConfigError, DataError
from dkel_lightning.runtime.seeding import generator
from tests.compose import tiny_run

from .archives import ready, write_folder

SIZES = [(50, 40), (33, 61), (48, 48)]


def picture(index: int) -> Image.Image:
    width, height = SIZES[index % 3]
    smooth = np.random.RandomState(index).randint(0, 256, (5, 6, 3)).astype(np.uint8)
    return Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC)


def write_pictures(folder: Path, train: int, val: int) -> Path:
    members = {}
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            buffer = io.BytesIO()
            picture(index).save(buffer, "PNG" if index % 3 else "JPEG")
            members[f"{split}/n0{index % 2}/{index:02d}.png"] = buffer.getvalue()
    return write_folder(folder, members)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("imagenet"), 12, 4)


module = partial(ready, ImageNetDataModule, image_size=28)


def test_an_evaluation_sees_what_resize_and_central_crop_give(root: Path) -> None:
    data = module(root)
    assert (data.num_classes, data.class_names, data.image_shape) == (2, ("n00", "n01"), (3, 28, 28))
    assert (data.train_size + data.val_size, data.test_size) == (12, 4)
    (batch,) = data.test_dataloader()
    usual = v2.Compose([v2.Resize(32), v2.CenterCrop(28), v2.PILToTensor()])
    files = sorted((root / "val").rglob("*.png"))
    for image, file in zip(batch.views, files, strict=True):
        expected = Normalize(data.default_mean, data.default_std)(usual(Image.open(file)))
        assert float((image - expected).abs().mean()) < 0.15  # where scaling begins may differ by a part of a pixel
    assert batch.labels.tolist() == [0, 0, 1, 1]


def test_a_training_view_is_torchvisions_random_part_of_its_image(root: Path) -> None:
    data = module(root, augment="trivial")
    batch = next(iter(data.train_dataloader()))
    assert batch.views.shape == (4, 2, 3, 28, 28)
    stored: Any = data._stored("train")
    for sample, index in enumerate(batch.indices.tolist()):
        file = stored.images.encoded(stored.chosen[index])[1]
        seeds = data.augment.draw(generator(0, "augment", 0, 0, 0, index), 1, 2).seeds[:, 0].tolist()
        for view, seed in enumerate(seeds):
            expected: Tensor = v2.PILToTensor()(Image.open(file))
            for step, transform in (
                (2, v2.Compose([v2.RandomResizedCrop(28), v2.RandomHorizontalFlip()])),
                (0, v2.TrivialAugmentWide()),
            ):
                torch.manual_seed(seed + step)
                expected = transform(expected)
            assert torch.equal(batch.views[sample, view], Normalize(data.default_mean, data.default_std)(expected))


def test_what_means_nothing_here_is_refused_and_a_broken_file_named(root: Path, tmp_path: Path) -> None:
    for settings in ({"padding": 4}, {"residency": "device"}):
        with pytest.raises(ConfigError, match="leave out padding and residency"):
            module(root, **settings)
    broken = write_folder(
        tmp_path, {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*.png")}
    )
    (broken / "val" / "n01" / "01.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"01\.png is not a readable image"):
        list(module(broken).test_dataloader())


def test_the_experiment_trains(root: Path, tmp_path: Path) -> None:
    run = tiny_run(
        tmp_path, "experiment=imagenet", f"data.root={root}", "data.image_size=28", "data.batch_size=4",
        "data.workers=0", "backbone=resnet8", "trainer.devices=1", "trainer.strategy=auto",
    )  # fmt: skip
    assert (run.values["precision"]["name"], run.values["execution"]["channels_last"]) == ("bf16", True)
    assert train(run).objective is not None
