"""Checkpoints: nothing in them runs, torn ones are named, and a failed write leaves the old one whole."""

from __future__ import annotations

import os
import pickle
import pydoc
import random
import stat
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from dkel_lightning import DistillationModule
from dkel_lightning.assembly import build as building
from dkel_lightning.assembly import teacher_weights
from dkel_lightning.checkpoints import archive, file_format
from dkel_lightning.checkpoints.file_format import AtomicCheckpointIO
from dkel_lightning.errors import CheckpointError, ConfigError
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
    """Creates a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


READERS: dict[str, Callable[[Path], object]] = {
    "load": file_format.load,
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


def flipped(written: Path, folder: Path) -> Path:
    """Copy a checkpoint with another bit in one of its weights."""
    path, content = folder / "flipped.ckpt", bytearray(written.read_bytes())
    weight = file_format.load(written)["state_dict"]["student.network.branches.1.classifier.weight"]
    content[content.index(weight.numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("reader", READERS)
def test_a_flipped_bit_among_the_weights_is_noticed_by_every_reader(written: Path, tmp_path: Path, reader: str) -> None:
    path = flipped(written, tmp_path)
    with pytest.raises(CheckpointError, match=r"flipped\.ckpt is damaged .*checksum of .* is another"):
        READERS[reader](path)


def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing(written: Path, tmp_path: Path) -> None:
    path, content, draws = tmp_path / "flipped.ckpt", bytearray(written.read_bytes()), random.Random(0)
    before = [each for each in tree_leaves(file_format.load(written)) if isinstance(each, torch.Tensor)]
    directory = content.rindex(b"PK\x01\x02") - 2000  # what the archive says of its members is a small part of it
    refused = 0
    for at in [*draws.sample(range(len(content)), 60), *draws.sample(range(directory, len(content)), 60)]:
        content[at] ^= 1 << draws.randrange(8)
        path.write_bytes(content)
        try:
            after = [each for each in tree_leaves(file_format.load(path)) if isinstance(each, torch.Tensor)]
        except CheckpointError:
            refused += 1
        else:  # a time of day, or padding
            torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
        content[:] = written.read_bytes()
    assert refused > 60


def test_weights_that_lightning_reads_by_itself_are_held_against_their_checksums(written: Path, tmp_path: Path) -> None:
    path = flipped(written, tmp_path)
    with pytest.raises(CheckpointError, match="contradicts itself"):
        trainer(max_epochs=2).fit(build(), train_loader(), ckpt_path=path, weights_only=True)


def repacked(path: Path, to: Path, **how: Any) -> Path:
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w", **how) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    return to


def test_a_packed_checkpoint_is_refused_before_it_swells(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(16 << 20)}}, tmp_path / "plain.ckpt")
    path = repacked(tmp_path / "plain.ckpt", tmp_path / "bomb.ckpt", compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match=r"bomb\.ckpt is damaged .*its members are compressed"):
        file_format.load(path)
    assert not archive.is_whole(path)


def test_members_that_lie_in_the_same_bytes_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1 << 20)}}, tmp_path / "plain.ckpt")
    with zipfile.ZipFile(tmp_path / "plain.ckpt", "a") as opened:
        large = max(opened.infolist(), key=lambda member: member.file_size)
        opened.filelist += [large] * 3
        opened._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="its members claim more bytes than it has"):
        file_format.load(tmp_path / "plain.ckpt")


def test_a_few_bytes_that_are_spread_over_large_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1).expand(10**12)}}, tmp_path / "spread.ckpt")
    with pytest.raises(CheckpointError, match="its tensors claim 4000000000000 bytes, and it has"):
        file_format.load(tmp_path / "spread.ckpt")


def test_a_pipe_is_no_checkpoint_and_nobody_waits_for_it(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    found: list[Any] = []
    os.mkfifo(path)

    def look() -> None:
        found.extend([archive.is_whole(path), archive.step_of(path)])
        for read in (file_format.load, file_format.read, teacher_weights.read):
            with pytest.raises(CheckpointError, match=r"last\.ckpt"):
                read(path)
            found.append(read)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(20)
    assert found[:2] == [False, -1]
    assert len(found) == 5


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


def swap(weights: dict[str, Any]) -> None:
    """Exchange two weights of one shape."""
    one, other = (f"student.network.branches.{peer}.classifier.weight" for peer in (0, 1))
    weights[one], weights[other] = weights[other], weights[one]


def many() -> list[Any]:
    """Make a list of 2^40 names that a pickle holds in a few bytes."""
    names: list[Any] = ["resnet8"]
    for _ in range(40):
        names = [names, names]
    return names


WEIGHT = "teacher.network.branches.0.classifier.weight"


def resigned(checkpoint: dict[str, Any], without: str = "", weight: Any = None, **changes: Any) -> None:
    """Change the recipe (or a weight) as someone would who also knows how to make the hash."""
    checkpoint["state_dict"].pop(without, None)
    if weight is not None:
        checkpoint["state_dict"][WEIGHT] = weight(checkpoint["state_dict"][WEIGHT])
    recipe = None if changes.get("recipe", "") is None else checkpoint["dkel_lightning"]["recipe"] | changes
    file_format.sign(checkpoint, recipe, [])


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda c: c.pop("dkel_lightning"), "was not written by a DistillationModule"),
        (lambda c: c.update(dkel_lightning=3), "was not written by a DistillationModule"),
        (lambda c: c["dkel_lightning"].update(format=4), "has format 4, .* reads format 3 alone: install"),
        (lambda c: c["dkel_lightning"].update(format=2), "has format 2, .* reads format 3 alone: install"),
        (lambda c: c["dkel_lightning"].pop("format"), "has format None, and this version reads format 3 alone"),
        (lambda c: c["dkel_lightning"].pop("hash"), "contradicts itself"),
        (lambda c: c["dkel_lightning"]["recipe"].update(num_classes=7), "contradicts itself"),
        (lambda c: c["state_dict"].pop("teacher.updates"), "contradicts itself"),
        (lambda c: resigned(c, recipe=None), "was trained with parts put together by hand"),
        (lambda c: resigned(c, surprise=1), "cannot be rebuilt from its recipe"),
        (lambda c: resigned(c, method=None), "was trained with a method of its own"),
        (lambda c: resigned(c, num_classes=7), "do not fit the networks it names"),
        (lambda c: swap(c["state_dict"]), "contradicts itself"),
        (lambda c: resigned(c, peers=1_000_000), "asks for peers=1000000 than it holds: it was edited"),
        (lambda c: resigned(c, peers=["resnet8"] * 2000), "asks for peers=2000 than it holds"),
        (lambda c: resigned(c, peers=["resnet8"] * 200_000), "contradicts itself"),
        (lambda c: c["dkel_lightning"]["recipe"].update(peers=many()), "contradicts itself"),
        (lambda c: resigned(c, num_classes=10_000_000), "asks for num_classes=10000000 than it holds"),
        (lambda c: resigned(c, in_channels=10**10), "asks for in_channels=10000000000 than it holds"),
        (lambda c: resigned(c, image_size=[10**5, 10**5]), "asks for images of"),
        (lambda c: resigned(c, backbone="resnet34"), "asks for networks of more weights than it holds"),
        (lambda c: resigned(c, weight=lambda w: w.to(torch.int8)), r"of another type: .* torch\.int8 instead"),
        (lambda c: resigned(c, weight=lambda w: w * torch.nan), rf"NaN or infinity in 1 of \d+ .*{WEIGHT}"),
        (lambda c: resigned(c, without="teacher.updates"), r"do not fit the networks it names: .*teacher\.updates"),
    ],
)
def test_a_checkpoint_that_cannot_be_rebuilt_says_why_at_once(
    written: Path, tmp_path: Path, edit: Any, text: str
) -> None:
    path = edited(written, tmp_path, edit)
    with pytest.raises(CheckpointError, match=f"(?s){text}"):
        DistillationModule.load_from_checkpoint(path, optimizer=SGD)


def test_a_recipe_opens_no_file_of_its_choice(written: Path, tmp_path: Path) -> None:
    teacher = file_format.load(written)["dkel_lightning"]["recipe"]["teacher"]
    path = edited(written, tmp_path, lambda c: resigned(c, teacher=teacher | {"weights": "/dev/zero"}))
    module = DistillationModule.load_from_checkpoint(path, optimizer=SGD)
    assert module.teacher.settings.weights is None
    for recipe in ({"backbone": "hf:/dev"}, {"teacher": teacher | {"backbone": "hf:/dev"}}):
        path = edited(written, tmp_path, lambda c, recipe=recipe: resigned(c, **recipe))
        with pytest.raises(CheckpointError, match="was trained with hf:/dev, and no file chooses a folder"):
            DistillationModule.load_from_checkpoint(path, optimizer=SGD)


def test_what_lightning_takes_is_taken_where_it_holds(written: Path) -> None:
    DistillationModule.load_from_checkpoint(written, strict=True, weights_only=True, hparams_file=None)
    for name, value in {"strict": False, "hparams_file": "x.yaml", "weights_only": False, "lr": 0.1}.items():
        with pytest.raises(ConfigError, match=rf"load_from_checkpoint takes no {name}: .*backbone, num_classes"):
            DistillationModule.load_from_checkpoint(written, **{name: value})  # type: ignore[arg-type]


def test_the_module_goes_where_its_tensors_are_put(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    where = torch.empty(0, device="meta")  # which tensors of a file cannot be
    monkeypatch.setattr(file_format, "load", lambda path, device: asked.append(device) or {"state_dict": {"x": where}})
    monkeypatch.setattr(building, "rebuilt", lambda *_, **__: build())
    module = DistillationModule.load_from_checkpoint("x.ckpt", map_location="meta")
    assert asked == ["meta"]
    assert {str(tensor.device) for tensor in module.state_dict().values()} == {"meta"}
    assert module.device == where.device


def test_settings_of_a_teacher_are_laid_over_the_checkpoint_s(tmp_path: Path) -> None:
    module = build("pcl", teacher={"decay": 0.5})
    fit = trainer()
    fit.fit(module, train_loader())
    fit.save_checkpoint(tmp_path / "x.ckpt")
    for given, rate in (({"decay": 0.9}, 0.9), (TeacherSettings(decay=0.9), 0.9), ("follow", 0.5)):
        settings = DistillationModule.load_from_checkpoint(tmp_path / "x.ckpt", teacher=given).teacher.settings
        assert settings == replace(module.teacher.settings, decay=rate)


@pytest.mark.parametrize("name", ["build", "load_from_checkpoint"])
def test_help_shows_what_is_passed_and_what_comes_back(name: str) -> None:
    shown = pydoc.plain(pydoc.render_doc(getattr(DistillationModule, name)))
    assert "cls" not in shown
    assert "-> 'Self'" in shown


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda c: c.pop("dkel_lightning"), "was not written by a DistillationModule"),
        (lambda c: c["dkel_lightning"].update(format=2), "has format 2, and this version reads format 3 alone"),
    ],
)
def test_resuming_from_a_checkpoint_of_a_stranger_or_of_another_format_is_refused(
    written: Path, tmp_path: Path, edit: Any, text: str
) -> None:
    path = edited(written, tmp_path, edit)
    with pytest.raises(CheckpointError, match=text):
        trainer(max_epochs=2).fit(build(), train_loader(), ckpt_path=path)


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
