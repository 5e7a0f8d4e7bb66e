"""Data sets of Hugging Face's library: saved folders, files, columns, and what is refused."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dkel_lightning.data import HuggingFaceDataModule
from dkel_lightning.data.decode import decode_to
from dkel_lightning.errors import ConfigError, DataError

from .archives import ready

datasets = pytest.importorskip("datasets")


def png(index: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.RandomState(index).randint(0, 256, (10, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def table(count: int, **more: Any) -> Any:
    features = {"picture": datasets.Image(), "species": datasets.ClassLabel(names=["cat", "dog"])}
    rows: dict[str, Any] = {"picture": [{"bytes": png(i), "path": None} for i in range(count)]}
    rows["species"] = [i % 2 for i in range(count)]
    for name, feature in more.items():
        features[name], rows[name] = feature, rows["species"]
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    datasets.DatasetDict({"train": table(20), "test": table(6)}).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


module = partial(ready, HuggingFaceDataModule, image_size=8)


@pytest.mark.parametrize("residency", ["device", "workers"])
def test_a_saved_folder_is_read_with_its_classes(saved: Path, residency: str) -> None:
    data = module(saved, residency=residency, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert (data.class_names, data.image_shape) == (("cat", "dog"), (3, 8, 8))
    assert (data.train_size, data.val_size, data.test_size) == (18, 2, 6)
    (batch,) = data.test_dataloader()
    for index, image in enumerate(batch.views):
        expected = torch.from_numpy(decode_to(png(index), "", (3, 8, 8)).copy()) / 255
        torch.testing.assert_close(image, expected)
    assert batch.labels.tolist() == [0, 1] * 3
    assert next(iter(data.train_dataloader())).views.shape == (4, 2, 3, 8, 8)


def test_files_of_the_hubs_layout_are_read_and_the_statistics_measured(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("validation", 4)):
        table(count).to_parquet(str(tmp_path / "files" / f"{split}-00000-of-00001.parquet"))
    data = module(tmp_path / "files", download=False)
    assert (data.train_size + data.val_size, data.test_size) == (12, 4)
    pixels = np.stack([decode_to(png(i), "", (3, 8, 8)) for i in range(12)]) / 255
    np.testing.assert_allclose(data.augment.normalize.mean, pixels.mean((0, 2, 3)))


def test_columns_are_named_where_there_are_several_and_what_is_no_set_is_refused(tmp_path: Path) -> None:
    two = datasets.DatasetDict({"train": table(8, breed=datasets.ClassLabel(names=["a", "b"])), "test": table(2)})
    two.save_to_disk(str(tmp_path / "two"))
    with pytest.raises(
        ConfigError,
        match=r"needs one ClassLabel column of classes, and has .*species \(ClassLabel\).*set data.label_column",
    ):
        module(tmp_path / "two")
    assert module(tmp_path / "two", label_column="species").class_names == ("cat", "dog")
    datasets.DatasetDict({"test": table(8)}).save_to_disk(str(tmp_path / "one"))
    with pytest.raises(DataError, match="has the splits test: none is named train"):
        module(tmp_path / "one")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be read by datasets"):
        module(tmp_path / "empty", download=False)


def test_a_training_row_without_a_label_is_one_whose_label_is_not_known(tmp_path: Path) -> None:
    rows = [
        {**row, "species": -1} if i < 5 else {**row, "species": None} if i < 8 else row
        for i, row in enumerate(table(20))
    ]
    features = table(1).features
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows, features=features)}).save_to_disk(
        str(tmp_path / "few")
    )
    data = module(tmp_path / "few", test=0.25)
    assert (data.train_size, data.unlabelled_size, data.val_size, data.test_size) == (16, 8, 1, 3)
