"""data=shards: the batches are those of the files that were written, also after a resume and through an address."""

from __future__ import annotations

import multiprocessing
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from dkel_lightning.app.tasks.train import train
from dkel_lightning.data import ImageNetDataModule, ShardsDataModule, write_shards
from dkel_lightning.data.readers.shards import Shards
from dkel_lightning.errors import ConfigError, DataError
from tests.compose import tiny_run
from tests.data.archives import ready
from tests.data.test_imagenet import write_pictures

litdata = pytest.importorskip("litdata", reason="litdata is not installed: see the extra shards")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("files"), 14, 5)


@pytest.fixture(scope="module")
def shards(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("written") / "shards"
    before = multiprocessing.get_start_method(allow_none=True)
    write_shards(source, str(target), chunk_bytes=3000, workers=2)
    assert multiprocessing.get_start_method(allow_none=True) == before
    assert len([*(target / "train").glob("*.bin")]) > 3
    return target


def same(ours: Any, theirs: Any) -> bool:
    pairs = [*zip(ours, theirs, strict=True)]
    return bool(pairs) and all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_are_those_of_the_files_bit_for_bit(workers: int, source: Path, shards: Path) -> None:
    files, ours = ready(ImageNetDataModule, source), ready(ShardsDataModule, shards, workers=workers)
    assert (ours.class_names, ours.train_size, ours.test_size) == (files.class_names, files.train_size, 5)
    assert same(ours.train_dataloader(), files.train_dataloader())
    assert same(ours.val_dataloader(), files.val_dataloader())
    assert same(ours.test_dataloader(), files.test_dataloader())


def test_a_resume_within_the_epoch_goes_on_with_the_next_batch(shards: Path) -> None:
    batches = list(ready(ShardsDataModule, shards).train_dataloader())
    begun, rest = (ready(ShardsDataModule, shards, workers=workers).train_dataloader() for workers in (2, 0))
    list(islice(begun, 2))
    rest.load_state_dict(begun.state_dict())
    assert same(rest, batches[2:])


def test_what_lies_behind_an_address_is_read_by_litdata(
    source: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # litdata takes a folder behind `local:` for object storage, and keeps copies of its shards.
    monkeypatch.setattr("litdata.utilities.dataset_utilities._LITDATA_CACHE_DIR", str(tmp_path))
    ours = ready(ShardsDataModule, f"local:{shards}")
    assert same(ours.test_dataloader(), ready(ImageNetDataModule, source).test_dataloader())
    assert [*tmp_path.rglob("chunk-*.bin")]


def test_a_run_trains_on_shards(shards: Path, tmp_path: Path) -> None:
    run = tiny_run(
        tmp_path, "data=shards", f"data.root={shards}", "data.image_size=28", "data.batch_size=4", "data.workers=0"
    )
    assert 0 <= train(run).objective <= 1


class Trap:
    """Runs where it is unpickled."""

    ran = False

    def __reduce__(self) -> Any:
        return setattr, (Trap, "ran", True)


def trap(number: int) -> Trap:
    return Trap()


def test_a_strangers_shards_run_nothing(tmp_path: Path) -> None:
    place = str(tmp_path / "shards")
    litdata.optimize(trap, [0, 1], place, chunk_size=2, num_workers=1, start_method="fork", verbose=False)
    assert isinstance(Shards(place)[0], bytes)
    assert not Trap.ran
    _ = litdata.StreamingDataset(place)[0]
    assert Trap.ran  # so the trap is one


@pytest.mark.slow
def test_what_is_not_there_or_cut_short_is_named(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Sample 0 of the shards in .*nowhere/labels cannot be read"):
        ready(ShardsDataModule, tmp_path / "nowhere")
    copied = shutil.copytree(shards, tmp_path / "copied")
    for chunk in (copied / "test").glob("*.bin"):
        chunk.write_bytes(chunk.read_bytes()[:40])
    with pytest.raises(DataError, match="copied/test"):
        list(ready(ShardsDataModule, copied).test_dataloader())
    with pytest.raises(DataError, match=r"Sample 99 of the shards"):
        Shards(str(shards / "train"))[99]


def test_what_means_nothing_here_is_refused(shards: Path) -> None:
    with pytest.raises(ConfigError, match="padding means nothing"):
        ready(ShardsDataModule, shards, padding=4)
