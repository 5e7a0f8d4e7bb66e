"""task=predict: the network's classes for image files, from a checkpoint and from what was exported."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

from dkel_lightning.app.run import Run
from dkel_lightning.app.tasks.predict import PredictResult, predict
from dkel_lightning.errors import CheckpointError, ConfigError, DataError
from tests.app.tasks.exporting import digits, exported, logits_of, trained, values_of
from tests.compose import compose

COUNT = 5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index, image in enumerate(digits(COUNT)[0]):
        Image.fromarray(image[0].numpy()).save(folder / f"{index}.png")
    return folder


def classify(path: Path, images: Path, folder: Path, *overrides: str) -> PredictResult:
    arguments = ("task=predict", f"checkpoint='{path}'", f"predict.images='{images}'", "trainer=cpu", *overrides)
    values = values_of(path, *arguments) if path.suffix == ".ckpt" else compose(*arguments)
    return predict(Run(values, folder))


def probabilities(result: PredictResult) -> torch.Tensor:
    """Order the probabilities of each image by class."""
    return torch.tensor([[value for _, value in sorted(best)] for best in result.classes.values()])


def test_a_checkpoint_names_the_classes_of_image_files(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    result = classify(checkpoint, images, tmp_path, "deploy.peer=1", "predict.top=20")
    expected = logits_of(checkpoint, "teacher_1", digits(COUNT)[1]).softmax(-1)
    torch.testing.assert_close(probabilities(result), expected, atol=1e-5, rtol=0)
    with result.file.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 * COUNT
    best = [row for row in rows if row["rank"] == "1"]
    assert [row["class"] for row in best] == [str(int(index)) for index in expected.argmax(-1)]
    assert [Path(row["file"]).name for row in best] == [f"{index}.png" for index in range(COUNT)]


@pytest.mark.parametrize("kind", ["safetensors", "onnx"])
def test_exported_files_give_what_the_checkpoint_gives(
    kind: str, checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    file = exported(checkpoint, tmp_path / "exported", f"export.format={kind}").path
    expected = classify(checkpoint, images, tmp_path / "checkpoint", "predict.top=20")
    for path in (file, file.parent):
        result = classify(path, images, tmp_path / "answers", "predict.top=20")
        torch.testing.assert_close(probabilities(result), probabilities(expected), atol=1e-5, rtol=0)


def test_a_single_image_is_classified_and_nothing_to_classify_is_an_error(
    checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    assert len(classify(checkpoint, images / "0.png", tmp_path).classes) == 1
    with pytest.raises(DataError, match="does not exist"):
        classify(checkpoint, tmp_path / "nowhere", tmp_path)
    with pytest.raises(ConfigError, match=r"task=predict needs predict\.images=PATH"):
        predict(Run(compose("task=predict"), tmp_path))


def test_no_file_runs_code(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    folder = exported(checkpoint, tmp_path / "exported", "export.format=weights").path.parent
    (folder / "weights.pt").write_bytes(pickle.dumps(print))
    with pytest.raises(CheckpointError):
        classify(folder, images, tmp_path)
