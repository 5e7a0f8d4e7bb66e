"""A process that fails, hangs or is told to stop ends the others in bounded time; what is saved stands."""

from __future__ import annotations

import atexit
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from lightning.pytorch.strategies import DDPStrategy

from dkel_lightning.app.tasks.train import train
from dkel_lightning.checkpoints import format
from dkel_lightning.errors import NonFiniteError
from dkel_lightning.runtime import processes
from tests.compose import tiny_run
from tests.distributed.processes import TINY, Command, Ended, fork, run_folder
from tests.modules.toy import build, train_loader, trainer
from tests.reliability.record import record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

SPAWN = ("trainer=ddp_spawn", "trainer.accelerator=cpu", "trainer.devices=2")
DDP = ("trainer=ddp_cpu",)
# 10 seconds in which the others may end by themselves, and what Python takes to end on a busy machine.
BOUND = 30.0


def fails(folder: Path, kind: str, rank: int, launch: tuple[str, ...], *more: str) -> Ended:
    fault = f"+callbacks.extra.fault={{_target_: faults.Fault, kind: {kind}, rank: {rank}, step: 14}}"
    return Command(folder, *launch, *TINY, "modules=[faults]", fault, *more).wait()


CASES = [
    # kind, rank, launch, what the one message says
    ("kill", 1, DDP, "Process 1 was ended by SIGKILL, as the system does when memory runs out: lower data.batch_size"),
    ("raise", 1, SPAWN, "ValueError: this goes wrong"),
    ("no_number", 1, DDP, "became NaN or infinite"),
    ("memory", 1, DDP, "In process 1: Out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.): lower data."),
    ("memory", 0, DDP, "Out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.): lower data.batch_size"),
    ("raise", 1, DDP, "Process 1 failed (exit code 1); what it says stands above."),
    ("hang", 1, DDP, "Another process has not answered within trainer.process_timeout"),
    ("no_number", 0, SPAWN, "became NaN or infinite"),
    (
        "kill",
        1,
        SPAWN,
        "Process 1 was ended by SIGKILL, as the system does when memory runs out: lower data.batch_size",
    ),
    ("hang", 1, SPAWN, "Another process has not answered within trainer.process_timeout"),
]


@pytest.mark.parametrize(
    ("kind", "rank", "launch", "message"),
    [pytest.param(*case, marks=[pytest.mark.long] if n > 1 else []) for n, case in enumerate(CASES)],
    ids=[f"{case[0]} in process {case[1]}, {case[2][0]}" for case in CASES],
)
def test_a_process_that_fails_ends_the_others_with_one_message(
    kind: str, rank: int, launch: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    # The others notice a hanging process by the time alone, in which the processes must find each other, too.
    minutes = 0.75 if kind == "hang" else 5
    waits = 60 * minutes if kind == "hang" else 0
    ended = fails(tmp_path, kind, rank, launch, f"trainer.process_timeout={minutes}")
    assert ended.code == 1, ended.text
    assert len(ended.errors) == 1, ended.text
    assert message in ended.text
    assert ("Traceback" in ended.text) is (kind == "raise"), ended.text
    # The process says how to go on that ends last, and only it.
    assert ended.text.count("Go on with") == (kind != "no_number" and (kind, launch) != ("raise", SPAWN))
    last = run_folder(tmp_path) / "checkpoints" / "last.ckpt"
    assert format.load(last)["global_step"] == 12
    assert ("Go on with" not in ended.text) or f"Go on with: python -m dkel_lightning resume={last}" in ended.text
    assert ended.seconds is not None
    record(f"processes_{launch[0].split('=')[1]}_{kind}_{rank}", seconds=round(ended.seconds, 1), bound=BOUND + waits)
    assert ended.seconds < BOUND + waits


def test_a_loss_that_is_no_number_in_one_process_stops_both_at_the_same_step(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", "trainer=ddp_cpu", "method.peers=2", "data.batch_size=8", "teacher.init_steps=0")
    fault = {"_target_": "tests.distributed.faults.Fault", "kind": "no_number", "rank": 1, "step": 4}
    values = {**run.values, "callbacks": {**run.values["callbacks"], "extra": {"fault": fault}}}

    def work(rank: int) -> None:
        os.chdir(tmp_path)
        try:
            train(replace(run, values=values))
        except NonFiniteError as error:
            (tmp_path / f"said{rank}").write_text(str(error))

    assert fork(2, work) == [0, 0]
    said = [(tmp_path / f"said{rank}").read_text() for rank in (0, 1)]
    assert ["became NaN or infinite" in each and "(step 4, epoch 2)" in each for each in said] == [True, True], said
    assert format.load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 3


@pytest.mark.long
def test_a_main_process_that_is_killed_takes_the_others_along(tmp_path: Path) -> None:
    ended = fails(tmp_path, "kill", 0, DDP)  # `wait` sees to it that none is left
    assert ended.code == -signal.SIGKILL
    assert format.load(run_folder(tmp_path) / "checkpoints" / "last.ckpt")["global_step"] == 12


@pytest.mark.parametrize(
    ("launch", "number", "group"),
    [
        pytest.param(DDP, signal.SIGTERM, False, id="to the main process alone"),
        pytest.param(DDP, signal.SIGINT, True, id="to all", marks=pytest.mark.long),
        pytest.param(SPAWN, signal.SIGTERM, False, id="to the parent alone, spawned", marks=pytest.mark.long),
        pytest.param(SPAWN, signal.SIGINT, True, id="to all, spawned", marks=pytest.mark.long),
    ],
)
def test_a_signal_saves_once_and_ends_all_processes(
    launch: tuple[str, ...], number: signal.Signals, group: bool, tmp_path: Path
) -> None:
    slow = "+callbacks.extra.slow={_target_: faults.Slow}"
    command = Command(tmp_path, *launch, *TINY, "modules=[faults]", slow, "trainer.limit_train_batches=60")
    command.until("epoch 1/2")
    (os.killpg if group else os.kill)(command.process.pid, number)
    ended = command.wait()
    # The processes agree on the end; which of them has seen which signal is not told.
    assert ended.code in (128 + number, 128 + signal.SIGTERM), ended.text
    assert ended.text.count("and saved. Go on with: python -m dkel_lightning resume=") == 1, ended.text
    assert "Error" not in ended.text
    assert "Traceback" not in ended.text
    step = format.load(run_folder(tmp_path) / "checkpoints" / "last.ckpt")["global_step"]
    assert 60 < step <= 120
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
