"""Folders that are taken: one for each, or one for each owner."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from dkel_lightning.app.runs.claim import begin, claim, release
from tests.pipes import not_waited_for, piped

fork = multiprocessing.get_context("fork")


def test_a_folder_that_is_claimed_is_stepped_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = [claim(Path("outputs/sweep")) for _ in range(3)]
    assert found == [Path("outputs/sweep"), Path("outputs/sweep_1"), Path("outputs/sweep_2")]
    assert [claim(Path()) for _ in range(2)] == [tmp_path, tmp_path.with_name(f"{tmp_path.name}_1")]


def test_the_same_owner_gets_the_same_folder_again(tmp_path: Path) -> None:
    folder = tmp_path / "it"
    assert [claim(folder, owner) for owner in ("a", "b", "a", "b")] == [folder, tmp_path / "it_1"] * 2
    assert claim(folder) == tmp_path / "it_2"
    assert claim(folder, "a") == folder


def test_what_somebody_wrote_without_a_claim_is_no_owners(tmp_path: Path) -> None:
    folder = tmp_path / "it"
    folder.mkdir()
    (folder / "evaluation.json").touch()
    assert claim(folder, "a") == tmp_path / "it_1"
    assert claim(folder) == folder  # of a run, which was sent there


def test_only_a_folder_without_anything_in_it_is_given_back(tmp_path: Path) -> None:
    empty, written = claim(tmp_path / "empty"), claim(tmp_path / "written")
    (written / "metrics.csv").touch()
    release(empty)
    release(written)
    release(tmp_path / "gone")
    assert [path.name for path in tmp_path.iterdir()] == ["written"]
    assert (written / ".claimed").is_file()


def test_a_pipe_in_the_place_of_a_claim_is_another_owners(tmp_path: Path) -> None:
    folder = tmp_path / "it"
    folder.mkdir()
    piped(folder / ".claimed")
    with not_waited_for():
        assert claim(folder, "a") == tmp_path / "it_1"


def begin_at_once(folder: Path, number: int, together: Barrier) -> None:
    together.wait(30)
    found = begin(folder, f"number: {number}\n")
    (found / "mine").write_text(str(number))


@pytest.mark.parametrize("links", [True, False], ids=["links", "a file system without links"])
def test_of_processes_that_begin_in_one_folder_at_once_each_gets_its_own_with_its_configuration(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refused)
    together = fork.Barrier(6)
    children = [fork.Process(target=begin_at_once, args=(tmp_path / "job", i, together)) for i in range(6)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    found = sorted(tmp_path.iterdir())
    assert [path.name for path in found] == ["job", *(f"job_{count}" for count in range(1, 6))]
    for folder in found:
        assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "mine"]
        assert (folder / "config.yaml").read_text() == f"number: {(folder / 'mine').read_text()}\n"


def killed_while_renaming(folder: Path) -> None:
    def ends(*_: object) -> None:
        os._exit(9)

    Path.rename = ends  # type: ignore[assignment]
    begin(folder, "a: 1\n")


def test_a_configuration_is_whole_or_not_there_also_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    child = fork.Process(target=killed_while_renaming, args=(tmp_path / "job",))
    child.start()
    child.join(60)
    assert child.exitcode == 9
    assert not (tmp_path / "job" / "config.yaml").exists()
    assert begin(tmp_path / "job", "a: 2\n") == tmp_path / "job_1"
    assert (tmp_path / "job_1" / "config.yaml").read_text() == "a: 2\n"
