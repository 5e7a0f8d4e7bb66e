"""Checkpoints: nothing in them runs, torn ones are named, and a failed write leaves the old one whole."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dkel_lightning import DistillationModule
from dkel_lightning.checkpoints import file_format
from dkel_lightning.checkpoints.file_format import AtomicCheckpointIO
from dkel_lightning.errors import CheckpointError
from dkel_lightning.settings.teacher import TeacherSettings
from tests.modules.toy import SGD, build, train_loader, trainer


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a checkpoint of a short run through the atomic IO."""
    path = tmp_path_factory.mktemp("run") / "run.ckpt"
    fit = trainer(plugins=[AtomicCheckpointIO()])
    fit.fit(build(), train_loader())
    fit.save_checkpoint(path)
    return path


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


READERS: dict[str, Callable[[Path], object]] = {
    "io": lambda path: AtomicCheckpointIO().load_checkpoint(path, weights_only=False),
    "module": DistillationModule.load_from_checkpoint,
    "teacher": lambda path: build(teacher={"weights": str(path)}),
    "trainer": lambda path: trainer(plugins=[AtomicCheckpointIO()]).fit(build(), train_loader(), ckpt_path=path),
}


@pytest.mark.parametrize("form", ["torch", "pickle", "hidden"])
@pytest.mark.parametrize("reader", READERS)
def test_a_malicious_checkpoint_is_refused_and_not_executed(tmp_path: Path, form: str, reader: str) -> None:
    proof, path = tmp_path / "executed", tmp_path / "bad.ckpt"
    if form == "torch":
        torch.save(Malicious(proof), path)
    elif form == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": {}, "x": Malicious(proof)}))
    else:
        torch.save({"state_dict": {}, "hyper_parameters": {"optimizer": Malicious(proof)}}, path)
    with pytest.raises(CheckpointError, match=r"objects that could run code on loading.*; it was not loaded"):
        READERS[reader](path)
    assert not proof.exists()


@pytest.mark.parametrize("reader", READERS)
def test_a_flipped_bit_among_the_weights_is_noticed_by_every_reader(written: Path, tmp_path: Path, reader: str) -> None:
    path, content = tmp_path / "flipped.ckpt", bytearray(written.read_bytes())
    weight = file_format.load(written)["state_dict"]["student.network.branches.1.classifier.weight"]
    content[content.index(weight.numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"flipped\.ckpt is damaged .*checksum of .* does not match"):
        READERS[reader](path)


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, written: Path) -> None:
    whole, path = written.read_bytes(), tmp_path / "torn.ckpt"
    assert file_format.is_whole(written)
    for length in [0, 1, 2, 7, 100, *(len(whole) * i // 6 for i in range(1, 6)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert not file_format.is_whole(path)
        with pytest.raises(CheckpointError, match=r"torn\.ckpt is damaged"):
            file_format.load(path)


def test_a_missing_file_and_tensors_that_are_no_checkpoint_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No checkpoint at .*none\.ckpt: pass the path of a \.ckpt file"):
        file_format.load(tmp_path / "none.ckpt")
    torch.save([torch.zeros(1)], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="is not a Lightning checkpoint: it has no state_dict"):
        file_format.load(tmp_path / "list.ckpt")


def edited(written: Path, folder: Path, edit: Any) -> Path:
    checkpoint = torch.load(written, weights_only=True)
    edit(checkpoint)
    torch.save(checkpoint, folder / "edited.ckpt")
    return folder / "edited.ckpt"


def change(**settings: Any) -> Callable[[dict[str, Any]], None]:
    return lambda checkpoint: checkpoint["dkel_lightning"]["recipe"].update(settings)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda c: c.pop("dkel_lightning"), "was not written by a DistillationModule"),
        (lambda c: c["dkel_lightning"].update(format=2), "has format 2, .* reads format 3: install"),
        (lambda c: c["dkel_lightning"].update(recipe=None), "was trained with parts constructed by hand"),
        (change(num_classes=7), "size mismatch for student"),
        (lambda c: c["state_dict"].pop("teacher.updates"), r"Missing key.*teacher\.updates"),
        (change(backbone="hf:/dev"), "was trained with hf:/dev, and no file chooses a folder"),
        (change(teacher={"backbone": "hf:/dev"}), "was trained with hf:/dev, and no file chooses a folder"),
    ],
)
def test_a_checkpoint_that_cannot_be_rebuilt_says_why(written: Path, tmp_path: Path, edit: Any, text: str) -> None:
    path = edited(written, tmp_path, edit)
    with pytest.raises((CheckpointError, RuntimeError), match=f"(?s){text}"):
        DistillationModule.load_from_checkpoint(path, optimizer=SGD)


def test_a_recipe_opens_no_file_of_its_choice(written: Path, tmp_path: Path) -> None:
    teacher = file_format.load(written)["dkel_lightning"]["recipe"]["teacher"]
    path = edited(written, tmp_path, change(teacher=teacher | {"weights": "/dev/zero"}))
    assert DistillationModule.load_from_checkpoint(path, optimizer=SGD).teacher.settings.weights is None


def test_settings_of_a_teacher_are_laid_over_the_checkpoint_s(tmp_path: Path) -> None:
    module = build("pcl", teacher={"decay": 0.5})
    fit = trainer()
    fit.fit(module, train_loader())
    fit.save_checkpoint(tmp_path / "x.ckpt")
    for given, rate in (({"decay": 0.9}, 0.9), (TeacherSettings(decay=0.9), 0.9), ("follow", 0.5)):
        settings = DistillationModule.load_from_checkpoint(tmp_path / "x.ckpt", teacher=given).teacher.settings
        assert settings == replace(module.teacher.settings, decay=rate)


def test_resuming_from_a_checkpoint_of_another_program_is_refused(written: Path, tmp_path: Path) -> None:
    path = edited(written, tmp_path, lambda checkpoint: checkpoint.pop("dkel_lightning"))
    with pytest.raises(CheckpointError, match="was not written by a DistillationModule"):
        trainer(max_epochs=2).fit(build(), train_loader(), ckpt_path=path)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos"), KeyboardInterrupt()]
)
def test_a_failed_write_leaves_the_old_file_whole(
    tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"state_dict": {"a": torch.ones(2)}}, path)
    before = path.read_bytes()

    def torn(checkpoint: Any, file: Any) -> None:
        file.write(b"half a checkpoint")
        raise error

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(type(error)):
        io.save_checkpoint({"state_dict": {"a": torch.zeros(2)}}, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]
