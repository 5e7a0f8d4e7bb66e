"""A process ends with the one that started it, and leaves it to the first one to report what all have met."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dkel_lightning.runtime import parents

MARK = "hydra.job.name=train_ddp_process_1"


def in_child(folder: Path, work: Callable[[], None], parent_lives: float) -> str:
    """Run `work` in a process whose parent lives so long; return what ended it, "" if nothing could be said."""
    context = multiprocessing.get_context("fork")

    def child() -> None:
        started, said = time.monotonic(), "nothing"
        (folder / "pid").write_text(str(os.getpid()))
        try:
            work()
        except BaseException as error:
            said = f"{type(error).__name__} {'at once' if time.monotonic() - started < 0.2 else 'later'}"
        (folder / "said").write_text(said)

    def parent() -> None:
        context.Process(target=child).start()
        time.sleep(parent_lives)
        os._exit(0)

    process = context.Process(target=parent)
    process.start()
    process.join(20)
    deadline = time.monotonic() + 20
    pid = int((folder / "pid").read_text())
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
    said = folder / "said"
    return said.read_text() if said.is_file() else ""


def started_by(
    monkeypatch: pytest.MonkeyPatch, launcher: str, rank: int, grace: float = 100, patience: float = 100
) -> None:
    monkeypatch.setattr(parents, "GRACE", grace)
    monkeypatch.setattr(parents, "PATIENCE", patience)
    monkeypatch.setattr(parents, "PAUSE", 0.02)
    monkeypatch.setattr(sys, "argv", ["dkel", MARK] if launcher == "lightning" else ["dkel"])
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    if launcher == "torchrun":
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")


def fail(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        with parents.one_of_several():
            raise error

    return work


def hang() -> None:
    with parents.one_of_several():
        time.sleep(100)


@pytest.mark.parametrize(("launcher", "rank"), [("lightning", 1), ("torchrun", 0), ("torchrun", 1)])
def test_a_process_that_waits_for_what_never_comes_ends_with_its_parent(
    launcher: str, rank: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started_by(monkeypatch, launcher, rank, grace=0.1)
    assert in_child(tmp_path, hang, parent_lives=0.3) == ""


def test_a_process_that_neither_lightning_nor_torchrun_started_outlives_its_parent_and_reports_its_errors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # As one that goes on in the background when its terminal is closed.
    started_by(monkeypatch, "hand", 0, grace=0.1)

    def work() -> None:
        with parents.one_of_several():
            time.sleep(1)
            raise ValueError

    assert in_child(tmp_path, work, parent_lives=0.1) == "ValueError later"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "rank", "error", "parent_lives", "said"),
    [
        # What the first process has met as well, it reports and ends.
        ("lightning", 1, ValueError(), 0.5, "SystemExit later"),
        ("torchrun", 1, ValueError(), 0.5, "SystemExit later"),
        # What it has not met
        ("lightning", 1, ValueError(), 3, "ValueError later"),
        ("torchrun", 1, ValueError(), 3, "ValueError later"),
        ("torchrun", 0, ValueError(), 3, "ValueError at once"),
        # Lightning takes a child that was asked to stop, and ends before the first process, for one that has failed.
        ("lightning", 1, SystemExit(143), 0.5, "SystemExit later"),
        ("torchrun", 1, SystemExit(143), 3, "SystemExit at once"),
    ],
)
def test_only_the_first_process_reports_what_all_have_met(
    launcher: str,
    rank: int,
    error: BaseException,
    parent_lives: float,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    started_by(monkeypatch, launcher, rank, patience=1)
    assert in_child(tmp_path, fail(error), parent_lives) == said
