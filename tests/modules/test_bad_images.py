"""Images that no network can learn from are named, with their cure, in training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dkel_lightning import DistillationModule, StudentModule, TeacherModule
from dkel_lightning.errors import ConfigError, DataError
from dkel_lightning.modules import batch as batches
from dkel_lightning.networks import create
from dkel_lightning.settings.teacher import TeacherSettings
from tests.modules.toy import trainer

CURE = "correct the data, or the transform that makes it so."


def module(**settings: Any) -> DistillationModule:
    """Build for grey images of ten classes; without an initialisation, unless asked for, which meets images first."""
    settings = {"peers": 2, "in_channels": 1, "teacher": {"init_steps": 0}, **settings}
    return DistillationModule.build("resnet8", 10, **settings)


def grey(samples: int = 24, **spoilt: float) -> Tensor:
    """Draw images [N, 1, 8, 8]; `at_9=nan` makes image 9 not a number."""
    images = torch.randn(samples, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for name, value in spoilt.items():
        images[int(name.removeprefix("at_")), :, 2, 3] = value
    return images


def loader(images: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(images, torch.arange(len(images)) % 10), batch_size=8)


def no_augmentation_at_all(images: Tensor, drawn: torch.Generator) -> Tensor:
    """Divide by a standard deviation of 0."""
    return images / torch.zeros(())


# ---------------------------------------------------------------------- not finite, in training


# ---------------------------------------------------------------------- not finite, in an evaluation


def evaluate(fit: Trainer, ours: LightningModule, kind: str, data: DataLoader[Any]) -> dict[str, float]:
    results = getattr(fit, "validate" if kind == "validation" else kind)(ours, data, verbose=False)
    return dict(results[0])


# ---------------------------------------------------------------------- of another kind or form

BYTES = r"Images of a batch are torch\.uint8.*ToDtype\(torch\.float32, scale=True\)"
NOT_TAKEN = r"The network does not take images of a batch that are torch\.{} \[{}\] .*: bring them to torch\.float32"
WRONG: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "bytes": (lambda images: (images * 50).to(torch.uint8), BYTES),
    "float64": (lambda images: images.double(), NOT_TAKEN.format("float64", "8, 1, 8, 8")),
    "colour": (lambda images: images.repeat(1, 3, 1, 1), NOT_TAKEN.format("float32", "8, 3, 8, 8")),
    "views": (lambda images: images.repeat(1, 3, 1, 1).unsqueeze(1), NOT_TAKEN.format("float32", "8, 1, 3, 8, 8")),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("stage", ["fit", "initialised", "validate", "predict", "student"])
def test_images_that_the_network_does_not_take_are_one_error(tmp_path: Path, case: str, stage: str) -> None:
    make, message = WRONG[case]
    data = loader(make(grey()))
    fit = trainer(default_root_dir=tmp_path)
    ours = module(teacher={}) if stage == "initialised" else module()
    alone = StudentModule(create("resnet8", 10, 2, in_channels=1))
    calls: dict[str, Any] = {
        "fit": lambda: fit.fit(ours, data),
        "initialised": lambda: fit.fit(ours, data),
        "validate": lambda: fit.validate(ours, data),
        "predict": lambda: fit.predict(ours, data),
        "student": lambda: fit.fit(alone, data),
    }
    with pytest.raises(DataError, match=message):
        calls[stage]()


@pytest.mark.parametrize("stage", ["validate", "predict"])
def test_images_without_channels_are_named_in_evaluation_too(tmp_path: Path, stage: str) -> None:
    with pytest.raises(ConfigError, match=r"Views must be \[B, C, H, W\].*got \(8, 8, 8\)"):
        getattr(trainer(default_root_dir=tmp_path), stage)(module(), loader(grey().squeeze(1)))


class Casts(nn.Module):
    """Someone's network that takes any floats."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(self.stem(images.float())).mean((2, 3)))


def test_a_network_that_casts_its_images_is_left_alone(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"peers": 2, "split_at": "body", "in_channels": 1, "image_size": (8, 8)}
    fit = trainer(default_root_dir=tmp_path)
    fit.fit(DistillationModule.build(Casts(), 10, **settings, teacher={"init_steps": 0}), loader(grey().double()))
    assert fit.global_step == 3


def test_errors_that_are_not_of_the_images_stay_what_they_are() -> None:
    network = nn.Conv2d(1, 2, 3)
    with pytest.raises(RuntimeError, match="out of memory"), batches.explain_shape_errors(grey().double(), network):
        raise RuntimeError("CUDA out of memory")


def test_a_teacher_alone_names_them_as_well(tmp_path: Path) -> None:
    teacher = TeacherModule(create("resnet8", 10, 2, in_channels=1), TeacherSettings())
    with pytest.raises(DataError, match=NOT_TAKEN.format("float64", "8, 1, 8, 8")):
        trainer(default_root_dir=tmp_path).fit(teacher, loader(grey().double()))
