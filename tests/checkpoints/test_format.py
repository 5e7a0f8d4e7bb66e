"""Checkpoints: nothing in them runs, torn ones are named, and a failed write leaves the old one whole."""

from __future__ import annotations

import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from dkel_lightning import DistillationModule
from dkel_lightning.checkpoints import file_format
from dkel_lightning.checkpoints.file_format import AtomicCheckpointIO
from dkel_lightning.errors import CheckpointError
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
    """Creates a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("form", ["torch", "pickle", "hidden"])
@pytest.mark.parametrize("reader", ["load", "io", "module", "trainer"])
def test_a_malicious_checkpoint_is_refused_and_not_executed(tmp_path: Path, form: str, reader: str) -> None:
    proof, path = tmp_path / "executed", tmp_path / "bad.ckpt"
    if form == "torch":
        torch.save(Malicious(proof), path)
    elif form == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": {}, "x": Malicious(proof)}))
    else:
        torch.save({"state_dict": {}, "hyper_parameters": {"optimizer": Malicious(proof)}}, path)
    fit = trainer(plugins=[AtomicCheckpointIO()])
    with pytest.raises(CheckpointError, match=r"objects that could run code on loading.*; it was not loaded"):
        {  # type: ignore[no-untyped-call]
            "load": lambda: file_format.load(path),
            "io": lambda: AtomicCheckpointIO().load_checkpoint(path, weights_only=False),
            "module": lambda: DistillationModule.load_from_checkpoint(path),
            "trainer": lambda: fit.fit(build(), train_loader(), ckpt_path=path),
        }[reader]()
    assert not proof.exists()


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, written: Path) -> None:
    whole, path = written.read_bytes(), tmp_path / "torn.ckpt"
    for length in [0, 1, 2, 7, 100, *(len(whole) * i // 12 for i in range(1, 12)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"torn\.ckpt is (torn|damaged)"):
            file_format.load(path)


@pytest.mark.parametrize(
    "content", [b"\x00" * 500, b"hello, this is text", b"PK\x03\x04" + b"x" * 400, b"\x80\x02}q\x00."]
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"other\.ckpt is "):
        file_format.load(path)


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    path, draws = tmp_path / "noise.ckpt", torch.Generator().manual_seed(0)
    for _ in range(50):
        path.write_bytes(bytes(torch.randint(256, (200,), generator=draws).tolist()))
        with pytest.raises(CheckpointError, match=r"noise\.ckpt is "):
            file_format.load(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.ckpt", tmp_path):
        with pytest.raises(CheckpointError, match=r"No checkpoint at .*: give the path of a \.ckpt file"):
            file_format.load(path)


def test_tensors_that_are_no_checkpoint_are_named(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="is not a Lightning checkpoint: it has no state_dict"):
        file_format.load(tmp_path / "list.ckpt")


def edited(written: Path, folder: Path, edit: Any) -> Path:
    checkpoint = torch.load(written, weights_only=True)
    edit(checkpoint)
    torch.save(checkpoint, folder / "edited.ckpt")
    return folder / "edited.ckpt"


def resigned(checkpoint: dict[str, Any], without: str = "", **changes: Any) -> None:
    """Change the recipe (or leave out a weight) as someone would who also knows how to make the hash."""
    checkpoint["state_dict"].pop(without, None)
    recipe = None if changes.get("recipe", "") is None else checkpoint["dkel_lightning"]["recipe"] | changes
    file_format.sign(checkpoint, recipe, [])


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda c: c.pop("dkel_lightning"), "was not written by a DistillationModule"),
        (lambda c: c.update(dkel_lightning=3), "was not written by a DistillationModule"),
        (lambda c: c["dkel_lightning"].update(format=3), "has format 3, this version reads 1 to 2: install"),
        (lambda c: c["dkel_lightning"].pop("hash"), "has format 2, this version reads 1 to 2: install"),
        (lambda c: c["dkel_lightning"]["recipe"].update(num_classes=7), "contradicts itself"),
        (lambda c: c["state_dict"].pop("teacher.updates"), "contradicts itself"),
        (lambda c: resigned(c, recipe=None), "was trained with parts put together by hand"),
        (lambda c: resigned(c, surprise=1), "cannot be rebuilt from its recipe"),
        (lambda c: resigned(c, method=None), "was trained with a method of its own"),
        (lambda c: resigned(c, num_classes=7), "do not fit the networks it names"),
        (lambda c: resigned(c, without="teacher.updates"), r"do not fit the networks it names: .*teacher\.updates"),
    ],
)
def test_a_checkpoint_that_cannot_be_rebuilt_says_why(written: Path, tmp_path: Path, edit: Any, text: str) -> None:
    path = edited(written, tmp_path, edit)
    with pytest.raises(CheckpointError, match=f"(?s){text}"):
        DistillationModule.load_from_checkpoint(path, optimizer=SGD)


@pytest.mark.parametrize("edit", [lambda c: c.pop("dkel_lightning"), lambda c: c["dkel_lightning"].update(format=3)])
def test_resuming_from_a_strangers_or_newer_checkpoint_is_refused(written: Path, tmp_path: Path, edit: Any) -> None:
    path = edited(written, tmp_path, edit)
    with pytest.raises(CheckpointError, match=r"was not written by a DistillationModule|has format 3"):
        trainer(max_epochs=2).fit(build(), train_loader(), ckpt_path=path)


def test_a_checkpoint_of_the_first_format_is_migrated(written: Path, tmp_path: Path) -> None:
    def first_format(checkpoint: dict[str, Any]) -> None:
        signed = checkpoint["dkel_lightning"]
        checkpoint["dkel_lightning"] = {"format": 1, "recipe": signed["recipe"], "members": signed["members"]}

    path = edited(written, tmp_path, first_format)
    module = DistillationModule.load_from_checkpoint(path, optimizer=SGD)
    expected = torch.load(written, weights_only=True)["state_dict"]
    torch.testing.assert_close(dict(module.state_dict()), dict(expected), rtol=0, atol=0, equal_nan=True)
    going_on = trainer(max_epochs=2)
    going_on.fit(build(), train_loader(), ckpt_path=path)
    assert going_on.global_step == 6


def test_a_checkpoint_holds_primitives_and_tensors_only(written: Path) -> None:
    allowed = {str, int, float, bool, type(None), torch.Tensor}

    def kinds(value: Any) -> set[type]:
        if isinstance(value, dict):
            return {kind for part in (*value, *value.values()) for kind in kinds(part)}
        if isinstance(value, list | tuple):
            return {kind for part in value for kind in kinds(part)}
        return {type(value)}

    checkpoint = torch.load(written, weights_only=True)
    assert kinds(checkpoint) <= allowed
    assert checkpoint["dkel_lightning"]["recipe"]["backbone"] == "resnet8"
    assert checkpoint["state_dict"]["teacher.updates"].item() == checkpoint["global_step"] == 3


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_failed_write_leaves_the_old_file_whole_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"state_dict": {"a": torch.ones(2)}}, path)
    before = path.read_bytes()

    def torn(checkpoint: Any, file: Any) -> None:
        file.write(b"half a checkpoint")
        raise error

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(CheckpointError, match=r"Could not write .*last\.ckpt \(.*free some space or choose another"):
        io.save_checkpoint({"state_dict": {"a": torch.zeros(2)}}, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_an_interrupted_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"state_dict": {"a": torch.ones(2)}}, path)

    def interrupted(checkpoint: Any, file: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint({"state_dict": {}}, path)
    assert torch.equal(file_format.load(path)["state_dict"]["a"], torch.ones(2))
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(CheckpointError, match=r"Could not write .*taken"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "taken" / "a.ckpt")


def test_a_checkpoint_is_as_readable_as_the_users_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "new" / "a.ckpt")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new" / "a.ckpt").stat().st_mode) == 0o644
