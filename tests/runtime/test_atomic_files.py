"""A folder that is worked in keeps what is written together: no link leads out, nothing half-written stays."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from filelock import lock_descriptor

from dkel_lightning.errors import DkelError
from dkel_lightning.runtime import atomic_files, locks
from dkel_lightning.runtime.atomic_files import write_text

fork = multiprocessing.get_context("fork")


def test_what_a_killed_process_left_half_written_is_removed_wherever_it_lies(tmp_path: Path) -> None:
    half = [tmp_path / name for name in (".metrics.csv.x1.part", "figures/.curves.png.x2.part")]
    kept = [tmp_path / name for name in ("seed_0/.claimed", "seed_0/.last.ckpt.x3.part", "data/c.zip.part", "a.part")]
    for path in (*half, *kept):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with locks.held(tmp_path, ".lock"):
        assert not any(path.exists() for path in half)
        assert all(path.exists() for path in kept)  # of a run of its own, of a download, of a user


@pytest.mark.parametrize(
    "name", ["figures", "mlflow.db", "tensorboard/events", "wandb", "x/wandb/link", "seed_0/figures"]
)
def test_a_link_that_leads_out_of_the_folder_is_refused_and_nothing_written_through_it(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    path = tmp_path / "theirs" / name
    path.parent.mkdir(parents=True)
    (path.parent / ".claimed").touch()
    path.symlink_to(tmp_path / "mine")
    with (
        pytest.raises(DkelError, match=f"theirs/{name} is a link to {tmp_path}/mine: .* Remove it"),
        locks.held(tmp_path / "theirs", ".lock"),
    ):
        pass
    assert [*(tmp_path / "mine").iterdir()] == []


def test_links_within_the_folder_those_of_wandb_and_one_to_the_folder_stay(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "wandb" / "run-1").mkdir(parents=True)
    (run / "wandb" / "latest-run").symlink_to("run-1")
    (run / "wandb" / "run-1" / "debug-core.log").symlink_to(tmp_path / "cache" / "core.log")
    (run / "best").symlink_to("checkpoints/best.ckpt")
    (tmp_path / "latest").symlink_to("run")
    with locks.held(tmp_path / "latest", ".lock"):
        write_text(tmp_path / "latest" / "figures" / "a.txt", "a")
    assert (run / "figures" / "a.txt").read_text() == "a"


def test_a_folder_that_is_moved_while_it_is_worked_in_is_not_made_anew(tmp_path: Path) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    with locks.held(run, ".lock"):
        run.rename(moved)
        for path in (run / "metrics.csv", run / "figures" / "curves.png"):
            with pytest.raises(DkelError, match=f"{run} has gone: it was moved or removed during the run"):
                write_text(path, "text")
        assert not run.exists()
        write_text(moved / "figures" / "text", "text")
    write_text(run / "text", "text")  # another one, later


def written_elsewhere(path: Path, holds: Event) -> None:
    with atomic_files.written_whole(path) as file:
        file.write(b"half")
        file.flush()
        holds.set()
        signal.pause()


def test_what_a_killed_process_left_of_a_file_goes_with_the_next_one_and_a_living_ones_stays(tmp_path: Path) -> None:
    path, other = tmp_path / "evaluation.json", tmp_path / ".other.json.x.part"
    other.touch()
    holds = fork.Event()
    child = fork.Process(target=written_elsewhere, args=(path, holds))
    child.start()
    assert holds.wait(30)
    (half,) = tmp_path.glob(".evaluation.json.*.part")
    write_text(path, "mine")
    assert half.exists()
    child.kill()
    child.join(30)
    assert half.exists()
    write_text(path, "whole")
    assert sorted(tmp_path.iterdir()) == [other, path]
    assert path.read_text() == "whole"


def test_a_file_that_is_taken_for_an_abandoned_one_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, late = tmp_path / "file", [1, 2]

    def removed_before(file: int, *, blocking: bool) -> bool:
        if late:
            late.pop()
            next(tmp_path.glob(".file.*")).unlink()
        return lock_descriptor(file, blocking=blocking)

    monkeypatch.setattr("dkel_lightning.runtime.atomic_files.lock_descriptor", removed_before)
    write_text(path, "whole")
    assert (path.read_text(), [*tmp_path.iterdir()]) == ("whole", [path])


def test_files_are_as_readable_as_the_users_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
