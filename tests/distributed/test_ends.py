"""A process that fails, hangs or is told to stop ends the others in bounded time; what is saved stands."""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from lightning.pytorch.strategies import DDPStrategy

from dkel_lightning.app.tasks.train import train
from dkel_lightning.checkpoints import file_format
from dkel_lightning.errors import NonFiniteError
from dkel_lightning.runtime import processes
from tests.compose import tiny_run, with_callback
from tests.distributed.processes import TINY, Command, fork, run_folder
from tests.modules.toy import build, train_loader, trainer
from tests.reliability.record import record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

DDP = "lightning"
TORCHRUN = "torchrun"
# Lightning's observer looks every 5 seconds; torchrun's agent all the time, and kills after 30 what ignores SIGTERM.
# Before that a process waits 10 seconds for the first one to speak; on a busy machine Python takes a while to end.
BOUND = {DDP: 45.0, TORCHRUN: 75.0}


def started(folder: Path, launcher: str, *more: str) -> Command:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    settings = ("trainer=ddp_cpu", *TINY, "modules=[faults]", *more)
    return Command(folder, *settings, launcher=torchrun if launcher == TORCHRUN else ())


def fault(kind: str, rank: int) -> str:
    return f"+callbacks.extra.fault={{_target_: faults.Fault, kind: {kind}, rank: {rank}, step: 14}}"


OOM = r"Out of memory \(CUDA out of memory\. Tried to allocate 2\.00 GiB\.\): lower data\.batch_size"
LATE = "Another process has not answered within trainer.process_timeout"
LOST = r"Another process of this training has ended\. If it does not say why, it was killed"
CASES = [
    # kind, rank, launcher, what is printed of the cause
    ("kill", 1, DDP, rf"^Error: {LOST}|\[rank: 1\] Child process .* terminated with code -9"),
    ("raise", 1, TORCHRUN, r"^\[rank1\]: ValueError: this goes wrong"),
    ("raise", 1, DDP, r"^\[rank1\]: ValueError: this goes wrong"),
    ("memory", 1, DDP, rf"^Error in process 1: {OOM}"),
    ("memory", 0, DDP, rf"^Error: {OOM}"),
    ("no_number", 1, DDP, r"^Error: .*became NaN or infinite"),
    ("hang", 1, DDP, rf"^Error: {LATE}"),
    ("hang", 0, DDP, rf"^Error in process 1: {LATE}"),
    ("kill", 1, TORCHRUN, r"Signal 9 \(SIGKILL\) received by PID"),
    ("no_number", 1, TORCHRUN, r"^Error: .*became NaN or infinite"),
    ("hang", 1, TORCHRUN, rf"^Error: {LATE}"),
]


@pytest.mark.parametrize(
    ("kind", "rank", "launcher", "cause"),
    [pytest.param(*case, marks=[pytest.mark.long] if n else []) for n, case in enumerate(CASES)],
    ids=[f"{case[0]} in process {case[1]}, {case[2]}" for case in CASES],
)
def test_a_process_that_fails_ends_the_others_and_its_cause_is_printed_once(
    kind: str, rank: int, launcher: str, cause: str, tmp_path: Path
) -> None:
    # The others notice a hanging process by the time alone, in which the processes must find each other, too.
    minutes = 0.75 if kind == "hang" else 5
    bound = BOUND[launcher] + (60 * minutes if kind == "hang" else 0)
    ended = started(tmp_path, launcher, fault(kind, rank), f"trainer.process_timeout={minutes}").wait()
    assert ended.code in ((1, -signal.SIGKILL) if launcher == DDP else (1,)), ended.text
    said = re.findall(cause, ended.text, re.MULTILINE)  # of a kill both the observer and the first process may tell
    assert len(said) == len({*said}) > 0, ended.text
    # Besides the cause only the first process says that it has lost another one.
    others = [line for line in ended.errors if re.search(cause, line) is None]
    assert [re.match(f"Error: {LOST}", line) is not None for line in others] in ([], [True]), ended.text
    last = run_folder(tmp_path) / "checkpoints" / "last.ckpt"
    assert file_format.load(last)["global_step"] == 12
    assert kind not in ("memory", "hang") or f"Go on with: dkel resume={last}" in ended.text
    assert ended.seconds is not None
    record(f"processes_{launcher}_{kind}_{rank}", seconds=round(ended.seconds, 1), bound=bound)
    assert ended.seconds < bound


