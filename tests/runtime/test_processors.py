"""Processors that may be used, and how threads wait: chosen for the user, and never against what the user chose."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dkel_lightning.app.cli import main
from dkel_lightning.runtime import processors


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*processors.WAITING, *processors.THREADS):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


def of_groups(folder: Path, monkeypatch: pytest.MonkeyPatch, own: str, **quotas: str) -> None:
    """Let the control groups of a machine with 64 processors stand in a folder."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    (folder / "cgroup").write_text(f"12:cpu:/old\n0::/{own}\n")
    (folder / own).mkdir(parents=True, exist_ok=True)
    for group, text in quotas.items():
        (folder / group.replace("__", "/") / "cpu.max").write_text(text)
    monkeypatch.setattr(processors, "GROUP", folder / "cgroup")
    monkeypatch.setattr(processors, "GROUPS", folder)


@pytest.mark.parametrize(
    ("quotas", "count"),
    [
        ({}, 64),
        ({"a__b": "max 100000\n"}, 64),
        ({"a__b": "150000 100000\n"}, 2),
        ({"a__b": "max 100000\n", "a": "400000 100000\n"}, 4),
        ({"a__b": "1000 100000\n"}, 1),
        ({"a": "no quota\n"}, 64),
    ],
)
def test_the_quota_of_a_container_is_known(
    quotas: dict[str, str], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_groups(tmp_path, monkeypatch, "a/b", **quotas)
    assert processors.allowed() == count
    assert processors.sensible_threads(32) == (None if count == 64 else count)
    assert processors.sensible_threads(1) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "32")
    assert processors.sensible_threads(32) is None


def test_without_control_groups_the_processors_are_those_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processors, "GROUP", tmp_path / "none")
    monkeypatch.setattr(processors, "GROUPS", tmp_path)
    assert 1 <= processors.allowed() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("chosen", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"KMP_BLOCKTIME": "200"}])
def test_the_command_line_waits_passively_unless_the_user_has_chosen(
    chosen: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["dkel", "seed=x"])
    with pytest.raises(SystemExit):
        main.main()
    assert os.environ.get("OMP_WAIT_POLICY") == chosen.get("OMP_WAIT_POLICY", None if chosen else "PASSIVE")
