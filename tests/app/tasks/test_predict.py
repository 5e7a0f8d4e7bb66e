"""task=predict: the network's classes for image files, whatever their size and however many are broken."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dkel_lightning.app import tasks
from dkel_lightning.app.config import checks
from dkel_lightning.app.run import Run
from dkel_lightning.app.tasks.predict import PredictResult, predict
from dkel_lightning.data.decode import decode_to
from dkel_lightning.errors import CheckpointError, ConfigError, DataError
from tests.app.tasks.exporting import digits, exported, logits_of, trained, values_of
from tests.compose import compose, prepare

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


def predicted(checkpoint: Path, images: Path, folder: Path, *overrides: str) -> PredictResult:
    given = ("task=predict", f"checkpoint='{checkpoint}'", f"predict.images='{images}'", "trainer=cpu", *overrides)
    return predict(Run(values_of(checkpoint, *given), folder))


def of_file(file: Path, images: Path, folder: Path, *overrides: str) -> PredictResult:
    given = ("task=predict", f"checkpoint='{file}'", f"predict.images='{images}'", "trainer=cpu", *overrides)
    return predict(Run(compose(*given), folder))


def probabilities(result: PredictResult) -> torch.Tensor:
    """Order what was named of each image by class."""
    rows = [sorted((guess.index, guess.probability) for guess in guesses) for guesses in result.guesses.values()]
    return torch.tensor([[value for _, value in row] for row in rows])


def test_a_checkpoint_names_the_classes_of_image_files(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = predicted(checkpoint, images, tmp_path, "deploy.peer=1", "predict.top=20", "predict.batch_size=2")
    expected = logits_of(checkpoint, "teacher_1", digits(COUNT)[1]).softmax(-1)
    torch.testing.assert_close(probabilities(result), expected)
    assert list(result.guesses) == [images / f"{index}.png" for index in range(COUNT)]
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert len(rows) == COUNT * 10
    first = rows[0]
    assert (first["file"], first["rank"], first["name"]) == (str(images / "0.png"), "1", str(int(expected[0].argmax())))
    assert float(first["probability"]) == pytest.approx(float(expected[0].max()), abs=1e-6)
    written = json.loads((tmp_path / "predictions.json").read_text())
    assert (written["member"], written["unreadable"], len(written["predictions"])) == ("teacher_1", [], COUNT)
    assert "just covers 8x8 (Pillow, bilinear), crop 8x8 at its centre" in written["preprocessing"]["steps"]
    shown = capsys.readouterr().out
    assert "0.png" in shown
    assert f"{COUNT} images. Written to" in shown


@pytest.mark.slow
def test_exported_files_say_what_the_checkpoint_says(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    expected = probabilities(predicted(checkpoint, images, tmp_path / "checkpoint", "predict.top=10"))
    for kind in ("onnx", "safetensors", "weights"):
        shipped = exported(checkpoint, tmp_path, f"export.format={kind}")
        place = shipped.path.parent if kind == "safetensors" else shipped.path
        result = of_file(place, images, tmp_path / kind, "predict.top=10")
        torch.testing.assert_close(probabilities(result), expected, rtol=1e-4, atol=1e-5)
        assert (tmp_path / kind / "predictions.csv").is_file()


@pytest.mark.slow
def test_an_export_speaks_only_for_the_network_that_it_holds(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    peer = exported(checkpoint, tmp_path, "export.format=onnx", "deploy.peer=1")
    whole = exported(checkpoint, tmp_path, "deploy.network=ensemble")
    for given, asked in (
        (["deploy.network=student"], "deploy.network=student"),
        (["deploy.network=student", "deploy.peer=0"], "deploy.network=student, deploy.peer=0"),
        (["deploy.network=teacher", "deploy.peer=best"], "deploy.peer=best"),
    ):
        with pytest.raises(ConfigError) as caught:
            of_file(peer.path.parent, images, tmp_path / "other", *given)
        assert str(caught.value) == (
            f"{asked}: {peer.path.parent} holds one network, teacher_1; leave it out, or predict with the checkpoint "
            "that it was exported from."
        )
    with pytest.raises(ConfigError, match=r"deploy\.peer=0: .* holds one network, ensemble;"):
        of_file(whole.path, images, tmp_path / "other", "deploy.peer=0")
    assert not (tmp_path / "other").exists()
    held = probabilities(of_file(peer.path, images, tmp_path, "predict.top=10"))
    again = of_file(peer.path, images, tmp_path, "predict.top=10", "deploy.network=teacher", "deploy.peer=1")
    assert torch.equal(probabilities(again), held)
    of_file(whole.path.parent, images, tmp_path, "deploy.network=ensemble", "deploy.peer=best")


@pytest.mark.slow
def test_what_a_format_lets_run_is_not_opened_unless_it_is_trusted(
    checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    shipped = exported(checkpoint, tmp_path, "export.format=torch_export")
    with pytest.raises(CheckpointError, match="may hold objects that run code on loading"):
        of_file(shipped.path, images, tmp_path)
    opened = of_file(shipped.path, images, tmp_path, "trust=true", "predict.top=10")
    expected = probabilities(predicted(checkpoint, images, tmp_path, "predict.top=10"))
    torch.testing.assert_close(probabilities(opened), expected, rtol=1e-4, atol=1e-5)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("went_off"),)  # type: ignore[return-value]


def test_files_that_are_no_export_are_refused_and_run_nothing(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Bomb()}, tmp_path / "bomb.pt")
    (tmp_path / "torn.onnx").write_bytes(b"\x08")
    (tmp_path / "torn.safetensors").write_bytes(b"\x08")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "plain.pt")
    (tmp_path / "empty").mkdir()
    faults = {
        "bomb.pt": r"export\.json is missing or damaged",
        "torn.onnx": r"export\.json is missing or damaged",
        "torn.safetensors": r"export\.json is missing or damaged",
        "plain.pt": "export.json is missing or damaged",
        "empty": r"export\.json is missing or damaged",
        "missing.onnx": r"export\.json is missing or damaged",
        "missing.ckpt": "No checkpoint at",
    }
    for name, message in faults.items():
        with pytest.raises(CheckpointError, match=message):
            of_file(tmp_path / name, images, tmp_path)
    assert not (tmp_path / "went_off").exists()
    assert pickle.dumps(Bomb())  # it would have


def test_broken_images_are_skipped_and_reported_and_only_none_at_all_is_an_error(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixed"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "good.png").write_bytes((images / "0.png").read_bytes())
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "torn.png").write_bytes((images / "0.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("not looked at")
    result = predicted(checkpoint, folder, tmp_path / "out")
    assert [path.name for path in result.guesses] == ["good.png"]
    assert {path.name for path in result.unreadable} == {"broken.jpg", "torn.png"}
    assert "2 of 3 could not be read:" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [Path(item["file"]).name for item in written["unreadable"]] == ["broken.jpg", "torn.png"]
    with pytest.raises(DataError, match=r"None of the 1 images in .* could be read. The first: .*broken.jpg"):
        predicted(checkpoint, folder / "broken.jpg", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        predicted(checkpoint, tmp_path / "empty", tmp_path / "none")
    with pytest.raises(DataError, match="cannot be read"):
        predicted(checkpoint, tmp_path / "missing.png", tmp_path / "none")


def test_images_of_any_size_are_cut_to_their_centre_and_scaled() -> None:
    import io

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
    assert halved.shape == (1, 4, 4)
    # What scaling the shorter side and then cutting the centre gives, as torchvision does it.
    whole = np.asarray(Image.fromarray(pixels[:, :, 0]).resize((10, 4), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(halved[0].astype(int), whole[:, 3:7].astype(int), atol=1)


def test_the_command_line_asks_for_what_is_missing_and_writes_beside_the_checkpoint(
    checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"needs checkpoint=PATH of a .ckpt file, or .*\n.*needs predict.images=PATH"):
        checks.check(compose("task=predict"))
    given = ["task=predict", f"checkpoint='{checkpoint}'", f"predict.images='{images}'"]
    prepared = prepare(given)
    assert f"hydra.run.dir={checkpoint.parent.parent.resolve() / 'predict_last'}" in prepared
    assert "name=predict" in prepared
    tasks.run(Run(values_of(checkpoint, *given, "trainer=cpu"), tmp_path))
    assert (tmp_path / "predictions.json").is_file()


def test_a_checkpoint_without_its_run_says_where_the_preprocessing_was(
    checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes(checkpoint.read_bytes())
    with pytest.raises(ConfigError, match=r"alone\.ckpt does not say how its images are prepared"):
        of_file(alone, images, tmp_path)
