"""Settings of the whole process: freed memory that stays with it, and its threads."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dkel_lightning.app import tasks
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.runtime import memory, processors
from tests.compose import compose

GLIBC = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc",
    reason="only the GNU C library on Linux has these settings",
)

ROUNDS = """
import resource, torch
from dkel_lightning.runtime import memory

kept = memory.keep_freed() if {keep} else None
faults = []
for _ in range(32):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step = [torch.ones(megabytes, 2**18) for megabytes in (1, 4, 20, 50, 100)]
    del step
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
# The first rounds find places for blocks of every size.
print(kept, max(faults[24:]), min(faults[24:]))
"""


def rounds(*, keep: bool) -> tuple[str, int, int]:
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS.format(keep=keep)], capture_output=True, text=True, check=True, timeout=120
    )
    kept, most, least = done.stdout.split()
    return kept, int(most), int(least)


@pytest.mark.slow
@GLIBC
def test_tensors_of_a_step_take_the_pages_that_those_of_the_last_one_have_freed() -> None:
    # Blocks below and above the 32 MiB from which glibc would always ask the system.
    kept, most, _ = rounds(keep=True)
    assert kept == "True"
    assert most < 100
    # 175 MiB in pages of at most 2 MiB: without it, every round pays for them.
    assert rounds(keep=False)[2] > most


def test_another_system_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.keep_freed() is False


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    calls: list[bool] = []

    def keep_freed() -> bool:
        calls.append(True)
        return False

    monkeypatch.setattr(memory, "keep_freed", keep_freed)
    for name in ("LD_PRELOAD", "GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.mark.parametrize(
    ("setting", "device", "variable", "wanted"),
    [
        ("auto", "cpu", None, True),
        ("auto", "cuda", None, False),
        ("auto", "cpu", "LD_PRELOAD", False),
        ("auto", "cpu", "GLIBC_TUNABLES", False),
        ("auto", "cpu", "MALLOC_TRIM_THRESHOLD_", False),
        (True, "cuda", "LD_PRELOAD", True),
        (False, "cpu", None, False),
    ],
)
def test_auto_is_for_the_processor_and_gives_way_to_an_allocator_of_the_users(
    setting: Any,
    device: str,
    variable: str | None,
    wanted: bool,
    asked: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if variable is not None:
        monkeypatch.setenv(variable, "x")
    memory.keep_freed_as_asked(setting, torch.device(device))
    assert bool(asked) is wanted
    # Who has asked for it is told that it is not possible.
    assert ("has no effect here" in capsys.readouterr().out) is (setting is True)


class TrainedError(Exception):
    """Raised in the place of a training."""


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(run: Run) -> None:
        raise TrainedError

    monkeypatch.setattr("dkel_lightning.app.tasks.train.train", train)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("setting", "calls"), [("auto", 1), ("false", 0)])
def test_a_task_that_computes_follows_the_setting(setting: str, calls: int, asked: list[bool], tmp_path: Path) -> None:
    values = compose(f"execution.keep_memory={setting}", "trainer=cpu")
    with pytest.raises(TrainedError):
        tasks.run(Run(values, tmp_path))
    assert len(asked) == calls


@pytest.mark.usefixtures("no_training", "asked")
@pytest.mark.parametrize("there", [1, 4])
def test_more_threads_than_processors_are_pointed_out(
    there: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processors, "allowed", lambda: there)
    before = torch.get_num_threads()
    with pytest.raises(TrainedError):
        tasks.run(Run(compose("execution.threads=2", "trainer=cpu"), tmp_path))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    said = "execution.threads=2: processors here: 1. More threads wait for each other."
    assert (said in capsys.readouterr().out) is (there == 1)


HOLES = """
from pathlib import Path

import torch
from dkel_lightning.runtime import memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20

{keep}
blocks = [torch.ones(4, 2**18) for _ in range(40)]
between = [torch.ones(2**10) for _ in range(40)]
last = torch.ones(4, 2**18)
del blocks
kept = resident()
memory.give_back()
print(kept - resident())
"""


@GLIBC
@pytest.mark.parametrize(("keep", "least", "most"), [("memory.keep_freed()", 120, 170), ("", -5, 5)])
def test_what_is_free_between_other_things_is_given_back_where_it_would_be_kept(
    keep: str, least: int, most: int
) -> None:
    code = HOLES.format(keep=keep)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert least <= int(done.stdout) <= most
