"""Numbers at their edges: each is computed, or refused with one clear error; none turns into NaN in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dkel_lightning import DistillationModule, functional
from dkel_lightning.app import build as building
from dkel_lightning.data import NpzDataModule
from dkel_lightning.errors import ConfigError, DataError
from tests.compose import tiny_run
from tests.modules.toy import Toy, build, train_loader, trainer

NAN, INF = float("nan"), float("inf")


# ---------------------------------------------------------------------- gradients and half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1e4, 6e4])
def test_logits_of_tens_of_thousands_give_finite_losses_and_gradients(dtype: torch.dtype, size: float) -> None:
    logits = torch.tensor([[[size, -size, 0.0]], [[-size, size, 0.0]]], dtype=dtype, requires_grad=True)
    teachers = torch.tensor([[[-size, size, size]], [[0.0, size, -size]]], dtype=dtype)
    labels = torch.tensor([2])
    losses = [
        functional.cross_entropy(logits, labels),
        functional.cross_entropy(logits, functional.targets_of(labels, 3, label_smoothing=0.1)),
        functional.distillation(logits, teachers, 3.0),
        functional.distillation_from_each(logits, teachers, 3.0),
        functional.distillation(logits, functional.assemble(teachers, 3.0, space="probabilities"), 3.0),
        functional.distillation(logits, functional.assemble(teachers, 3.0), 3.0),
    ]
    for loss in losses:
        assert bool(loss.isfinite().all())
        (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
        assert bool(gradient.isfinite().all())


# ---------------------------------------------------------------------- temperatures, rates, weights


OUT_OF_RANGE: list[tuple[Any, dict[str, Any]]] = [
    *(({"name": name, "temperature": t}, {}) for name in ("dkel", "dml") for t in (0, -1, NAN, INF, "x", None)),
    *(({"name": "dml", "weight": value}, {}) for value in (-1, NAN, INF)),
    *(({"name": "cl_ilr", "beta": value}, {}) for value in (-0.1, 1.5, NAN)),
    *(("baseline", {"targets": {"label_smoothing": value}}) for value in (-0.1, 1.0, NAN)),
    *(({"name": "dkel", "rampup": {"scale": value}}, {}) for value in (-1, NAN, INF)),
    *(({"name": "dkel", "rampup": {"epochs": value}}, {}) for value in (-1, NAN)),
    *(({"name": "dkel", "ensemble": {"cutoff": value}}, {}) for value in (-1, 1, NAN)),
    *(({"name": "dkel", "ensemble": {"decay": value}}, {}) for value in (-1, NAN)),
    *(("dkel", {"teacher": {"decay": value}}) for value in (-0.1, 1.5, NAN, INF, {0: 1.5}, {0: NAN}, {}, {1: 0.5})),
    *(("dkel", {"teacher": {"decay": None, "decay_share": value}}) for value in (0, -1, NAN)),
    *(("dkel", {"teacher": {"init_lr_scale": value}}) for value in (-1, NAN, INF)),
    *(("dkel", {"teacher": {"init_steps": value}}) for value in (-1, 1.5, NAN, "x")),
]  # fmt: skip


@pytest.mark.parametrize(("method", "settings"), OUT_OF_RANGE, ids=lambda value: str(value))
def test_what_is_out_of_range_is_refused_in_python_too(method: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        build(method, 2, **settings)


def test_milestones_as_shares_are_whole_epochs_of_the_run(tmp_path: Path) -> None:
    values = tiny_run(tmp_path, "trainer.max_epochs=3", "protocol.milestones=[0.5,0.75]").values
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    factory = building.scheduler(values)
    assert factory is not None
    assert sorted(factory(optimizer).state_dict()["milestones"].elements()) == [2, 3]
    assert optimizer.param_groups[0]["lr"] == 1.0


# ---------------------------------------------------------------------- lengths


def test_drop_in_loaders_without_validation_or_test_images_are_passed_over(tmp_path: Path) -> None:
    module, fit = build(), trainer(default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match="Total length of `DataLoader` across ranks is zero"):
        fit.fit(module, train_loader(), DataLoader(Toy(0), batch_size=8))
    assert fit.global_step == 3
    assert not module.scores.validation_accuracy.isfinite().any()
    assert trainer(default_root_dir=tmp_path).test(module, DataLoader(Toy(0), batch_size=8), verbose=False) == []


def images(samples: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (samples, 8, 8), dtype=np.uint8)


def own_set(folder: Path, labels: list[int], **arrays: Any) -> Path:
    there: dict[str, Any] = {"train_images": images(len(labels)), "train_labels": np.array(labels)}
    there |= {"test_images": images(2), "test_labels": np.array([0, 1])} | arrays
    np.savez(folder / "set.npz", **there)
    return folder / "set.npz"


@pytest.mark.parametrize(
    ("labels", "arrays", "settings", "message"),
    [
        ([0] * 8, {"test_labels": np.array([0, 0])}, {}, "num_classes must be at least 2, not 1"),
        ([0, 0, 2, 2], {}, {}, "train labels run from 0 to 2"),
        ([0, 1, 1, -2], {}, {}, "train labels run from -2 to 1"),
        ([0], {}, {}, "test labels run from 0 to 1, but with 1 classes"),
        ([0, 1, 0, 1], {}, {"mean": [0.5, 0.5], "std": [1.0, 1.0]}, "mean has 2 values for images of 1 channel"),
        ([0, 1, 0, 1], {}, {"mean": [0.5], "std": [0.0]}, "data.std must be a list, each a number between 1e-06 and"),
    ],
)
def test_own_data_without_sense_is_one_error(
    tmp_path: Path, labels: list[int], arrays: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    path = own_set(tmp_path, labels, **arrays)
    with pytest.raises((ConfigError, DataError)) as caught:
        prepare(path, **settings)
    assert message in str(caught.value)


def prepare(path: Path, **settings: Any) -> None:
    data = NpzDataModule(str(path), residency="device", **settings)
    data.setup()
    data.train_dataloader()
    DistillationModule.build("resnet8", data.num_classes, "dkel", 2, in_channels=1, image_size=(8, 8))


# ---------------------------------------------------------------------- batches


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 3]), r"Label 3 lies outside the 3 classes \(0"),
        (torch.tensor([0, 1, -100]), "Label -100 lies outside the 3 classes"),
        (torch.tensor([0.0, 1.0, 2.0]), r"Labels must be \[B\] integer class indices.*got torch.float32"),
        (torch.tensor([True, False, True]), r"Labels must be \[B\] integer class indices.*got torch.bool"),
        (
            torch.tensor([[0, 1], [1, 0], [0, 1]]),
            "Labels must be .B. integer class indices.*This library trains classifiers",
        ),
        (
            torch.tensor([[1.0, 1.0, 0.0]] * 3),
            r"must be distributions.*3 of 3 are not",
        ),
        (torch.tensor([[-0.5, 1.5, 0.0]] * 3), "Float labels must be distributions over"),
        (torch.tensor([[NAN, 0.5, 0.5]] * 3), "must be distributions"),
        (torch.zeros(3, 8, 8, dtype=torch.long), "got torch.int64 of shape .3, 8, 8.*use its losses"),
        (torch.rand(3, 4), r"their shape is \(3, 4\)"),
    ],
)
def test_labels_that_name_no_class_are_refused_in_training_and_validation(labels: Tensor, message: str) -> None:
    module, batch = build(), (torch.zeros(3, 3, 8, 8), labels)
    for step in (module.training_step, module.validation_step):
        with pytest.raises(DataError, match=message):
            step(batch, 0)
