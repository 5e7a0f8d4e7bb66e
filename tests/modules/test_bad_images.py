"""Images that no network can learn from are named, with their cure, in training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dkel_lightning import DistillationModule, StudentModule, TeacherModule
from dkel_lightning.errors import DataError
from dkel_lightning.modules import batch as batches
from dkel_lightning.networks import create
from tests.modules.toy import trainer


def module(**settings: Any) -> DistillationModule:
    """Build for grey images of ten classes; without an initialisation, unless asked for, which meets images first."""
    settings = {"peers": 2, "in_channels": 1, "teacher": {"init_steps": 0}, **settings}
    return DistillationModule.build("resnet8", 10, **settings)


def grey() -> Tensor:
    return torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def loader(images: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(images, torch.arange(len(images)) % 10), batch_size=8)


NOT_TAKEN = r"The network cannot process a batch of images torch\.{} \[{}\] .*: convert them to torch\.float32"
WRONG: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "bytes": (lambda images: (images * 50).to(torch.uint8), NOT_TAKEN.format("uint8", "8, 1, 8, 8")),
    "float64": (lambda images: images.double(), NOT_TAKEN.format("float64", "8, 1, 8, 8")),
    "colour": (lambda images: images.repeat(1, 3, 1, 1), NOT_TAKEN.format("float32", "8, 3, 8, 8")),
    "views": (lambda images: images.repeat(1, 3, 1, 1).unsqueeze(1), NOT_TAKEN.format("float32", "8, 1, 3, 8, 8")),
}


OTHER_STAGES = ("initialised", "validate", "predict", "student", "teacher")


@pytest.mark.parametrize(("case", "stage"), [*((case, "fit") for case in WRONG), *(("bytes", s) for s in OTHER_STAGES)])
def test_images_that_the_network_does_not_take_are_one_error(tmp_path: Path, case: str, stage: str) -> None:
    make, message = WRONG[case]
    data = loader(make(grey()))
    fit = trainer(default_root_dir=tmp_path)
    ours = module(teacher={}) if stage == "initialised" else module()
    student, teacher = (kind(create("resnet8", 10, 2, in_channels=1)) for kind in (StudentModule, TeacherModule))
    calls: dict[str, Any] = {
        "fit": lambda: fit.fit(ours, data),
        "initialised": lambda: fit.fit(ours, data),
        "validate": lambda: fit.validate(ours, data),
        "predict": lambda: fit.predict(ours, data),
        "student": lambda: fit.fit(student, data),
        "teacher": lambda: fit.fit(teacher, data),
    }
    with pytest.raises(DataError, match=message):
        calls[stage]()


def test_errors_that_are_not_of_the_images_stay_what_they_are() -> None:
    network = nn.Conv2d(1, 2, 3)
    with pytest.raises(RuntimeError, match="out of memory"), batches.explain_shape_errors(grey().double(), network):
        raise RuntimeError("CUDA out of memory")