def test_a_loss_that_is_no_number_in_one_process_stops_both_at_the_same_step(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", "trainer=ddp_cpu", "method.peers=2", "data.batch_size=8", "teacher.init_steps=0")
    run = with_callback(run, "tests.distributed.faults.Fault", kind="no_number", rank=1, step=4)

    def work(rank: int) -> None:
        os.chdir(tmp_path)
        try:
            train(run)
        except NonFiniteError as error:
            (tmp_path / f"said{rank}").write_text(str(error))

    assert fork(2, work) == [0, 0]
    said = [(tmp_path / f"said{rank}").read_text() for rank in (0, 1)]
    assert ["became NaN or infinite" in each and "(step 4, epoch 2)" in each for each in said] == [True, True], said
    assert file_format.load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 3


@pytest.mark.long
@pytest.mark.parametrize("launcher", [DDP, TORCHRUN])
def test_whoever_started_the_processes_is_killed_and_takes_also_a_hanging_one_along(
    launcher: str, tmp_path: Path
) -> None:
    command = started(tmp_path, launcher, fault("hang", 1))
    command.until_there("fault")
    command.process.kill()
    assert command.wait().code == -signal.SIGKILL  # it sees to it that none is left
    assert file_format.load(run_folder(tmp_path) / "checkpoints" / "last.ckpt")["global_step"] == 12


@pytest.mark.parametrize(
    ("launcher", "number", "group"),
    [
        pytest.param(DDP, signal.SIGTERM, False, id="to the main process alone"),
        pytest.param(DDP, signal.SIGINT, True, id="to all", marks=pytest.mark.long),
        pytest.param(TORCHRUN, signal.SIGTERM, False, id="to torchrun", marks=pytest.mark.long),
    ],
)
def test_a_signal_saves_once_and_ends_all_processes(
    launcher: str, number: signal.Signals, group: bool, tmp_path: Path
) -> None:
    slow = "+callbacks.extra.slow={_target_: faults.Slow}"
    command = started(tmp_path, launcher, slow, "trainer.limit_train_batches=30")
    command.until("epoch 1/2")
    (os.killpg if group else os.kill)(command.process.pid, number)
    ended = command.wait()
    # The processes agree on the end; which of them has seen which signal is not told. torchrun has a code of its own.
    assert ended.code in ((128 + number, 128 + signal.SIGTERM) if launcher == DDP else (1,)), ended.text
    assert ended.text.count("and saved. Go on with: dkel resume=") == 1, ended.text
    assert ended.errors == [], ended.text
    assert launcher == TORCHRUN or "Traceback" not in ended.text
    step = file_format.load(run_folder(tmp_path) / "checkpoints" / "last.ckpt")["global_step"]
    assert 30 < step <= 60
    assert f"after step {step}, and saved" in ended.text


@pytest.mark.parametrize("world", [1, 2])
def test_only_a_process_of_several_waits_at_its_end_for_the_threads_of_its_group(
    world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process whose gloo threads are at work when Python ends is aborted: 12 of 104 short ones.
    waits = [(time.sleep, processes.LET_GO)] if world > 1 else []

    def work(rank: int) -> None:
        called: list[object] = []
        monkeypatch.setattr(atexit, "register", lambda *call: called.append(call))
        processes._wait_at_end.cache_clear()
        for _ in range(2):
            several = {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": 2} if world > 1 else {}
            trainer(max_epochs=1, **several).fit(build(), train_loader())
        assert called == waits

    assert fork(world, work) == [0] * world
