"""Folders that are taken: one for each, or one for each owner."""

from __future__ import annotations

from pathlib import Path

import pytest

from dkel_lightning.app.runs.claim import claim, release


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
