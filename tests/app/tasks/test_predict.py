"""task=predict: the classes of image files, whatever their size and however many are broken."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dkel_lightning.app import tasks
from dkel_lightning.app.config import checks
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.tasks.predict import predict
from dkel_lightning.data.decode import decode_to
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


def run_predict(path: Path, images: Path, folder: Path, *overrides: str) -> list[dict[str, str]]:
    """Return the rows of predictions.csv."""
    typed = ("task=predict", f"checkpoint='{path}'", f"predict.images='{images}'", "trainer=cpu", *overrides)
    values = values_of(path, *typed) if path.suffix == ".ckpt" else compose(*typed)
    with predict(Run(values, folder)).open(encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def probabilities(rows: list[dict[str, str]]) -> torch.Tensor:
    """Order the probabilities by image and class."""
    rows = sorted(rows, key=lambda row: (row["file"], int(row["class"])))
    return torch.tensor([float(row["probability"]) for row in rows]).reshape(COUNT, -1)


def test_a_checkpoint_names_the_classes_of_image_files(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run_predict(checkpoint, images, tmp_path, "deploy.peer=1", "predict.top=20", "predict.batch_size=2")
    expected = logits_of(checkpoint, "teacher_1", digits(COUNT)[1]).softmax(-1)
    torch.testing.assert_close(probabilities(rows), expected, rtol=0, atol=1e-6)
    first = rows[0]
    assert (first["file"], first["rank"], first["name"]) == (str(images / "0.png"), "1", str(int(expected[0].argmax())))
    assert f"5 of 5 images by teacher_1, written to {tmp_path / 'predictions.csv'}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "safetensors"])
def test_exports_say_what_the_checkpoint_says(kind: str, checkpoint: Path, images: Path, tmp_path: Path) -> None:
    expected = probabilities(run_predict(checkpoint, images, tmp_path, "predict.top=10"))
    exported(checkpoint, tmp_path, f"export.format={kind}", f"export.to='{tmp_path / 'shipped'}'")
    (file,) = (tmp_path / "shipped").glob(f"*.{kind}")
    for place in (file, file.parent):
        rows = run_predict(place, images, tmp_path, "predict.top=10", f"predict.to='{tmp_path / kind}'")
        torch.testing.assert_close(probabilities(rows), expected, rtol=1e-4, atol=1e-5)
        assert (tmp_path / kind / "predictions.csv").is_file()


def test_a_folder_that_is_no_export_is_named(images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty"):
        run_predict(tmp_path / "empty", images, tmp_path)


def test_broken_images_are_named_and_only_none_at_all_is_an_error(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixed"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "good.png").write_bytes((images / "0.png").read_bytes())
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "torn.png").write_bytes((images / "0.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("not looked at")
    rows = run_predict(checkpoint, folder, tmp_path / "out", "predict.top=1")
    assert [Path(row["file"]).name for row in rows] == ["good.png"]
    printed = capsys.readouterr().out
    assert "broken.jpg" in printed
    assert "torn.png" in printed
    assert "1 of 3 images" in printed
    with pytest.raises(DataError, match=r"None of the 1 images in .*broken\.jpg could be read"):
        run_predict(checkpoint, folder / "broken.jpg", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        run_predict(checkpoint, tmp_path / "empty", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_images_of_any_size_are_cut_to_their_centre_and_scaled() -> None:
    pixels = np.zeros((8, 20, 3), np.uint8)
    pixels[:, 6:14] = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    pixels[:, :6], pixels[:, 14:] = 255, 255  # outside the central square
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    centre = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    np.testing.assert_array_equal(decode_to(file.getvalue(), "x", (1, 8, 8)), centre)
    np.testing.assert_array_equal(decode_to(file.getvalue(), "x", (3, 8, 8)), centre.repeat(3, 0))
    # A network of wide images takes a wide part: all of the width that its height allows.
    np.testing.assert_array_equal(decode_to(file.getvalue(), "x", (1, 8, 20))[0], pixels[:, :, 0])
    halved = decode_to(file.getvalue(), "x", (1, 4, 4))
    # What scaling the shorter side and then cutting the centre gives, as torchvision does it.
    whole = np.asarray(Image.fromarray(pixels[:, :, 0]).resize((10, 4), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(halved[0].astype(int), whole[:, 3:7].astype(int), atol=1)


def test_the_command_line_asks_for_what_is_missing(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs checkpoint=PATH of a .ckpt file, or .*\n.*needs predict.images=PATH"):
        checks.check(compose("task=predict"))
    typed = ("task=predict", f"checkpoint='{checkpoint}'", f"predict.images='{images}'", "trainer=cpu")
    tasks.run(Run(values_of(checkpoint, *typed), tmp_path))
    assert (tmp_path / "predictions.csv").is_file()
